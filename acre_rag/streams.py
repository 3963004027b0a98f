"""Text that arrives piece by piece from the worker's thread, read from a thread or an event loop. Knows no models."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import CancelledError, Future
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

from acre_rag.answer import Source
from acre_rag.errors import DeadlineError
from acre_rag.worker import Ticket

T = TypeVar("T")
V = TypeVar("V")


class Pieces:
    """Between the worker's thread and the reader: holds no one alive."""

    def __init__(self) -> None:
        self.queue: SimpleQueue[str | None] = SimpleQueue()
        self.sources: Future[tuple[Source, ...]] = Future()
        self.wake: Callable[[], Any] = lambda: None

    def found(self, sources: tuple[Source, ...]) -> None:
        """Called on the worker's thread before the first piece; again when memory was short and less is refilled."""
        if self.sources.done():
            self.sources = Future()
        self.sources.set_result(sources)

    def end(self, ticket: Ticket) -> None:
        """Called when the work is done, or was dropped."""
        if not self.sources.done():
            error = None if ticket.future.cancelled() else ticket.future.exception()
            self.sources.set_exception(error or CancelledError())
        self.push(None)

    def push(self, piece: str | None) -> None:
        """Called on the worker's thread for every piece; `None` ends."""
        if piece == "":
            return
        self.queue.put(piece)
        with contextlib.suppress(RuntimeError):  # a loop that was closed meanwhile reads no more
            self.wake()


class TextStream(Generic[T], Iterator["str | T"], AsyncIterator["str | T"]):
    """Pieces of text as they are decoded, then the whole result. For `for` and for `async for`.

    Closing it (`close`, `aclose`, leaving a `with`) stops the model at its next token.

    Args:
        ticket: the work; its result comes last, its error is raised here.
        pieces: where the work pushes its text.
    """

    def __init__(self, ticket: Ticket, pieces: Pieces) -> None:
        self._ticket, self._pieces = ticket, pieces
        self._ended = False
        ticket.future.add_done_callback(lambda _: pieces.end(ticket))

    @property
    def sources(self) -> tuple[Source, ...]:
        """Where the answer will stand; waits for the selection, which comes before the first piece.

        Raises:
            AcreError: what went wrong in the work.
        """
        try:
            return self._pieces.sources.result(self._ticket.remaining_s())
        except TimeoutError as error:
            raise self._given_up(error) from None

    async def asources(self) -> tuple[Source, ...]:
        """`sources` on an event loop."""
        try:
            async with asyncio.timeout(self._ticket.remaining_s()):
                return await asyncio.shield(_on_loop(self._pieces.sources))
        except TimeoutError as error:
            raise self._given_up(error) from None

    def __iter__(self) -> Iterator[str | T]:
        return self

    def __next__(self) -> str | T:
        """The next piece, or the result.

        Raises:
            AcreError: what went wrong in the work.
        """
        if self._ended:
            raise StopIteration
        try:
            piece = self._pieces.queue.get(timeout=self._ticket.remaining_s())
        except Empty as error:
            raise self._given_up(error) from None
        except KeyboardInterrupt:
            self.close()
            raise
        return piece if piece is not None else self._last()

    def __aiter__(self) -> AsyncIterator[str | T]:
        return self

    async def __anext__(self) -> str | T:
        """The next piece, or the result; never blocks the loop."""
        if self._ended:
            raise StopAsyncIteration
        arrived = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._pieces.wake = lambda: loop.call_soon_threadsafe(arrived.set)
        while True:
            arrived.clear()
            with contextlib.suppress(Empty):
                piece = self._pieces.queue.get_nowait()
                return piece if piece is not None else self._last()
            try:
                async with asyncio.timeout(self._ticket.remaining_s()):
                    await arrived.wait()
            except TimeoutError as error:
                raise self._given_up(error) from None
            except asyncio.CancelledError:
                self._ticket.cancel()
                raise

    def close(self) -> None:
        """Stop the model, and wait until it has."""
        if not self._ended:
            self._ended = True
            self._ticket.stop()

    async def aclose(self) -> None:
        """Stop the model, and wait until it has, without blocking the loop.

        Cancelling the task that waits here ends its waiting; the model stops all the same.
        """
        if not self._ended:
            self._ended = True
            if self._ticket.cancel():
                return
            await asyncio.wait([_on_loop(self._ticket.future)])

    def __enter__(self) -> "TextStream[T]":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        """A stream that nobody reads any more stops the model."""
        self._ticket.cancel()

    def _given_up(self, error: Exception) -> Exception:
        """Of waiting past the deadline; the work's own error, if that is what came."""
        if isinstance(error, DeadlineError) or self._ticket.remaining_s() != 0:
            return error
        self._ended = True
        return self._ticket.give_up()

    def _last(self) -> T:
        self._ended = True
        result: T = self._ticket.future.result()
        return result


def _on_loop(future: Future[V]) -> "asyncio.Future[V]":
    """A future for the running loop; whoever waits for it may leave before its error comes."""
    done = asyncio.wrap_future(future)
    done.add_done_callback(lambda done: done.cancelled() or done.exception())  # seen: else asyncio reports it
    return done
