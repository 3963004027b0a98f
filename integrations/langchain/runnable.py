"""The doors of a Runnable that answers questions, all of them leading to four bodies. Knows not who answers."""

from abc import abstractmethod
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, closing
from typing import Any, cast

from langchain_core.callbacks import AsyncCallbackManagerForChainRun, CallbackManagerForChainRun
from langchain_core.documents import Document as LangChainDocument
from langchain_core.messages import BaseMessage, HumanMessage
from langchain_core.runnables import Runnable, RunnableConfig, RunnableSerializable
from langchain_core.runnables.utils import AddableDict
from pydantic import BaseModel, ConfigDict, Field

from acre_rag.integrations.langchain.options import DecodingOptions, paced
from acre_rag.integrations.langchain.qa_input import (
    Given,
    QAInput,
    QAOutput,
    agathered,
    gathered,
    question_text,
    read_input,
)


class AnsweringRunnable(DecodingOptions, RunnableSerializable[Any, Any]):
    """A question in, an answer and its context out.

    Attributes:
        condense: rewrites a follow-up question from `input` and `chat_history` so that it stands alone (see
            `condenser`); `None` puts the history with the question.
        history_messages: most earlier messages that are put with the question.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    condense: Runnable[Any, Any] | None = Field(default=None, exclude=True, repr=False)
    history_messages: int = Field(default=6, ge=0)

    @abstractmethod
    def _found(self, given: Given, config: RunnableConfig, **options: Any) -> dict[str, Any]:
        """The output without the input: at least context and answer."""

    @abstractmethod
    async def _afound(self, given: Given, config: RunnableConfig, **options: Any) -> dict[str, Any]:
        """`_found` on an event loop."""

    @abstractmethod
    def _pieces(self, given: Given, config: RunnableConfig, **options: Any) -> Iterator[AddableDict]:
        """Pieces that add up to `_found`, the context in one of them."""

    @abstractmethod
    def _apieces(self, given: Given, config: RunnableConfig, **options: Any) -> AsyncIterator[AddableDict]:
        """`_pieces` on an event loop."""

    @property
    @abstractmethod
    def _finder(self) -> str:
        """Under which name callbacks see who found the context."""

    @property
    @abstractmethod
    def _at_once(self) -> int:
        """Questions of a batch that are sent on at a time."""

    def _read(self, input: Any) -> Given:
        """The input; what it asks for is there."""
        return read_input(input)

    async def _aread(self, input: Any) -> Given:
        return self._read(input)

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
        """Dictionaries that add up to what `invoke` gives, the input first."""
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
        yield from self._transform_stream_with_config(input, self._streamed, config, **kwargs)

    async def atransform(
        self, input: AsyncIterator[Any], config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[Any]:
        """`transform` on an event loop."""
        pieces = self._atransform_stream_with_config(input, self._astreamed, config, **kwargs)
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
        """Answer several questions; those that wait together are decoded together where the system can."""
        configs = paced(config, len(inputs), self._at_once)
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
        configs = paced(config, len(inputs), self._at_once)
        return await super().abatch(inputs, configs, return_exceptions=return_exceptions, **kwargs)

    def _answer(
        self, input: Any, run_manager: CallbackManagerForChainRun, config: RunnableConfig, **options: Any
    ) -> AddableDict:
        """The whole output."""
        given = self._read(input)
        found = self._found(given, config, **options)
        _report(self._finder, given, found["context"], run_manager)
        return AddableDict(input=given.shown, **found)

    async def _aanswer(
        self, input: Any, run_manager: AsyncCallbackManagerForChainRun, config: RunnableConfig, **options: Any
    ) -> AddableDict:
        given = await self._aread(input)
        found = await self._afound(given, config, **options)
        await _areport(self._finder, given, found["context"], run_manager)
        return AddableDict(input=given.shown, **found)

    def _streamed(
        self, input: Iterator[Any], run_manager: CallbackManagerForChainRun, config: RunnableConfig, **options: Any
    ) -> Iterator[AddableDict]:
        """The output in pieces, the input first."""
        given = self._read(gathered(input))
        yield AddableDict(input=given.shown)
        with closing(cast(Any, self._pieces(given, config, **options))) as pieces:
            for piece in pieces:
                if "context" in piece:
                    _report(self._finder, given, piece["context"], run_manager)
                yield piece

    async def _astreamed(
        self,
        input: AsyncIterator[Any],
        run_manager: AsyncCallbackManagerForChainRun,
        config: RunnableConfig,
        **options: Any,
    ) -> AsyncIterator[AddableDict]:
        given = await self._aread(await agathered(input))
        yield AddableDict(input=given.shown)
        async with aclosing(cast(Any, self._apieces(given, config, **options))) as pieces:
            async for piece in pieces:
                if "context" in piece:
                    await _areport(self._finder, given, piece["context"], run_manager)
                yield piece

    def _messages(self, given: Given, config: RunnableConfig) -> list[BaseMessage]:
        """The question, last, and what it needs of the conversation."""
        if given.history and self.condense is not None:
            return [HumanMessage(question_text(self.condense.invoke(given.follow_up, config)))]
        return given.messages

    async def _amessages(self, given: Given, config: RunnableConfig) -> list[BaseMessage]:
        if given.history and self.condense is not None:
            return [HumanMessage(question_text(await self.condense.ainvoke(given.follow_up, config)))]
        return given.messages


def _report(name: str, given: Given, context: list[LangChainDocument], run_manager: CallbackManagerForChainRun) -> None:
    """Show the context as a retriever run: tracers and user interfaces look for sources there."""
    run = run_manager.get_child().on_retriever_start(None, given.question, name=name)
    run.on_retriever_end(context)


async def _areport(
    name: str, given: Given, context: list[LangChainDocument], run_manager: AsyncCallbackManagerForChainRun
) -> None:
    """`_report` on an event loop."""
    run = await run_manager.get_child().on_retriever_start(None, given.question, name=name)
    await run.on_retriever_end(context)
