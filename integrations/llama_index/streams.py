"""LlamaIndex's streaming responses, except that leaving them stops the model; knows no model.

The framework's own keep the generator that they read from alive, so that closing theirs leaves it running.
"""

from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing, closing

from llama_index.core.base.response.schema import AsyncStreamingResponse
from llama_index.core.chat_engine.types import StreamingAgentChatResponse


class ClosingResponse(AsyncStreamingResponse):
    """An `AsyncStreamingResponse` whose `async_response_gen` can be closed early."""

    async def async_response_gen(self) -> AsyncGenerator[str, None]:
        """The pieces; closing this closes their source."""
        async with aclosing(self.response_gen), aclosing(self._yield_response()) as pieces:
            async for piece in pieces:
                yield piece


class ClosingChatResponse(StreamingAgentChatResponse):
    """A `StreamingAgentChatResponse` whose generators can be closed early."""

    @property
    def response_gen(self) -> Generator[str, None, None]:
        """The pieces; closing this closes their source."""
        assert self.chat_stream is not None
        with closing(self.chat_stream), closing(super().response_gen) as pieces:
            yield from pieces

    async def async_response_gen(self) -> AsyncGenerator[str, None]:
        """`response_gen` on an event loop."""
        assert self.achat_stream is not None
        async with aclosing(self.achat_stream), aclosing(super().async_response_gen()) as pieces:
            async for piece in pieces:
                yield piece
