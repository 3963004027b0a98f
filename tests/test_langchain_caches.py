"""LangChain's response caches never hand out another document's answer; and the event loop is never held up."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import tiny_decoder
from heartbeat import hearts
from langchain_core.caches import BaseCache, InMemoryCache
from langchain_core.globals import set_llm_cache

from acre_rag import ACRE, ACREConfig
from acre_rag.decoder import Decoder
from acre_rag.errors import DocumentError
from acre_rag.integrations.langchain import ACREDocumentQA, ChatACRE
from acre_rag.prompts import SHORT_ANSWER

NAMES = ["fox", "owl", "hare", "mole", "wren", "toad", "lynx", "crow", "seal", "newt"]
ZOO = " ".join(f"The {name} of the zoo keeps the number {i * 7}." for i, name in enumerate(NAMES * 3))
PARK = " ".join(f"In the park, the {name} waits at gate {i}." for i, name in enumerate(NAMES * 3))
QUESTION = "Which number does the mole keep?"
CONFIG = ACREConfig(window=512, interval=8, stride=64, passage_tokens=32, max_passages=2, select="consensus")


@pytest.fixture
def responses() -> Iterator[InMemoryCache]:
    cache = InMemoryCache()
    set_llm_cache(cache)
    yield cache
    set_llm_cache(None)


def filed(responses: InMemoryCache) -> int:
    return len(responses._cache)


def qa_over(acre: ACRE, text: str, id: str = "book", **fields: Any) -> ACREDocumentQA:
    return ACREDocumentQA.from_texts([text], acre=acre, ids=[id], max_tokens=8, **fields)


def test_a_question_asked_again_is_answered_from_the_response_cache(
    tiny_acre: ACRE, responses: InMemoryCache, forwards: list[int]
) -> None:
    qa = qa_over(tiny_acre, ZOO)
    first = qa.invoke(QUESTION)
    forwards.clear()
    assert qa.invoke(QUESTION) == asyncio.run(qa.ainvoke(QUESTION)) == first
    assert forwards == [] and filed(responses) == 1


def test_two_documents_under_one_id_are_never_mixed(tiny: Decoder, responses: InMemoryCache) -> None:
    """Two engines of one model, two texts, the same id, the same question."""
    zoo, park = (qa_over(ACRE(tiny, config=CONFIG), text) for text in (ZOO, PARK))
    answers = [zoo.invoke(QUESTION), park.invoke(QUESTION)]
    assert filed(responses) == 2
    set_llm_cache(None)
    assert [zoo.invoke(QUESTION), park.invoke(QUESTION)] == answers


def test_two_documents_of_one_engine_are_never_mixed(tiny_acre: ACRE, responses: InMemoryCache) -> None:
    chat = ChatACRE(acre=tiny_acre, max_tokens=8)
    tiny_acre.add(ZOO, id="zoo")
    tiny_acre.add(PARK, id="park")
    for asked in ("zoo", "park", ["zoo", "park"], ["park", "zoo"], "*", None):
        chat.invoke(QUESTION, documents=asked)
    assert filed(responses) == 5  # "*" is ["zoo", "park"]


def test_two_versions_of_a_document_are_never_mixed(tiny_acre: ACRE, responses: InMemoryCache) -> None:
    old = qa_over(tiny_acre, ZOO).invoke(QUESTION)
    tiny_acre.remove("book")
    new = qa_over(tiny_acre, PARK).invoke(QUESTION)
    assert filed(responses) == 2 and new["context"] != old["context"]
    set_llm_cache(None)
    assert qa_over(tiny_acre, PARK).invoke(QUESTION) == new


class Replacing(BaseCache):
    """Replaces the document between looking an answer up and filing it."""

    def __init__(self, acre: ACRE) -> None:
        self.acre = acre
        self.filed: list[str] = []

    def lookup(self, prompt: str, llm_string: str) -> None:
        self.acre.remove("book")
        self.acre.add(PARK, id="book")

    def update(self, prompt: str, llm_string: str, return_val: Any) -> None:
        self.filed.append(llm_string)

    def clear(self, **_: Any) -> None:
        self.filed.clear()


def test_a_document_that_is_replaced_meanwhile_is_refused_not_filed(tiny_acre: ACRE) -> None:
    tiny_acre.add(ZOO, id="book")
    cache = Replacing(tiny_acre)
    chat = ChatACRE(acre=tiny_acre, max_tokens=8, documents=["book"], cache=cache)
    with pytest.raises(DocumentError):
        chat.invoke(QUESTION)
    assert cache.filed == []


def test_two_models_of_one_name_are_never_mixed(responses: InMemoryCache) -> None:
    one, other = tiny_decoder("llama"), tiny_decoder("qwen2")
    other.name, name = one.name, other.name
    try:
        for decoder in (one, other):
            acre = ACRE(decoder, config=CONFIG)
            ChatACRE(acre=acre, max_tokens=8).invoke(QUESTION)
            qa_over(acre, ZOO).invoke(QUESTION)
    finally:
        other.name = name
    assert filed(responses) == 4


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": 7},
        {"temperature": 0.5, "seed": 1},
        {"temperature": 0.5, "seed": 2},
        {"stop": ["x"]},
        {"top_k": 3},
        {"top_p": 0.5},
    ],
)
def test_two_decodings_are_never_mixed(tiny_acre: ACRE, responses: InMemoryCache, options: dict[str, Any]) -> None:
    tiny_acre.add(ZOO, id="zoo")
    chat = ChatACRE(acre=tiny_acre, max_tokens=8, temperature=0.5, seed=3, documents="*")
    chat.invoke(QUESTION)
    chat.invoke(QUESTION, **options)
    ChatACRE(acre=tiny_acre, **({"max_tokens": 8, "temperature": 0.5, "seed": 3, "documents": "*"} | options)).invoke(
        QUESTION
    )
    assert filed(responses) == 2


def test_two_ways_of_choosing_passages_are_never_mixed(tiny_acre: ACRE, responses: InMemoryCache) -> None:
    fields: list[dict[str, Any]] = [{}, {"select": "hybrid"}, {"max_passages": 1}, {"budget": 16}]
    for each in fields:
        qa_over(tiny_acre, ZOO, **each).invoke(QUESTION)
    qa_over(tiny_acre.using(template=SHORT_ANSWER), ZOO).invoke(QUESTION)
    for retriever in (lambda q, d: [], lambda q, d: []):
        qa_over(tiny_acre.using(select="hybrid", retriever=retriever), ZOO).invoke(QUESTION)
    assert filed(responses) == 7
    qa_over(tiny_acre, ZOO, select="hybrid").invoke(QUESTION)
    assert filed(responses) == 7


def test_a_history_that_is_cut_elsewhere_is_another_question(tiny_acre: ACRE, responses: InMemoryCache) -> None:
    tiny_acre.add(ZOO, id="zoo")
    talk = [("human", "A?"), ("ai", "B."), ("human", QUESTION)]
    for most in (0, 1, 2):
        ChatACRE(acre=tiny_acre, max_tokens=8, documents="*", history_messages=most).invoke(talk)
    assert filed(responses) == 3


def test_a_document_in_the_first_message_is_part_of_the_question(tiny_acre: ACRE, responses: InMemoryCache) -> None:
    chat = ChatACRE(acre=tiny_acre, max_tokens=8, document_chars=100)
    first = [chat.invoke([("system", text), ("human", QUESTION)]) for text in (ZOO, PARK)]
    assert filed(responses) == 2
    # Read meanwhile, the same texts are known documents; the answer is the same whoever added them.
    again = [chat.invoke([("system", text), ("human", QUESTION)]) for text in (ZOO, PARK)]
    assert [said.content for said in again] == [said.content for said in first]


@pytest.mark.asyncio
@pytest.mark.parametrize("cached", [False, True], ids=["plain", "with a response cache"])
async def test_the_event_loop_keeps_beating(tiny: Decoder, cached: bool, request: pytest.FixtureRequest) -> None:
    """Reading, answering, streaming and retrieving are all done elsewhere."""
    if cached:
        request.getfixturevalue("responses")
    async with hearts() as beats:
        qa = await ACREDocumentQA.afrom_documents([], acre=ACRE(tiny, config=CONFIG), max_tokens=100)
        await qa.acre.aadd(ZOO, id="zoo")
        asked = qa.model_copy(update={"documents": "*"})
        await asyncio.gather(*(asked.ainvoke(f"{QUESTION} {i}") for i in range(24)))
        async for _ in asked.astream(QUESTION):
            pass
        await asked.as_retriever().ainvoke(QUESTION)
        await asked.as_retriever(k=2).ainvoke(QUESTION)
    assert beats.spent_s > 0.5
    assert beats.held_s < 0.25, f"the loop stood still for {beats.held_s:.2f} s of {beats.spent_s:.1f} s"
