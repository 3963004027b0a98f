"""Every system of the registry through LlamaIndex and LangChain, on a tiny random model: what it says by itself."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from time import sleep
from typing import Any, TypedDict

import pytest
import torch
from conftest import TINY, byte_tokenizer
from evaluation_case import items
from evaluation_case import run as run_rows
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document as LangChainDocument
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import ConfigurableField, RunnableLambda
from langgraph.graph import END, START, StateGraph
from llama_index.core import Document as LlamaDocument
from llama_index.core.base.response.schema import AsyncStreamingResponse, Response, StreamingResponse
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler, TokenCountingHandler
from llama_index.core.prompts import PromptTemplate
from transformers import AutoModelForCausalLM, LlamaConfig

from acre_rag import Answer, GenerationSettings, Source
from acre_rag.answer import Step, Timings
from acre_rag.baselines.base import Baseline, Call, Held, Pipeline, Setting
from acre_rag.baselines.prompted import answer_from_text
from acre_rag.baselines.registry import SYSTEMS, make_system
from acre_rag.construct import ProgressCallback
from acre_rag.decoder import Decoder
from acre_rag.errors import AcreError, ConfigError, DocumentError, UnavailableError
from acre_rag.evaluation.forms import Form
from acre_rag.integrations.langchain import SystemQA
from acre_rag.integrations.llama_index import SystemQueryEngine, join_pages
from acre_rag.integrations.systems import pipeline_of
from acre_rag.proxies.adapter import save_adapter
from acre_rag.proxies.learned import L1Parameters

CANNOT: dict[str, tuple[type[AcreError], str]] = {
    "rq-rag-checkpoint": (UnavailableError, "needs a model trained on RQ-RAG's tokens"),
    "memorag-released": (UnavailableError, "needs CUDA"),
    "beacon-checkpoint": (UnavailableError, "needs a checkpoint with the tensors of Activation Beacon"),
    "minference": (UnavailableError, "CUDA devices only"),
}
"""Systems that cannot run on a tiny model without CUDA and without weights, and what each says. All others must run."""
RUNS = [name for name in SYSTEMS if name not in CANNOT]
ONE_OF_EACH_FAMILY = ["acre", "bm25", "finch"]
"""Asked in every form; the others at once in a thread and as a stream on an event loop, for some take seconds."""

NAMES = ["fox", "owl", "hare", "mole", "wren", "toad", "lynx", "crow", "seal", "newt"]
TEXT = "\n\n".join(f"The {name} of the zoo keeps the number {i * 7}." for i, name in enumerate(NAMES * 4))
QUESTION = "Which number does the mole keep?"
EIGHT = GenerationSettings(max_new_tokens=8)
LONG = GenerationSettings(max_new_tokens=150)


@cache
def wide_decoder() -> Decoder:
    """A tiny random Llama whose window holds the prompts of every system, a token a character."""
    torch.manual_seed(0)
    config = LlamaConfig(**{**TINY, "max_position_embeddings": 8192, "initializer_range": 0.2})
    model = AutoModelForCausalLM.from_config(config)
    model.eval().requires_grad_(False)
    return Decoder(model=model, tokenizer=byte_tokenizer(), name="tiny-wide")


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    adapter = tmp_path_factory.mktemp("adapter") / "adapter.safetensors"
    save_adapter(L1Parameters(wide_decoder()), adapter, decoder=wide_decoder(), intervals=(8, 128))
    return Setting(decoder=wide_decoder(), window=4096, embedder="minilm", adapter=str(adapter))


@pytest.fixture(scope="module")
def made(setting: Setting) -> Any:
    """Systems by name, each made once."""
    return cache(lambda name: make_system(name, setting))


def query_engine(pipeline: Pipeline, **options: Any) -> SystemQueryEngine:
    document = LlamaDocument(text=TEXT, id_="zoo", metadata={"title": "Zoo"})
    return SystemQueryEngine.from_documents([document], system=pipeline, settings=EIGHT, **options)


def chain(pipeline: Pipeline, **fields: Any) -> SystemQA:
    document = LangChainDocument(TEXT, id="zoo", metadata={"title": "Zoo"})
    return SystemQA.from_documents([document], system=pipeline, max_tokens=8, **fields)


def whole_stream(engine: SystemQueryEngine) -> Response:
    response = engine.with_streaming(True).query(QUESTION)
    assert isinstance(response, StreamingResponse)
    return response.get_response()


async def whole_astream(engine: SystemQueryEngine) -> Response:
    response = await engine.with_streaming(True).aquery(QUESTION)
    assert isinstance(response, AsyncStreamingResponse)
    return await response.get_response()


FORMS: dict[str, Callable[[SystemQueryEngine], Any]] = {
    "query": lambda engine: engine.query(QUESTION),
    "astream": lambda engine: asyncio.run(whole_astream(engine)),
    "aquery": lambda engine: asyncio.run(engine.aquery(QUESTION)),
    "stream": whole_stream,
}
DOORS: dict[str, Callable[[SystemQA], Any]] = {
    "invoke": lambda qa: qa.invoke(QUESTION),
    "astream": lambda qa: total(asyncio.run(gather(qa.astream(QUESTION)))),
    "ainvoke": lambda qa: asyncio.run(qa.ainvoke({"input": QUESTION})),
    "stream": lambda qa: total(list(qa.stream({"input": QUESTION, "documents": ["zoo"]}))),
    "batch": lambda qa: qa.batch([QUESTION, "Where is the owl?"])[0],
    "abatch": lambda qa: asyncio.run(qa.abatch(["Where is the owl?", QUESTION]))[1],
    "graph": lambda qa: as_node(qa).invoke({"input": QUESTION}),
}


def asked_of(name: str, every: dict[str, Any]) -> list[Any]:
    ways = list(every.items())
    return ways if name in ONE_OF_EACH_FAMILY else ways[:2]


async def gather(stream: AsyncIterator[Any]) -> list[Any]:
    return [chunk async for chunk in stream]


def total(chunks: list[Any]) -> Any:
    return sum(chunks[1:], chunks[0])


def timeless(output: dict[str, Any]) -> dict[str, Any]:
    """An output without its seconds, which no two calls share."""
    return {**output, "metadata": {key: value for key, value in output["metadata"].items() if key != "timings"}}


def steps(answer: Answer) -> list[dict[str, str]]:
    return [{"name": step.name, "text": step.text} for step in answer.trace]


# Every system


def test_the_table_of_refusals_names_systems() -> None:
    assert set(CANNOT) <= set(SYSTEMS)


def test_each_system_has_its_row_of_sources_and_deviations() -> None:
    text = (Path(__file__).parents[1] / "docs" / "baselines.md").read_text(encoding="utf-8")
    text = text.split("## Long documents")[0]
    rows = re.findall(r"^\| `([\w-]+)` \|", text, flags=re.MULTILINE)
    assert sorted(rows) == sorted(SYSTEMS)


def test_each_of_them_has_one_row_of_a_run_that_says_why(tmp_path: Path) -> None:
    """Beside a system that runs: nobody's absence passes for a score, nor stops the others."""
    rows = run_rows(tmp_path, items(documents=1), forms=[Form(name=name) for name in (*CANNOT, "acre-l1")])
    refused = {row.run.system: row.error for row in rows if row.refused}
    assert set(refused) == set(CANNOT)
    for name, (error, told) in CANNOT.items():
        assert refused[name] and refused[name]["kind"] == error.__name__ and told in refused[name]["message"]
    answered = [row.run.system for row in rows if not row.refused]
    assert answered == ["acre-l1"] * 2 and len(rows) == len(CANNOT) + 2


@pytest.mark.parametrize("name", CANNOT)
def test_a_system_that_cannot_run_here_says_why_through_both_adapters(name: str, setting: Setting) -> None:
    error, told = CANNOT[name]
    with pytest.raises(error, match=told):
        SystemQueryEngine.from_documents([LlamaDocument(text=TEXT)], system=name, setting=setting)
    with pytest.raises(error, match=told):
        SystemQA.from_documents([LangChainDocument(TEXT)], system=name, setting=setting)


@pytest.mark.parametrize("name", RUNS)
def test_every_form_of_query_says_what_the_system_says(name: str, made: Any) -> None:
    engine = query_engine(made(name))
    [held] = engine.asking.chosen()
    expected = made(name).ask(QUESTION, held.name, settings=EIGHT)
    for form, ask in asked_of(name, FORMS):
        response = ask(engine)
        assert str(response).strip() == expected.text, form
        nodes: list[Any] = [each.node for each in response.source_nodes]
        assert [(n.start_char_idx, n.end_char_idx, n.text) for n in nodes] == [
            (s.start, s.end, s.text) for s in expected.sources
        ], form
        assert [each.score for each in response.source_nodes] == [s.score for s in expected.sources]
        assert all(n.text == TEXT[n.start_char_idx : n.end_char_idx] for n in nodes), form
        assert all(n.ref_doc_id == "zoo" and n.metadata == {"title": "Zoo"} for n in nodes), form
        metadata = response.metadata or {}
        assert metadata["usage"]["completion_tokens"] == expected.usage.generated_tokens, form
        assert metadata["model"] == "tiny-wide" and metadata["documents"].keys() == {"zoo"}
        assert metadata["notes"] == list(expected.notes) and metadata["trace"] == steps(expected), form
        assert metadata["timings"]["first_token_s"] > 0, form


@pytest.mark.parametrize("name", RUNS)
def test_every_door_of_the_runnable_says_what_the_system_says(name: str, made: Any) -> None:
    qa = chain(made(name))
    expected = made(name).ask(QUESTION, "zoo", settings=EIGHT)
    outputs = {door: ask(qa) for door, ask in asked_of(name, DOORS)}
    for door, output in outputs.items():
        assert output["input"] == QUESTION and output["answer"] == expected.text, door
        places = [(each.metadata["start"], each.metadata["end"], each.page_content) for each in output["context"]]
        assert places == [(s.start, s.end, s.text) for s in expected.sources], door
        assert {each.metadata["title"] for each in output["context"]} <= {"Zoo"}
        metadata = output["metadata"]
        assert metadata["usage"]["output_tokens"] == expected.usage.generated_tokens, door
        assert (metadata["trace"], metadata["notes"]) == (steps(expected), list(expected.notes)), door
        assert timeless(output) == timeless(outputs["invoke"]), door


class State(TypedDict, total=False):
    """What a graph hands to the node, and takes from it."""

    input: str
    context: list[LangChainDocument]
    answer: str
    metadata: dict[str, Any]


def as_node(qa: SystemQA) -> Any:
    graph = StateGraph(State)
    graph.add_node("ask", qa)
    graph.add_edge(START, "ask")
    graph.add_edge("ask", END)
    return graph.compile()


def test_systems_are_made_by_name_with_their_options(setting: Setting) -> None:
    few = make_system("bm25", setting, hits=1, chunk_tokens=64)
    few.add(TEXT, "zoo")
    expected = few.ask(QUESTION, settings=EIGHT)
    assert len(expected.sources) == 1
    engine = SystemQueryEngine.from_documents(
        [LlamaDocument(text=TEXT)], system="bm25", setting=setting, settings=EIGHT, hits=1, chunk_tokens=64
    )
    assert [each.text for each in engine.query(QUESTION).source_nodes] == [expected.sources[0].text]
    qa = SystemQA.from_documents(
        [LangChainDocument(TEXT)],
        system="bm25",
        setting=setting,
        system_options={"hits": 1, "chunk_tokens": 64},
        max_tokens=8,
    )
    assert [each.page_content for each in qa.invoke(QUESTION)["context"]] == [expected.sources[0].text]
    assert qa.get_name() == "bm25"


def test_what_is_no_system_or_has_its_setting_already_is_refused(setting: Setting, made: Any) -> None:
    with pytest.raises(ConfigError, match="oracle"):
        pipeline_of("oracle", setting)
    for wrong in ({"setting": setting}, {"hits": 3}):
        with pytest.raises(ConfigError, match="of its own"):
            query_engine(made("bm25"), **wrong)


def test_a_model_of_ones_own_is_shown_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("acre_rag.integrations.systems.load_decoder", lambda: pytest.fail("a model was loaded"))
    says = r"rq-rag has no option 'acre'\. .*setting=Setting\(decoder=\.\.\.\)"
    with pytest.raises(ConfigError, match=says):
        SystemQueryEngine.from_documents([], system="rq-rag", acre=None)
    with pytest.raises(ConfigError, match=says):
        SystemQA.from_documents([], system="rq-rag", system_options={"acre": None})


def test_an_option_of_a_system_that_stands_beside_is_shown_its_place(setting: Setting) -> None:
    documents = [LangChainDocument(TEXT)]
    with pytest.raises(ConfigError, match="'hits' is no option of SystemQA.*system_options="):
        SystemQA.from_documents(documents, system="bm25", setting=setting, hits=1)
    with pytest.raises(ConfigError, match="'hits'"):
        asyncio.run(SystemQA.afrom_documents(documents, system="bm25", setting=setting, hits=1))


def test_without_an_adapter_learned_l1_is_refused() -> None:
    bare = Setting(decoder=wide_decoder())
    with pytest.raises(UnavailableError, match="adapter"):
        SystemQueryEngine.from_documents([LlamaDocument(text=TEXT)], system="acre-learned", setting=bare)
    with pytest.raises(UnavailableError, match="adapter"):
        SystemQA.from_documents([LangChainDocument(TEXT)], system="acre-learned", setting=bare)


# A system of the user's own


class FirstWords(Baseline[str]):
    """Answers from the first words of a document; says so in its trace."""

    def read(self, text: str, progress: ProgressCallback) -> str:
        progress(len(text), len(text))
        return text[:60]

    def answer(self, question: str, documents: Sequence[Held[str]], call: Call) -> Answer:
        text = documents[0].state
        said = answer_from_text(self.decoder, self.prompt, text, question, call, window=self.setting.most_tokens)
        generated = said.generated
        sources = tuple(Source(each.id, 0, len(each.state), each.state, 1.0) for each in documents)
        timings = Timings(0.0, 0.0, 0.0, generated.first_token_s, generated.total_s - generated.first_token_s)
        trace = (Step("asked", question), Step("documents", ", ".join(each.id for each in documents)))
        notes = ("first words only",)
        return Answer(
            generated.text, sources, said.usage, timings, finished=generated.finished, notes=notes, trace=trace
        )


@pytest.fixture
def own(setting: Setting) -> FirstWords:
    return FirstWords(setting)


def test_steps_and_notes_are_seen_through_both(own: FirstWords) -> None:
    response: Any = query_engine(own).query(QUESTION)
    assert response.metadata["trace"][0] == {"name": "asked", "text": QUESTION}
    assert response.metadata["notes"] == ["first words only"]
    metadata = chain(own).invoke(QUESTION)["metadata"]
    assert metadata["trace"] == [{"name": "asked", "text": QUESTION}, {"name": "documents", "text": "zoo"}]
    assert metadata["finished"] is False and metadata["scope"] == "passages"


# LangChain


def test_blank_pages_are_left_out_and_pages_joined_for_any_system(own: FirstWords) -> None:
    pages = [
        LangChainDocument(text, metadata={"source": "a.pdf", "page": n})
        for n, text in enumerate(("Page one is short.", "", "Page three is a good deal longer than the first."))
    ]
    apart = SystemQA.from_documents(pages, system=own)
    assert [apart.document_metadata[id]["page"] for id in apart.documents] == [0, 2]
    joined = SystemQA.from_documents(pages, system=own, join_pages=True, max_tokens=8)
    assert joined.documents == ["a.pdf"]
    [passage] = joined.invoke(QUESTION)["context"]
    assert (passage.metadata["page"], passage.metadata["page_label"]) == (0, "1-3")


# LlamaIndex


def test_pages_blank_documents_and_documents_that_were_there(own: FirstWords) -> None:
    pages = [
        LlamaDocument(text=text, metadata={"file_path": "a.pdf", "page_label": label})
        for text, label in (("Page one is short.", "i"), ("Page two is a good deal longer than the first.", "ii"))
    ]
    blank = LlamaDocument(text="  ", id_="blank")
    engine = SystemQueryEngine.from_documents([*pages, blank], system=own, join_pages=True, settings=EIGHT)
    [node] = engine.query(QUESTION).source_nodes
    assert node.metadata == {"file_path": "a.pdf", "page_label": "i-ii"}
    assert node.node.ref_doc_id == "a.pdf" and list(own.documents) == [engine.asking.chosen()[0].name]
    own.add("A text from elsewhere.", "note")
    everything = SystemQueryEngine(own, settings=EIGHT)
    assert [each.node.ref_doc_id for each in everything.query(QUESTION).source_nodes][1] == "note"
    assert len(engine.query(QUESTION).source_nodes) == 1
    with pytest.raises(DocumentError, match=r"a\.pdf"):
        SystemQueryEngine.from_documents(join_pages(pages) * 2, system=own)


def test_nobody_is_asked_about_nothing(own: FirstWords) -> None:
    for ask in FORMS.values():
        response = ask(SystemQueryEngine(own))
        assert str(response) == "Empty Response" and not response.source_nodes


def test_query_events_and_token_counters_hear_of_it(own: FirstWords, events: list[str]) -> None:
    debug = LlamaDebugHandler(print_trace_on_end=False)
    counter = TokenCountingHandler(tokenizer=str.split)
    engine = query_engine(own, callback_manager=CallbackManager([debug, counter]))
    response: Any = engine.query(QUESTION)
    assert events == ["QueryStartEvent", "RetrievalStartEvent", "RetrievalEndEvent", "QueryEndEvent"]
    [(_, end)] = debug.get_event_pairs(CBEventType.RETRIEVE)
    assert end.payload["nodes"] == response.source_nodes
    assert len(debug.get_event_pairs(CBEventType.QUERY)) == len(debug.get_event_pairs(CBEventType.LLM)) == 1
    assert counter.completion_llm_token_count == response.metadata["usage"]["completion_tokens"] == 8
    for piece in engine.with_streaming(True).query(QUESTION).response_gen:  # type: ignore[union-attr]
        assert piece and (events[-1] == "QueryEndEvent")
    assert events[4:] == ["QueryStartEvent", "QueryEndEvent", "RetrievalStartEvent", "RetrievalEndEvent"]


def test_its_prompts_are_those_of_the_setting(own: FirstWords) -> None:
    engine = query_engine(own)
    assert engine.get_prompts() == {}
    with pytest.raises(ConfigError, match="Setting"):
        engine.update_prompts({"question_template": PromptTemplate("{query_str}")})


@pytest.fixture
def forwards() -> Iterator[list[int]]:
    """One entry a forward pass of the wide model."""
    seen: list[int] = []
    handle = wide_decoder().model.register_forward_hook(lambda *_: seen.append(1))
    yield seen
    handle.remove()


def test_leaving_a_stream_stops_the_model(own: FirstWords, forwards: list[int]) -> None:
    own.add(TEXT, "zoo")
    own.ask(QUESTION, settings=LONG)
    whole = len(forwards)
    response: Any = SystemQueryEngine(own, settings=LONG, streaming=True).query(QUESTION)
    pieces = SystemQA(pipeline=own, max_tokens=150).stream(QUESTION)
    for stream, begun in ((response.response_gen, lambda _: True), (pieces, lambda chunk: chunk.get("answer"))):
        forwards.clear()
        next(piece for piece in stream if begun(piece))
        stream.close()
        at_close = len(forwards)
        sleep(0.1)
        assert len(forwards) == at_close < whole


@pytest.mark.asyncio
async def test_leaving_an_async_stream_stops_the_model(own: FirstWords, forwards: list[int]) -> None:
    own.add(TEXT, "zoo")
    await own.aask(QUESTION, settings=LONG)
    whole = len(forwards)
    response: Any = await SystemQueryEngine(own, settings=LONG, streaming=True).aquery(QUESTION)
    pieces = SystemQA(pipeline=own, max_tokens=150).astream(QUESTION)
    for stream, begun in (
        (response.async_response_gen(), lambda _: True),
        (pieces, lambda chunk: chunk.get("answer")),
    ):
        forwards.clear()
        async for piece in stream:
            if begun(piece):
                break
        await stream.aclose()
        await asyncio.sleep(0.1)
        at_close = len(forwards)
        await asyncio.sleep(0.1)
        assert len(forwards) == at_close < whole


# LangChain


def test_a_question_may_name_its_documents(own: FirstWords) -> None:
    qa = chain(own)
    own.add("A text from elsewhere.", "note")
    assert qa.invoke(QUESTION)["context"][0].metadata["document_id"] == "zoo"
    asked = [LangChainDocument("A text from elsewhere.", id="note")]
    for documents in ("note", ["note"], asked):
        [context] = qa.invoke({"input": QUESTION, "documents": documents})["context"]
        assert context.metadata == {"document_id": "note", "start": 0, "end": 22, "score": 1.0}
    assert len(SystemQA(pipeline=own, max_tokens=8).invoke(QUESTION)["context"]) == 2
    with pytest.raises(DocumentError, match="moon"):
        qa.invoke({"input": QUESTION, "documents": "moon"})


def test_the_history_goes_with_the_question_or_is_condensed_into_it(own: FirstWords) -> None:
    given = {"input": "Which number?", "chat_history": [HumanMessage("Who?"), AIMessage("The mole.")]}
    asked = chain(own).invoke(given)["metadata"]["trace"][0]["text"]
    assert asked == "user: Who?\nassistant: The mole.\nuser: Which number?"
    condensing = chain(own, condense=RunnableLambda(lambda _: QUESTION))
    for output in (
        condensing.invoke(given),
        asyncio.run(condensing.ainvoke(given)),
        total(list(condensing.stream(given))),
        total(asyncio.run(gather(condensing.astream(given)))),
    ):
        assert output["input"] == "Which number?" and output["metadata"]["trace"][0]["text"] == QUESTION


def test_options_of_a_call_are_honoured_and_deadlines_refused(own: FirstWords) -> None:
    qa = chain(own)
    assert qa.invoke(QUESTION, max_tokens=3)["metadata"]["usage"]["output_tokens"] == 3
    assert qa.bind(max_tokens=3).invoke(QUESTION)["answer"] == qa.invoke(QUESTION, max_tokens=3)["answer"]
    for ask in (lambda: qa.invoke(QUESTION, timeout=1.0), lambda: list(chain(own, timeout=1.0).stream(QUESTION))):
        with pytest.raises(ConfigError, match="deadline"):
            ask()
    with pytest.raises(ConfigError, match="window"):
        qa.invoke(QUESTION, window=3)


def test_streams_give_words_before_the_context(own: FirstWords) -> None:
    own.add(TEXT, "zoo")
    chunks = list(SystemQA(pipeline=own, max_tokens=150).stream(QUESTION))
    assert list(chunks[0]) == ["input"] and chunks[-1].keys() == {"context", "answer", "metadata"}
    assert len([chunk for chunk in chunks if chunk.get("answer")]) > 1


class Padded(FirstWords):
    """Says its answer in pieces with white space around them, as models do."""

    def answer(self, question: str, documents: Sequence[Held[str]], call: Call) -> Answer:
        if call.on_text:
            for piece in (" \n", " The mole", " keeps", " 21. ", "\n"):
                call.on_text(piece)
        return replace(super().answer(question, documents, replace(call, on_text=None)), text="The mole keeps 21.")


def test_streams_have_no_white_space_at_their_ends(setting: Setting) -> None:
    qa = chain(Padded(setting))
    assert qa.invoke(QUESTION)["answer"] == "The mole keeps 21."
    for chunks in (list(qa.stream(QUESTION)), asyncio.run(gather(qa.astream(QUESTION)))):
        assert [chunk["answer"] for chunk in chunks if chunk.get("answer")] == ["The mole", " keeps", " 21."]


def test_the_system_stays_out_of_what_is_stored_and_in_what_is_configured(own: FirstWords) -> None:
    qa = chain(own)
    assert "pipeline" not in qa.model_dump() and "FirstWords" not in repr(qa)
    configurable = qa.configurable_fields(max_tokens=ConfigurableField(id="most"))
    output = configurable.invoke(QUESTION, {"configurable": {"most": 2}})
    assert output["metadata"]["usage"]["output_tokens"] == 2
    assert qa.get_output_jsonschema()["properties"].keys() == {"input", "context", "answer", "metadata"}


class Runs(BaseCallbackHandler):
    """Notes names of the runs that begin."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def on_chain_start(self, *_: Any, name: str, **__: Any) -> None:
        self.names.append(f"chain {name}")

    def on_retriever_start(self, *_: Any, name: str, **__: Any) -> None:
        self.names.append(f"retriever {name}")


def test_callbacks_see_the_systems_name(own: FirstWords) -> None:
    for qa, name in ((chain(own), "SystemQA"), (chain(own, name="words"), "words")):
        runs = Runs()
        qa.invoke(QUESTION, {"callbacks": [runs]})
        list(qa.stream(QUESTION, {"callbacks": [runs]}))
        assert runs.names == [f"chain {name}", f"retriever {name}"] * 2


def test_a_large_batch_does_not_crowd_the_models_line(own: FirstWords, monkeypatch: pytest.MonkeyPatch) -> None:
    own.add(TEXT, "zoo")
    monkeypatch.setattr(own.decoder.worker, "max_waiting", 20)
    qa = SystemQA(pipeline=own, max_tokens=1)
    questions = [f"Which number has number {i}?" for i in range(60)]
    answers = asyncio.run(qa.abatch(questions))
    assert [each["input"] for each in answers] == questions
    assert [timeless(each) for each in qa.batch(questions)] == [timeless(each) for each in answers]


def test_documents_are_read_on_an_event_loop_too(own: FirstWords) -> None:
    qa = asyncio.run(SystemQA.afrom_documents([LangChainDocument(TEXT, id="zoo")], system=own, max_tokens=8))
    assert qa.documents == ["zoo"] and list(own.documents) == ["zoo"]
