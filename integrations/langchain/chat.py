"""ChatACRE: the engine's model as a LangChain chat model, alone or over documents. Selects and decodes nothing."""

from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from functools import partial
from typing import Any, ClassVar, NoReturn

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.globals import get_llm_cache
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import run_in_executor
from pydantic import Field

from acre_rag import ACRE, Answer, GenerationSettings
from acre_rag.errors import UnsupportedFeatureError
from acre_rag.integrations.langchain.calls import Asked, Call, carried_documents, find_documents, names_of
from acre_rag.integrations.langchain.identity import engine_identity
from acre_rag.integrations.langchain.messages import chat_prompt, counted_prompt, question_with_history, text_of
from acre_rag.integrations.langchain.options import DecodingOptions, at_once, paced
from acre_rag.integrations.langchain.results import Chunks, answer_message
from acre_rag.integrations.remembered import Carried
from acre_rag.reading import encodable


class ChatACRE(DecodingOptions, BaseChatModel):
    """Chat with the engine's model; with `documents`, chat about them from their caches.

    Every call may carry its own `documents` and decoding options: `chat.invoke("Who?", documents=["book"], seed=1)`.

    Attributes:
        acre: the engine.
        documents: ids of the documents that messages ask about; "*" for all; `None` for the model alone.
        tenant: whose documents.
        document_chars: opt-in. A first message (usually the system message) that holds the text of a document of the
            engine with at least this many characters is answered from that document's cache. A first message of at
            least this many characters that holds none, and is followed by others, is read once, into a cache that
            stands beside the tenant's documents, where no "*" asks it. `None`: messages are only messages.
        max_cached_documents: such messages kept while nobody asks them.
        history_messages: most earlier messages that are put with a question about documents; fewer, the latest, where
            the window has no room for more beside the documents, the answer and one passage.
    """

    # What LangChain's standard suite passes to every chat model: here is no network, and streams need no leave.
    tolerated: ClassVar[Collection[str]] = ("api_key", "max_retries", "streaming")

    acre: ACRE = Field(exclude=True, repr=False)
    documents: Sequence[str] | str | None = None
    tenant: str = ""
    document_chars: int | None = Field(default=None, ge=1)
    max_cached_documents: int = Field(default=8, ge=0)
    history_messages: int = Field(default=6, ge=0)

    @property
    def model_name(self) -> str:
        """What the user called the model."""
        return self.acre.decoder.name

    @property
    def _llm_type(self) -> str:
        return "acre"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {
            "model_name": self.model_name,
            **self.decoding_fields(),
            "documents": self.documents,
            "tenant": self.tenant,
            "document_chars": self.document_chars,
            "history_messages": self.history_messages,
        }

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """Answer several inputs; those that wait together are decoded together."""
        configs = paced(config, len(inputs), at_once(self.acre))
        return super().batch(inputs, configs, return_exceptions=return_exceptions, **kwargs)

    async def abatch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """`batch` on an event loop."""
        configs = paced(config, len(inputs), at_once(self.acre))
        return await super().abatch(inputs, configs, return_exceptions=return_exceptions, **kwargs)

    def get_token_ids(self, text: str) -> list[int]:
        """Tokens of a text by this model's own tokenizer; LangChain's own way asks a model hub for another one's."""
        own = self.custom_get_token_ids
        if own:
            return own(text)
        return list(self.acre.decoder.tokenizer(encodable(text), add_special_tokens=False)["input_ids"])

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[Any] | None = None) -> int:
        """Tokens that are read for these messages, besides documents; `trim_messages(token_counter=chat)` asks here.

        Args:
            messages: a conversation, or a part of one; none are no tokens.
            tools: not counted: this model is told of none.

        Raises:
            ConfigError: a message is not text.
        """
        if self.documents is not None and messages:
            return self.get_num_tokens(question_with_history(messages, most=self.history_messages))
        return self.get_num_tokens(counted_prompt(messages, self.acre.decoder.tokenizer))

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> NoReturn:
        """Not supported.

        Raises:
            UnsupportedFeatureError: always; names the other way.
        """
        raise UnsupportedFeatureError(
            "ChatACRE calls no tools: it answers from documents. Bind tools to another chat model and give it the "
            "documents as one of them: ACREDocumentQA(...).as_tool(name=..., description=...)."
        )

    def with_structured_output(self, schema: Any, **kwargs: Any) -> NoReturn:
        """Not supported.

        Raises:
            UnsupportedFeatureError: always; names the other way.
        """
        raise UnsupportedFeatureError(
            "ChatACRE has no structured output. Say in the prompt which form the answer has and read it with an output "
            "parser: prompt | chat | PydanticOutputParser(pydantic_object=...)."
        )

    def call(self, messages: Sequence[BaseMessage], stop: list[str] | None = None, **options: Any) -> Call:
        """What these messages ask of the engine.

        Args:
            messages: the conversation.
            stop: strings that end the answer.
            options: `documents` and decoding options of this call.

        Raises:
            ConfigError: an option is unknown or out of range, or a message is not text.
            DocumentError: there is no such document.
        """
        options.pop("stream", None)  # says how LangChain calls, not what is asked
        asked: Asked = options.pop("documents", None)
        settings, timeout_s = self.decoding({**options, "stop": stop})
        found = find_documents(self.acre, self.documents if asked is None else asked, self.tenant)
        if found.documents:
            return self._about(messages, settings, timeout_s, documents=found.documents, left_out=found.left_out)
        if self.document_chars is not None and messages:
            documents, rest = carried_documents(
                self.acre, messages[0], tenant=self.tenant, least_chars=self.document_chars
            )
            if documents and messages[1:]:
                return self._about(messages[1:], settings, timeout_s, instructions=rest, documents=documents)
            if documents and rest:
                return Call(rest, settings, timeout_s, self.tenant, documents)
            text = text_of(messages[0])
            if messages[1:] and len(text) >= self.document_chars:
                carried = Carried(self.acre, text, f"langchain-chat:{self.tenant}", self.max_cached_documents)
                return self._about(messages[1:], settings, timeout_s, carried=carried)
        return Call(chat_prompt(messages, self.acre.decoder.tokenizer), settings, timeout_s)

    async def acall(self, messages: Sequence[BaseMessage], stop: list[str] | None = None, **options: Any) -> Call:
        """`call` on an event loop, which looking for documents would hold up."""
        return await run_in_executor(None, self.call, messages, stop, **options)

    def _about(
        self,
        messages: Sequence[BaseMessage],
        settings: GenerationSettings,
        timeout_s: float | None,
        *,
        instructions: str = "",
        **what: Any,
    ) -> Call:
        """A question about documents, after what was said before it."""
        put = partial(question_with_history, messages, instructions=instructions, most=self.history_messages)
        shortened = lambda fits: put(fits=fits)  # noqa: E731
        return Call(put(), settings, timeout_s, self.tenant, shortened=shortened, **what)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        call: Call | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        call = call or self.call(messages, stop, **kwargs)
        return self._result(call.answer(self.acre), call)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        call: Call | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        call = call or await self.acall(messages, stop, **kwargs)
        return self._result(await call.aanswer(self.acre), call)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        call: Call | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        call = call or self.call(messages, stop, **kwargs)
        chunks = Chunks(call, self.model_name)
        with call.stream(self.acre) as pieces:
            for piece in pieces:
                yield from chunks.of(piece, pieces)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        call: Call | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        call = call or await self.acall(messages, stop, **kwargs)
        chunks = Chunks(call, self.model_name)
        async with call.astream(self.acre) as pieces:
            async for piece in pieces:
                for chunk in chunks.of(piece, pieces):
                    yield chunk

    def _result(self, answer: Answer, call: Call) -> ChatResult:
        message = answer_message(answer, call, self.model_name)
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _get_invocation_params(self, stop: list[str] | None = None, **kwargs: Any) -> dict[str, Any]:
        """What tracers are told: ids instead of whole documents."""
        if "documents" in kwargs:
            kwargs["documents"] = names_of(kwargs["documents"])
        return super()._get_invocation_params(stop, **kwargs)

    # A response cache looks an answer up and later files it. Both must mean the same documents, whatever is removed or
    # replaced in between: the call is settled once, before, and handed through.

    def _generate_with_cache(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        call = self.call(messages, stop, **kwargs)
        return super()._generate_with_cache(messages, run_manager=run_manager, call=call, **_streaming(kwargs))

    async def _agenerate_with_cache(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        call = await self.acall(messages, stop, **kwargs)
        if self._caches():  # digesting the weights for the first time would hold up the loop
            await run_in_executor(None, engine_identity, self.acre)
        return await super()._agenerate_with_cache(messages, run_manager=run_manager, call=call, **_streaming(kwargs))

    def _caches(self) -> bool:
        return self.cache is not False and (self.cache is not None or get_llm_cache() is not None)

    def _get_llm_string(self, stop: list[str] | None = None, call: Call | None = None, **kwargs: Any) -> str:
        """What a response cache files an answer under, beside the messages."""
        assert call is not None  # as _generate_with_cache hands it through
        return f"{self._llm_type}:{self.output_version}:{call.identity(self.acre)}"


def _streaming(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name == "stream"}
