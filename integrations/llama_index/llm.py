"""ACRE's model as a LlamaIndex LLM: prompts and chats to responses; knows no index.

Two things are the model's own in LlamaIndex and stay apart here: a prompt without documents, which the stock model
answers, and (opt-in) a chat that carries a long text, which is read once and answered from its cache.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Self

from llama_index.core.base.llms.generic_utils import (
    astream_completion_response_to_chat_response,
    completion_response_to_chat_response,
    stream_completion_response_to_chat_response,
)
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
)
from llama_index.core.bridge.pydantic import (
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    model_serializer,
)
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.llm import LLM

from acre_rag import ACRE, GenerationSettings
from acre_rag.errors import ConfigError
from acre_rag.fingerprint import fingerprint_digest
from acre_rag.integrations.llama_index.calls import Call, LongCall, PlainCall, apieces, completion, pieces
from acre_rag.integrations.llama_index.messages import completion_writer, long_chat, prompt_writer
from acre_rag.integrations.llama_index.options import CALL_OPTIONS, settings_of
from acre_rag.integrations.remembered import Carried

_OF_THE_ENGINE = ("model", "fingerprint", "config", "template")
"""What the serialised form says beside the fields."""


class ACRELLM(LLM):
    """The engine's model, for everything in LlamaIndex that wants an LLM.

    The asynchronous forms never block the event loop; closing a stream stops the model. Every response carries the
    token counts in `raw["usage"]` and in `additional_kwargs`, and the engine's own answer in `raw["acre"]`.

    With `cache_documents` a chat whose first message carries a text of `min_document_chars` or more (the whole message,
    or one of its text blocks) is answered from that text's cache: the text is read once, in the engine's own template,
    and the other messages are the question. So it needs no room in the model's window; but the model sees the passages
    that the question chose, not every word.

    Args:
        acre: the engine.
        max_tokens: most tokens of a response.
        temperature: 0 decodes greedily; higher samples.
        top_p: nucleus of the samples.
        top_k: most candidates of a sample; 0 for all.
        stop: strings that end a response.
        seed: makes sampling repeatable.
        timeout: most seconds of waiting and work.
        cache_documents: whether long texts in chats are read once and answered from their caches.
        min_document_chars: shortest such text.
        max_cached_documents: such texts kept while nobody asks them.
        document_tenant: whose those texts are, in the engine.

    All from `max_tokens` to `timeout` can also be given to every call.

    Raises:
        ConfigError: an unknown option.
    """

    acre: Any = Field(exclude=True, description="The engine.")
    max_tokens: int = Field(default=128, ge=1)
    temperature: float = Field(default=0.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    stop: str | list[str] | None = None
    seed: int | None = None
    timeout: float | None = None
    cache_documents: bool = False
    min_document_chars: int = Field(default=8000, ge=1)
    max_cached_documents: int = Field(default=8, ge=0)
    document_tenant: str = "llama-index-chat"

    def __init__(self, acre: ACRE, **options: Any) -> None:
        if unknown := sorted(options.keys() - type(self).model_fields.keys()):
            there_are = ", ".join(type(self).model_fields)
            raise ConfigError(f"{unknown[0]!r} is no option of {type(self).__name__}; there are: {there_are}.")
        tokenizer = acre.decoder.tokenizer
        own = {"messages_to_prompt": prompt_writer(tokenizer), "completion_to_prompt": completion_writer(tokenizer)}
        given = {name: value for name, value in options.items() if value is not None}
        super().__init__(**(own | given | {"acre": acre}))

    @classmethod
    def class_name(cls) -> str:
        """Name in serialised pipelines."""
        return "ACRELLM"

    @classmethod
    def from_dict(cls, data: dict[str, Any], **kwargs: Any) -> Self:
        """From the serialised form, with `acre=`; what that form tells of the engine is no option."""
        return super().from_dict({name: value for name, value in data.items() if name not in _OF_THE_ENGINE}, **kwargs)

    @model_serializer(mode="wrap")
    def custom_model_dump(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        """With the engine's identity: what caches by this form must not mix two models of one name."""
        data: dict[str, Any] = super().custom_model_dump(handler, info)
        return data | {
            "model": self._name,
            "fingerprint": fingerprint_digest(self.acre.fingerprint),
            "config": asdict(self.acre.config),
            "template": asdict(self.acre.template),
        }

    @property
    def metadata(self) -> LLMMetadata:
        """What LlamaIndex plans prompts with."""
        decoder = self.acre.decoder
        return LLMMetadata(
            context_window=decoder.model_window,
            num_output=self.max_tokens,
            is_chat_model=bool(getattr(decoder.tokenizer, "chat_template", None)),
            model_name=decoder.name,
        )

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **options: Any) -> CompletionResponse:
        """The response to a prompt; a `formatted` one is in the model's own format already.

        Raises:
            CapacityError: prompt and response do not fit the model.
            ConfigError: an unknown option, or one out of range.
        """
        return completion(self._prompted(prompt, formatted, options).answer(), self._name)

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **options: Any) -> CompletionResponse:
        """`complete` on an event loop."""
        return completion(await self._prompted(prompt, formatted, options).aanswer(), self._name)

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **options: Any) -> CompletionResponseGen:
        """`complete` piece by piece."""
        return pieces(self._prompted(prompt, formatted, options), self._name)

    @llm_completion_callback()
    async def astream_complete(
        self, prompt: str, formatted: bool = False, **options: Any
    ) -> CompletionResponseAsyncGen:
        """`stream_complete` on an event loop."""
        return apieces(self._prompted(prompt, formatted, options), self._name)

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **options: Any) -> ChatResponse:
        """The assistant's next message.

        Raises:
            CapacityError: messages and response do not fit the model.
            ConfigError: an unknown option, one out of range, or a message that is not text.
        """
        return completion_response_to_chat_response(completion(self._chatted(messages, options).answer(), self._name))

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **options: Any) -> ChatResponse:
        """`chat` on an event loop."""
        answer = await self._chatted(messages, options).aanswer()
        return completion_response_to_chat_response(completion(answer, self._name))

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **options: Any) -> ChatResponseGen:
        """`chat` piece by piece."""
        return stream_completion_response_to_chat_response(pieces(self._chatted(messages, options), self._name))

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **options: Any) -> ChatResponseAsyncGen:
        """`stream_chat` on an event loop."""
        return astream_completion_response_to_chat_response(apieces(self._chatted(messages, options), self._name))

    @property
    def _name(self) -> str:
        return str(self.acre.decoder.name)

    def _prompted(self, prompt: str, formatted: bool, options: dict[str, Any]) -> Call:
        settings, timeout_s = self._settings(options)
        assert self.completion_to_prompt is not None
        return PlainCall(self.acre, prompt if formatted else self.completion_to_prompt(prompt), settings, timeout_s)

    def _chatted(self, messages: Sequence[ChatMessage], options: dict[str, Any]) -> Call:
        settings, timeout_s = self._settings(options)
        long = long_chat(messages, self.min_document_chars) if self.cache_documents else None
        if long is None:
            assert self.messages_to_prompt is not None
            return PlainCall(self.acre, self.messages_to_prompt(messages), settings, timeout_s)
        carried = Carried(self.acre, long.document, self.document_tenant, self.max_cached_documents)
        return LongCall(self.acre, carried, long.question, settings, timeout_s)

    def _settings(self, options: dict[str, Any]) -> tuple[GenerationSettings, float | None]:
        return settings_of({name: getattr(self, name) for name in CALL_OPTIONS}, options)
