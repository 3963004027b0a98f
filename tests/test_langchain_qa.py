"""ACREDocumentQA on a tiny random model: the engine's own answers, through every door that a Runnable has."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler, UsageMetadataCallbackHandler
from langchain_core.chat_history import InMemoryChatMessageHistory
from langchain_core.documents import Document as LangChainDocument
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.runnables import ConfigurableField, RunnableGenerator, RunnableLambda, RunnablePick
from langchain_core.runnables.history import RunnableWithMessageHistory

from acre_rag import ACRE, ACREConfig, GenerationSettings
from acre_rag.decoder import Decoder
from acre_rag.errors import AcreError, CapacityError, ConfigError, DocumentError
from acre_rag.integrations.langchain import ACREDocumentQA, ACRERetriever, ChatACRE
from acre_rag.worker import Ticket

NAMES = ["fox", "owl", "hare", "mole", "wren", "toad", "lynx", "crow", "seal", "newt"]
TEXTS = {
    "zoo": " ".join(f"The {name} of the zoo keeps the number {i * 7}." for i, name in enumerate(NAMES * 3)),
    "park": " ".join(f"In the park, the {name} waits at gate {i}." for i, name in enumerate(NAMES * 3)),
    "farm": " ".join(f"On the farm, the {name} sleeps for {i} hours." for i, name in enumerate(NAMES * 3)),
}
QUESTION = "Which number does the mole keep?"
SETTINGS = GenerationSettings(max_new_tokens=10)
TALKATIVE: dict[str, Any] = {"max_tokens": 300, "temperature": 9.0, "seed": 4}
"""A long answer whose first word ends early: streams hand on whole words."""


@pytest.fixture
def tiny_acre(tiny: Decoder) -> ACRE:
    """Wide enough for answers of some hundred tokens."""
    return ACRE(
        tiny,
        config=ACREConfig(window=1024, interval=8, stride=64, passage_tokens=32, max_passages=2, select="consensus"),
    )


@pytest.fixture
def qa(tiny_acre: ACRE) -> ACREDocumentQA:
    documents = [LangChainDocument(text, id=id, metadata={"title": id.title()}) for id, text in TEXTS.items()]
    return ACREDocumentQA.from_documents(documents, acre=tiny_acre, max_tokens=10)


def total(chunks: list[Any]) -> Any:
    return sum(chunks[1:], chunks[0])


async def gather(stream: AsyncIterator[Any]) -> list[Any]:
    return [chunk async for chunk in stream]


def test_the_answer_is_the_engines_with_its_sources_as_context(qa: ACREDocumentQA, tiny_acre: ACRE) -> None:
    expected = tiny_acre.ask(QUESTION, "zoo", settings=SETTINGS)
    given = {"input": QUESTION, "documents": ["zoo"]}
    for result in (qa.invoke(given), asyncio.run(qa.ainvoke(given))):
        assert list(result) == ["input", "context", "answer"]
        assert result["input"] == QUESTION
        assert result["answer"] == expected.text
        assert [each.page_content for each in result["context"]] == [source.text for source in expected.sources]
        assert {each.metadata["title"] for each in result["context"]} == {"Zoo"}


@pytest.fixture
def two_engines(tiny: Decoder, tmp_path: Path) -> tuple[ACRE, ACRE]:
    """On one store, as of two processes; the second has looked through it already."""
    config = ACREConfig(window=1024, interval=8, stride=64, passage_tokens=32, max_passages=2, select="consensus")
    first, second = (ACRE(tiny, config=config, store=tmp_path) for _ in range(2))
    assert not second.documents
    return first, second


def test_a_document_that_another_process_stored_is_found_by_its_name(two_engines: tuple[ACRE, ACRE]) -> None:
    first, second = two_engines
    first.add(TEXTS["zoo"], id="zoo")
    expected = first.ask(QUESTION, "zoo", settings=SETTINGS).text
    given = {"input": QUESTION, "documents": "zoo"}
    assert ACREDocumentQA(acre=second, max_tokens=10).invoke(given)["answer"] == expected
    first.add(TEXTS["park"], id="park")
    assert ChatACRE(acre=second, documents=["park"], max_tokens=10).invoke(QUESTION).text
    with pytest.raises(DocumentError, match="'farm'; there are: zoo, park"):
        ACREDocumentQA(acre=second).invoke({"input": QUESTION, "documents": "farm"})


@pytest.mark.asyncio
@pytest.mark.parametrize("ask", ["chain", "stream", "chat", "retriever"])
async def test_looking_for_a_document_does_not_hold_up_the_event_loop(two_engines: tuple[ACRE, ACRE], ask: str) -> None:
    first, second = two_engines
    await first.aadd(TEXTS["zoo"], id="zoo")
    qa, given = ACREDocumentQA(acre=second, max_tokens=4), {"input": QUESTION, "documents": "zoo"}
    second.decoder.worker.submit([Ticket(lambda _: [time.sleep(0.5)])])
    asking = asyncio.ensure_future(
        {
            "chain": lambda: qa.ainvoke(given),
            "stream": lambda: gather(qa.astream(given)),
            "chat": lambda: ChatACRE(acre=second, max_tokens=4).ainvoke(QUESTION, documents="zoo"),
            "retriever": lambda: ACRERetriever(acre=second).ainvoke(QUESTION, documents="zoo"),
        }[ask]()
    )
    begun = time.monotonic()
    await asyncio.sleep(0.05)
    assert time.monotonic() - begun < 0.4 and not asking.done()
    assert await asking


@pytest.mark.parametrize("kind", [ACREDocumentQA, ACRERetriever])
def test_an_unknown_option_is_refused_before_anything_is_read(kind: Any, tiny_acre: ACRE) -> None:
    documents = [LangChainDocument(TEXTS["zoo"], id="zoo")]
    for make in (kind.from_documents, lambda *given, **options: asyncio.run(kind.afrom_documents(*given, **options))):
        with pytest.raises(ConfigError, match=f"'max_tokns' is no option of {kind.__name__}"):
            make(documents, acre=tiny_acre, max_tokns=2)
    with pytest.raises(ConfigError, match="'max_tokns'"):
        kind(acre=tiny_acre, max_tokns=2)
    with pytest.raises(ConfigError, match="search_kwargs={'k': 4} is k=4 here"):
        ACRERetriever(acre=tiny_acre, search_kwargs={"k": 4})
    assert not tiny_acre.documents


def test_a_plain_question_asks_all_documents_of_the_chain(qa: ACREDocumentQA, tiny_acre: ACRE) -> None:
    tiny_acre.add("A later document of someone else.", id="later")
    expected = tiny_acre.ask(QUESTION, list(TEXTS), settings=SETTINGS)
    assert qa.invoke(QUESTION)["answer"] == qa.invoke({"input": QUESTION})["answer"] == expected.text


@pytest.mark.parametrize("asked", [HumanMessage(QUESTION), [HumanMessage(QUESTION)]])
def test_a_question_may_be_a_message(qa: ACREDocumentQA, asked: Any) -> None:
    result = qa.invoke({"input": asked, "documents": "zoo"})
    assert result["answer"] == qa.invoke({"input": QUESTION, "documents": "zoo"})["answer"]
    assert result["input"] == asked


@pytest.mark.parametrize(
    ("given", "told"), [({"question": "?"}, "needs the key 'input'"), ({"input": 5}, "not int"), (5, "not int")]
)
def test_an_input_that_is_no_question_is_refused(qa: ACREDocumentQA, given: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        qa.invoke(given)
    with pytest.raises(ConfigError, match=told):
        list(qa.stream(given))


def test_options_of_chain_and_call_are_honoured(qa: ACREDocumentQA, tiny_acre: ACRE) -> None:
    expected = tiny_acre.ask(QUESTION, "zoo", settings=GenerationSettings(max_new_tokens=3)).text
    assert qa.bind(max_tokens=3).invoke({"input": QUESTION, "documents": "zoo"})["answer"] == expected
    narrow = ACREDocumentQA(acre=tiny_acre, documents=["zoo"], max_passages=1, select="hybrid", max_tokens=10)
    expected_narrow = tiny_acre.using(max_passages=1, select="hybrid").ask(QUESTION, "zoo", settings=SETTINGS)
    assert narrow.invoke(QUESTION)["answer"] == expected_narrow.text
    assert len(narrow.invoke(QUESTION)["context"]) == len(expected_narrow.sources)


def test_streams_add_up_to_the_whole_and_name_the_context_before_the_first_word(qa: ACREDocumentQA) -> None:
    options = {**TALKATIVE, "max_tokens": 60, "seed": 15}
    whole = qa.invoke({"input": QUESTION, "documents": "zoo"}, **options)
    for chunks in (
        list(qa.stream({"input": QUESTION, "documents": "zoo"}, **options)),
        asyncio.run(gather(qa.astream({"input": QUESTION, "documents": "zoo"}, **options))),
    ):
        assert total(chunks) == whole
        assert list(chunks[0]) == ["input"] and chunks[1]["context"]
        assert not any("context" in chunk for chunk in chunks[2:])
        assert len([chunk for chunk in chunks if chunk.get("answer")]) > 1


def test_an_input_that_arrives_in_pieces_is_put_together(qa: ACREDocumentQA) -> None:
    whole = qa.invoke({"input": QUESTION, "documents": "zoo"})
    pieces: list[Any] = [{"input": QUESTION[:9]}, {"input": QUESTION[9:]}, {"documents": "zoo"}]

    async def arriving() -> AsyncIterator[Any]:
        for piece in pieces:
            yield piece

    assert total(list(qa.transform(iter(pieces)))) == whole
    assert total(asyncio.run(gather(qa.atransform(arriving())))) == whole


def test_a_chain_streams_through_it(qa: ACREDocumentQA) -> None:
    def shout(chunks: Iterator[str]) -> Iterator[str]:
        for chunk in chunks:
            yield chunk.upper()

    options = {**TALKATIVE, "max_tokens": 60, "seed": 15}
    answered = RunnableLambda(lambda q: {"input": q, "documents": "zoo"}) | qa.bind(**options) | RunnablePick("answer")
    pieces = list((answered | RunnableGenerator(shout)).stream(QUESTION))
    assert len(pieces) > 2
    assert "".join(pieces) == answered.invoke(QUESTION).upper()


def test_a_batch_is_decoded_together_and_gives_the_single_answers(qa: ACREDocumentQA, batch_sizes: list[int]) -> None:
    inputs = [{"input": f"Where is the {name}?", "documents": id} for id in TEXTS for name in NAMES[:3]]
    expected = [qa.invoke(each) for each in inputs]
    batch_sizes.clear()
    assert qa.batch(inputs) == expected
    assert sum(batch_sizes) == 9 and len(batch_sizes) <= 4
    batch_sizes.clear()
    assert asyncio.run(qa.abatch(inputs)) == expected
    assert sum(batch_sizes) == 9 and len(batch_sizes) <= 4


def test_a_batch_keeps_its_limit_and_returns_failures(qa: ACREDocumentQA, batch_sizes: list[int]) -> None:
    inputs = [QUESTION, {"input": QUESTION, "documents": "moon"}, "Where is the owl?"]
    results = qa.batch(inputs, {"max_concurrency": 1}, return_exceptions=True)
    assert batch_sizes == [1, 1]
    assert [type(each) for each in results if isinstance(each, Exception)] == [DocumentError]
    results = asyncio.run(qa.abatch(inputs, return_exceptions=True))
    assert isinstance(results[1], DocumentError) and results[2]["answer"]
    with pytest.raises(DocumentError, match="moon"):
        qa.batch(inputs)


@pytest.mark.asyncio
async def test_twenty_questions_at_once_on_three_documents_get_their_serial_answers(qa: ACREDocumentQA) -> None:
    inputs = [{"input": f"What of the {NAMES[i % 10]}?", "documents": list(TEXTS)[i % 3]} for i in range(20)]
    expected = [qa.invoke(each) for each in inputs]
    half = asyncio.gather(*(qa.ainvoke(each) for each in inputs[:10]))
    streamed = asyncio.gather(*(gather(qa.astream(each)) for each in inputs[10:]))
    assert [*await half, *map(total, await streamed)] == expected


@pytest.mark.asyncio
async def test_closing_an_async_stream_stops_the_model(qa: ACREDocumentQA, forwards: list[int]) -> None:
    given = {"input": QUESTION, "documents": "zoo"}
    await qa.ainvoke(given, **TALKATIVE)
    whole = len(forwards)
    forwards.clear()
    stream = qa.astream(given, **TALKATIVE)
    async for chunk in stream:
        if chunk.get("answer"):
            break
    await stream.aclose()
    await asyncio.sleep(0.1)
    at_close = len(forwards)
    await asyncio.sleep(0.2)
    assert len(forwards) == at_close < whole


def test_closing_a_stream_stops_the_model(qa: ACREDocumentQA, forwards: list[int]) -> None:
    given = {"input": QUESTION, "documents": "zoo"}
    qa.invoke(given, **TALKATIVE)
    whole = len(forwards)
    forwards.clear()
    stream = qa.stream(given, **TALKATIVE)
    next(chunk for chunk in stream if chunk.get("answer"))
    stream.close()  # type: ignore[attr-defined]
    at_close = len(forwards)
    time.sleep(0.2)
    assert len(forwards) == at_close < whole


def test_a_conversation_as_input_is_the_history_and_then_the_question(qa: ACREDocumentQA) -> None:
    said: list[BaseMessage] = [HumanMessage("Who?"), AIMessage("The mole.")]
    expected = qa.invoke({"input": "Which number?", "documents": "zoo", "chat_history": said})["answer"]
    talk = [*said, HumanMessage("Which number?")]
    narrow = qa.model_copy(update={"documents": ["zoo"]})
    assert narrow.invoke(talk) == narrow.invoke({"input": talk})
    assert narrow.invoke(talk)["answer"] == expected
    assert asyncio.run(narrow.ainvoke(talk))["answer"] == total(list(narrow.stream(talk)))["answer"] == expected
    given = {"input": talk[1:], "documents": "zoo", "chat_history": said[:1]}
    assert qa.invoke(given)["answer"] == expected


def test_the_history_goes_with_the_question(qa: ACREDocumentQA, tiny_acre: ACRE) -> None:
    history: list[Any] = [("human", "Who?"), ("ai", "The mole.")]
    told = "user: Who?\nassistant: The mole.\nuser: Which number?"
    expected = tiny_acre.ask(told, "zoo", settings=SETTINGS).text
    given = {"input": "Which number?", "documents": "zoo", "chat_history": history}
    assert qa.invoke(given)["answer"] == asyncio.run(qa.ainvoke(given))["answer"] == expected
    assert total(list(qa.stream(given)))["answer"] == expected


def test_a_condenser_rewrites_follow_up_questions_only(qa: ACREDocumentQA) -> None:
    seen: list[Any] = []

    def rewrite(given: dict[str, Any]) -> str:
        seen.append(given)
        return QUESTION

    condensing = qa.model_copy(update={"condense": RunnableLambda(rewrite)})
    expected = qa.invoke({"input": QUESTION, "documents": "zoo"})["answer"]
    assert condensing.invoke({"input": QUESTION, "documents": "zoo"})["answer"] == expected
    assert seen == []
    given = {"input": "Which?", "documents": "zoo", "chat_history": [HumanMessage("The mole?"), AIMessage("Yes.")]}
    result = condensing.invoke(given)
    assert (result["answer"], result["input"]) == (expected, "Which?")
    assert total(asyncio.run(gather(condensing.astream(given))))["answer"] == expected
    assert seen == [{"input": "Which?", "chat_history": given["chat_history"]}] * 2


def test_configurable_fields_keep_the_engine_and_share_its_batches(
    qa: ACREDocumentQA, tiny_acre: ACRE, batch_sizes: list[int]
) -> None:
    configurable = qa.configurable_fields(
        documents=ConfigurableField(id="documents"), select=ConfigurableField(id="select")
    )
    config: Any = {"configurable": {"documents": ["park"], "select": "hybrid"}}
    expected = tiny_acre.using(select="hybrid").ask("Where is the owl?", "park", settings=SETTINGS).text
    batch_sizes.clear()
    results = configurable.batch(["Where is the owl?"] * 6, config)
    assert [each["answer"] for each in results] == [expected] * 6
    assert len(batch_sizes) < 6
    assert qa.documents == list(TEXTS)


def test_a_fallback_answers_when_the_question_does_not_fit(qa: ACREDocumentQA) -> None:
    fallback = RunnableLambda(lambda given: {"input": given, "context": [], "answer": "shorter, please"})
    safe = qa.with_fallbacks([fallback], exceptions_to_handle=(AcreError,))
    with pytest.raises(CapacityError):
        qa.invoke("why " * 400)
    assert safe.invoke("why " * 400)["answer"] == "shorter, please"
    assert asyncio.run(safe.ainvoke("why " * 400))["answer"] == "shorter, please"
    assert safe.invoke(QUESTION) == qa.invoke(QUESTION)


@pytest.mark.filterwarnings("ignore:RunnableWithMessageHistory")
def test_message_history_is_kept_by_langchain_and_the_document_stays_in_its_cache(
    qa: ACREDocumentQA, tiny_acre: ACRE
) -> None:
    kept: dict[str, InMemoryChatMessageHistory] = {}
    chain = RunnableWithMessageHistory(
        qa,  # type: ignore[arg-type]
        lambda session_id: kept.setdefault(session_id, InMemoryChatMessageHistory()),
        input_messages_key="input",
        history_messages_key="chat_history",
        output_messages_key="answer",
    )
    config: Any = {"configurable": {"session_id": "ann"}}
    first = chain.invoke({"input": QUESTION, "documents": "zoo"}, config)["answer"]
    history: list[BaseMessage] = [HumanMessage(QUESTION), AIMessage(first)]
    second = total(list(chain.stream({"input": "And the owl?", "documents": "zoo"}, config)))
    assert (
        second["answer"] == qa.invoke({"input": "And the owl?", "documents": "zoo", "chat_history": history})["answer"]
    )
    assert [message.text for message in kept["ann"].messages] == [QUESTION, first, "And the owl?", second["answer"]]
    third = asyncio.run(chain.ainvoke({"input": "And the fox?", "documents": "zoo"}, config))
    assert third["context"] and len(kept["ann"].messages) == 6
    assert set(tiny_acre.documents) == set(TEXTS)


@pytest.mark.filterwarnings("ignore:RunnableWithMessageHistory")
def test_a_history_that_langchain_merges_into_the_input_is_not_lost(qa: ACREDocumentQA) -> None:
    kept = InMemoryChatMessageHistory()
    chain = RunnableWithMessageHistory(
        qa,  # type: ignore[arg-type]
        lambda session_id: kept,
        input_messages_key="input",
        output_messages_key="answer",
    )
    config: Any = {"configurable": {"session_id": "ann"}}
    chain.invoke({"input": QUESTION, "documents": "zoo"}, config)
    history = list(kept.messages)
    second = chain.invoke({"input": "And the owl?", "documents": "zoo"}, config)["answer"]
    assert second == qa.invoke({"input": "And the owl?", "documents": "zoo", "chat_history": history})["answer"]
    assert [message.text for message in kept.messages] == [QUESTION, history[1].text, "And the owl?", second]


@pytest.mark.asyncio
async def test_events_tell_of_the_chain_the_model_its_words_and_the_sources(qa: ACREDocumentQA) -> None:
    given = {"input": QUESTION, "documents": "zoo"}
    events = await gather(qa.astream_events(given, version="v2"))
    order = [(event["event"], event["name"]) for event in events if "stream" not in event["event"]]
    assert order == [
        ("on_chain_start", "ACREDocumentQA"),
        ("on_chat_model_start", "ChatACRE"),
        ("on_retriever_start", "ACRERetriever"),
        ("on_retriever_end", "ACRERetriever"),
        ("on_chat_model_end", "ChatACRE"),
        ("on_chain_end", "ACREDocumentQA"),
    ]
    whole = await qa.ainvoke(given)
    words = [event["data"]["chunk"].text for event in events if event["event"] == "on_chat_model_stream"]
    assert "".join(words) == whole["answer"]
    [sources] = [event["data"]["output"] for event in events if event["event"] == "on_retriever_end"]
    assert sources == whole["context"]
    assert events[-1]["data"]["output"] == whole
    root = events[0]["run_id"]
    assert all(event["parent_ids"] in ([], [root]) for event in events)


class Runs(BaseCallbackHandler):
    """Notes the runs that begin and end."""

    def __init__(self) -> None:
        self.begun: dict[str, Any] = {}
        self.parents: dict[str, Any] = {}
        self.failed: list[str] = []

    def on_chain_start(self, serialized: Any, inputs: Any, *, run_id: Any, parent_run_id: Any = None, **_: Any) -> None:
        self.begun["chain"], self.parents["chain"] = run_id, parent_run_id

    def on_chat_model_start(
        self, serialized: Any, messages: Any, *, run_id: Any, parent_run_id: Any = None, **_: Any
    ) -> None:
        self.begun["model"], self.parents["model"] = run_id, parent_run_id

    def on_retriever_start(
        self, serialized: Any, query: str, *, run_id: Any, parent_run_id: Any = None, **_: Any
    ) -> None:
        self.begun["retriever"], self.parents["retriever"] = run_id, parent_run_id

    def on_chain_error(self, error: BaseException, **_: Any) -> None:
        self.failed.append("chain")

    def on_llm_error(self, error: BaseException, **_: Any) -> None:
        self.failed.append("model")


def test_callbacks_see_nested_runs_and_the_usage(qa: ACREDocumentQA, tiny_acre: ACRE) -> None:
    runs, usage = Runs(), UsageMetadataCallbackHandler()
    qa.invoke({"input": QUESTION, "documents": "zoo"}, {"callbacks": [runs, usage]})
    assert runs.parents == {"chain": None, "model": runs.begun["chain"], "retriever": runs.begun["chain"]}
    expected = tiny_acre.ask(QUESTION, "zoo", settings=SETTINGS).usage
    assert usage.usage_metadata["tiny-llama"]["output_tokens"] == expected.generated_tokens
    assert usage.usage_metadata["tiny-llama"]["input_token_details"] == {"cache_read": expected.cached_tokens}


def test_callbacks_see_failures_where_they_happen(qa: ACREDocumentQA) -> None:
    runs = Runs()
    with pytest.raises(CapacityError):
        qa.invoke("why " * 400, {"callbacks": [runs]})
    assert runs.failed == ["model", "chain"]


def test_the_chain_is_a_tool_that_asks_for_a_question(qa: ACREDocumentQA) -> None:
    tool = qa.pick("answer").as_tool(name="ask_zoo", description="Knows animals.", arg_types={"input": str})
    assert tool.args == {"input": {"title": "Input", "type": "string"}}
    assert tool.invoke({"input": QUESTION}) == qa.invoke(QUESTION)["answer"]
    wide = qa.as_tool(name="ask_zoo", description="Knows animals.")
    assert wide.invoke({"input": QUESTION, "documents": ["zoo"]}) == qa.invoke({"input": QUESTION, "documents": "zoo"})


def test_documents_are_read_on_an_event_loop_too(tiny_acre: ACRE) -> None:
    qa = asyncio.run(ACREDocumentQA.afrom_documents([LangChainDocument(TEXTS["zoo"], id="zoo")], acre=tiny_acre))
    assert qa.documents == ["zoo"] and set(tiny_acre.documents) == {"zoo"}
