"""Query engine, retriever and chat engine keep LlamaIndex's contracts, and say what the engine says."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from time import sleep
from typing import Any

import pytest
from conftest import tiny_decoder
from heartbeat import Hearts, hearts
from llama_index.core import Document, PromptTemplate, QueryBundle
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.response.schema import AsyncStreamingResponse, Response, StreamingResponse
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler, TokenCountingHandler
from llama_index.core.chat_engine import CondensePlusContextChatEngine, ContextChatEngine, SimpleChatEngine
from llama_index.core.llms import ChatMessage, MockLLM
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.prompts import ChatPromptTemplate
from llama_index.core.schema import MetadataMode, NodeRelationship, NodeWithScore, TextNode
from llama_index.core.vector_stores import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters

from acre_rag import ACRE, ACREConfig, GenerationSettings, Source
from acre_rag.errors import ConfigError, DeadlineError, DocumentError, FingerprintError
from acre_rag.integrations.llama_index import ACRELLM, ACREChatEngine, ACREIndex, ACREQueryEngine
from acre_rag.integrations.llama_index.documents import cache_name, text_digest
from acre_rag.integrations.llama_index.filters import passes
from acre_rag.integrations.llama_index.nodes import source_nodes
from acre_rag.integrations.llama_index.shelf import Held
from acre_rag.worker import Ticket

EIGHT = GenerationSettings(max_new_tokens=8)
LONG = GenerationSettings(max_new_tokens=150)
QUESTION = "Which number is it?"


def text(seed: int, sections: int = 8) -> str:
    return "".join(f"Section {i}. The number of it is {i * 7 + seed}.\n\n" for i in range(sections))


def documents() -> list[Document]:
    return [
        Document(
            text=text(seed),
            id_=name,
            metadata={"file_name": f"{name}.txt", "year": 2000 + seed, "tags": ["x", name]},
            excluded_llm_metadata_keys=["year"],
        )
        for seed, name in enumerate("abc")
    ]


@pytest.fixture
def index(tiny_acre: ACRE) -> ACREIndex:
    return ACREIndex.from_documents(documents(), acre=tiny_acre)


@pytest.fixture
def engine(index: ACREIndex) -> ACREQueryEngine:
    """Asks the second document."""
    return index.as_query_engine(settings=EIGHT, doc_ids=["b"])  # type: ignore[return-value]


async def gathered(stream: Any) -> list[Any]:
    return [each async for each in stream]


def every_response(engine: ACREQueryEngine, query: Any) -> dict[str, Response]:
    """The four forms, streams read to their end."""
    streaming = engine.with_streaming(True)

    async def later() -> Response:
        response = await streaming.aquery(query)
        assert isinstance(response, AsyncStreamingResponse)
        return await response.get_response()

    response = streaming.query(query)
    assert isinstance(response, StreamingResponse)
    return {
        "query": engine.query(query),  # type: ignore[dict-item]
        "aquery": asyncio.run(engine.aquery(query)),  # type: ignore[dict-item]
        "stream": response.get_response(),
        "astream": asyncio.run(later()),
    }


def places(nodes: Sequence[NodeWithScore]) -> list[tuple[Any, ...]]:
    return [(each.node.start_char_idx, each.node.end_char_idx, each.node.text, each.score) for each in nodes]  # type: ignore[attr-defined]


# Answers and sources


@pytest.mark.parametrize("query", [QUESTION, QueryBundle(QUESTION)], ids=["str", "bundle"])
def test_every_form_of_query_says_what_the_engine_says(index: ACREIndex, engine: ACREQueryEngine, query: Any) -> None:
    expected = index.acre.ask(QUESTION, index.cache_names()["b"], settings=EIGHT)
    assert expected.sources
    for form, response in every_response(engine, query).items():
        assert str(response).strip() == expected.text, form
        assert places(response.source_nodes) == [(s.start, s.end, s.text, s.score) for s in expected.sources], form
        metadata = response.metadata or {}
        assert metadata["usage"]["completion_tokens"] == expected.usage.generated_tokens, form
        assert metadata["usage"]["refilled_tokens"] == expected.usage.refilled_tokens, form
        assert metadata["timings"]["decode_s"] > 0 and metadata["scope"] == expected.scope, form
        assert metadata["documents"] == {"b": text_digest(text(1))}, form


def test_sources_are_nodes_of_their_document(engine: ACREQueryEngine) -> None:
    response = engine.query(QUESTION)
    for each in response.source_nodes:
        node = each.node
        assert isinstance(node, TextNode)
        assert text(1)[node.start_char_idx : node.end_char_idx] == node.text
        assert node.ref_doc_id == "b" == node.relationships[NodeRelationship.SOURCE].node_id
        assert node.metadata == {"file_name": "b.txt", "year": 2001, "tags": ["x", "b"]}
        assert "year" not in node.get_content("llm") and "file_name" in node.get_content("llm")
    ids = [each.node.node_id for each in response.source_nodes]
    assert len(set(ids)) == len(ids)
    assert ids == [each.node.node_id for each in engine.query(QUESTION).source_nodes]


def test_sources_are_shown_to_other_models_as_their_document_is(tiny_acre: ACRE) -> None:
    templates = {
        "text_template": "<{metadata_str}> {content}",
        "metadata_template": "{key} is {value}",
        "metadata_separator": " and ",
    }
    pages = [
        Document(text=text(i), metadata={"file_name": "x.pdf", "page_label": str(i), "lang": "en"}, **templates)
        for i in range(2)
    ]
    for join in (False, True):
        index = ACREIndex.from_documents(pages, acre=tiny_acre, join_pages=join)
        for each in index.as_retriever().retrieve(QUESTION):
            assert each.node.get_content(MetadataMode.LLM).startswith("<file_name is x.pdf and ")


def test_equal_places_in_two_versions_have_different_ids(index: ACREIndex, engine: ACREQueryEngine) -> None:
    changed = text(1).replace("Section", "Chapter")
    versions = [Held("b", cache_name("b", each), TextNode(text=each)) for each in (text(1), changed)]
    nodes = [source_nodes([Source(each.name, 0, 9, each.node.text[:9], 1.0)], [each])[0].node for each in versions]  # type: ignore[attr-defined]
    assert nodes[0].node_id != nodes[1].node_id
    index.update_ref_doc(Document(text=changed, id_="b"))
    assert (engine.query(QUESTION).metadata or {})["documents"] == {"b": text_digest(changed)}


def test_a_system_prompt_is_told_before_the_conversation_with_every_question(index: ACREIndex) -> None:
    said = [ChatMessage(role="user", content="Hello"), ChatMessage(role="assistant", content="Hi")]
    acre, name = index.acre, index.cache_names()["b"]
    plain = acre.template
    history = "\n\nEarlier in this conversation:\nuser: Hello\nassistant: Hi"
    chat = conversation(index, system_prompt="Be {brief}.", verbose=True)
    for told in ("\n\nBe {brief}.", "\n\nBe {brief}." + history):
        template = replace(plain, after=told + plain.after)
        expected = acre.using(template=template).ask(QUESTION, name, settings=EIGHT)
        assert chat.chat(QUESTION).response == expected.text
        assert asyncio.run(conversation(index, system_prompt="Be {brief}.", chat_history=said).achat(QUESTION)).response
        chat = conversation(index, system_prompt="Be {brief}.", chat_history=said)


@pytest.mark.parametrize("mode", ["best", "condense_question", "context", "condense_plus_context", "simple"])
def test_an_unknown_option_of_a_conversation_is_refused_and_verbose_disturbs_nobody(
    index: ACREIndex, mode: str
) -> None:
    llm = None if mode == "best" else MockLLM()
    with pytest.raises(ConfigError, match="'sytem_prompt' is no option.*system_prompt"):
        index.as_chat_engine(mode, llm=llm, sytem_prompt="Be brief.")  # type: ignore[arg-type]
    assert index.as_chat_engine(mode, llm=llm, verbose=True)  # type: ignore[arg-type]


def test_another_model_is_refused_where_it_would_have_nothing_to_do(index: ACREIndex) -> None:
    with pytest.raises(ConfigError, match="'best'.*condense_question.*condense_plus_context"):
        index.as_chat_engine(llm=MockLLM())


@pytest.mark.parametrize("name", ["similarity_topk", "settings", "timeout_s", "question_template"])
def test_options_that_another_model_cannot_use_are_refused(index: ACREIndex, name: str) -> None:
    with pytest.raises(ConfigError, match=f"'{name}' is no option of RetrieverQueryEngine.*similarity_top_k"):
        index.as_query_engine(llm=MockLLM(), **{name: None})
    engine: Any = index.as_query_engine(llm=MockLLM(), similarity_top_k=1, response_mode="tree_summarize", verbose=True)
    assert len(engine.query(QUESTION).source_nodes) == 1


def test_braces_in_a_conversation_are_words(index: ACREIndex) -> None:
    said = [ChatMessage(role="user", content="{question} {x}"), ChatMessage(role="assistant", content="{chat_history}")]
    assert conversation(index, chat_history=said).chat(QUESTION).source_nodes


def prompt_ids(chat: ACREChatEngine, message: str) -> list[int]:
    """What the model reads after the documents in the next turn of a conversation."""
    question, told = chat._question(message, chat.chat_history)
    return chat._asked(chat._whole, told).asking.acre.question(question).ids.tolist()


@pytest.mark.parametrize("by", ["history", "system prompt"])
def test_control_tokens_in_a_conversation_are_words(index: ACREIndex, by: str) -> None:
    def ids(said: str, message: str) -> list[int]:
        if by == "history":
            turns = [ChatMessage(role="user", content=said), ChatMessage(role="assistant", content="Hi")]
            return prompt_ids(conversation(index, chat_history=turns), message)
        return prompt_ids(conversation(index, system_prompt=said), message)

    sly, harmless = ids("hello </s> there", QUESTION), ids("hello abcd there", QUESTION)
    end = index.acre.decoder.tokenizer.eos_token_id
    assert end not in sly and len(sly) == len(harmless)
    both = ids("hello </s> there", "where </s> is it?")
    assert end not in both and len(both) == len(ids("hello abcd there", "where abcd is it?"))


def test_lone_surrogates_in_a_conversation_are_unknown_characters(index: ACREIndex) -> None:
    said = [ChatMessage(role="user", content="hello \ud800"), ChatMessage(role="assistant", content="Hi")]
    known = [ChatMessage(role="user", content="hello \ufffd"), said[1]]
    ids = [prompt_ids(conversation(index, chat_history=each), QUESTION) for each in (said, known)]
    assert ids[0] == ids[1]


def test_a_lone_surrogate_in_a_message_fails_no_turn(index: ACREIndex) -> None:
    chat, known = conversation(index), conversation(index)
    for message in ("who \ud800?", QUESTION):
        assert str(chat.chat(message)) == str(known.chat(message.replace("\ud800", "\ufffd")))


def test_the_question_alone_chooses_the_passages_of_a_conversation(index: ACREIndex) -> None:
    retriever = Fixed(found(100, 130))
    chat = conversation(index, retriever=retriever, select="retriever", max_passages=1)
    chat.chat("Hello")
    chat.chat(QUESTION)
    assert retriever.asked == ["Hello", QUESTION]


def test_a_stream_names_its_sources_before_the_first_piece(engine: ACREQueryEngine) -> None:
    whole = engine.query(QUESTION)
    response = engine.with_streaming(True).query(QUESTION)
    assert isinstance(response, StreamingResponse)
    assert places(response.source_nodes) == places(whole.source_nodes) and response.metadata == {}
    assert "".join(response.response_gen).strip() == str(whole)
    assert response.metadata is not None and response.metadata["usage"]["completion_tokens"] == 8


def test_from_documents_reads_and_asks(tiny_acre: ACRE) -> None:
    engine = ACREQueryEngine.from_documents(documents(), acre=tiny_acre, settings=EIGHT, doc_ids=["b"], max_passages=1)
    assert len(engine.query(QUESTION).source_nodes) == 1
    streaming = ACREQueryEngine.from_documents(documents(), acre=tiny_acre, settings=EIGHT, streaming=True)
    assert isinstance(streaming.query(QUESTION), StreamingResponse)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"llm": MockLLM()}, r"as_query_engine\(llm=\.\.\.\)"),
        ({"top_k": 3}, "'top_k'"),
        ({"retriever": object(), "select": "consensus"}, "hybrid"),
        ({"settings": {"max_tokens": 3}}, "GenerationSettings"),
    ],
)
def test_a_mistake_in_an_option_is_told_before_anything_is_read(
    tiny_acre: ACRE, forwards: list[int], options: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        ACREQueryEngine.from_documents(documents(), acre=tiny_acre, **options)
    assert not forwards and not tiny_acre.documents


def test_caches_of_other_options_are_refused_or_built_anew(tiny_acre: ACRE, tmp_path: Path) -> None:
    def engine(interval: int) -> ACRE:
        return ACRE(tiny_decoder(), config=replace(tiny_acre.config, interval=interval), store=tmp_path)

    ACREQueryEngine.from_documents(documents(), acre=engine(8))
    with pytest.raises(FingerprintError, match="interval"):
        ACREQueryEngine.from_documents(documents(), acre=engine(16))
    again = ACREQueryEngine.from_documents(documents(), acre=engine(16), rebuild=True)
    assert {each.interval for each in again.asking.acre.documents.values()} == {16}


def test_options_of_the_engine_reach_it(index: ACREIndex) -> None:
    name = index.cache_names()["b"]
    for options in (
        {"max_passages": 1},
        {"select": "retriever"},
        {"l1_context": False},
        {"granularity": "blocks", "budget": 16},
    ):
        engine = index.as_query_engine(settings=EIGHT, doc_ids=["b"], **options)
        expected = index.acre.using(**options).ask(QUESTION, name, settings=EIGHT)
        response = engine.query(QUESTION)
        assert str(response) == expected.text
        assert places(response.source_nodes) == [(s.start, s.end, s.text, s.score) for s in expected.sources]


def test_twenty_questions_at_once_equal_the_same_questions_one_by_one(index: ACREIndex) -> None:
    asked = [(f"Which number has section {i}?", "abc"[i % 3]) for i in range(20)]
    engines = {name: index.as_query_engine(settings=EIGHT, doc_ids=[name]) for name in "abc"}
    alone = [engines[name].query(question) for question, name in asked]

    async def together() -> list[Any]:
        return await asyncio.gather(*(engines[name].aquery(question) for question, name in asked))

    for one, other in zip(alone, asyncio.run(together()), strict=True):
        assert str(one) == str(other) and places(one.source_nodes) == places(other.source_nodes)


def test_a_late_answer_is_a_deadline_error(index: ACREIndex) -> None:
    engine = index.as_query_engine(timeout_s=0.05)
    for ask in (lambda: engine.query(QUESTION), lambda: asyncio.run(engine.aquery(QUESTION))):
        busy(index.acre, 0.2)
        with pytest.raises(DeadlineError):
            ask()


# Filters


def one(key: str, value: Any, operator: str = "==") -> MetadataFilter:
    return MetadataFilter(key=key, value=value, operator=FilterOperator(operator))


def group(condition: str, *filters: Any) -> MetadataFilters:
    return MetadataFilters(filters=list(filters), condition=FilterCondition(condition))


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (None, "abc"),
        (group("and"), "abc"),
        (group("and", one("year", 2001)), "b"),
        (group("and", one("year", 2001, "!=")), "ac"),
        (group("and", one("year", 2000, ">"), one("year", 2002, "<")), "b"),
        (group("and", one("year", 2001, ">=")), "bc"),
        (group("and", one("year", 2001, "<=")), "ab"),
        (group("and", one("year", [2000, 2002], "in")), "ac"),
        (group("and", one("year", [2000, 2002], "nin")), "b"),
        (group("and", one("tags", "c", "contains")), "c"),
        (group("and", one("tags", ["a", "b"], "any")), "ab"),
        (group("and", one("tags", ["x", "b"], "all")), "b"),
        (group("and", one("file_name", "A.TXT", "text_match_insensitive")), "a"),
        (group("and", one("file_name", "c.", "text_match")), "c"),
        (group("and", one("author", None, "is_empty")), "abc"),
        (group("or", one("year", 2000), one("file_name", "c.txt")), "ac"),
        (group("not", one("year", 2000), one("year", 2001)), "c"),
        (group("or", group("and", one("year", 2000), one("tags", "a", "contains")), one("year", 2002)), "ac"),
        (group("and", group("or", one("year", 2000), one("year", 2001)), group("not", one("year", 2000))), "b"),
        (group("and", one("year", 1999)), ""),
    ],
)
def test_filters_choose_the_documents(filters: MetadataFilters | None, expected: str) -> None:
    assert "".join(each.id_ for each in documents() if passes(each.metadata, filters)) == expected


def test_filters_and_ids_choose_whom_every_form_asks(index: ACREIndex) -> None:
    late = group("and", one("year", 2001, ">="))
    for options, expected in (
        ({"filters": late}, {"b", "c"}),
        ({"doc_ids": ["c"]}, {"c"}),
        ({"filters": late, "doc_ids": ["a", "b"]}, {"b"}),
    ):
        engine = index.as_query_engine(settings=EIGHT, **options)
        for form, response in every_response(engine, QUESTION).items():  # type: ignore[arg-type]
            assert set((response.metadata or {})["documents"]) == expected, form
            assert {each.node.ref_doc_id for each in response.source_nodes} <= expected, form
        assert {each.node.ref_doc_id for each in index.as_retriever(**options).retrieve(QUESTION)} <= expected


def test_when_no_document_is_left_nothing_is_made_up(index: ACREIndex, forwards: list[int]) -> None:
    nobody = group("and", one("year", 1999))
    engine = index.as_query_engine(filters=nobody)
    for form, response in every_response(engine, QUESTION).items():  # type: ignore[arg-type]
        assert str(response) == "Empty Response" and response.source_nodes == [], form
    assert index.as_retriever(filters=nobody).retrieve(QUESTION) == []
    assert asyncio.run(index.as_retriever(filters=nobody).aretrieve(QUESTION)) == []
    assert not forwards


def test_an_unknown_id_is_an_error(index: ACREIndex) -> None:
    with pytest.raises(DocumentError, match="'z'"):
        index.as_query_engine(doc_ids=["z"]).query(QUESTION)


def test_documents_inserted_later_are_asked_by_engines_made_earlier(index: ACREIndex) -> None:
    engine = index.as_query_engine(settings=EIGHT, filters=group("and", one("year", 1950)))
    assert str(engine.query(QUESTION)) == "Empty Response"
    index.insert(Document(text=text(9), id_="old", metadata={"year": 1950}))
    assert {each.node.ref_doc_id for each in engine.query(QUESTION).source_nodes} == {"old"}


# Events


@pytest.mark.parametrize("streaming", [False, True])
def test_query_and_retrieval_events_fire(engine: ACREQueryEngine, events: list[str], streaming: bool) -> None:
    debug = LlamaDebugHandler(print_trace_on_end=False)
    asking = ACREQueryEngine(engine.asking, streaming=streaming, callback_manager=CallbackManager([debug]))
    whole = places(engine.query(QUESTION).source_nodes)
    events.clear()
    for response in (asking.query(QUESTION), asyncio.run(asking.aquery(QUESTION))):
        assert places(response.source_nodes) == whole
    assert events == ["QueryStartEvent", "RetrievalStartEvent", "RetrievalEndEvent", "QueryEndEvent"] * 2
    assert [places(end.payload["nodes"]) for _, end in debug.get_event_pairs(CBEventType.RETRIEVE)] == [whole] * 2


def test_retrieval_events_fire(index: ACREIndex, events: list[str]) -> None:
    index.as_retriever().retrieve(QUESTION)
    asyncio.run(index.as_retriever().aretrieve(QUESTION))
    assert events == ["RetrievalStartEvent", "RetrievalEndEvent"] * 2


def test_callbacks_see_the_query_and_count_its_tokens(tiny_acre: ACRE) -> None:
    counter, debug = TokenCountingHandler(), LlamaDebugHandler(print_trace_on_end=False)
    engine = ACREQueryEngine.from_documents(
        documents(), acre=tiny_acre, settings=EIGHT, doc_ids=["b"], callback_manager=CallbackManager([counter, debug])
    )
    responses = every_response(engine, QUESTION).values()
    assert counter.completion_llm_token_count == 4 * 8
    assert counter.prompt_llm_token_count == sum(r.metadata["usage"]["prompt_tokens"] for r in responses)  # type: ignore[index]
    assert len(debug.get_event_pairs(CBEventType.QUERY)) == 4 and len(debug.get_llm_inputs_outputs()) == 4


def test_a_question_that_fails_ends_its_events(index: ACREIndex) -> None:
    debug = LlamaDebugHandler(print_trace_on_end=False)
    engine = index.as_query_engine(settings=GenerationSettings(max_new_tokens=1000))
    engine.callback_manager = CallbackManager([debug])
    with pytest.raises(ValueError, match="window"):
        engine.query(QUESTION)
    assert [len(pair) for pair in debug.get_event_pairs(CBEventType.QUERY)] == [2]


# Prompts


def test_the_prompt_is_shown_in_the_frameworks_form(engine: ACREQueryEngine) -> None:
    [(key, prompt)] = engine.get_prompts().items()
    assert key == "question_template" and "{query_str}" in prompt.get_template()


def test_a_new_prompt_asks_in_its_words(index: ACREIndex, engine: ACREQueryEngine) -> None:
    before = str(engine.query(QUESTION))
    engine.update_prompts({"question_template": PromptTemplate("\n\n{tone}: {query_str} {unclosed", tone="Politely")})
    template = replace(index.acre.template, after="\n\nPolitely: {question} {unclosed")
    expected = index.acre.using(template=template).ask(QUESTION, index.cache_names()["b"], settings=EIGHT)
    assert str(engine.query(QUESTION)) == expected.text != before
    assert engine.get_prompts()["question_template"].get_template() == "\n\nPolitely: {query_str} {unclosed"
    given = index.as_query_engine(
        settings=EIGHT, doc_ids=["b"], question_template=PromptTemplate("\n\nPolitely: {query_str} {unclosed")
    )
    assert str(given.query(QUESTION)) == expected.text


def test_a_prompts_variable_may_have_another_name(engine: ACREQueryEngine) -> None:
    engine.update_prompts({"question_template": PromptTemplate("\n\nQ: {q}", template_var_mappings={"query_str": "q"})})
    assert engine.get_prompts()["question_template"].get_template() == "\n\nQ: {query_str}"


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({"question_template": PromptTemplate("no place for it")}, "query_str"),
        ({"question_template": PromptTemplate("{query_str} and {query_str}")}, "exactly once"),
        ({"question_template": PromptTemplate("{context_str} {query_str}")}, "cache"),
        ({"question_template": PromptTemplate("{mood} {query_str}")}, "mood"),
        ({"question_template": ChatPromptTemplate([ChatMessage(content="{query_str}")])}, "ChatPromptTemplate"),
        ({"question_template": PromptTemplate("{query_str}{x}", function_mappings={"x": str})}, "partial_format"),
        ({"text_qa_template": PromptTemplate("{query_str}")}, "question_template"),
    ],
)
def test_a_prompt_with_the_wrong_variables_is_refused(engine: ACREQueryEngine, prompts: Any, message: str) -> None:
    before = engine.get_prompts()["question_template"].get_template()
    with pytest.raises(ConfigError, match=message):
        engine.update_prompts(prompts)
    assert engine.get_prompts()["question_template"].get_template() == before


# Retrieval, both ways


def test_the_retriever_gives_the_engines_selection(index: ACREIndex) -> None:
    retriever = index.as_retriever(doc_ids=["b"])
    expected = index.acre.retrieve(QUESTION, index.cache_names()["b"])
    for nodes in (retriever.retrieve(QUESTION), asyncio.run(retriever.aretrieve(QueryBundle(QUESTION)))):
        assert places(nodes) == [(s.start, s.end, s.text, s.score) for s in expected]
    engine = index.as_query_engine(doc_ids=["b"])
    assert places(engine.retrieve(QueryBundle(QUESTION))) == places(nodes)
    assert places(asyncio.run(engine.aretrieve(QueryBundle(QUESTION)))) == places(nodes)  # type: ignore[attr-defined]


class Fixed(BaseRetriever):
    """Returns the same nodes for every question."""

    def __init__(self, *nodes: NodeWithScore) -> None:
        self.nodes, self.asked = list(nodes), []
        super().__init__()

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        self.asked.append(query_bundle.query_str)
        return self.nodes


def found(
    start: int, end: int, *, ref: str | None = "b", offsets: bool = True, score: float | None = 1.0, shift: int = 0
) -> NodeWithScore:
    node = TextNode(text=text(1)[start:end])
    if offsets:
        node.start_char_idx, node.end_char_idx = start + shift, end + shift
    if ref:
        node.relationships[NodeRelationship.SOURCE] = TextNode(id_=ref).as_related_node_info()
    return NodeWithScore(node=node, score=score)


@pytest.mark.parametrize(
    "hit",
    [
        found(200, 230),
        found(200, 230, offsets=False),
        found(200, 230, shift=-150),
        found(200, 230, ref=None, offsets=False),
        found(200, 230, score=None),
    ],
    ids=["by offsets", "by text", "offsets that are wrong", "by text alone", "without a score"],
)
def test_a_retriever_of_the_framework_guides_refilling(index: ACREIndex, hit: NodeWithScore) -> None:
    retriever = Fixed(hit)
    engine = index.as_query_engine(
        settings=EIGHT, doc_ids=["b"], retriever=retriever, select="retriever", max_passages=1
    )
    for form, response in every_response(engine, QUESTION).items():  # type: ignore[arg-type]
        [source] = response.source_nodes
        assert source.node.start_char_idx < 230 and source.node.end_char_idx > 200, form  # type: ignore[attr-defined]
    assert set(retriever.asked) == {QUESTION}


def test_what_a_retriever_found_elsewhere_is_left_out(index: ACREIndex) -> None:
    strangers = [
        found(200, 230, ref="z"),
        found(0, 30, ref="a"),
        NodeWithScore(node=TextNode(text="nowhere"), score=3.0),
    ]
    retriever = Fixed(*strangers, found(100, 130, score=0.5))
    engine = index.as_query_engine(
        settings=EIGHT, doc_ids=["b"], retriever=retriever, select="retriever", max_passages=1
    )
    [source] = engine.query(QUESTION).source_nodes
    assert source.node.start_char_idx < 130 and source.node.end_char_idx > 100  # type: ignore[attr-defined]


def page_of(file: str, number: int) -> NodeWithScore:
    """The first section of a page, as an index that knows pages alone finds it."""
    node = TextNode(text=text(number)[:37], start_char_idx=0, end_char_idx=37, metadata={"file_path": file})
    node.relationships[NodeRelationship.SOURCE] = TextNode(id_=f"{file} {number}").as_related_node_info()
    return NodeWithScore(node=node, score=0.5)


def joined_files(acre: ACRE, *files: str) -> ACREIndex:
    """Files of two pages each, and a document that names another file."""
    pages = [Document(text=text(i), id_=f"{file} {i}", metadata={"file_path": file}) for file in files for i in (0, 1)]
    return ACREIndex.from_documents([*pages, *documents()[:1]], acre=acre, join_pages=True)


def test_a_page_of_a_joined_file_guides_refilling(tiny_acre: ACRE) -> None:
    index = joined_files(tiny_acre, "x.pdf", "y.pdf")
    assert set(index.cache_names()) == {"x.pdf", "y.pdf", "a"}
    retriever = index.as_retriever(retriever=Fixed(page_of("y.pdf", 1)), select="retriever", max_passages=1)
    [hit] = retriever.retrieve(QUESTION)
    start = len(text(0)) + len("\n\n")
    assert hit.node.ref_doc_id == "y.pdf"
    assert hit.node.start_char_idx < start + 37 and hit.node.end_char_idx > start  # type: ignore[attr-defined]


def test_a_page_of_a_file_that_is_not_asked_guides_nothing_and_is_told(
    tiny_acre: ACRE, caplog: pytest.LogCaptureFixture
) -> None:
    index = joined_files(tiny_acre, "x.pdf", "y.pdf")
    filtered = page_of("x.pdf", 1)
    filtered.node.relationships[NodeRelationship.SOURCE] = TextNode(id_="a").as_related_node_info()
    acre = index.as_retriever(retriever=Fixed(page_of("y.pdf", 1), filtered)).asking.acre
    asked = index.acre.documents[index.cache_names()["x.pdf"]]
    assert acre.retriever(QUESTION, [asked]) == []
    assert "None of the 2 nodes of Fixed stands in the documents asked" in caplog.text


def test_with_a_retriever_the_strategy_asks_it(index: ACREIndex) -> None:
    assert index.as_retriever(retriever=Fixed()).asking.acre.config.select == "retriever"  # no heads known
    with pytest.raises(ConfigError, match="hybrid"):
        index.as_query_engine(retriever=Fixed(), select="consensus")


def test_an_option_for_another_model_says_so(index: ACREIndex) -> None:
    with pytest.raises(ConfigError, match="Unknown option 'response_mode'.* pass it with llm="):
        index.as_query_engine(response_mode="compact")


# Conversation


def conversation(index: ACREIndex, **options: Any) -> ACREChatEngine:
    return index.as_chat_engine(settings=EIGHT, doc_ids=["b"], **options)  # type: ignore[return-value]


@pytest.fixture
def ask(index: ACREIndex) -> Callable[..., str]:
    """The engine's own answer to a question, after the turns of a conversation."""

    def answer(question: str, *turns: str) -> str:
        lines = "\n".join(f"{role}: {turn}" for role, turn in zip(["user", "assistant"] * 9, turns, strict=False))
        told = f"\n\nEarlier in this conversation:\n{lines}" if turns else ""
        template = replace(index.acre.template, after=told + index.acre.template.after)
        return index.acre.using(template=template).ask(question, index.cache_names()["b"], settings=EIGHT).text

    return answer


def test_every_form_of_chat_asks_the_cache_with_the_history(index: ACREIndex, ask: Callable[..., str]) -> None:
    async def achat(chat: ACREChatEngine, message: str) -> Any:
        return await chat.achat(message)

    async def astream(chat: ACREChatEngine, message: str) -> str:
        response = await chat.astream_chat(message)
        assert response.source_nodes
        return "".join(await gathered(response.async_response_gen())).strip()

    first = ask("Hello")
    for form, turn in (
        ("chat", lambda chat, message: str(chat.chat(message))),
        ("achat", lambda chat, message: str(asyncio.run(achat(chat, message)))),
        ("stream_chat", lambda chat, message: "".join(chat.stream_chat(message).response_gen).strip()),
        ("astream_chat", lambda chat, message: asyncio.run(astream(chat, message))),
    ):
        chat = conversation(index, memory=ChatMemoryBuffer.from_defaults())
        assert turn(chat, "Hello") == first, form
        assert turn(chat, QUESTION) == ask(QUESTION, "Hello", first), form
        assert [each.role.value for each in chat.chat_history] == ["user", "assistant"] * 2, form


def test_a_chats_answer_has_sources_and_costs(index: ACREIndex) -> None:
    response = conversation(index).chat(QUESTION)
    expected = index.acre.ask(QUESTION, index.cache_names()["b"], settings=EIGHT)
    assert places(response.source_nodes) == [(s.start, s.end, s.text, s.score) for s in expected.sources]
    assert response.metadata is not None and response.metadata["usage"]["completion_tokens"] == 8
    assert response.sources[0].raw_input == {"query": QUESTION}


def test_the_framework_s_own_memory_is_the_default(index: ACREIndex, ask: Callable[..., str]) -> None:
    chat = conversation(
        index, chat_history=[ChatMessage(role="user", content="Hello"), ChatMessage(role="assistant", content="Hi")]
    )
    assert str(chat.chat(QUESTION)) == ask(QUESTION, "Hello", "Hi")
    assert len(chat.chat_history) == 4
    chat.reset()
    assert chat.chat_history == [] and str(chat.chat(QUESTION)) == ask(QUESTION)


def test_a_given_history_stands_instead_of_the_remembered_one(index: ACREIndex, ask: Callable[..., str]) -> None:
    chat = conversation(index)
    chat.chat("Something else")
    given = [ChatMessage(role="user", content="Hello"), ChatMessage(role="assistant", content="Hi")]
    assert str(chat.chat(QUESTION, chat_history=given)) == ask(QUESTION, "Hello", "Hi")
    assert str(asyncio.run(chat.achat(QUESTION, chat_history=given))) == ask(QUESTION, "Hello", "Hi")


def test_only_the_last_messages_are_put_with_the_question(index: ACREIndex, ask: Callable[..., str]) -> None:
    said = [ChatMessage(role=role, content=str(i)) for i, role in enumerate(["user", "assistant"] * 3)]
    chat = conversation(index, history_messages=2, chat_history=said)
    assert str(chat.chat(QUESTION)) == ask(QUESTION, "4", "5")


def test_a_long_conversation_is_told_as_far_as_the_window_has_room(index: ACREIndex) -> None:
    said = [
        ChatMessage(role=role, content=f"{role} says this {i}. " * 5)
        for i, role in enumerate(["user", "assistant"] * 3)
    ]
    chat = conversation(index, chat_history=said)
    _, told = chat._question(QUESTION, said)
    assert "says this 5" in told and "says this 0" not in told
    assert str(chat.chat(QUESTION))
    assert str(asyncio.run(conversation(index, chat_history=said).achat(QUESTION)))
    assert chat.chat_history[0].content == said[0].content  # remembered, though not told


def test_a_conversation_to_condense_is_told_as_far_as_the_model_has_room(index: ACREIndex) -> None:
    llm = ACRELLM(index.acre, max_tokens=8)
    assert llm.metadata.context_window == 1024
    said = [
        ChatMessage(role=role, content=f"It says this {i}. " * 25) for i, role in enumerate(["user", "assistant"] * 2)
    ]
    chat = conversation(
        index, chat_mode="condense_question", llm=llm, memory=ChatMemoryBuffer.from_defaults(token_limit=9999)
    )
    assert str(chat.chat(QUESTION, chat_history=said))


def test_condensing_rewrites_the_question_and_asks_the_cache(index: ACREIndex, ask: Callable[..., str]) -> None:
    class Rewriter(MockLLM):
        def complete(self, prompt: str, formatted: bool = False, **_: Any) -> Any:  # type: ignore[override]
            assert "Hello" in prompt and QUESTION in prompt
            return super().complete("Which number has section 3?", formatted)

    said = [ChatMessage(role="user", content="Hello"), ChatMessage(role="assistant", content="Hi")]
    chat = conversation(index, chat_mode="condense_question", llm=Rewriter(), chat_history=said)
    expected = ask("Which number has section 3?")
    assert str(chat.chat(QUESTION)) == expected
    assert str(asyncio.run(chat.achat(QUESTION, chat_history=said))) == expected
    assert "".join(chat.stream_chat(QUESTION, chat_history=said).response_gen).strip() == expected
    assert chat.chat_history[-2].content == QUESTION


def test_streamed_chats_emit_the_frameworks_events(index: ACREIndex, events: list[str]) -> None:
    "".join(conversation(index).stream_chat(QUESTION).response_gen)
    chats = list(dict.fromkeys(each for each in events if each.startswith("StreamChat")))
    assert chats == ["StreamChatStartEvent", "StreamChatDeltaReceivedEvent", "StreamChatEndEvent"]


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("context", ContextChatEngine),
        ("condense_plus_context", CondensePlusContextChatEngine),
        ("simple", SimpleChatEngine),
    ],
)
def test_the_other_chat_modes_are_the_frameworks_own(index: ACREIndex, mode: Any, kind: type) -> None:
    llm = ACRELLM(index.acre, max_tokens=4)
    options = {} if mode == "simple" else {"doc_ids": ["b"], "max_passages": 1}
    chat = index.as_chat_engine(mode, llm=llm, **options)
    assert isinstance(chat, kind)
    response = chat.chat(QUESTION)
    assert str(response)
    if mode != "simple":
        assert {each.node.ref_doc_id for each in response.source_nodes} == {"b"}


@pytest.mark.parametrize("mode", ["react", "openai", "telepathy"])
def test_a_mode_that_is_no_more_is_refused(index: ACREIndex, mode: Any) -> None:
    with pytest.raises(ValueError, match="react|REACT|telepathy"):
        index.as_chat_engine(mode)


# Event loops and closed streams


def busy(acre: ACRE, seconds: float) -> None:
    """Keep the model's thread at other work."""

    def wait(tickets: Sequence[Ticket]) -> list[None]:
        sleep(seconds)
        return [None for _ in tickets]

    acre.decoder.worker.submit([Ticket(wait)])


async def drained(stream: Awaitable[Any]) -> None:
    response = await stream
    pieces = response if hasattr(response, "__aiter__") else response.async_response_gen()
    assert await gathered(pieces)


ASYNCHRONOUS: dict[str, Callable[[ACREIndex], Awaitable[Any]]] = {
    "aquery": lambda index: index.as_query_engine(settings=EIGHT).aquery(QUESTION),
    "aquery, streaming": lambda index: drained(index.as_query_engine(settings=EIGHT, streaming=True).aquery(QUESTION)),
    "aretrieve": lambda index: index.as_retriever().aretrieve(QUESTION),
    "achat": lambda index: index.as_chat_engine(settings=EIGHT).achat(QUESTION),
    "astream_chat": lambda index: drained(index.as_chat_engine(settings=EIGHT).astream_chat(QUESTION)),
    "ainsert": lambda index: index.ainsert(Document(text=text(9), id_="d")),
    "aupdate_ref_doc": lambda index: index.aupdate_ref_doc(Document(text=text(9), id_="b")),
    "adelete_ref_doc": lambda index: index.adelete_ref_doc("b"),
    "arefresh_ref_docs": lambda index: index.arefresh_ref_docs([Document(text=text(9), id_="b")]),
    "llm.acomplete": lambda index: ACRELLM(index.acre, max_tokens=8).acomplete("a"),
    "llm.achat": lambda index: ACRELLM(index.acre, max_tokens=8).achat([ChatMessage(content="a")]),
    "llm.astream_complete": lambda index: drained(ACRELLM(index.acre, max_tokens=8).astream_complete("a")),
    "llm.astream_chat": lambda index: drained(
        ACRELLM(index.acre, max_tokens=8).astream_chat([ChatMessage(content="a")])
    ),
    "llm.achat over a long text": lambda index: ACRELLM(
        index.acre, max_tokens=8, cache_documents=True, min_document_chars=100, max_cached_documents=0
    ).achat([ChatMessage(role="system", content=text(7)), ChatMessage(content="a")]),
}


@pytest.mark.parametrize("form", ASYNCHRONOUS)
def test_no_asynchronous_form_blocks_the_event_loop(index: ACREIndex, form: str) -> None:
    async def run() -> Hearts:
        # A second turn at other work: what waits for several turns (read, then remove) meets it too.
        for seconds in (0.3, 0.3):
            busy(index.acre, seconds)
        index.as_chat_engine()  # the first one imports LlamaIndex's memory, a third of a second
        async with hearts() as beats:
            await ASYNCHRONOUS[form](index)
        return beats

    assert asyncio.run(run()).held_s < 0.2


def test_a_stream_that_is_never_read_costs_no_answer(index: ACREIndex, forwards: list[int]) -> None:
    engine = index.as_query_engine(settings=LONG, doc_ids=["b"], streaming=True)
    engine.query(QUESTION)
    asyncio.run(engine.aquery(QUESTION))  # type: ignore[arg-type]
    index.as_retriever(doc_ids=["b"]).retrieve(QUESTION)
    assert len(forwards) < 50, "each answer would have been 150"


def test_a_cancelled_question_stops_the_model(index: ACREIndex, forwards: list[int]) -> None:
    engine = index.as_query_engine(settings=LONG, doc_ids=["b"])

    async def run() -> None:
        task = asyncio.ensure_future(engine.aquery(QUESTION))
        while len(forwards) < 5:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await index.as_retriever(doc_ids=["b"]).aretrieve(QUESTION)

    asyncio.run(run())
    assert len(forwards) < 100


def test_questions_during_an_update_are_answered_from_the_old_text(tiny_acre: ACRE) -> None:
    """A tiny window reads in many strides; questions in line behind the reading still know the old version."""
    acre = ACRE(
        tiny_decoder(),
        config=ACREConfig(window=512, interval=8, stride=8, passage_tokens=32, max_passages=2, select="consensus"),
    )
    index = ACREIndex.from_documents(documents(), acre=acre)
    engine = index.as_query_engine(settings=EIGHT, doc_ids=["b"])
    before = str(engine.query(QUESTION))

    async def run() -> tuple[list[str], str]:
        update = asyncio.ensure_future(index.aupdate_ref_doc(Document(text=text(50, sections=30), id_="b")))
        await asyncio.sleep(0)
        during = [str(await engine.aquery(QUESTION))] if not update.done() else []
        await update
        return during, str(await engine.aquery(QUESTION))

    during, after = asyncio.run(run())
    assert all(each in (before, after) for each in during) and after != before
