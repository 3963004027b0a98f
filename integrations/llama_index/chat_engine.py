"""A conversation about documents that were read once: history and question in words, documents from their caches.

Finds and decodes nothing itself: every turn is a question to an `ACREQueryEngine`.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import aclosing, closing
from typing import Any

from llama_index.core.base.llms.generic_utils import messages_to_history_str, messages_to_prompt
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, MessageRole
from llama_index.core.base.response.schema import AsyncStreamingResponse, Response, StreamingResponse
from llama_index.core.callbacks import trace_method
from llama_index.core.chat_engine.condense_question import DEFAULT_PROMPT
from llama_index.core.chat_engine.types import AgentChatResponse, BaseChatEngine, StreamingAgentChatResponse
from llama_index.core.instrumentation.events.chat_engine import (
    StreamChatDeltaReceivedEvent,
    StreamChatEndEvent,
    StreamChatErrorEvent,
    StreamChatStartEvent,
)
from llama_index.core.llms.llm import LLM
from llama_index.core.memory import BaseMemory, Memory
from llama_index.core.prompts import BasePromptTemplate, PromptTemplate
from llama_index.core.tools import ToolOutput
from llama_index_instrumentation import get_dispatcher

from acre_rag.integrations.llama_index.query_engine import ACREQueryEngine
from acre_rag.integrations.llama_index.streams import ClosingChatResponse
from acre_rag.reading import encodable

dispatcher = get_dispatcher(__name__)

HISTORY_PROMPT = PromptTemplate("\n\nEarlier in this conversation:\n{chat_history}")
"""How the conversation so far stands between a document and a question."""


class ACREChatEngine(BaseChatEngine):
    """Talks about documents. A turn is remembered once its answer is complete; closing a stream stops the model.

    Use `ACREIndex.as_chat_engine`.

    Args:
        query_engine: answers the questions.
        llm: rewrites questions.
        condense: have `llm` rewrite a question so that it stands alone; else the conversation is told before it, and
            the question's own words, understood in that light, choose the passages. A small model seldom rewrites well.
        prompt: template of `{chat_history}`; of `{question}` too when questions are rewritten.
        system_prompt: told before the conversation, with every question.
        history_messages: most earlier messages that a question is put with; fewer, the latest, where the window has no
            room for more beside the documents, the answer and one passage.
        memory: keeps the conversation; a new `Memory` by default.
        chat_history: what was said already.
    """

    def __init__(
        self,
        query_engine: ACREQueryEngine,
        *,
        llm: LLM,
        condense: bool = False,
        prompt: BasePromptTemplate | None = None,
        system_prompt: str | None = None,
        history_messages: int = 6,
        memory: BaseMemory | None = None,
        chat_history: Sequence[ChatMessage] | None = None,
    ) -> None:
        self._whole, self._streamed = query_engine.with_streaming(False), query_engine.with_streaming(True)
        self.callback_manager = query_engine.callback_manager
        self._llm, self._condense, self._history_messages = llm, condense, history_messages
        self._prompt = prompt or (DEFAULT_PROMPT if condense else HISTORY_PROMPT)
        self._told = f"\n\n{system_prompt}" if system_prompt else ""
        tokenizer = query_engine.asking.acre.decoder.tokenizer
        self._tokens_of: Callable[[str], list[int]] = lambda text: list(tokenizer(encodable(text))["input_ids"])
        self._memory = memory or Memory.from_defaults(
            chat_history=list(chat_history or ()),
            token_limit=llm.metadata.context_window,
            tokenizer_fn=self._tokens_of,
        )

    @trace_method("chat")
    def chat(self, message: str, chat_history: list[ChatMessage] | None = None) -> AgentChatResponse:
        """Answer a message.

        Args:
            message: the user's.
            chat_history: what was said before, instead of what is remembered.
        """
        question, told = self._question(message, self._history(message, chat_history))
        response = self._asked(self._whole, told).query(question)
        assert isinstance(response, Response)
        for each in _turn(message, response.response or ""):
            self._memory.put(each)
        return _answered(question, response)

    @trace_method("chat")
    async def achat(self, message: str, chat_history: list[ChatMessage] | None = None) -> AgentChatResponse:
        """`chat` on an event loop."""
        question, told = await self._aquestion(message, await self._ahistory(message, chat_history))
        response = await self._asked(self._whole, told).aquery(question)
        assert isinstance(response, Response)
        for each in _turn(message, response.response or ""):
            await self._memory.aput(each)
        return _answered(question, response)

    @trace_method("chat")
    def stream_chat(self, message: str, chat_history: list[ChatMessage] | None = None) -> StreamingAgentChatResponse:
        """`chat` piece by piece: read `response_gen`."""
        question, told = self._question(message, self._history(message, chat_history))
        response = self._asked(self._streamed, told).query(question)
        assert isinstance(response, StreamingResponse)
        return ClosingChatResponse(
            chat_stream=self._pieces(message, response),
            sources=[_tool_output(question, "", response)],
            source_nodes=response.source_nodes,
            # The framework's own way writes on a thread that runs on when the reader stops.
            is_writing_to_memory=False,
        )

    @trace_method("chat")
    async def astream_chat(
        self, message: str, chat_history: list[ChatMessage] | None = None
    ) -> StreamingAgentChatResponse:
        """`stream_chat` on an event loop: read `async_response_gen()`."""
        question, told = await self._aquestion(message, await self._ahistory(message, chat_history))
        response = await self._asked(self._streamed, told).aquery(question)
        assert isinstance(response, AsyncStreamingResponse)
        return ClosingChatResponse(
            achat_stream=self._apieces(message, response),
            sources=[_tool_output(question, "", response)],
            source_nodes=response.source_nodes,
            is_writing_to_memory=False,
        )

    def reset(self) -> None:
        """Forget the conversation; the documents stay read."""
        self._memory.reset()

    @property
    def chat_history(self) -> list[ChatMessage]:
        """What was said."""
        return self._memory.get_all()

    def _history(self, message: str, given: list[ChatMessage] | None) -> list[ChatMessage]:
        if given is not None:
            self._memory.set(given)
        return self._memory.get(input=message)

    async def _ahistory(self, message: str, given: list[ChatMessage] | None) -> list[ChatMessage]:
        if given is not None:
            await self._memory.aset(given)
        return await self._memory.aget(input=message)

    def _question(self, message: str, history: list[ChatMessage]) -> tuple[str, str]:
        """What to ask, and what to tell before it."""
        if (variables := self._variables(message, history)) is None:
            return message, self._told
        if self._condense:
            return self._llm.predict(self._prompt, **variables).strip() or message, self._told
        return message, self._told_with(variables)

    async def _aquestion(self, message: str, history: list[ChatMessage]) -> tuple[str, str]:
        variables = await asyncio.to_thread(self._variables, message, history)
        if variables is None:
            return message, self._told
        if self._condense:
            return (await self._llm.apredict(self._prompt, **variables)).strip() or message, self._told
        return message, self._told_with(variables)

    def _told_with(self, variables: dict[str, Any]) -> str:
        return self._told + self._prompt.format(**variables)

    @staticmethod
    def _asked(engine: ACREQueryEngine, told: str) -> ACREQueryEngine:
        return engine.after_words(told) if told else engine

    def _variables(self, message: str, history: list[ChatMessage]) -> dict[str, Any] | None:
        """The prompt's values with the latest messages, the oldest dropped until the rest fits; `None` if none does."""
        for n in range(min(self._history_messages, len(history)), 0, -1):
            variables = {"question": message, "chat_history": messages_to_history_str(history[-n:])}
            if self._fits(message, variables):
                return variables
        return None

    def _fits(self, message: str, variables: dict[str, Any]) -> bool:
        """Whether the window has room for the conversation: the engine's, or that of the model that rewrites."""
        if not self._condense:
            return self._asked(self._whole, self._told_with(variables)).asking.has_room_for(message)
        write = self._llm.messages_to_prompt or messages_to_prompt
        prompt = write(self._prompt.format_messages(llm=self._llm, **variables))
        told, limits = len(self._tokens_of(prompt)), self._llm.metadata
        return told + max(0, limits.num_output) <= limits.context_window

    def _pieces(self, message: str, response: StreamingResponse) -> Generator[ChatResponse, None, None]:
        dispatcher.event(StreamChatStartEvent())
        text = ""
        try:
            with closing(response.response_gen) as pieces:
                for piece in pieces:
                    text += piece
                    dispatcher.event(StreamChatDeltaReceivedEvent(delta=piece))
                    yield _chat_response(text, piece)
        except Exception as error:
            dispatcher.event(StreamChatErrorEvent(exception=error))
            raise
        for each in _turn(message, text.strip()):
            self._memory.put(each)
        dispatcher.event(StreamChatEndEvent())

    async def _apieces(self, message: str, response: AsyncStreamingResponse) -> AsyncGenerator[ChatResponse, None]:
        dispatcher.event(StreamChatStartEvent())
        text = ""
        try:
            async with aclosing(response.response_gen) as pieces:
                async for piece in pieces:
                    text += piece
                    dispatcher.event(StreamChatDeltaReceivedEvent(delta=piece))
                    yield _chat_response(text, piece)
        except Exception as error:
            dispatcher.event(StreamChatErrorEvent(exception=error))
            raise
        for each in _turn(message, text.strip()):
            await self._memory.aput(each)
        dispatcher.event(StreamChatEndEvent())


def _turn(message: str, answer: str) -> tuple[ChatMessage, ChatMessage]:
    return (
        ChatMessage(role=MessageRole.USER, content=message),
        ChatMessage(role=MessageRole.ASSISTANT, content=answer),
    )


def _chat_response(text: str, piece: str) -> ChatResponse:
    return ChatResponse(message=ChatMessage(role=MessageRole.ASSISTANT, content=text), delta=piece)


def _answered(question: str, response: Response) -> AgentChatResponse:
    text = response.response or ""  # str(response) would say "None" for an empty answer
    return AgentChatResponse(
        response=text,
        sources=[_tool_output(question, text, response)],
        source_nodes=response.source_nodes,
        metadata=response.metadata,
    )


def _tool_output(question: str, content: str, response: Any) -> ToolOutput:
    return ToolOutput(content=content, tool_name="query_engine", raw_input={"query": question}, raw_output=response)
