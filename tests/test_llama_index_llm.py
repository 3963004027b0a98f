"""ACRELLM keeps LlamaIndex's contract of a model: every form, options, tokens, events, and long chats from a cache."""

import asyncio
import copy
import sys
from collections.abc import Callable, Sequence
from time import sleep
from typing import Any

import pytest
from conftest import tiny_decoder
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.extractors import TitleExtractor
from llama_index.core.ingestion.pipeline import get_transformation_hash
from llama_index.core.llms import ChatMessage, TextBlock
from llama_index.core.llms.utils import resolve_llm
from llama_index.core.prompts import PromptTemplate
from llama_index.core.schema import TextNode

from acre_rag import ACRE, ACREConfig, GenerationSettings
from acre_rag.decoder import Decoder
from acre_rag.errors import AcreError, CapacityError, ConfigError, DeadlineError, MissingExtraError
from acre_rag.integrations.llama_index import ACRELLM
from acre_rag.worker import Ticket

EIGHT = GenerationSettings(max_new_tokens=8)
BOOK = "".join(f"Section {i}. The number of it is {i * 7}. " for i in range(30))
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"


@pytest.fixture
def llm(tiny_acre: ACRE) -> ACRELLM:
    return ACRELLM(tiny_acre, max_tokens=8)


@pytest.fixture
def chat_acre() -> ACRE:
    """A tiny model that has a chat format."""
    plain = tiny_decoder()
    tokenizer = copy.deepcopy(plain.tokenizer)
    tokenizer.chat_template = TEMPLATE
    decoder = Decoder(model=plain.model, tokenizer=tokenizer, name="tiny-chat")
    return ACRE(
        decoder,
        config=ACREConfig(window=512, interval=8, stride=64, passage_tokens=32, max_passages=2, select="consensus"),
    )


def user(text: str) -> ChatMessage:
    return ChatMessage(role="user", content=text)


async def gathered(stream: Any) -> list[Any]:
    return [each async for each in stream]


def busy(acre: ACRE, seconds: float) -> None:
    """Keep the model's thread at other work."""

    def wait(tickets: Sequence[Ticket]) -> list[None]:
        sleep(seconds)
        return [None for _ in tickets]

    acre.decoder.worker.submit([Ticket(wait)])


def every_completion(llm: ACRELLM, prompt: str, **options: Any) -> dict[str, list[Any]]:
    """Responses of the four forms."""

    async def later() -> tuple[Any, list[Any]]:
        return await llm.acomplete(prompt, **options), await gathered(await llm.astream_complete(prompt, **options))

    whole, pieces = asyncio.run(later())
    return {
        "complete": [llm.complete(prompt, **options)],
        "stream_complete": list(llm.stream_complete(prompt, **options)),
        "acomplete": [whole],
        "astream_complete": pieces,
    }


def every_chat(llm: ACRELLM, messages: list[ChatMessage], **options: Any) -> dict[str, list[Any]]:
    async def later() -> tuple[Any, list[Any]]:
        return await llm.achat(messages, **options), await gathered(await llm.astream_chat(messages, **options))

    whole, pieces = asyncio.run(later())
    return {
        "chat": [llm.chat(messages, **options)],
        "stream_chat": list(llm.stream_chat(messages, **options)),
        "achat": [whole],
        "astream_chat": pieces,
    }


def test_every_form_of_completion_says_what_the_engine_says(tiny_acre: ACRE, llm: ACRELLM) -> None:
    expected = tiny_acre.complete("<s>Once upon a time", settings=EIGHT).text
    for form, responses in every_completion(llm, "Once upon a time").items():
        assert responses[-1].text == expected, form


def test_every_form_of_chat_says_what_the_engine_says(chat_acre: ACRE) -> None:
    llm = ACRELLM(chat_acre, max_tokens=8)
    messages = [
        ChatMessage(role="system", content="Be kind."),
        user("Hello"),
        ChatMessage(role="assistant", content="Hi"),
        user("Bye"),
    ]
    expected = chat_acre.complete("<system>Be kind.<user>Hello<assistant>Hi<user>Bye<assistant>", settings=EIGHT).text
    for form, responses in every_chat(llm, messages).items():
        assert responses[-1].message.content == expected, form
        assert responses[-1].message.role == "assistant", form


def test_a_prompt_for_a_chat_model_becomes_one_message_unless_it_is_formatted(chat_acre: ACRE) -> None:
    llm = ACRELLM(chat_acre, max_tokens=8)
    assert llm.metadata.is_chat_model
    assert llm.complete("Hello").text == chat_acre.complete("<user>Hello<assistant>", settings=EIGHT).text
    assert llm.complete("Hello", formatted=True).text == chat_acre.complete("Hello", settings=EIGHT).text


@pytest.mark.parametrize("drops", [True, False], ids=["drops", "refuses"])
def test_a_system_message_without_a_place_in_the_chat_format_is_told_by_the_user(chat_acre: ACRE, drops: bool) -> None:
    system = "" if drops else "{{ raise_exception('System role not supported') }}"
    chat_acre.decoder.tokenizer.chat_template = (
        f"{{% for m in messages if m.role == 'system' %}}{system}{{% endfor %}}"
        "{% for m in messages if m.role != 'system' %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    )
    said = ACRELLM(chat_acre, max_tokens=8).chat([ChatMessage(role="system", content="Be kind."), user("Hello")])
    expected = chat_acre.complete("<user>Be kind.\n\nHello<assistant>", settings=EIGHT)
    assert said.message.content == expected.text


def test_tokens_stand_where_the_framework_reads_them(tiny_acre: ACRE) -> None:
    counter = TokenCountingHandler()
    llm = ACRELLM(tiny_acre, max_tokens=8, callback_manager=CallbackManager([counter]))
    n_prompt = len("<s>Hello there") - len("<s>") + 1
    for form, responses in every_completion(llm, "Hello there").items():
        counts = {"prompt_tokens": n_prompt, "completion_tokens": 8, "total_tokens": n_prompt + 8}
        assert counts.items() <= responses[-1].raw["usage"].items(), form
        assert responses[-1].additional_kwargs == counts, form
    assert counter.prompt_llm_token_count == 4 * n_prompt
    assert counter.completion_llm_token_count == 4 * 8


def test_metadata_describes_the_model(tiny_acre: ACRE, llm: ACRELLM) -> None:
    metadata = llm.metadata
    assert (metadata.context_window, metadata.num_output) == (tiny_acre.decoder.model_window, 8)
    assert metadata.model_name == tiny_acre.decoder.name
    assert not metadata.is_chat_model and not metadata.is_function_calling_model


@pytest.mark.parametrize("form", ["complete", "stream_complete", "acomplete", "astream_complete"])
def test_options_of_one_call_are_honoured_and_forgotten(tiny_acre: ACRE, llm: ACRELLM, form: str) -> None:
    plain = every_completion(llm, "Once")[form][-1].text
    options = {"max_tokens": 16, "temperature": 1.5, "top_p": 0.9, "top_k": 40, "seed": 7}
    sampled = every_completion(llm, "Once", **options)[form][-1]
    settings = GenerationSettings(max_new_tokens=16, temperature=1.5, top_p=0.9, top_k=40, seed=7)
    assert sampled.text == tiny_acre.complete("<s>Once", settings=settings).text != plain
    assert every_completion(llm, "Once")[form][-1].text == plain


@pytest.mark.parametrize("as_list", [True, False])
def test_stop_strings_end_a_response_and_are_left_out(llm: ACRELLM, as_list: bool) -> None:
    plain = llm.complete("Once upon a time", max_tokens=24).text
    stop = plain[3:5]
    for form, responses in every_completion(
        llm, "Once upon a time", max_tokens=24, stop=[stop] if as_list else stop
    ).items():
        assert responses[-1].text == plain[: plain.index(stop)].strip(), form


def test_options_of_the_model_are_its_defaults(tiny_acre: ACRE) -> None:
    llm = ACRELLM(tiny_acre, max_tokens=5, temperature=1.0, seed=3, stop="zzz")
    settings = GenerationSettings(max_new_tokens=5, temperature=1.0, seed=3)
    assert llm.complete("Once").text == tiny_acre.complete("<s>Once", settings=settings).text
    assert (
        llm.complete("Once", temperature=0.0).text
        == tiny_acre.complete("<s>Once", settings=GenerationSettings(max_new_tokens=5)).text
    )


@pytest.mark.parametrize(
    ("option", "value"), [("max_new_words", 3), ("max_tokens", 0), ("top_p", 2.0), ("temperature", -1.0)]
)
def test_a_wrong_option_is_refused_by_name(llm: ACRELLM, option: str, value: Any) -> None:
    with pytest.raises(ConfigError, match="max_new" if option == "max_tokens" else option):
        llm.complete("Once", **{option: value})


def test_an_unknown_option_of_the_model_is_refused(tiny_acre: ACRE) -> None:
    with pytest.raises(ConfigError, match="'max_tokns' is no option of ACRELLM; there are: .*max_tokens"):
        ACRELLM(tiny_acre, max_tokns=2)


def test_a_late_answer_is_a_deadline_error_in_every_form(llm: ACRELLM) -> None:
    async def gathered_later(stream: Any) -> list[Any]:
        return await gathered(await stream)

    for call in (
        lambda: llm.complete("Once", timeout=0.05),
        lambda: llm.chat([user("Once")], timeout=0.05),
        lambda: list(llm.stream_complete("Once", timeout=0.05)),
        lambda: list(llm.stream_chat([user("Once")], timeout=0.05)),
        lambda: asyncio.run(llm.acomplete("Once", timeout=0.05)),
        lambda: asyncio.run(llm.achat([user("Once")], timeout=0.05)),
        lambda: asyncio.run(gathered_later(llm.astream_complete("Once", timeout=0.05))),
        lambda: asyncio.run(gathered_later(llm.astream_chat([user("Once")], timeout=0.05))),
    ):
        busy(llm.acre, 0.15)
        with pytest.raises(DeadlineError):
            call()


def test_a_prompt_that_does_not_fit_is_an_error_with_numbers(llm: ACRELLM) -> None:
    with pytest.raises(CapacityError, match="1,024"):
        llm.complete("x" * 2000)


def test_what_is_not_text_is_refused(llm: ACRELLM) -> None:
    from llama_index.core.llms import ImageBlock

    with pytest.raises(AcreError, match="ImageBlock"):
        ACRELLM(llm.acre, cache_documents=True).chat([ChatMessage(role="user", blocks=[ImageBlock(image=b"x")])])


def test_every_form_emits_the_events_of_a_model(llm: ACRELLM, events: list[str]) -> None:
    def during(call: Callable[[], Any]) -> list[str]:
        events.clear()
        call()
        return list(dict.fromkeys(each for each in events if each.startswith("LLM")))

    def later(call: Callable[[], Any]) -> Callable[[], Any]:
        async def run() -> None:
            result = await call()
            if hasattr(result, "__aiter__"):
                await gathered(result)

        return lambda: asyncio.run(run())

    whole, pieces = ["LLM{}StartEvent", "LLM{}EndEvent"], ["LLM{}StartEvent", "LLM{}InProgressEvent", "LLM{}EndEvent"]
    for kind, names, call in (
        ("Completion", whole, lambda: llm.complete("a")),
        ("Completion", pieces, lambda: list(llm.stream_complete("a"))),
        ("Completion", whole, later(lambda: llm.acomplete("a"))),
        ("Completion", pieces, later(lambda: llm.astream_complete("a"))),
        ("Chat", whole, lambda: llm.chat([user("a")])),
        ("Chat", pieces, lambda: list(llm.stream_chat([user("a")]))),
        ("Chat", whole, later(lambda: llm.achat([user("a")]))),
        ("Chat", pieces, later(lambda: llm.astream_chat([user("a")]))),
    ):
        assert during(call) == [name.format(kind) for name in names]


def test_prompts_of_the_framework_are_predicted(llm: ACRELLM) -> None:
    prompt = PromptTemplate("Say {word}.")
    expected = llm.complete("Say this.").text
    assert llm.predict(prompt, word="this") == expected
    assert asyncio.run(llm.apredict(prompt, word="this")) == expected
    assert "".join(llm.stream(prompt, word="this")).strip() == expected


def test_the_framework_takes_it_as_a_model(llm: ACRELLM) -> None:
    assert resolve_llm(llm) is llm


def test_closing_a_stream_stops_the_model(llm: ACRELLM, forwards: list[int]) -> None:
    stream = llm.stream_complete("Once", max_tokens=400)
    next(stream)
    begun = len(forwards)
    stream.close()
    llm.complete("Once", max_tokens=1)  # waits for its turn
    assert len(forwards) < begun + 50 < 400


def test_closing_an_asynchronous_stream_stops_the_model(llm: ACRELLM, forwards: list[int]) -> None:
    async def run() -> None:
        stream = await llm.astream_chat([user("Once")], max_tokens=400)
        await anext(stream)
        begun = len(forwards)
        await stream.aclose()
        del stream
        await llm.acomplete("Once", max_tokens=1)
        assert len(forwards) < begun + 50 < 400

    asyncio.run(run())


def test_the_serialised_form_holds_the_models_identity_and_no_engine(tiny_acre: ACRE, llm: ACRELLM) -> None:
    form = llm.to_dict()
    assert form["class_name"] == "ACRELLM" and form["model"] == tiny_acre.decoder.name
    assert form["fingerprint"] and "acre" not in form
    other = ACRELLM(ACRE(tiny_decoder("qwen2"), config=tiny_acre.config), max_tokens=8)
    other.acre.decoder = copy.copy(other.acre.decoder)
    other.acre.decoder.name = tiny_acre.decoder.name
    assert other.to_dict()["model"] == form["model"] and other.to_dict() != form
    assert ACRELLM(tiny_acre, max_tokens=8).to_dict() == form
    assert ACRELLM(tiny_acre, max_tokens=9).to_dict() != form
    assert ACRELLM.from_dict(form, acre=tiny_acre).to_dict() == form


def test_an_ingestion_cache_does_not_mix_two_models(tiny_acre: ACRE, llm: ACRELLM) -> None:
    other = ACRELLM(ACRE(tiny_decoder("qwen2"), config=tiny_acre.config), max_tokens=8)
    nodes = [TextNode(text="one text")]
    hashes = [get_transformation_hash(nodes, TitleExtractor(llm=each)) for each in (llm, other, llm)]
    assert hashes[0] == hashes[2] != hashes[1]


# Long texts in chats


@pytest.fixture
def long_llm(tiny_acre: ACRE) -> ACRELLM:
    return ACRELLM(tiny_acre, max_tokens=8, cache_documents=True, min_document_chars=500, max_cached_documents=2)


def kept(llm: ACRELLM) -> list[str]:
    return [document.text for document in llm.acre.documents_of(llm.document_tenant).values()]


@pytest.mark.parametrize(
    "messages",
    [
        [ChatMessage(role="system", content=BOOK), user("Which number?")],
        [user(BOOK), user("Which number?")],
        [ChatMessage(role="user", blocks=[TextBlock(text=BOOK), TextBlock(text="Which number?")])],
    ],
    ids=["system message", "first message", "one block of it"],
)
def test_a_long_text_in_a_chat_is_answered_from_its_cache(long_llm: ACRELLM, messages: list[ChatMessage]) -> None:
    document = long_llm.acre.add(BOOK, "book")
    expected = long_llm.acre.ask("Which number?", document, settings=EIGHT)
    for form, responses in every_chat(long_llm, messages).items():
        assert responses[-1].message.content == expected.text, form
        assert responses[-1].raw["usage"]["prompt_tokens_details"]["cached_tokens"] == expected.usage.cached_tokens
        assert [s["start"] for s in responses[-1].raw["acre"]["sources"]] == [s.start for s in expected.sources]
    assert list(long_llm.acre.documents) == ["book"], "the user's own documents are not touched"


def test_a_long_text_is_read_once(long_llm: ACRELLM, forwards: list[int]) -> None:
    messages = [ChatMessage(role="system", content=BOOK), user("Which number?")]
    long_llm.chat(messages)
    first = sum(forwards)
    forwards.clear()
    long_llm.chat(messages)
    assert sum(forwards) < first / 4
    assert kept(long_llm) == [BOOK]


def test_the_conversation_after_a_long_text_is_part_of_the_question(long_llm: ACRELLM) -> None:
    messages = [
        ChatMessage(role="system", content=BOOK),
        user("Hello"),
        ChatMessage(role="assistant", content="Hi"),
        user("Which?"),
    ]
    document = long_llm.acre.add(BOOK, "book")
    expected = long_llm.acre.ask("user: Hello\nassistant: Hi\n\nWhich?", document, settings=EIGHT)
    assert long_llm.chat(messages).message.content == expected.text


def test_without_the_option_or_with_a_short_text_a_chat_is_a_chat(tiny_acre: ACRE, long_llm: ACRELLM) -> None:
    short = [ChatMessage(role="system", content="short"), user("Which?")]
    plain = ACRELLM(tiny_acre, max_tokens=8)
    assert long_llm.chat(short).message.content == plain.chat(short).message.content
    assert kept(long_llm) == []
    with pytest.raises(CapacityError):
        plain.chat([ChatMessage(role="system", content=BOOK), user("Which?")])


def test_a_long_text_without_a_question_is_not_a_document(long_llm: ACRELLM) -> None:
    with pytest.raises(CapacityError):
        long_llm.chat([user(BOOK)])
    assert kept(long_llm) == []


def test_the_text_that_was_asked_longest_ago_is_forgotten_first(long_llm: ACRELLM) -> None:
    texts = [f"{BOOK} Number {i}." for i in range(3)]

    def ask(text: str) -> None:
        long_llm.chat([ChatMessage(role="system", content=text), user("Which?")])

    ask(texts[0])
    ask(texts[1])
    ask(texts[0])
    ask(texts[2])
    assert sorted(kept(long_llm)) == sorted([texts[0], texts[2]])
    ask(texts[1])
    assert sorted(kept(long_llm)) == sorted([texts[1], texts[2]])


def test_a_text_is_not_forgotten_while_it_is_asked(tiny_acre: ACRE) -> None:
    llm = ACRELLM(tiny_acre, max_tokens=8, cache_documents=True, min_document_chars=500, max_cached_documents=0)
    texts = [f"{BOOK} Number {i}." for i in range(3)]
    chats = [[ChatMessage(role="system", content=text), user("Which?")] for text in texts]
    alone = [llm.chat(chat).message.content for chat in chats]

    async def run() -> list[str]:
        return [each.message.content for each in await asyncio.gather(*(llm.achat(chat) for chat in chats * 4))]

    assert asyncio.run(run()) == alone * 4
    assert kept(llm) == []


def test_models_on_one_engine_do_not_forget_each_others_texts(long_llm: ACRELLM) -> None:
    other = ACRELLM(
        long_llm.acre.using(max_passages=1),
        max_tokens=8,
        cache_documents=True,
        min_document_chars=500,
        max_cached_documents=1,
    )
    texts = [f"{BOOK} Number {i}." for i in range(4)]
    for llm, text in ((long_llm, 0), (other, 1), (other, 2), (long_llm, 3), (long_llm, 1)):
        llm.chat([ChatMessage(role="system", content=texts[text]), user("Which?")])
    assert sorted(kept(long_llm)) == [texts[1], texts[3]]


def test_a_stream_over_a_long_text_stops_when_closed(long_llm: ACRELLM, forwards: list[int]) -> None:
    stream = long_llm.stream_chat([ChatMessage(role="system", content=BOOK), user("Which?")], max_tokens=150)
    next(stream)
    stream.close()
    forwards.clear()
    long_llm.complete("Once", max_tokens=1)
    assert len(forwards) < 20


def test_a_missing_framework_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [each for each in sys.modules if each.startswith("acre_rag.integrations.llama_index")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "llama_index.core", None)
    with pytest.raises(MissingExtraError, match=r"acre-rag\[llama-index\]"):
        __import__("acre_rag.integrations.llama_index")
