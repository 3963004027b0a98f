"""Real chains: LCEL, LangGraph with memory, agents, other models, BM25; with the built-in model on the shipped book."""

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, TypedDict

import pytest
from heartbeat import hearts
from langchain.agents import create_agent
from langchain_community.retrievers import BM25Retriever
from langchain_core.documents import Document as LangChainDocument
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnableLambda, RunnablePassthrough
from langchain_core.tools import create_retriever_tool
from langchain_text_splitters import RecursiveCharacterTextSplitter
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages

from acre_rag import ACRE, ACREConfig
from acre_rag.decoder import Decoder
from acre_rag.integrations.langchain import ACREDocumentQA, ChatACRE, condenser

CONFIG = ACREConfig(window=1536, stride=512, passage_tokens=300)
TABLE = "What did Alice find on the three-legged table made of solid glass?"
CAKE = "What words were beautifully marked in currants on the very small cake?"
LABEL = "What was written on the paper label round the neck of the bottle?"
FOLLOW_UP = "Did Alice eat it?"
TINY_TEXT = " ".join(
    f"The {name} keeps the number {i * 7}." for i, name in enumerate(["fox", "owl", "hare", "mole", "wren"] * 6)
)


@pytest.fixture(scope="module")
def acre(smollm2: Decoder) -> ACRE:
    return ACRE(smollm2, config=CONFIG)


@pytest.fixture(scope="module")
def chapter(alice: str) -> str:
    """How Alice falls, finds the key, drinks and eats."""
    return alice[alice.index("Down, down, down.") : 12_000]


@pytest.fixture(scope="module")
def qa(acre: ACRE, chapter: str) -> ACREDocumentQA:
    book = LangChainDocument(chapter, metadata={"source": "alice.txt", "author": "Carroll"})
    return ACREDocumentQA.from_documents([book], acre=acre, max_tokens=24)


class State(TypedDict, total=False):
    """What a conversation about documents remembers: ids and text."""

    input: str
    documents: list[str]
    chat_history: Annotated[list[AnyMessage], add_messages]
    context: list[LangChainDocument]
    answer: str


def conversation(qa: Runnable[Any, Any], checkpointer: BaseCheckpointSaver[Any]) -> Any:
    """A LangGraph graph whose first node is the chain itself."""

    def remember(state: State) -> State:
        return {"chat_history": [HumanMessage(state["input"]), AIMessage(state["answer"])]}

    graph = StateGraph(State)
    graph.add_node("ask", qa)
    graph.add_node("remember", remember)
    graph.add_edge(START, "ask")
    graph.add_edge("ask", "remember")
    graph.add_edge("remember", END)
    return graph.compile(checkpointer=checkpointer)


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple | set):
        for each in value:
            yield from leaves(each)
    elif hasattr(value, "model_dump"):
        yield from leaves(value.model_dump())
    else:
        yield value


@pytest.mark.model
def test_it_answers_from_the_book_and_says_where(qa: ACREDocumentQA) -> None:
    result = qa.invoke({"input": CAKE})
    assert "EAT ME" in result["answer"]
    assert any("EAT ME" in each.page_content for each in result["context"])
    assert all(each.metadata["author"] == "Carroll" for each in result["context"])


@pytest.mark.model
def test_an_lcel_chain_of_retriever_prompt_and_chat_model(qa: ACREDocumentQA, acre: ACRE) -> None:
    prompt = ChatPromptTemplate.from_template("{context}\n\nAnswer briefly: {question}")
    chain = (
        {"context": qa.as_retriever(k=1) | _joined, "question": RunnablePassthrough()}
        | prompt
        | ChatACRE(acre=acre, max_tokens=32)
        | StrOutputParser()
    )
    answer = chain.invoke(CAKE)
    assert "EAT ME" in answer
    assert "".join(chain.stream(CAKE)) == answer


@pytest.mark.model
def test_its_retriever_feeds_another_model(qa: ACREDocumentQA) -> None:
    asked: list[str] = []

    def other_model(prompt: Any) -> str:
        asked.append(prompt.to_string())
        return "A golden key."

    prompt = ChatPromptTemplate.from_template("From this:\n{context}\n\nQuestion: {question}")
    chain = {"context": qa.as_retriever(k=2) | _joined, "question": RunnablePassthrough()} | prompt | other_model
    assert chain.invoke(TABLE) == "A golden key."
    assert "golden key" in asked[0] and TABLE in asked[0]


@pytest.mark.model
@pytest.mark.parametrize("select", ["retriever", "hybrid"])
def test_bm25_guides_refilling(qa: ACREDocumentQA, chapter: str, select: str) -> None:
    splitter = RecursiveCharacterTextSplitter(chunk_size=600, chunk_overlap=50, add_start_index=True)
    book = LangChainDocument(chapter, metadata={"source": "alice.txt"})
    bm25 = BM25Retriever.from_documents(splitter.split_documents([book]), k=3)
    guided = qa.model_copy(update={"retriever": bm25, "select": select})
    result = guided.invoke(LABEL)
    assert any("DRINK ME" in each.page_content for each in result["context"])
    first = bm25.invoke(LABEL)[0].metadata["start_index"]
    assert any(each.metadata["start"] <= first + 600 and first <= each.metadata["end"] for each in result["context"])


class Scripted(GenericFakeChatModel):
    """Calls the tool it was told to call, then quotes what came back."""

    def bind_tools(self, tools: Sequence[Any], **_: Any) -> "Scripted":
        return self


@pytest.mark.model
@pytest.mark.parametrize("kind", ["retriever", "chain"])
def test_an_agent_uses_it_as_a_tool(qa: ACREDocumentQA, kind: str) -> None:
    if kind == "retriever":
        tool = create_retriever_tool(qa.as_retriever(k=2), "alice", "Finds passages of the book.")
        arguments = {"query": CAKE}
    else:
        tool = qa.pick("answer").as_tool(name="alice", description="Answers from the book.", arg_types={"input": str})
        arguments = {"input": CAKE}
    call = {"name": "alice", "args": arguments, "id": "1", "type": "tool_call"}
    script = iter([AIMessage("", tool_calls=[call]), AIMessage("Eat me.")])
    agent: Any = create_agent(Scripted(messages=script), tools=[tool])
    told = agent.invoke({"messages": [HumanMessage(CAKE)]})["messages"]
    [found] = [message for message in told if isinstance(message, ToolMessage)]
    assert "EAT ME" in found.text and told[-1].text == "Eat me."


@pytest.mark.model
def test_a_langgraph_conversation_remembers_its_turns(qa: ACREDocumentQA) -> None:
    memory = InMemorySaver()
    config: Any = {"configurable": {"thread_id": "ann"}}
    first = conversation(qa, memory).invoke({"input": CAKE}, config)
    assert "EAT ME" in first["answer"]
    second = conversation(qa, memory).invoke({"input": FOLLOW_UP}, config)
    assert [message.text for message in second["chat_history"]] == [CAKE, first["answer"], FOLLOW_UP, second["answer"]]
    alone = qa.invoke({"input": FOLLOW_UP, "chat_history": first["chat_history"]})
    assert second["answer"] == alone["answer"]
    assert conversation(qa, memory).get_state({"configurable": {"thread_id": "bob"}}).values == {}


@pytest.mark.model
def test_the_built_in_model_condenses_a_follow_up_question(qa: ACREDocumentQA, acre: ACRE) -> None:
    seen: list[str] = []

    def noted(question: str) -> str:
        seen.append(question)
        return question

    condense = condenser(ChatACRE(acre=acre, max_tokens=24)) | RunnableLambda(noted)
    chain = qa.model_copy(update={"condense": condense})
    history = [("human", TABLE), ("ai", "A tiny golden key.")]
    result = chain.invoke({"input": "What did she do with it?", "chat_history": history})
    assert len(seen) == 1 and result["answer"] == qa.invoke(seen[0])["answer"]


@pytest.mark.model
@pytest.mark.asyncio
async def test_the_event_loop_keeps_beating_while_the_built_in_model_answers(qa: ACREDocumentQA) -> None:
    async with hearts() as beats:
        await asyncio.gather(qa.ainvoke(TABLE), qa.ainvoke(LABEL))
        async for _ in qa.astream("Who is Dinah?"):
            pass
    assert beats.spent_s > 0.5
    assert beats.held_s < 0.25, f"the loop stood still for {beats.held_s:.2f} s"


def test_a_graph_keeps_ids_and_text_and_goes_on_after_a_restart(tiny: Decoder, tmp_path: Path) -> None:
    """Checkpoints hold no tensors; the caches come back from the engine's store."""
    config = ACREConfig(window=512, interval=8, stride=64, passage_tokens=32, max_passages=2, select="consensus")
    memory, thread = InMemorySaver(), {"configurable": {"thread_id": "ann"}}
    documents = [LangChainDocument(TINY_TEXT, id="zoo", metadata={"title": "Zoo"})]

    def begin() -> Any:
        engine = ACRE(tiny, config=config, store=tmp_path)
        return conversation(ACREDocumentQA.from_documents(documents, acre=engine, max_tokens=8), memory)

    first = begin().invoke({"input": "Which number does the mole keep?", "documents": ["zoo"]}, thread)
    graph = begin()
    second = graph.invoke({"input": "And the owl?"}, thread)
    assert len(second["chat_history"]) == 4
    assert {each.metadata["title"] for each in first["context"] + second["context"]} == {"Zoo"}
    engine = ACRE(tiny, config=config)
    expected = ACREDocumentQA.from_documents(documents, acre=engine, max_tokens=8).invoke(
        {"input": "And the owl?", "chat_history": first["chat_history"]}
    )
    assert second["answer"] == expected["answer"]
    state = graph.get_state(thread).values
    assert all(isinstance(leaf, str | int | float | bool | None) for leaf in leaves(state))
    kind, stored = memory.serde.dumps_typed(state)
    assert memory.serde.loads_typed((kind, stored)) == state
    assert len(stored) < 20_000


@pytest.mark.asyncio
async def test_a_graph_streams_the_words_of_its_node(tiny_acre: ACRE) -> None:
    qa = ACREDocumentQA.from_texts([TINY_TEXT], acre=tiny_acre, max_tokens=8)
    graph = conversation(qa, InMemorySaver())
    config: Any = {"configurable": {"thread_id": "ann"}}
    words = [
        message.text
        async for message, facts in graph.astream({"input": "Which number?"}, config, stream_mode="messages")
        if facts["langgraph_node"] == "ask"
    ]
    assert "".join(words) == (await qa.ainvoke("Which number?"))["answer"]


def _joined(documents: list[LangChainDocument]) -> str:
    return "\n\n".join(each.page_content for each in documents)
