"""Others' code that runs on the model's thread: what it starts may stand in line, unless the work waits for it."""

import asyncio
import contextvars
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from test_engine import SHORT, TEXT

from acre_rag import ACRE, Answer, Document
from acre_rag.errors import ConfigError
from acre_rag.retrieve import Span


def test_a_progress_callback_may_schedule_a_question(tiny_acre: ACRE) -> None:
    """As a server's event handlers do: the callback's context goes along to the event loop."""
    tiny_acre.add(TEXT, id="rooms")

    async def main() -> list[Answer]:
        loop, asked = asyncio.get_running_loop(), []

        def schedule(done: int, total: int) -> None:
            if not asked:
                question = tiny_acre.aask("Where is the drum?", "rooms", settings=SHORT)
                asked.append(asyncio.run_coroutine_threadsafe(question, loop))

        await tiny_acre.aadd(TEXT[:400], id="more", progress=schedule)
        return [await asyncio.wrap_future(each) for each in asked]

    [answer] = asyncio.run(main())
    assert answer.sources


def test_a_retriever_may_not_wait_for_a_thread_that_asks_its_engine(tiny_acre: ACRE) -> None:
    tiny_acre.add(TEXT, id="rooms")

    def asks_elsewhere(question: str, documents: Sequence[Document]) -> list[Span]:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(contextvars.copy_context().run, tiny_acre.retrieve, question).result()

    asking = tiny_acre.using(select="retriever", retriever=asks_elsewhere)
    with pytest.raises(ConfigError, match="from another thread"):
        asking.ask("Where is the drum?", settings=SHORT)
    assert tiny_acre.ask("Where is the drum?", settings=SHORT).sources


def test_a_retriever_may_ask_its_engine_on_its_own_thread(tiny_acre: ACRE) -> None:
    tiny_acre.add(TEXT, id="rooms")

    def as_the_heads_do(question: str, documents: Sequence[Document]) -> list[Span]:
        return [Span(each.document, each.start, each.end, each.score) for each in tiny_acre.retrieve(question)]

    asking = tiny_acre.using(select="retriever", retriever=as_the_heads_do)
    assert asking.ask("Where is the drum?", settings=SHORT).sources
