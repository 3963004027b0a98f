"""What one call of the LLM asks of the engine: a plain prompt, or a question about a long text. Knows no messages."""

from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Any, Protocol

from llama_index.core.base.llms.types import CompletionResponse

from acre_rag import ACRE, Answer, GenerationSettings
from acre_rag.integrations.llama_index.usage import raw_response, token_counts
from acre_rag.integrations.remembered import Carried
from acre_rag.streams import TextStream


class Call(Protocol):
    """A request that can be answered at once or piece by piece."""

    def answer(self) -> Answer:
        """The whole answer."""

    async def aanswer(self) -> Answer:
        """The whole answer, on an event loop."""

    def stream(self) -> AbstractContextManager[TextStream[Answer]]:
        """Its pieces; leaving the block stops the model."""

    def astream(self) -> AbstractAsyncContextManager[TextStream[Answer]]:
        """`stream` on an event loop."""


@dataclass(frozen=True)
class PlainCall:
    """A prompt for the stock model."""

    acre: ACRE
    prompt: str
    settings: GenerationSettings
    timeout_s: float | None

    def answer(self) -> Answer:
        """The whole answer."""
        return self.acre.complete(self.prompt, settings=self.settings, timeout_s=self.timeout_s)

    async def aanswer(self) -> Answer:
        """The whole answer, on an event loop."""
        return await self.acre.acomplete(self.prompt, settings=self.settings, timeout_s=self.timeout_s)

    @contextmanager
    def stream(self) -> Iterator[TextStream[Answer]]:
        """Its pieces."""
        with self.acre.stream_complete(self.prompt, settings=self.settings, timeout_s=self.timeout_s) as stream:
            yield stream

    @asynccontextmanager
    async def astream(self) -> AsyncIterator[TextStream[Answer]]:
        """`stream` on an event loop."""
        stream = self.acre.stream_complete(self.prompt, settings=self.settings, timeout_s=self.timeout_s)
        try:
            yield stream
        finally:
            await stream.aclose()


@dataclass(frozen=True)
class LongCall:
    """A question about a long text, which is read once. Reading and answering share `timeout_s`."""

    acre: ACRE
    carried: Carried
    question: str
    settings: GenerationSettings
    timeout_s: float | None

    def answer(self) -> Answer:
        """The whole answer."""
        begun = monotonic()
        with self.carried.holding(self.timeout_s) as document:
            return self.acre.ask(self.question, document, **self._options(document.tenant, begun))

    async def aanswer(self) -> Answer:
        """The whole answer, on an event loop."""
        begun = monotonic()
        async with self.carried.aholding(self.timeout_s) as document:
            return await self.acre.aask(self.question, document, **self._options(document.tenant, begun))

    @contextmanager
    def stream(self) -> Iterator[TextStream[Answer]]:
        """Its pieces."""
        begun = monotonic()
        with (
            self.carried.holding(self.timeout_s) as document,
            self.acre.stream(self.question, document, **self._options(document.tenant, begun)) as stream,
        ):
            yield stream

    @asynccontextmanager
    async def astream(self) -> AsyncIterator[TextStream[Answer]]:
        """`stream` on an event loop."""
        begun = monotonic()
        async with self.carried.aholding(self.timeout_s) as document:
            stream = self.acre.stream(self.question, document, **self._options(document.tenant, begun))
            try:
                yield stream
            finally:
                await stream.aclose()

    def _options(self, tenant: str, begun: float) -> dict[str, Any]:
        left_s = None if self.timeout_s is None else max(0.0, self.timeout_s - (monotonic() - begun))
        return {"tenant": tenant, "settings": self.settings, "timeout_s": left_s}


def completion(answer: Answer, model: str) -> CompletionResponse:
    """A whole answer as LlamaIndex reads it."""
    return CompletionResponse(
        text=answer.text, raw=raw_response(answer, model), additional_kwargs=token_counts(answer.usage)
    )


def pieces(call: Call, model: str) -> Generator[CompletionResponse, None, None]:
    """A call's text so far, piece by piece; the last response has no new text, but the token counts."""
    text = ""
    with call.stream() as stream:
        for piece in stream:
            if isinstance(piece, Answer):
                yield completion(piece, model).model_copy(update={"delta": ""})
            else:
                text += piece
                yield CompletionResponse(text=text, delta=piece)


async def apieces(call: Call, model: str) -> AsyncGenerator[CompletionResponse, None]:
    """`pieces` on an event loop."""
    text = ""
    async with call.astream() as stream:
        async for piece in stream:
            if isinstance(piece, Answer):
                yield completion(piece, model).model_copy(update={"delta": ""})
            else:
                text += piece
                yield CompletionResponse(text=text, delta=piece)
