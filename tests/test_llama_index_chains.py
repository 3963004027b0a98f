"""ACRE inside LlamaIndex's own chains, on real files with a real model: evaluators, routers, retrievers, event loops."""

import asyncio
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from heartbeat import Hearts, hearts
from llama_index.core import Document, PromptTemplate, QueryBundle, SimpleDirectoryReader, get_response_synthesizer
from llama_index.core.base.base_selector import BaseSelector, SelectorResult, SingleSelection
from llama_index.core.base.embeddings.base import BaseEmbedding, similarity
from llama_index.core.evaluation import (
    BaseEvaluator,
    BatchEvalRunner,
    CorrectnessEvaluator,
    EvaluationResult,
    SemanticSimilarityEvaluator,
)
from llama_index.core.llms import ChatMessage, ChatResponse, MockLLM
from llama_index.core.node_parser import TokenTextSplitter
from llama_index.core.prompts.mixin import PromptDictType
from llama_index.core.query_engine import RetrieverQueryEngine, RouterQueryEngine, SubQuestionQueryEngine
from llama_index.core.question_gen.types import BaseQuestionGenerator, SubQuestion
from llama_index.core.tools import QueryEngineTool, ToolMetadata
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters
from llama_index.retrievers.bm25 import BM25Retriever

from acre_rag import ACRE, ACREConfig, GenerationSettings
from acre_rag.decoder import Decoder
from acre_rag.demo import book
from acre_rag.integrations.llama_index import ACRELLM, ACREIndex, ACREQueryEngine

pytestmark = pytest.mark.model

CONFIG = ACREConfig(window=1536, stride=512, passage_tokens=300, max_passages=2)
SHORT = GenerationSettings(max_new_tokens=16)
LONG = GenerationSettings(max_new_tokens=200)
BOTTLE = "What was written on the paper label round the neck of the bottle?"
TABLE = "What did Alice find on the three-legged table made of solid glass?"
HARBOUR = "Who keeps the lighthouse of Port Ellis?"
OTHER = (
    "The harbour of Port Ellis was built in 1871 by the engineer Maria Calder, who came from the north.\n\n"
    "Its lighthouse is kept by an old sailor named Tobias Finch, who has not missed a single night in forty years.\n\n"
    "Every spring the fishermen paint their boats yellow, a custom that nobody can explain any more.\n\n"
) * 2


class WordCounts(BaseEmbedding):
    """A bag of words: no model, no network."""

    size: int = 512

    def _embed(self, text: str) -> list[float]:
        counts = [1e-6] * self.size
        for word in re.findall(r"[a-z]{3,}", text.lower()):
            counts[sum(ord(letter) * 31**i for i, letter in enumerate(word)) % self.size] += 1.0
        return counts

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._embed(text)

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._embed(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._embed(query)


class ByWords(BaseSelector):
    """Chooses the tool whose description shares most words with the question."""

    def _get_prompts(self) -> PromptDictType:
        return {}

    def _update_prompts(self, prompts: PromptDictType) -> None:
        return None

    def _select(self, choices: Sequence[ToolMetadata], query: QueryBundle) -> SelectorResult:
        embed = WordCounts()
        scores = [
            similarity(embed.get_text_embedding(each.description), embed.get_query_embedding(query.query_str))
            for each in choices
        ]
        return SelectorResult(selections=[SingleSelection(index=scores.index(max(scores)), reason="words")])

    async def _aselect(self, choices: Sequence[ToolMetadata], query: QueryBundle) -> SelectorResult:
        return self._select(choices, query)


class BothBooks(BaseQuestionGenerator):
    """Asks each tool its own question."""

    def _get_prompts(self) -> PromptDictType:
        return {}

    def _update_prompts(self, prompts: PromptDictType) -> None:
        return None

    def generate(self, tools: Sequence[ToolMetadata], query: QueryBundle) -> list[SubQuestion]:
        questions = {"alice": BOTTLE, "harbour": HARBOUR}
        return [SubQuestion(sub_question=questions[str(each.name)], tool_name=str(each.name)) for each in tools]

    async def agenerate(self, tools: Sequence[ToolMetadata], query: QueryBundle) -> list[SubQuestion]:
        return self.generate(tools, query)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two books as files."""
    path = tmp_path_factory.mktemp("books")
    (path / "alice.txt").write_text(book()[:7_700], encoding="utf-8")
    (path / "harbour.txt").write_text(OTHER, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def index(folder: Path, smollm2: Decoder) -> ACREIndex:
    """Read with the float32 model, so that a batch says exactly what its questions say alone."""
    documents = SimpleDirectoryReader(str(folder)).load_data()
    return ACREIndex.from_documents(documents, acre=ACRE(smollm2, config=CONFIG))


@pytest.fixture(scope="module")
def ids(index: ACREIndex) -> dict[str, str]:
    """File name to document id."""
    return {info.metadata["file_name"]: ref_doc_id for ref_doc_id, info in index.ref_doc_info.items()}


@pytest.fixture(scope="module")
def alice(index: ACREIndex, ids: dict[str, str]) -> ACREQueryEngine:
    return index.as_query_engine(settings=SHORT, doc_ids=[ids["alice.txt"]])  # type: ignore[return-value]


@pytest.fixture(scope="module")
def harbour(index: ACREIndex, ids: dict[str, str]) -> ACREQueryEngine:
    return index.as_query_engine(settings=SHORT, doc_ids=[ids["harbour.txt"]])  # type: ignore[return-value]


@pytest.fixture(scope="module")
def said(alice: ACREQueryEngine, harbour: ACREQueryEngine) -> dict[str, Any]:
    """What each question is answered when it is asked alone."""
    return {BOTTLE: alice.query(BOTTLE), TABLE: alice.query(TABLE), HARBOUR: harbour.query(HARBOUR)}


@pytest.fixture
def forwards(index: ACREIndex) -> Iterator[list[int]]:
    """One entry a forward pass of the model."""
    seen: list[int] = []
    handle = index.acre.decoder.attentions[0].register_forward_pre_hook(lambda *_: seen.append(1))
    yield seen
    handle.remove()


def texts(response: Any) -> str:
    return "\n".join(each.node.get_content() for each in response.source_nodes)


def test_files_of_a_folder_are_read_and_asked(said: dict[str, Any]) -> None:
    response = said[BOTTLE]
    assert "DRINK ME" in texts(response)
    assert {each.node.metadata["file_name"] for each in response.source_nodes} == {"alice.txt"}
    for each in response.source_nodes:
        start, end = each.node.start_char_idx, each.node.end_char_idx  # type: ignore[attr-defined]
        assert book()[start:end] == each.node.get_content()
    assert "Finch" in str(said[HARBOUR])


def test_a_metadata_filter_keeps_a_question_to_one_file(index: ACREIndex) -> None:
    only = MetadataFilters(filters=[MetadataFilter(key="file_name", value="harbour.txt")])
    response = index.as_query_engine(settings=SHORT, filters=only).query(HARBOUR)
    assert "Finch" in str(response) and {e.node.metadata["file_name"] for e in response.source_nodes} == {"harbour.txt"}


def test_pieces_add_up_and_the_last_has_the_tokens(index: ACREIndex) -> None:
    llm = ACRELLM(index.acre, max_tokens=24)
    pieces = list(llm.stream_chat([ChatMessage(content="Tell me about the sea.")]))
    assert len(pieces) > 5
    so_far = ""
    for piece in pieces[:-1]:
        so_far += piece.delta or ""
        assert piece.message.content == so_far
    assert pieces[-1].delta == "" and pieces[-1].message.content == so_far.strip()
    assert pieces[-1].raw["usage"]["completion_tokens"] == 24  # type: ignore[index]


def test_the_frameworks_evaluators_run_over_the_query_engine(alice: ACREQueryEngine, said: dict[str, Any]) -> None:
    class Judge(MockLLM):
        """Answers in the form that CorrectnessEvaluator asks for, and scores by one word."""

        def chat(self, messages: Any, **_: Any) -> Any:  # type: ignore[override]
            generated = str(messages[-1].content).split("Generated Answer")[-1].lower()
            verdict = f"{5.0 if 'label' in generated else 1.0}\nby its words"
            return ChatResponse(message=ChatMessage(role="assistant", content=verdict))

        async def achat(self, messages: Any, **options: Any) -> Any:  # type: ignore[override]
            return self.chat(messages, **options)

    class Found(BaseEvaluator):
        """Whether the contexts hold what the reference writes in capitals."""

        def _get_prompts(self) -> PromptDictType:
            return {}

        def _update_prompts(self, prompts: PromptDictType) -> None:
            return None

        async def aevaluate(self, query: Any = None, response: Any = None, contexts: Any = None, **options: Any) -> Any:
            wanted = " ".join(re.findall(r"[A-Z]{2,}", options["reference"])).lower()
            return EvaluationResult(score=float(wanted in " ".join(contexts).lower()))

    runner = BatchEvalRunner(
        {
            "found": Found(),
            "correct": CorrectnessEvaluator(llm=Judge(is_chat_model=True)),
            "similar": SemanticSimilarityEvaluator(embed_model=WordCounts(), similarity_threshold=0.3),
        },
        workers=2,
    )
    references = [
        "The words DRINK ME were written on the label of the bottle.",
        "A tiny GOLDEN KEY lay on the glass table.",
    ]
    results = asyncio.run(runner.aevaluate_queries(alice, queries=[BOTTLE, TABLE], reference=references))
    assert [each.response for each in results["correct"]] == [str(said[BOTTLE]), str(said[TABLE])]
    assert results["correct"][0].score == (5.0 if "label" in str(said[BOTTLE]).lower() else 1.0)
    assert [each.score for each in results["found"]] == [1.0, 1.0], "the evaluators get the sources as contexts"
    assert results["similar"][0].score > similarity(
        WordCounts().get_text_embedding(references[0]), WordCounts().get_text_embedding("nothing of that kind at all")
    )


def test_a_router_sends_each_question_to_its_book(
    alice: ACREQueryEngine, harbour: ACREQueryEngine, said: dict[str, Any]
) -> None:
    tools = [
        QueryEngineTool.from_defaults(
            alice, name="alice", description="Alice, the bottle and its label, the glass table"
        ),
        QueryEngineTool.from_defaults(
            harbour, name="harbour", description="Port Ellis, the harbour and its lighthouse"
        ),
    ]
    router = RouterQueryEngine(selector=ByWords(), query_engine_tools=tools, llm=MockLLM())
    assert str(router.query(HARBOUR)) == str(said[HARBOUR])
    response = asyncio.run(router.aquery(BOTTLE))
    assert str(response) == str(said[BOTTLE]) and "DRINK ME" in texts(response)


def test_sub_questions_are_answered_from_both_books(
    index: ACREIndex, alice: ACREQueryEngine, harbour: ACREQueryEngine, said: dict[str, Any]
) -> None:
    tools = [
        QueryEngineTool(alice, ToolMetadata(name="alice", description="Alice")),
        QueryEngineTool(harbour, ToolMetadata(name="harbour", description="Port Ellis")),
    ]
    llm = ACRELLM(index.acre, max_tokens=24)
    engine = SubQuestionQueryEngine.from_defaults(
        tools,
        llm=llm,
        question_gen=BothBooks(),
        response_synthesizer=get_response_synthesizer(llm=llm, use_async=True),
        use_async=True,
        verbose=False,
    )
    response = engine.query("What do the label and the lighthouse have in common?")
    assert str(response)
    assert str(said[HARBOUR]) in texts(response) and str(said[BOTTLE]) in texts(response)


def test_the_retriever_feeds_another_synthesiser(index: ACREIndex, ids: dict[str, str]) -> None:
    retriever = index.as_retriever(doc_ids=[ids["alice.txt"]])
    echo = RetrieverQueryEngine.from_args(retriever, llm=MockLLM())
    assert "DRINK ME" in str(echo.query(BOTTLE)), "a model that repeats its prompt repeats the passages"
    reader = index.as_query_engine(llm=ACRELLM(index.acre, max_tokens=24), doc_ids=[ids["harbour.txt"]])
    response = asyncio.run(reader.aquery(HARBOUR))
    assert "Finch" in str(response)


def test_bm25_guides_refilling(index: ACREIndex, ids: dict[str, str]) -> None:
    documents = [Document(text=book()[:7_700], id_=ids["alice.txt"]), Document(text=OTHER, id_=ids["harbour.txt"])]
    chunks = TokenTextSplitter(chunk_size=120, chunk_overlap=0).get_nodes_from_documents(documents)
    bm25 = BM25Retriever.from_defaults(nodes=chunks, similarity_top_k=3)
    options: dict[str, Any] = {"doc_ids": [ids["alice.txt"]], "retriever": bm25, "max_passages": 1}
    [guided] = index.as_retriever(select="retriever", **options).retrieve(BOTTLE)
    best = bm25.retrieve(BOTTLE)[0].node
    overlap = min(guided.node.end_char_idx, best.end_char_idx) - max(guided.node.start_char_idx, best.start_char_idx)  # type: ignore[attr-defined]
    assert best.ref_doc_id == ids["alice.txt"] and overlap > 0
    response = index.as_query_engine(settings=SHORT, **options).query(BOTTLE)
    assert "DRINK ME" in texts(response)


def test_a_conversation_stays_with_the_book(index: ACREIndex, ids: dict[str, str]) -> None:
    chat = index.as_chat_engine(settings=SHORT, doc_ids=[ids["harbour.txt"]])
    assert "Finch" in str(chat.chat(HARBOUR))
    response = chat.chat("And how many years has he not missed a night?")
    assert "forty" in texts(response) and len(chat.chat_history) == 4  # type: ignore[attr-defined]


def test_a_new_prompt_changes_the_answer(alice: ACREQueryEngine, said: dict[str, Any]) -> None:
    engine = alice.with_streaming(False)
    engine.update_prompts(
        {
            "question_template": PromptTemplate(
                "\n\nWhatever the text says, answer with the word 'banana' only.\n\nQuestion: {query_str}"
            )
        }
    )
    assert str(engine.query(BOTTLE)) != str(said[BOTTLE])
    assert "banana" not in str(said[BOTTLE]).lower()


def test_a_heart_beats_on_while_a_question_is_answered(index: ACREIndex, ids: dict[str, str]) -> None:
    engine = index.as_query_engine(settings=GenerationSettings(max_new_tokens=20), doc_ids=[ids["alice.txt"]])

    async def run() -> Hearts:
        async with hearts() as beats:
            await engine.aquery("Tell the whole story.")
        return beats

    beats = asyncio.run(run())
    assert beats.spent_s > 0.5 and beats.held_s < 0.25


def test_a_heart_beats_on_while_a_document_is_read(index: ACREIndex) -> None:
    async def run() -> Hearts:
        async with hearts() as beats:
            await index.ainsert(Document(text=book()[14_000:15_200], id_="more"))
        await index.adelete_ref_doc("more")
        return beats

    beats = asyncio.run(run())
    assert beats.spent_s > 0.5 and beats.held_s < 0.25


def test_questions_at_once_equal_the_same_questions_one_by_one(index: ACREIndex, ids: dict[str, str]) -> None:
    """A third document, so that three are asked at once."""
    index.insert(Document(text=OTHER.replace("Finch", "Gull").replace("Port Ellis", "Port Anne"), id_="third"))
    settings = GenerationSettings(max_new_tokens=4)
    asked = [
        (question.format(i=i), doc_id)
        for i in range(2)
        for question, doc_id in (
            ("What is the {i}. thing that Alice saw?", ids["alice.txt"]),
            ("Who kept the lighthouse in year {i}?", ids["harbour.txt"]),
            ("What did the fishermen paint on day {i}?", "third"),
        )
    ]
    engines = {doc_id: index.as_query_engine(settings=settings, doc_ids=[doc_id]) for _, doc_id in asked}
    alone = [engines[doc_id].query(question) for question, doc_id in asked]

    async def together() -> list[Any]:
        return await asyncio.gather(*(engines[doc_id].aquery(question) for question, doc_id in asked))

    for one, other in zip(alone, asyncio.run(together()), strict=True):
        assert str(one) == str(other)
        assert [each.node.node_id for each in one.source_nodes] == [each.node.node_id for each in other.source_nodes]
    index.delete_ref_doc("third")


@pytest.mark.parametrize("form", ["query", "aquery", "stream_chat", "astream_chat"])
def test_closing_a_stream_stops_the_model(
    index: ACREIndex, ids: dict[str, str], forwards: list[int], form: str
) -> None:
    options: dict[str, Any] = {"settings": LONG, "doc_ids": [ids["alice.txt"]]}
    engine = index.as_query_engine(streaming=True, **options)
    chat = index.as_chat_engine(**options)
    question = "Tell the whole story, from the beginning to the end, with every detail."
    begun = 0

    async def leave() -> None:
        nonlocal begun
        response: Any = await (engine.aquery(question) if form == "aquery" else chat.astream_chat(question))
        pieces = response.async_response_gen()
        await anext(pieces)
        begun = len(forwards)
        await pieces.aclose()
        await ACRELLM(index.acre, max_tokens=1).acomplete("a")

    if form in ("aquery", "astream_chat"):
        asyncio.run(leave())
    else:
        response: Any = engine.query(question) if form == "query" else chat.stream_chat(question)
        pieces = response.response_gen
        next(pieces)
        begun = len(forwards)
        pieces.close()
        ACRELLM(index.acre, max_tokens=1).complete("a")
    assert begun and len(forwards) < begun + 20
    assert chat.chat_history == []  # type: ignore[attr-defined]
