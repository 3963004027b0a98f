"""Questions to LlamaIndex responses, whole or piece by piece, with their events. Knows not who finds and answers."""

from abc import abstractmethod
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Generic, Protocol, TypeVar

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.llms.types import CompletionResponse
from llama_index.core.base.response.schema import AsyncStreamingResponse, Response, StreamingResponse
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload
from llama_index.core.callbacks.base import EventContext
from llama_index.core.instrumentation.events.retrieval import RetrievalEndEvent, RetrievalStartEvent
from llama_index.core.prompts.mixin import PromptMixinType
from llama_index.core.schema import NodeWithScore, QueryBundle
from llama_index_instrumentation import get_dispatcher

from acre_rag import Answer
from acre_rag.integrations.llama_index.nodes import source_nodes
from acre_rag.integrations.llama_index.shelf import Held
from acre_rag.integrations.llama_index.streams import ClosingResponse
from acre_rag.integrations.llama_index.usage import raw_response, response_metadata
from acre_rag.streams import TextStream

dispatcher = get_dispatcher(__name__)

NOTHING = "Empty Response"
"""What LlamaIndex's own query engines answer when no document is left to ask."""


class Askable(Protocol):
    """Documents, and somebody who answers questions about them."""

    def chosen(self) -> list[Held]:
        """The documents asked."""

    def ask(self, question: str, held: Sequence[Held]) -> Answer:
        """The answer."""

    async def aask(self, question: str, held: Sequence[Held]) -> Answer:
        """`ask` on an event loop."""

    def stream(self, question: str, held: Sequence[Held]) -> TextStream[Answer]:
        """The answer, piece by piece."""


A = TypeVar("A", bound=Askable)


class AnsweringEngine(BaseQueryEngine, Generic[A]):
    """The four forms of a query: at once or as a stream, in a thread or on an event loop.

    Once a stream has ended, its `source_nodes` and its `metadata` are the answer's own.

    Args:
        asking: who is asked.
        streaming: answer with a `StreamingResponse`, from `aquery` with an `AsyncStreamingResponse`.
        callback_manager: LlamaIndex's.
    """

    def __init__(self, asking: A, *, streaming: bool = False, callback_manager: CallbackManager | None = None) -> None:
        self.asking, self.streaming = asking, streaming
        super().__init__(callback_manager=callback_manager)

    @property
    @abstractmethod
    def model(self) -> str:
        """What the user called the model."""

    def _first_nodes(self, stream: TextStream[Answer], held: Sequence[Held]) -> list[NodeWithScore]:
        """Source nodes of a stream that begins; none where they are only known with the answer."""
        return []

    async def _afirst_nodes(self, stream: TextStream[Answer], held: Sequence[Held]) -> list[NodeWithScore]:
        return []

    def _metadata(self, answer: Answer, held: Sequence[Held]) -> dict[str, Any]:
        return response_metadata(answer, held, self.model)

    def _get_prompt_modules(self) -> PromptMixinType:
        return {}

    def _query(self, query_bundle: QueryBundle) -> Response | StreamingResponse:
        question, held = query_bundle.query_str, self.asking.chosen()
        with self.callback_manager.event(CBEventType.QUERY, {EventPayload.QUERY_STR: question}) as event:
            response = self._streamed(question, held) if self.streaming else self._answered(question, held)
            event.on_end(payload={EventPayload.RESPONSE: response})
        return response

    async def _aquery(self, query_bundle: QueryBundle) -> Response | AsyncStreamingResponse:
        question, held = query_bundle.query_str, self.asking.chosen()
        with self.callback_manager.event(CBEventType.QUERY, {EventPayload.QUERY_STR: question}) as event:
            response: Response | AsyncStreamingResponse
            if self.streaming:
                response = await self._astreamed(question, held)
            else:
                response = await self._aanswered(question, held)
            event.on_end(payload={EventPayload.RESPONSE: response})
        return response

    def _answered(self, question: str, held: Sequence[Held]) -> Response:
        if not held:
            return Response(NOTHING)
        with self._model_event(question) as event:
            answer = self.asking.ask(question, held)
            self._end(event, question, answer)
        return self._response(question, answer, held)

    async def _aanswered(self, question: str, held: Sequence[Held]) -> Response:
        if not held:
            return Response(NOTHING)
        with self._model_event(question) as event:
            answer = await self.asking.aask(question, held)
            self._end(event, question, answer)
        return self._response(question, answer, held)

    def _streamed(self, question: str, held: Sequence[Held]) -> StreamingResponse:
        stream = self.asking.stream(question, held) if held else None
        nodes = self._first_nodes(stream, held) if stream else []
        if nodes:
            self._report(question, nodes)
        metadata: dict[str, Any] = {}
        return StreamingResponse(self._pieces(stream, question, held, nodes, metadata), nodes, metadata)

    async def _astreamed(self, question: str, held: Sequence[Held]) -> AsyncStreamingResponse:
        stream = self.asking.stream(question, held) if held else None
        nodes = await self._afirst_nodes(stream, held) if stream else []
        if nodes:
            self._report(question, nodes)
        metadata: dict[str, Any] = {}
        return ClosingResponse(self._apieces(stream, question, held, nodes, metadata), nodes, metadata)

    def _response(self, question: str, answer: Answer, held: Sequence[Held]) -> Response:
        nodes = source_nodes(answer.sources, held)
        self._report(question, nodes)
        return Response(answer.text, nodes, self._metadata(answer, held))

    def _pieces(
        self,
        stream: TextStream[Answer] | None,
        question: str,
        held: Sequence[Held],
        nodes: list[NodeWithScore],
        metadata: dict[str, Any],
    ) -> Generator[str, None, None]:
        """The answer's text as it comes; then nodes and metadata are brought up to the answer's own, in place."""
        if stream is None:
            yield NOTHING
            return
        with self._model_event(question) as event, stream:
            for piece in stream:
                if isinstance(piece, str):
                    yield piece
                else:
                    self._end(event, question, piece)
                    self._finish(question, piece, held, nodes, metadata)

    async def _apieces(
        self,
        stream: TextStream[Answer] | None,
        question: str,
        held: Sequence[Held],
        nodes: list[NodeWithScore],
        metadata: dict[str, Any],
    ) -> AsyncGenerator[str, None]:
        if stream is None:
            yield NOTHING
            return
        try:
            with self._model_event(question) as event:
                async for piece in stream:
                    if isinstance(piece, str):
                        yield piece
                    else:
                        self._end(event, question, piece)
                        self._finish(question, piece, held, nodes, metadata)
        finally:
            await stream.aclose()

    def _finish(
        self,
        question: str,
        answer: Answer,
        held: Sequence[Held],
        nodes: list[NodeWithScore],
        metadata: dict[str, Any],
    ) -> None:
        known_before = bool(nodes)
        nodes[:] = source_nodes(answer.sources, held)
        metadata.update(self._metadata(answer, held))
        if not known_before:
            self._report(question, nodes)

    def _report(self, question: str, nodes: list[NodeWithScore]) -> None:
        """Show the nodes as a retrieval, as soon as they are known: tracers and user interfaces look for them there."""
        dispatcher.event(RetrievalStartEvent(str_or_query_bundle=question))
        with self.callback_manager.event(CBEventType.RETRIEVE, {EventPayload.QUERY_STR: question}) as event:
            event.on_end(payload={EventPayload.NODES: list(nodes)})
        dispatcher.event(RetrievalEndEvent(str_or_query_bundle=question, nodes=list(nodes)))

    def _model_event(self, question: str) -> AbstractContextManager[EventContext]:
        """The event that token counters of the callback manager listen for."""
        return self.callback_manager.event(CBEventType.LLM, {EventPayload.PROMPT: question})

    def _end(self, event: EventContext, question: str, answer: Answer) -> None:
        completion = CompletionResponse(text=answer.text, raw=raw_response(answer, self.model))
        event.on_end(payload={EventPayload.PROMPT: question, EventPayload.COMPLETION: completion})
