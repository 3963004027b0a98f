"""What every baseline shares: documents by id, the model's one thread, streams, deadlines; systems by name."""

import asyncio
import threading

import pytest
from conftest import tiny_decoder

from acre_rag import ACRE, Answer, GenerationSettings
from acre_rag.answer import Timings
from acre_rag.baselines.base import Baseline, Call, Held, Pipeline, Setting
from acre_rag.baselines.prompted import answer_from_text, middle_truncated, nothing, say, token_ids
from acre_rag.baselines.registry import SYSTEMS, make_system, system_named
from acre_rag.construct import ProgressCallback
from acre_rag.decoder import Decoder
from acre_rag.errors import CapacityError, ConfigError, DocumentError, UnavailableError
from acre_rag.generate import decode

SHORT = GenerationSettings(max_new_tokens=6)
TEXT = "The drum is in hall one. " * 8


class Echo(Baseline[int]):
    """Keeps the length, answers from the text of all documents."""

    threads: list[str]

    def read(self, text: str, progress: ProgressCallback) -> int:
        self.threads = [*getattr(self, "threads", []), threading.current_thread().name]
        progress(len(text), len(text))
        return len(text)

    def answer(self, question: str, documents: list[Held[int]], call: Call) -> Answer:
        self.threads.append(threading.current_thread().name)
        text = "\n".join(document.text for document in documents)
        said = answer_from_text(self.decoder, self.prompt, text, question, call, window=self.setting.most_tokens)
        times = Timings(sum(d.construct_s for d in documents), 0, 0, said.generated.first_token_s, 0)
        return Answer(said.generated.text, (), said.usage, times)


@pytest.fixture
def echo() -> Echo:
    return Echo(Setting(decoder=tiny_decoder(), window=512))


def test_documents_come_and_go(echo: Echo) -> None:
    seen: list[tuple[int, int]] = []
    held = echo.add(TEXT, id="a", progress=lambda done, total: seen.append((done, total)))
    assert echo.add(TEXT, id="a") is held and held.state == len(TEXT) and seen == [(len(TEXT), len(TEXT))]
    assert list(echo.documents) == ["a"] and held.construct_s > 0
    with pytest.raises(DocumentError, match="another text"):
        echo.add("something else", id="a")
    with pytest.raises(DocumentError, match="empty"):
        echo.add(" \n ")
    with pytest.raises(DocumentError, match="No document named 'b'; there are: a"):
        echo.ask("Where?", "b")
    echo.remove("a")
    with pytest.raises(DocumentError, match="add one first"):
        echo.ask("Where?")


def test_its_work_runs_on_the_models_one_thread(echo: Echo) -> None:
    echo.add(TEXT, id="a")
    echo.ask("Where?", settings=SHORT)
    assert echo.threads == ["acre-model", "acre-model"]


def test_thread_loop_and_stream_say_the_same(echo: Echo) -> None:
    echo.add(TEXT, id="a")
    answer = echo.ask("Where is the drum?", settings=SHORT)
    *pieces, last = echo.stream("Where is the drum?", settings=SHORT)
    assert answer.text == last.text == asyncio.run(echo.aask("Where is the drum?", settings=SHORT)).text
    assert "".join(map(str, pieces)).strip() == answer.text
    assert answer.usage.generated_tokens <= 6


def test_an_abandoned_stream_stops_the_model(echo: Echo) -> None:
    echo.add(TEXT, id="a")
    stream = echo.stream("Where?", settings=GenerationSettings(max_new_tokens=200))
    next(stream)
    stream.close()
    assert echo.ask("Where?", settings=SHORT).text is not None
    assert echo.decoder.worker.n_waiting == 0


def test_text_read_anew_equals_the_whole_prompt_at_once(tiny: Decoder, echo: Echo) -> None:
    said = answer_from_text(tiny, echo.prompt, TEXT, "Where?", Call(SHORT), window=512)
    whole = echo.prompt.prefix + TEXT + echo.prompt.ask("Where?")[0]
    [expected] = decode(tiny, [nothing(tiny)], [token_ids(tiny, whole)], SHORT)
    assert (said.generated.text, said.left_out) == (expected.text, 0)
    assert say(tiny, token_ids(tiny, whole), Call(SHORT)).text == expected.text


def test_a_long_text_loses_its_middle_and_says_how_much(tiny: Decoder, echo: Echo) -> None:
    said = answer_from_text(tiny, echo.prompt, "x" * 5000, "Where?", Call(SHORT), window=512)
    assert said.usage.prompt_tokens == 512 - 6
    assert 5000 - said.left_out + len(token_ids(tiny, echo.prompt.prefix + echo.prompt.ask("Where?")[0])) == 506
    with pytest.raises(CapacityError, match="fill window=128"):
        answer_from_text(tiny, echo.prompt, "x", "Where? " * 40, Call(SHORT), window=128)


def test_control_tokens_in_a_text_read_anew_are_words(tiny: Decoder, echo: Echo) -> None:
    sly, harmless = (
        answer_from_text(tiny, echo.prompt, text, question, Call(SHORT), window=512).usage.prompt_tokens
        for text, question in [("a</s>b", "<s>?"), ("abcdef", "who?")]
    )
    assert sly == harmless


@pytest.mark.parametrize(("room", "kept"), [(10, "0123456789"), (4, "0189"), (5, "01289"), (1, "0")])
def test_truncation_keeps_both_ends(tiny: Decoder, room: int, kept: str) -> None:
    ids = token_ids(tiny, "0123456789")
    assert tiny.tokenizer.decode(middle_truncated(ids, room)) == kept


def test_a_window_beyond_the_model_is_refused(tiny: Decoder) -> None:
    with pytest.raises(ConfigError, match="at most the 1,024 tokens"):
        Setting(decoder=tiny, window=4096)


def test_systems_are_found_by_name(tiny: Decoder) -> None:
    setting = Setting(decoder=tiny, window=512)
    hybrid: Pipeline = make_system("acre-hybrid", setting, interval=8, stride=64)
    assert isinstance(hybrid, ACRE) and hybrid.config.select == "hybrid" and hybrid.window == 512
    with pytest.raises(ConfigError, match="No system is called 'best'"):
        make_system("best", setting)
    with pytest.raises(UnavailableError, match="name one with --adapter"):
        make_system("acre-learned", setting)
    assert all(name == system_named(name).name and system_named(name).about for name in SYSTEMS)


@pytest.mark.parametrize("system", [name for name in SYSTEMS if name != "minference"])
def test_an_unknown_option_is_refused_with_those_that_there_are(tiny: Decoder, system: str) -> None:
    known = {"acre": "interval", "retrieval": "hits", "kv": "budget" if "beacon" in system else "reserve_tokens"}
    match = rf"{system} has no option 'elephants'. It has: .*{known[SYSTEMS[system].family]}"
    with pytest.raises(ConfigError, match=match):
        make_system(system, Setting(decoder=tiny, window=512), elephants=2)
    with pytest.raises(ConfigError, match="has no option 'window'"):
        make_system(system, Setting(decoder=tiny, window=512), window=256)


def test_an_adapter_for_pooled_entries_is_refused(tiny: Decoder) -> None:
    with pytest.raises(ConfigError, match="adapter='mine.safetensors' means nothing to pooled L1"):
        make_system("acre", Setting(decoder=tiny, window=512), adapter="mine.safetensors")
    assert make_system("acre", Setting(decoder=tiny, window=512, adapter="mine.safetensors"))


def test_documents_are_those_of_the_moment(echo: Echo) -> None:
    """Another thread may add and remove while somebody goes through them."""
    echo.add(TEXT, id="a")
    before = echo.documents
    for name in before:
        echo.add(TEXT, id=f"{name}, too")
    assert list(before) == ["a"] and list(echo.documents) == ["a", "a, too"]
    with pytest.raises(TypeError):
        before["b"] = before["a"]


def test_acre_answers_through_the_same_protocol(tiny: Decoder) -> None:
    pipeline: Pipeline = make_system("acre", Setting(decoder=tiny, window=512), interval=8, stride=64)
    pipeline.add(TEXT, id="a")
    *_, streamed = pipeline.stream("Where?", "a", settings=SHORT)
    assert streamed.text == pipeline.ask("Where?", "a", settings=SHORT).text
    pipeline.remove("a")
    assert not pipeline.documents


@pytest.mark.parametrize("system", ["bm25", "full"])
def test_a_stream_knows_its_sources(tiny: Decoder, system: str) -> None:
    pipeline = make_system(system, Setting(decoder=tiny, window=512))
    pipeline.add(TEXT, id="a")
    stream = pipeline.stream("Where is the drum?", settings=SHORT)
    sources = stream.sources
    *_, answer = stream
    assert sources == answer.sources and bool(sources) == (system == "bm25")


def test_two_callers_cannot_give_one_name_two_texts() -> None:
    system = make_system("bm25", Setting(decoder=tiny_decoder(), window=512))
    ready, said = threading.Barrier(2), []

    def add(text: str) -> None:
        ready.wait()
        try:
            said.append(system.add(text, "contract").text)
        except DocumentError as error:
            said.append(error)

    for number in range(10):
        threads = [threading.Thread(target=add, args=(f"The {word} pays {number}.",)) for word in ("buyer", "seller")]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        kept = [each for each in said if isinstance(each, str)]
        assert len(said) == 2 and len(kept) == 1 and system.documents["contract"].text == kept[0]
        system.remove("contract")
        said.clear()
