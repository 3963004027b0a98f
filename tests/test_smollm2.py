"""The built-in model on a real book: it finds things, streams, stops, and speaks of the whole."""

import pytest

from acre_rag import ACRE, ACREConfig, Answer, GenerationSettings
from acre_rag.decoder import Decoder

pytestmark = pytest.mark.model

CONFIG = ACREConfig(window=2048, stride=512, passage_tokens=300)
TABLE = "What did Alice find on the three-legged table made of solid glass?"


@pytest.fixture(scope="module")
def acre(smollm2: Decoder, alice: str) -> ACRE:
    """Three chapters: more than the window holds at full resolution."""
    acre = ACRE(smollm2, config=CONFIG)
    acre.add(alice[:32_000], id="alice")
    return acre


def test_the_book_is_longer_than_the_window(acre: ACRE) -> None:
    assert acre.documents["alice"].n_tokens > 3 * acre.window


EVIDENCE = {
    TABLE: "golden key",
    "What was written on the paper label round the neck of the bottle?": "DRINK ME",
    "What words were beautifully marked in currants on the very small cake?": "EAT ME",
    "What is the name of Alice's cat?": "Dinah",
    "What race does the Dodo propose to get everybody dry?": "Caucus-race",
}


@pytest.mark.parametrize(("select", "at_least"), [("consensus", 5), ("hybrid", 4)])
def test_sources_hold_the_answer(acre: ACRE, select: str, at_least: int) -> None:
    """Of five questions; hybrid ranks the cat's passage third, where two are refilled."""
    asking = acre.using(select=select)
    found = 0
    for question, evidence in EVIDENCE.items():
        prepared = asking.prepare(question)
        assert prepared.selection.scope == "passages"
        found += any(evidence in source.text for source in prepared.sources)
    assert found >= at_least


def test_the_answer_is_right(acre: ACRE) -> None:
    answer = acre.ask(TABLE, settings=GenerationSettings(max_new_tokens=32))
    assert "key" in answer.text
    assert answer.usage.cached_tokens < acre.window
    assert answer.timings.first_token_s < answer.timings.construct_s / 5


@pytest.mark.parametrize("question", ["What is this book about?", "Summarize the story."])
def test_a_question_about_the_whole_gets_the_opening_and_a_spread(acre: ACRE, question: str) -> None:
    answer = acre.ask(question, settings=GenerationSettings(max_new_tokens=32))
    assert answer.scope == "document"
    starts = sorted(source.start for source in answer.sources)
    assert starts[0] == 0 and starts[-1] > 16_000
    assert len(answer.text.split()) > 3


def test_single_blocks_for_a_question_about_the_whole_reach_the_end(acre: ACRE) -> None:
    selection = acre.using(granularity="blocks", budget=256).select("What is this book about?")
    assert selection.scope == "document"
    blocks = selection.blocks[0]
    assert blocks[0] == 0 and blocks[-1] == acre.documents["alice"].cache.n_blocks - 1
    assert len(blocks) * acre.documents["alice"].cache.interval <= 256


def test_a_stream_is_the_answer_and_closing_it_stops_the_model(acre: ACRE) -> None:
    settings = GenerationSettings(max_new_tokens=24)
    *pieces, answer = acre.stream(TABLE, settings=settings)
    assert isinstance(answer, Answer)
    assert len(pieces) > 3
    assert "".join(str(piece) for piece in pieces).strip() == answer.text == acre.ask(TABLE, settings=settings).text

    calls: list[int] = []
    handle = acre.decoder.model.register_forward_hook(lambda *_: calls.append(1))
    stream = acre.stream("Who is Alice? Tell me everything.", settings=GenerationSettings(max_new_tokens=400))
    next(stream)
    stream.close()
    handle.remove()
    assert len(calls) < 100
    assert acre.ask(TABLE, settings=settings).text == answer.text  # and the engine is free again


def test_a_stop_string_ends_the_answer_and_is_left_out(acre: ACRE) -> None:
    full = acre.ask(TABLE, settings=GenerationSettings(max_new_tokens=40)).text
    stop = " ".join(full.split()[3:5])
    settings = GenerationSettings(max_new_tokens=40, stop=(stop,))
    cut = acre.ask(TABLE, settings=settings)
    assert cut.text == full[: full.index(stop)].strip()
    assert cut.usage.generated_tokens < 15
    *pieces, answer = acre.stream(TABLE, settings=settings)
    assert "".join(str(piece) for piece in pieces).strip() == cut.text
    assert isinstance(answer, Answer) and answer.text == cut.text
