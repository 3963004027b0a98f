"""Chat messages as a model's prompt, or as a long document and a question about it; asks nothing."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llama_index.core.base.llms.generic_utils import messages_to_prompt
from llama_index.core.base.llms.types import ChatMessage, MessageRole, TextBlock

from acre_rag.errors import ConfigError
from acre_rag.prompts import chat_text

_ROLES = {MessageRole.SYSTEM: "system", MessageRole.DEVELOPER: "system", MessageRole.ASSISTANT: "assistant"}
_ROLES |= {MessageRole.MODEL: "assistant", MessageRole.CHATBOT: "assistant"}


@dataclass(frozen=True)
class LongChat:
    """A chat that carries a long document.

    Attributes:
        document: the long text.
        question: all the rest, in order.
    """

    document: str
    question: str


def prompt_writer(tokenizer: Any) -> Callable[[Sequence[ChatMessage]], str]:
    """Messages to a prompt in the model's own chat format; in LlamaIndex's plain one for a model that has none."""

    def write(messages: Sequence[ChatMessage]) -> str:
        if not getattr(tokenizer, "chat_template", None):
            return f"{tokenizer.bos_token or ''}{messages_to_prompt(messages)}"
        told = [{"role": _ROLES.get(each.role, "user"), "content": content_of(each)} for each in messages]
        return chat_text(told, tokenizer)

    return write


def completion_writer(tokenizer: Any) -> Callable[[str], str]:
    """A plain prompt as a single message of the user; as it is for a model without a chat format."""
    write = prompt_writer(tokenizer)

    def written(prompt: str) -> str:
        if not getattr(tokenizer, "chat_template", None):
            return f"{tokenizer.bos_token or ''}{prompt}"
        return write([ChatMessage(role=MessageRole.USER, content=prompt)])

    return written


def content_of(message: ChatMessage) -> str:
    """The text of a message.

    Raises:
        ConfigError: it holds something else: this is a model of text.
    """
    if other := [block for block in message.blocks if not isinstance(block, TextBlock)]:
        raise ConfigError(f"A message holds a {type(other[0]).__name__}; this model reads text only.")
    return message.content or ""


def long_chat(messages: Sequence[ChatMessage], min_chars: int) -> LongChat | None:
    """A chat whose first message carries a long document: a whole message, or one of its text blocks.

    Args:
        messages: the chat.
        min_chars: shortest text that counts as a document.

    Returns:
        The document and the question; `None` when no text is long enough, or nothing is asked after it.
    """
    if not messages:
        return None
    content_of(messages[0])  # refuses what is not text
    texts = [block.text for block in messages[0].blocks if isinstance(block, TextBlock)]
    place = max(range(len(texts)), key=lambda i: len(texts[i]), default=0)
    if not texts or len(texts[place]) < min_chars:
        return None
    beside = [text for i, text in enumerate(texts) if i != place]
    question = _question(beside, messages[1:])
    return LongChat(texts[place], question) if question.strip() else None


def _question(beside: list[str], rest: Sequence[ChatMessage]) -> str:
    """The last message, after what came before it."""
    if not rest:
        return "\n\n".join(beside)
    earlier = "\n".join(f"{_ROLES.get(each.role, 'user')}: {content_of(each)}" for each in rest[:-1])
    return "\n\n".join(part for part in (*beside, earlier, content_of(rest[-1])) if part)
