"""ACREDocumentQA: questions about documents as a LangChain Runnable, answered from their caches. Has no prompt."""

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, closing
from dataclasses import replace
from typing import Any, cast

from langchain_core.messages import AIMessage
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.utils import AddableDict
from pydantic import Field

from acre_rag import ACRE
from acre_rag.integrations.langchain.calls import Asked, Found, afind_documents, find_documents
from acre_rag.integrations.langchain.chat import ChatACRE
from acre_rag.integrations.langchain.engines import engine_with
from acre_rag.integrations.langchain.messages import text_of
from acre_rag.integrations.langchain.options import at_once
from acre_rag.integrations.langchain.over_documents import OverDocuments
from acre_rag.integrations.langchain.qa_input import Given
from acre_rag.integrations.langchain.results import source_documents
from acre_rag.integrations.langchain.retriever import ACRERetriever
from acre_rag.integrations.langchain.runnable import AnsweringRunnable


class ACREDocumentQA(OverDocuments, AnsweringRunnable):
    """Answers questions about documents that were read once.

    Input: a question, or `{"input": question}`, perhaps with `documents` (ids) and `chat_history`. Output, as of
    LangChain's retrieval chains: `{"input": ..., "context": [Document, ...], "answer": ...}`. Streams give the input,
    the context, and then pieces of the answer.

    Callbacks see a chain run with a chat-model run (tokens, usage) and a retriever run (the context) in it. Response
    caches of LangChain are used, and file answers by the documents' texts and all options.

    Attributes:
        select: how passages are chosen: "auto", "consensus", "hybrid", "retriever", "paper"; `None` leaves the
            engine's, or with a `retriever` takes one that asks it (see `ACRE.using`).
        max_passages: most passages refilled; `None` leaves the engine's.
        budget: most tokens refilled; `None` leaves the engine's.
        retriever: a LangChain retriever over the same texts that guides refilling, under `select="hybrid"` or
            `"retriever"`.
    """

    select: str | None = None
    max_passages: int | None = None
    budget: int | None = None
    retriever: BaseRetriever | None = Field(default=None, exclude=True, repr=False)

    @property
    def engine(self) -> ACRE:
        """The engine with this chain's options."""
        return engine_with(
            self.acre, retriever=self.retriever, select=self.select, max_passages=self.max_passages, budget=self.budget
        )

    def as_retriever(self, k: int | None = None) -> ACRERetriever:
        """The same documents and options as a retriever."""
        return ACRERetriever(
            acre=self.engine,
            documents=self.documents,
            tenant=self.tenant,
            k=k,
            document_metadata=self.document_metadata,
        )

    def _found(self, given: Given, config: RunnableConfig, **options: Any) -> dict[str, Any]:
        found = _held(given)
        message = self._chat.invoke(self._messages(given, config), config, documents=found, **options)
        return {**self._context(message, found), "answer": text_of(message)}

    async def _afound(self, given: Given, config: RunnableConfig, **options: Any) -> dict[str, Any]:
        found = _held(given)
        message = await self._chat.ainvoke(await self._amessages(given, config), config, documents=found, **options)
        return {**self._context(message, found), "answer": text_of(message)}

    def _pieces(self, given: Given, config: RunnableConfig, **options: Any) -> Iterator[AddableDict]:
        found, messages = _held(given), self._messages(given, config)
        with closing(cast(Any, self._chat.stream(messages, config, documents=found, **options))) as chunks:
            for chunk in chunks:
                yield from self._said(chunk, found)

    async def _apieces(self, given: Given, config: RunnableConfig, **options: Any) -> AsyncIterator[AddableDict]:
        found, messages = _held(given), await self._amessages(given, config)
        async with aclosing(cast(Any, self._chat.astream(messages, config, documents=found, **options))) as chunks:
            async for chunk in chunks:
                for piece in self._said(chunk, found):
                    yield piece

    def _said(self, chunk: AIMessage, found: Found) -> Iterator[AddableDict]:
        """What a chunk of a chat stream says: the context, or some text."""
        if context := self._context(chunk, found):
            yield AddableDict(context, answer="")
        if text := text_of(chunk):
            yield AddableDict(answer=text)

    @property
    def _finder(self) -> str:
        return ACRERetriever.__name__

    @property
    def _at_once(self) -> int:
        return at_once(self.acre)

    @property
    def _chat(self) -> ChatACRE:
        return ChatACRE(
            acre=self.engine, tenant=self.tenant, history_messages=self.history_messages, **self.decoding_fields()
        )

    def _read(self, input: Any) -> Given:
        """The input, the documents that it asks as objects: the context is cut from the very texts that were asked."""
        given = super()._read(input)
        return replace(given, documents=find_documents(self.acre, self._asked(given), self.tenant))

    async def _aread(self, input: Any) -> Given:
        given = super()._read(input)
        return replace(given, documents=await afind_documents(self.acre, self._asked(given), self.tenant))

    def _asked(self, given: Given) -> Asked:
        return self.documents if given.documents is None else given.documents

    def _context(self, message: AIMessage, found: Found) -> AddableDict:
        """The context that a message brings; nothing where it brings none, as most chunks of a stream."""
        places = message.response_metadata.get("sources")
        if places is None:
            return AddableDict()
        by_id = {document.id: document for document in found.documents}
        return AddableDict(context=source_documents(places, by_id, self.document_metadata))


def _held(given: Given) -> Found:
    """The documents of an input that `ACREDocumentQA` has read."""
    return cast(Found, given.documents)
