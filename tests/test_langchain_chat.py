"""ChatACRE on a tiny random model: the engine's own answers, options, usage, caches of documents, batches, streams."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from langchain_core.callbacks import UsageMetadataCallbackHandler
from langchain_core.documents import Document as LangChainDocument
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage, ToolMessage, trim_messages
from langchain_core.runnables import ConfigurableField
from pydantic import ValidationError

from acre_rag import ACRE, Document, GenerationSettings
from acre_rag.errors import CapacityError, ConfigError, DeadlineError, DocumentError
from acre_rag.integrations.langchain import ACREDocumentQA, ChatACRE
from acre_rag.integrations.langchain.results import Trimmer

TEXT = " ".join(
    f"The {name} keeps the number {i * 7}." for i, name in enumerate(["fox", "owl", "hare", "mole", "wren", "toad"] * 6)
)
QUESTION = "Which number does the mole keep?"
SHORT = GenerationSettings(max_new_tokens=12)
TALKATIVE: dict[str, Any] = {"max_tokens": 300, "temperature": 9.0, "seed": 4}
"""A long answer whose first word ends early: streams hand on whole words."""


@pytest.fixture
def chat(tiny_acre: ACRE) -> ChatACRE:
    return ChatACRE(acre=tiny_acre, max_tokens=12)


@pytest.fixture
def zoo(tiny_acre: ACRE) -> Document:
    return tiny_acre.add(TEXT, id="zoo")


def test_a_message_goes_through_the_chat_format_to_the_model(chat: ChatACRE, tiny_acre: ACRE) -> None:
    said = chat.invoke([SystemMessage("Be kind."), HumanMessage("Hello"), AIMessage("Hi"), HumanMessage("Bye")])
    expected = tiny_acre.complete(
        "<s>system: Be kind.\nuser: Hello\nassistant: Hi\nuser: Bye\nassistant:", settings=SHORT
    )
    assert said.content == expected.text
    assert said.usage_metadata == {
        "input_tokens": expected.usage.prompt_tokens,
        "output_tokens": expected.usage.generated_tokens,
        "total_tokens": expected.usage.prompt_tokens + expected.usage.generated_tokens,
    }
    assert said.response_metadata == {"model_name": "tiny-llama", "finish_reason": "length"}


def test_the_models_own_chat_template_is_used(chat: ChatACRE, tiny_acre: ACRE, monkeypatch: pytest.MonkeyPatch) -> None:
    template = (
        "{% for m in messages %}[{{ m.role }}|{{ m.content }}]{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    )
    monkeypatch.setattr(tiny_acre.decoder.tokenizer, "chat_template", template)
    said = chat.invoke([SystemMessage("A"), HumanMessage("B")])
    assert said.content == tiny_acre.complete("[system|A][user|B]>", settings=SHORT).text


@pytest.mark.parametrize("drops", [True, False], ids=["drops", "refuses"])
def test_a_system_message_without_a_place_in_the_chat_format_is_told_by_the_user(
    chat: ChatACRE, tiny_acre: ACRE, monkeypatch: pytest.MonkeyPatch, drops: bool
) -> None:
    system = "" if drops else "{{ raise_exception('System role not supported') }}"
    template = (
        "{% for m in messages %}{% if m.role == 'system' %}SYSTEM{% else %}[{{ m.role }}|{{ m.content }}]{% endif %}"
        "{% endfor %}>"
    ).replace("SYSTEM", system)
    monkeypatch.setattr(tiny_acre.decoder.tokenizer, "chat_template", template)
    talk: list[Any] = [SystemMessage("A"), HumanMessage("B")]
    assert chat.call(talk).text == "[user|A\n\nB]>"
    assert chat.get_num_tokens_from_messages(talk) == len("[user|A\n\nB]>")


ORDERLY = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}[{{ m.role }}|{{ m.content }}]{% endfor %}>"
)
"""A chat template that wants user and assistant by turns, as many models' own do."""


@pytest.mark.parametrize("template", [None, ORDERLY])
def test_tokens_are_counted_as_they_are_read(
    chat: ChatACRE, tiny_acre: ACRE, monkeypatch: pytest.MonkeyPatch, template: str | None
) -> None:
    monkeypatch.setattr(tiny_acre.decoder.tokenizer, "chat_template", template)
    talk: list[Any] = [HumanMessage("Hello"), AIMessage("Hi"), HumanMessage("Bye")]
    read = chat.invoke(talk).usage_metadata
    assert read is not None
    assert chat.get_num_tokens_from_messages(talk) == read["input_tokens"]
    assert chat.get_num_tokens_from_messages([]) == 0
    assert chat.get_num_tokens("Bye") == 3
    assert chat.get_token_ids("a \ud800") == chat.get_token_ids("a \ufffd")


@pytest.mark.parametrize("template", [None, ORDERLY])
def test_a_conversation_is_trimmed_by_the_models_own_tokens(
    chat: ChatACRE, tiny_acre: ACRE, monkeypatch: pytest.MonkeyPatch, template: str | None
) -> None:
    monkeypatch.setattr(tiny_acre.decoder.tokenizer, "chat_template", template)
    talk = [HumanMessage("Hello " * 20), AIMessage("Hi"), HumanMessage("Bye"), AIMessage("So long")]
    if template:
        with pytest.raises(ConfigError, match="roles must alternate"):
            chat.invoke(talk[1:])
    most = len("<s>user: Bye\nassistant: So long\nassistant:")
    assert trim_messages(talk, max_tokens=most, token_counter=chat, start_on="human") == talk[2:]


def test_tokens_of_a_question_about_documents_are_counted_with_its_history(tiny_acre: ACRE, zoo: Document) -> None:
    chat = ChatACRE(acre=tiny_acre, documents=["zoo"], history_messages=1)
    talk: list[Any] = [HumanMessage("Hello"), AIMessage("Hi"), HumanMessage("Who?")]
    assert chat.get_num_tokens_from_messages(talk) == len("assistant: Hi\nuser: Who?")


def test_a_tokenizer_of_the_users_own_counts(tiny_acre: ACRE) -> None:
    chat = ChatACRE(acre=tiny_acre, custom_get_token_ids=lambda text: [ord(char) for char in text[:2]])
    assert chat.get_token_ids("Hello") == [72, 101]


def test_a_result_of_a_tool_is_told_by_the_user(chat: ChatACRE) -> None:
    call = chat.call([HumanMessage("Q"), AIMessage(""), ToolMessage("42", tool_call_id="1", name="sum")])
    assert call.text == "<s>user: Q\nassistant: \nuser: Result of sum:\n42\nassistant:"


def test_text_blocks_are_read_and_images_are_refused(chat: ChatACRE) -> None:
    blocks: list[str | dict[str, Any]] = [{"type": "text", "text": "He"}, {"type": "text", "text": "llo"}]
    assert chat.call([HumanMessage(blocks)]).text == chat.call([HumanMessage("Hello")]).text
    with pytest.raises(ConfigError, match="text only.*image"):
        chat.invoke([HumanMessage([{"type": "image", "url": "x"}])])


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ({"max_tokens": 3}, GenerationSettings(max_new_tokens=3)),
        (
            {"temperature": 1.5, "seed": 4, "top_p": 0.9, "top_k": 40},
            GenerationSettings(max_new_tokens=12, temperature=1.5, seed=4, top_p=0.9, top_k=40),
        ),
        ({"stop": ["t"]}, GenerationSettings(max_new_tokens=12, stop=("t",))),
    ],
)
def test_options_of_a_call_are_honoured(
    chat: ChatACRE, tiny_acre: ACRE, options: dict[str, Any], settings: GenerationSettings
) -> None:
    expected = tiny_acre.complete("<s>user: Hello\nassistant:", settings=settings).text
    assert chat.invoke("Hello", **options).content == expected
    assert chat.bind(**options).invoke("Hello").content == expected
    assert ChatACRE(acre=tiny_acre, **{"max_tokens": 12, **options}).invoke("Hello").content == expected
    assert "".join(chunk.text for chunk in chat.stream("Hello", **options)) == expected


def test_an_unknown_option_is_refused_not_ignored(chat: ChatACRE) -> None:
    with pytest.raises(ConfigError, match="temprature"):
        chat.invoke("Hello", temprature=1.0)


def test_an_unknown_option_is_refused_when_the_model_is_made(tiny_acre: ACRE) -> None:
    with pytest.raises(ConfigError, match="'max_tokns' is no option of ChatACRE; there are: .*max_tokens"):
        ChatACRE(acre=tiny_acre, max_tokns=2)


def test_what_langchain_passes_to_every_chat_model_disturbs_nobody(tiny_acre: ACRE) -> None:
    assert ChatACRE(acre=tiny_acre, max_tokens=2, api_key="x", max_retries=2, streaming=True).max_tokens == 2


def test_an_impossible_option_is_refused_when_the_model_is_made(tiny_acre: ACRE) -> None:
    with pytest.raises(ValidationError, match="top_p=2"):
        ChatACRE(acre=tiny_acre, top_p=2.0)


def test_what_the_model_cannot_do_is_refused_with_another_way(chat: ChatACRE) -> None:
    with pytest.raises(NotImplementedError, match="another chat model.*as_tool"):
        chat.bind_tools([])
    with pytest.raises(NotImplementedError, match="output parser"):
        chat.with_structured_output({"title": "x", "type": "object"})


def test_a_deadline_is_kept(chat: ChatACRE) -> None:
    with pytest.raises(DeadlineError):
        chat.invoke("Hello", timeout=0.0)


def test_the_finish_reason_says_whether_the_limit_was_met(chat: ChatACRE) -> None:
    full = chat.invoke("Hello")
    assert full.response_metadata["finish_reason"] == "length"
    stopped = chat.invoke("Hello", stop=[str(full.content)[3]])
    assert stopped.response_metadata["finish_reason"] == "stop"


@pytest.mark.parametrize("by", ["field", "call", "engine's document", "LangChain document"])
def test_documents_are_asked_from_their_caches(tiny_acre: ACRE, zoo: Document, by: str) -> None:
    asked: Any = {"field": ["zoo"], "call": "zoo", "engine's document": zoo}.get(
        by, LangChainDocument("x", metadata={"document_id": "zoo"})
    )
    expected = tiny_acre.ask(QUESTION, "zoo", settings=SHORT)
    if by == "field":
        said = ChatACRE(acre=tiny_acre, max_tokens=12, documents=asked).invoke(QUESTION)
    else:
        said = ChatACRE(acre=tiny_acre, max_tokens=12).invoke(QUESTION, documents=asked)
    assert said.content == expected.text
    assert said.usage_metadata is not None
    assert said.usage_metadata["input_token_details"] == {"cache_read": expected.usage.cached_tokens}
    assert said.usage_metadata["input_tokens"] == expected.usage.cached_tokens + expected.usage.prompt_tokens
    assert [(s["document"], s["start"], s["end"]) for s in said.response_metadata["sources"]] == [
        (source.document, source.start, source.end) for source in expected.sources
    ]


def test_an_unknown_document_is_named(chat: ChatACRE, zoo: Document) -> None:
    with pytest.raises(DocumentError, match="'park'.*zoo"):
        chat.invoke(QUESTION, documents="park")


def test_a_document_is_asked_under_the_first_of_its_names_that_is_known(chat: ChatACRE, tiny_acre: ACRE) -> None:
    """Its own metadata may hold a `document_id` that means nothing here."""
    said = LangChainDocument(TEXT, id="i", metadata={"document_id": "d", "source": "s"})
    for name in ("s", None, "i", "d"):  # the last first; no name is a digest
        document = tiny_acre.add(TEXT, id=name)
        assert chat.call([HumanMessage(QUESTION)], documents=said).documents == (document,)


def test_a_document_that_is_not_known_is_named_as_its_owner_does(chat: ChatACRE) -> None:
    for metadata, name in (({"source": "s"}, "s"), ({"document_id": "d", "source": "s"}, "d")):
        with pytest.raises(DocumentError, match=f"No document '{name}'"):
            chat.invoke(QUESTION, documents=LangChainDocument(TEXT, metadata=metadata))


def test_damaged_documents_are_told_where_all_are_asked(tiny_acre: ACRE, tmp_path: Path) -> None:
    ACRE(tiny_acre.decoder, config=tiny_acre.config, store=tmp_path).add(TEXT, id="zoo")
    tiny_acre = ACRE(tiny_acre.decoder, config=tiny_acre.config, store=tmp_path)
    damaged = next(tmp_path.rglob("text.txt"))
    damaged.write_text("another " + TEXT)
    chat, qa = ChatACRE(acre=tiny_acre, max_tokens=2, documents="*"), ACREDocumentQA(acre=tiny_acre, max_tokens=2)
    for ask in (chat.invoke, qa.invoke, qa.as_retriever().invoke):
        with pytest.raises(DocumentError, match=r"text\.txt"):
            ask(QUESTION)
    tiny_acre.add(f"Second: {TEXT}", id="park")
    assert len(qa.invoke(QUESTION)["context"]) > 0
    chunks = list(chat.stream(QUESTION))
    for said in (chat.invoke(QUESTION), sum(chunks[1:], chunks[0])):
        [note] = said.response_metadata["notes"]
        assert note.startswith("left out: ") and "text.txt" in note
    damaged.write_text(TEXT)
    assert [each.id for each in chat.call([HumanMessage(QUESTION)]).documents] == ["park", "zoo"]
    assert not [each for each in chat.invoke(QUESTION).response_metadata["notes"] if "text.txt" in each]


def test_the_conversation_goes_with_the_question_about_a_document(chat: ChatACRE, zoo: Document) -> None:
    talk = [SystemMessage("Be brief."), HumanMessage("Who?"), AIMessage("The mole."), HumanMessage("Which number?")]
    assert chat.call(talk, documents="zoo").text == (
        "Be brief.\n\nuser: Who?\nassistant: The mole.\nuser: Which number?"
    )
    last = chat.model_copy(update={"history_messages": 1}).call(talk, documents="zoo").text
    assert last == "Be brief.\n\nassistant: The mole.\nuser: Which number?"


LONG_TALK = [HumanMessage("hello there my friend " * 4), AIMessage("yes indeed it is so " * 4)] * 3


def test_a_conversation_longer_than_the_window_keeps_its_latest_turns(chat: ChatACRE, zoo: Document) -> None:
    said = chat.invoke([*LONG_TALK, HumanMessage(QUESTION)], documents="zoo")
    call = chat.call([*LONG_TALK, HumanMessage(QUESTION)], documents="zoo")
    put = call.put(chat.acre, [zoo])
    n_turns = put.count("my friend") + put.count("indeed")
    assert 0 < n_turns < 6 and call.text.endswith(put) and put.endswith(f"user: {QUESTION}")
    assert said.content == chat.acre.ask(put, "zoo", settings=SHORT).text
    longer = ChatACRE(acre=chat.acre, max_tokens=12, documents="zoo", history_messages=n_turns + 1)
    with pytest.raises(CapacityError):
        chat.acre.ask(longer.call([*LONG_TALK, HumanMessage(QUESTION)]).text, "zoo", settings=SHORT)


@pytest.mark.parametrize("form", ["invoke", "ainvoke", "stream", "astream"])
def test_a_conversation_longer_than_the_window_goes_on_about_a_long_message(tiny_acre: ACRE, form: str) -> None:
    chat = ChatACRE(acre=tiny_acre, max_tokens=12, document_chars=200)
    talk: list[Any] = [SystemMessage(TEXT), *LONG_TALK, HumanMessage(QUESTION)]

    async def astreamed() -> str:
        return "".join([chunk.text async for chunk in chat.astream(talk)])

    said = {
        "invoke": lambda: chat.invoke(talk).content,
        "ainvoke": lambda: asyncio.run(chat.ainvoke(talk)).content,
        "stream": lambda: "".join(chunk.text for chunk in chat.stream(talk)),
        "astream": lambda: asyncio.run(astreamed()),
    }[form]()
    document = tiny_acre.add(TEXT)
    put = chat.call(talk).put(tiny_acre, [document])
    assert said == tiny_acre.ask(put, document, settings=SHORT).text


@pytest.mark.parametrize("first", [SystemMessage, HumanMessage])
def test_a_first_message_that_holds_a_known_document_is_answered_from_its_cache(
    tiny_acre: ACRE, zoo: Document, first: Any
) -> None:
    chat = ChatACRE(acre=tiny_acre, max_tokens=12, document_chars=200)
    said = chat.invoke([first(TEXT), HumanMessage(QUESTION)])
    assert said.content == tiny_acre.ask(QUESTION, "zoo", settings=SHORT).text
    told = chat.call([first(f"Use this:\n{TEXT}\nBe brief."), HumanMessage(QUESTION)])
    assert told.documents == (zoo,)
    assert told.text == f"Use this:\n\nBe brief.\n\n{QUESTION}"


def test_document_and_question_may_stand_in_one_message(tiny_acre: ACRE, zoo: Document) -> None:
    chat = ChatACRE(acre=tiny_acre, max_tokens=12, document_chars=200)
    said = chat.invoke(f"{TEXT}\n\n{QUESTION}")
    assert said.content == tiny_acre.ask(QUESTION, "zoo", settings=SHORT).text


def test_a_long_first_message_is_read_once(tiny_acre: ACRE) -> None:
    chat = ChatACRE(acre=tiny_acre, max_tokens=12, document_chars=200)
    talk = [SystemMessage(TEXT), HumanMessage(QUESTION)]
    first = chat.invoke(talk)
    [tenant] = kept(tiny_acre)
    [(id, document)] = tiny_acre.documents_of(tenant).items()
    assert document.text == TEXT
    second = asyncio.run(chat.ainvoke(talk))
    assert list(tiny_acre.documents_of(tenant)) == [id]
    assert first.content == second.content == tiny_acre.ask(QUESTION, id, tenant=tenant, settings=SHORT).text
    assert "".join(chunk.text for chunk in chat.stream(talk)) == first.content
    assert second.usage_metadata is not None and second.usage_metadata["input_token_details"]["cache_read"] > 0


def kept(acre: ACRE) -> list[str]:
    """Tenants of long messages that the engine has documents of."""
    return [tenant for tenant in ("langchain-chat:", "langchain-chat:me") if acre.documents_of(tenant)]


@pytest.mark.parametrize("tenant", ["", "me"])
def test_long_messages_stand_beside_the_tenants_documents_and_only_some_are_kept(tiny_acre: ACRE, tenant: str) -> None:
    chat = ChatACRE(acre=tiny_acre, tenant=tenant, max_tokens=2, document_chars=200, max_cached_documents=2)
    for i in range(4):
        chat.invoke([SystemMessage(f"{i}. {TEXT}"), HumanMessage(QUESTION)])
    assert not tiny_acre.documents_of(tenant) and kept(tiny_acre) == [f"langchain-chat:{tenant}"]
    texts = [each.text[0] for each in tiny_acre.documents_of(f"langchain-chat:{tenant}").values()]
    assert sorted(texts) == ["2", "3"]
    with pytest.raises(DocumentError):
        chat.invoke(QUESTION, documents="*")


@pytest.mark.parametrize("most", [0, 1])
def test_chats_that_share_an_engine_do_not_forget_each_others_long_messages(tiny_acre: ACRE, most: int) -> None:
    one = ChatACRE(acre=tiny_acre, max_tokens=2, document_chars=200, max_cached_documents=2)
    other = ChatACRE(acre=tiny_acre.using(max_passages=1), max_tokens=2, document_chars=200, max_cached_documents=most)
    texts = [f"{i}. {TEXT}" for i in range(4)]

    def ask(chat: ChatACRE, text: str) -> None:
        chat.invoke([SystemMessage(text), HumanMessage(QUESTION)])

    def kept_texts() -> list[str]:
        return [each.text for each in tiny_acre.documents_of("langchain-chat:").values()]

    ask(one, texts[0])
    ask(other, texts[1])
    assert kept_texts() == texts[: 1 + most]
    for chat, text in ((one, texts[2]), (other, texts[0]), (one, texts[1]), (one, texts[3])):
        ask(chat, text)
    assert kept_texts() == [texts[1], texts[3]]


def test_a_long_message_is_not_forgotten_while_another_chat_asks_it(
    tiny_acre: ACRE, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = (
        ChatACRE(acre=acre, max_tokens=8, document_chars=200, max_cached_documents=0)
        for acre in (tiny_acre, tiny_acre.using(max_passages=1))
    )
    talk = [SystemMessage(TEXT), HumanMessage(QUESTION)]
    alone, ask = one.invoke(talk).content, tiny_acre.ask
    monkeypatch.setattr(tiny_acre, "ask", lambda *a, **o: (other.invoke(talk), ask(*a, **o))[1])
    assert one.invoke(talk).content == alone
    assert not kept(tiny_acre)


def test_a_long_message_that_is_gone_already_fails_nobody(tiny_acre: ACRE) -> None:
    chat = ChatACRE(acre=tiny_acre, max_tokens=2, document_chars=200, max_cached_documents=1)
    first, second = ([SystemMessage(f"{i}. {TEXT}"), HumanMessage(QUESTION)] for i in range(2))
    for ask in (chat.invoke, lambda talk: asyncio.run(chat.ainvoke(talk))):
        ask(first)
        [id] = tiny_acre.documents_of("langchain-chat:")
        tiny_acre.remove(id, tenant="langchain-chat:")
        assert ask(second).content


def test_reading_and_asking_a_long_message_share_one_deadline(tiny_acre: ACRE, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []
    ask, add = tiny_acre.ask, tiny_acre.add
    monkeypatch.setattr(tiny_acre, "add", lambda *a, **o: (time.sleep(0.2), add(*a, **o))[1])
    monkeypatch.setattr(tiny_acre, "ask", lambda *a, **o: (given.append(o["timeout_s"]), ask(*a, **o))[1])
    chat = ChatACRE(acre=tiny_acre, max_tokens=2, document_chars=200, timeout=60)
    chat.invoke([SystemMessage(TEXT), HumanMessage(QUESTION)])
    assert 0 < given[0] < 59.81


def test_without_opting_in_a_long_message_is_only_a_message(chat: ChatACRE, tiny_acre: ACRE) -> None:
    assert chat.call([SystemMessage(TEXT), HumanMessage(QUESTION)]).plain
    short = ChatACRE(acre=tiny_acre, document_chars=len(TEXT) + 1)
    assert short.call([SystemMessage(TEXT), HumanMessage(QUESTION)]).plain
    assert short.call([HumanMessage(TEXT)]).plain


@pytest.mark.parametrize("documents", [None, "zoo"])
def test_streams_add_up_to_the_whole_message(chat: ChatACRE, zoo: Document, documents: str | None) -> None:
    options: dict[str, Any] = {"documents": documents} if documents else {}
    whole = chat.invoke(QUESTION, **options)

    async def gather() -> list[AIMessageChunk]:
        return [chunk async for chunk in chat.astream(QUESTION, **options)]

    for chunks in (list(chat.stream(QUESTION, **options)), asyncio.run(gather())):
        total = sum(chunks[1:], chunks[0])
        assert total.content == whole.content
        assert total.usage_metadata == whole.usage_metadata
        assert total.response_metadata.keys() == whole.response_metadata.keys()
        assert total.response_metadata.get("sources") == whole.response_metadata.get("sources")
        assert chunks[-1].chunk_position == "last"


def test_async_answers_are_the_sync_ones(chat: ChatACRE, zoo: Document) -> None:
    assert asyncio.run(chat.ainvoke(QUESTION)).content == chat.invoke(QUESTION).content
    asked = asyncio.run(chat.ainvoke(QUESTION, documents="zoo"))
    assert asked.content == chat.invoke(QUESTION, documents="zoo").content


def test_a_batch_is_decoded_together(chat: ChatACRE, zoo: Document, batch_sizes: list[int]) -> None:
    questions = [
        f"Which number does the {name} keep?" for name in ("fox", "owl", "hare", "mole", "wren", "toad", "elk")
    ]
    expected = [chat.invoke(question, documents="zoo").content for question in questions]
    batch_sizes.clear()
    assert [said.content for said in chat.batch(questions, documents="zoo")] == expected
    assert sum(batch_sizes) == 7 and len(batch_sizes) <= 3
    batch_sizes.clear()
    assert [said.content for said in asyncio.run(chat.abatch(questions, documents="zoo"))] == expected
    assert sum(batch_sizes) == 7 and len(batch_sizes) <= 3


def test_a_batch_keeps_its_limit_of_concurrency(chat: ChatACRE, batch_sizes: list[int]) -> None:
    chat.batch(["a", "b", "c"], {"max_concurrency": 1})
    assert batch_sizes == [1, 1, 1]
    asyncio.run(chat.abatch(["a", "b", "c"], {"max_concurrency": 1}))
    assert batch_sizes == [1] * 6


def test_a_batch_longer_than_the_line_is_paced_not_refused(chat: ChatACRE, tiny_acre: ACRE) -> None:
    tiny_acre.decoder.worker.max_waiting, most = 20, tiny_acre.decoder.worker.max_waiting
    try:
        assert len(asyncio.run(chat.abatch(["Hello"] * 40, max_tokens=1))) == 40
    finally:
        tiny_acre.decoder.worker.max_waiting = most


def test_one_failure_in_a_batch_can_be_returned_beside_the_answers(chat: ChatACRE) -> None:
    inputs: list[Any] = ["Hello", [HumanMessage([{"type": "image", "url": "x"}])]]
    for results in (
        chat.batch(inputs, return_exceptions=True),
        asyncio.run(chat.abatch(inputs, return_exceptions=True)),
    ):
        assert isinstance(results[0], AIMessage)
        assert isinstance(results[1], ConfigError)
    with pytest.raises(ConfigError):
        chat.batch(inputs)


def test_closing_a_stream_stops_the_model(chat: ChatACRE, forwards: list[int]) -> None:
    list(chat.stream("Hello", **TALKATIVE))
    whole = len(forwards)
    forwards.clear()
    stream = chat.stream("Hello", **TALKATIVE)
    next(stream)
    stream.close()
    at_close = len(forwards)
    time.sleep(0.2)
    assert len(forwards) == at_close < whole


@pytest.mark.asyncio
async def test_closing_an_async_stream_stops_the_model(chat: ChatACRE, forwards: list[int]) -> None:
    await chat.ainvoke("Hello", **TALKATIVE)
    whole = len(forwards)
    forwards.clear()
    stream = chat.astream("Hello", **TALKATIVE)
    await anext(stream)
    await stream.aclose()
    await asyncio.sleep(0.1)
    at_close = len(forwards)
    await asyncio.sleep(0.2)
    assert len(forwards) == at_close < whole


def test_callbacks_see_tokens_and_usage(chat: ChatACRE, zoo: Document) -> None:
    seen = UsageMetadataCallbackHandler()
    said = [chat.invoke(QUESTION, {"callbacks": [seen]}), chat.invoke(QUESTION, {"callbacks": [seen]}, documents="zoo")]
    usages = [each.usage_metadata for each in said]
    assert all(usages)
    total = seen.usage_metadata["tiny-llama"]
    assert total["output_tokens"] == sum(usage["output_tokens"] for usage in usages if usage)
    assert total["input_token_details"]["cache_read"] > 0


def test_tracers_are_told_ids_not_whole_documents(chat: ChatACRE, zoo: Document) -> None:
    assert chat._get_invocation_params(documents=[zoo])["documents"] == ["zoo"]


def test_configurable_fields_keep_the_engine(chat: ChatACRE, tiny_acre: ACRE) -> None:
    configurable = chat.configurable_fields(max_tokens=ConfigurableField(id="length"))
    said = configurable.with_config(configurable={"length": 2}).invoke("Hello")
    assert (
        said.content
        == tiny_acre.complete("<s>user: Hello\nassistant:", settings=GenerationSettings(max_new_tokens=2)).text
    )


@pytest.mark.parametrize(
    ("pieces", "handed"),
    [
        (["\n ", " One", " two\n", "\n"], ["", "One", " two", ""]),
        (["One ", "\n", "two "], ["One", "", " \ntwo"]),
        ([" ", "\t"], ["", ""]),
    ],
)
def test_a_stream_has_no_white_space_at_its_ends(pieces: list[str], handed: list[str]) -> None:
    trim = Trimmer()
    assert [trim(piece) for piece in pieces] == handed
    assert "".join(handed) == "".join(pieces).strip()
