"""ACREDocumentQA: questions about documents as a LangChain Runnable, answered from their caches. Has no prompt."""

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, closing
from typing import Any, cast

from langchain_core.callbacks import AsyncCallbackManagerForChainRun, CallbackManagerForChainRun
from langchain_core.documents import Document as LangChainDocument
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableConfig, RunnableSerializable
from langchain_core.runnables.utils import AddableDict
from pydantic import BaseModel, Field

from acre_rag import ACRE, Document
from acre_rag.integrations.langchain.calls import find_documents
from acre_rag.integrations.langchain.chat import ChatACRE
from acre_rag.integrations.langchain.engines import engine_with
from acre_rag.integrations.langchain.messages import text_of
from acre_rag.integrations.langchain.options import DecodingOptions, paced
from acre_rag.integrations.langchain.over_documents import OverDocuments
from acre_rag.integrations.langchain.qa_input import (
    Given,
    QAInput,
    QAOutput,
    agathered,
    gathered,
    question_text,
    read_input,
)
from acre_rag.integrations.langchain.results import source_documents
from acre_rag.integrations.langchain.retriever import ACRERetriever


class ACREDocumentQA(OverDocuments, DecodingOptions, RunnableSerializable[Any, Any]):
    """Answers questions about documents that were read once.

    Input: a question, or `{"input": question}`, perhaps with `documents` (ids) and `chat_history`. Output, as of
    LangChain's retrieval chains: `{"input": ..., "context": [Document, ...], "answer": ...}`. Streams give the input,
    pieces of the answer, and last the context, which the engine names when the answer is done.

    Callbacks see a chain run with a chat-model run (tokens, usage) and a retriever run (the context) in it. Response
    caches of LangChain are used, and file answers by the documents' texts and all options.

    Attributes:
        select: how passages are chosen: "consensus", "hybrid", "retriever", "paper"; `None` leaves the engine's.
        max_passages: most passages refilled; `None` leaves the engine's.
        budget: most tokens refilled; `None` leaves the engine's.
        retriever: a LangChain retriever over the same texts that guides refilling, with `select="retriever"` or
            `"hybrid"`.
        condense: rewrites a follow-up question from `input` and `chat_history` so that it stands alone (see
            `condenser`); `None` puts the history with the question.
        history_messages: most earlier messages that are put with the question.
    """

    select: str | None = None
    max_passages: int | None = None
    budget: int | None = None
    retriever: BaseRetriever | None = Field(default=None, exclude=True, repr=False)
    condense: Runnable[Any, Any] | None = Field(default=None, exclude=True, repr=False)
    history_messages: int = Field(default=6, ge=0)

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

    def get_input_schema(self, config: RunnableConfig | None = None) -> type[BaseModel]:
        """Input as tools and servers declare it."""
        return QAInput

    def get_output_schema(self, config: RunnableConfig | None = None) -> type[BaseModel]:
        """Output as servers declare it."""
        return QAOutput

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Answer a question. `kwargs` are decoding options of this call."""
        return self._call_with_config(self._answer, input, config, **kwargs)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """`invoke` on an event loop."""
        return await self._acall_with_config(self._aanswer, input, config, **kwargs)

    def stream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[Any]:
        """The input, pieces of the answer, then the context: dictionaries that add up to what `invoke` gives."""
        yield from self.transform(iter([input]), config, **kwargs)

    async def astream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> AsyncIterator[Any]:
        """`stream` on an event loop."""

        async def once() -> AsyncIterator[Any]:
            yield input

        async with aclosing(cast(Any, self.atransform(once(), config, **kwargs))) as chunks:
            async for chunk in chunks:
                yield chunk

    def transform(self, input: Iterator[Any], config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[Any]:
        """`stream` for an input that comes in pieces."""
        yield from self._transform_stream_with_config(input, self._pieces, config, **kwargs)

    async def atransform(
        self, input: AsyncIterator[Any], config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[Any]:
        """`transform` on an event loop."""
        pieces = self._atransform_stream_with_config(input, self._apieces, config, **kwargs)
        async with aclosing(cast(Any, pieces)) as chunks:
            async for chunk in chunks:
                yield chunk

    def batch(
        self,
        inputs: list[Any],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        """Answer several questions; those that wait together are decoded together."""
        configs = paced(self.acre, config, len(inputs))
        return super().batch(inputs, configs, return_exceptions=return_exceptions, **kwargs)

    async def abatch(
        self,
        inputs: list[Any],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        """`batch` on an event loop."""
        configs = paced(self.acre, config, len(inputs))
        return await super().abatch(inputs, configs, return_exceptions=return_exceptions, **kwargs)

    def _answer(
        self, input: Any, run_manager: CallbackManagerForChainRun, config: RunnableConfig, **options: Any
    ) -> AddableDict:
        given, documents = self._read(input)
        messages = self._messages(given, config)
        message = self._chat.invoke(messages, config, documents=documents, **options)
        context = self._context(message, documents)
        _report(given, context, run_manager)
        return AddableDict(input=given.shown, context=context, answer=text_of(message))

    async def _aanswer(
        self, input: Any, run_manager: AsyncCallbackManagerForChainRun, config: RunnableConfig, **options: Any
    ) -> AddableDict:
        given, documents = self._read(input)
        messages = await self._amessages(given, config)
        message = await self._chat.ainvoke(messages, config, documents=documents, **options)
        context = self._context(message, documents)
        await _areport(given, context, run_manager)
        return AddableDict(input=given.shown, context=context, answer=text_of(message))

    def _pieces(
        self, input: Iterator[Any], run_manager: CallbackManagerForChainRun, config: RunnableConfig, **options: Any
    ) -> Iterator[AddableDict]:
        given, documents = self._read(gathered(input))
        yield AddableDict(input=given.shown)
        messages = self._messages(given, config)
        context: list[LangChainDocument] = []
        with closing(cast(Any, self._chat.stream(messages, config, documents=documents, **options))) as chunks:
            for chunk in chunks:
                context = context or self._context(chunk, documents)
                if text := text_of(chunk):
                    yield AddableDict(answer=text)
        _report(given, context, run_manager)
        yield AddableDict(answer="", context=context)

    async def _apieces(
        self,
        input: AsyncIterator[Any],
        run_manager: AsyncCallbackManagerForChainRun,
        config: RunnableConfig,
        **options: Any,
    ) -> AsyncIterator[AddableDict]:
        given, documents = self._read(await agathered(input))
        yield AddableDict(input=given.shown)
        messages = await self._amessages(given, config)
        context: list[LangChainDocument] = []
        async with aclosing(cast(Any, self._chat.astream(messages, config, documents=documents, **options))) as chunks:
            async for chunk in chunks:
                context = context or self._context(chunk, documents)
                if text := text_of(chunk):
                    yield AddableDict(answer=text)
        await _areport(given, context, run_manager)
        yield AddableDict(answer="", context=context)

    @property
    def _chat(self) -> ChatACRE:
        return ChatACRE(
            acre=self.engine, tenant=self.tenant, history_messages=self.history_messages, **self.decoding_fields()
        )

    def _read(self, input: Any) -> tuple[Given, tuple[Document, ...]]:
        """The input and the documents that it asks; held as objects, so that the context is cut from their texts."""
        given = read_input(input)
        asked = self.documents if given.documents is None else given.documents
        return given, find_documents(self.acre, asked, self.tenant)

    def _messages(self, given: Given, config: RunnableConfig) -> list[BaseMessage]:
        if given.history and self.condense is not None:
            return [HumanMessage(question_text(self.condense.invoke(given.follow_up, config)))]
        return given.messages

    async def _amessages(self, given: Given, config: RunnableConfig) -> list[BaseMessage]:
        if given.history and self.condense is not None:
            return [HumanMessage(question_text(await self.condense.ainvoke(given.follow_up, config)))]
        return given.messages

    def _context(self, message: AIMessage, documents: tuple[Document, ...]) -> list[LangChainDocument]:
        by_id = {document.id: document for document in documents}
        return source_documents(message.response_metadata.get("sources", ()), by_id, self.document_metadata)


def _report(given: Given, context: list[LangChainDocument], run_manager: CallbackManagerForChainRun) -> None:
    """Show the context as a retriever run: tracers and user interfaces look for sources there."""
    run = run_manager.get_child().on_retriever_start(None, given.question, name=ACRERetriever.__name__)
    run.on_retriever_end(context)


async def _areport(
    given: Given, context: list[LangChainDocument], run_manager: AsyncCallbackManagerForChainRun
) -> None:
    run = await run_manager.get_child().on_retriever_start(None, given.question, name=ACRERetriever.__name__)
    await run.on_retriever_end(context)
