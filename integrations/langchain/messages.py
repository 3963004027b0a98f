"""LangChain messages to text: a prompt in the model's chat format, or a question with its history. Knows no engine."""

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError  # torch brings it
from langchain_core.messages import AIMessage, BaseMessage, ChatMessage, HumanMessage, SystemMessage

from acre_rag.errors import ConfigError


def text_of(message: BaseMessage) -> str:
    """The text of a message.

    Raises:
        ConfigError: it holds something else: an image, a file, audio.
    """
    if isinstance(message.content, str):
        return message.content
    parts = []
    for block in message.content:
        if isinstance(block, str):
            parts.append(block)
        elif block.get("type") == "text":
            parts.append(str(block["text"]))
        elif block.get("type") not in ("tool_use", "tool_call", "tool_call_chunk", "reasoning"):
            raise ConfigError(f"This model reads text only; a message holds a block of type {block.get('type')!r}.")
    return "".join(parts)


def chat_prompt(messages: Sequence[BaseMessage], tokenizer: Any) -> str:
    """Messages in the chat format of a tokenizer; "role: text" lines for a model that has none.

    Raises:
        ConfigError: there are no messages, or one is not text.
    """
    if not messages:
        raise ConfigError("There are no messages to answer.")
    turns = _turns(messages)
    if getattr(tokenizer, "chat_template", None):
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    return _lines(turns, tokenizer)


def counted_prompt(messages: Sequence[BaseMessage], tokenizer: Any) -> str:
    """The text whose tokens stand for a conversation: `chat_prompt`, also for a part of one.

    Whoever trims a conversation counts parts of it, and in reverse. A chat template that insists on an order of roles
    refuses those: they are counted as "role: text" lines.

    Raises:
        ConfigError: a message is not text.
    """
    if not messages:
        return ""
    try:
        return chat_prompt(messages, tokenizer)
    except TemplateError:
        return _lines(_turns(messages), tokenizer)


def question_with_history(messages: Sequence[BaseMessage], *, instructions: str = "", most: int) -> str:
    """The last message as a question, what was said before it, and any instructions, in one text.

    A single message without instructions stays exactly as it is.

    Args:
        messages: the conversation, oldest first.
        instructions: what else the model was told.
        most: most earlier messages to keep, the latest; system messages are always kept.

    Raises:
        ConfigError: there are no messages, or one is not text.
    """
    if not messages:
        raise ConfigError("There is no question: the conversation holds only the document.")
    *earlier, last = messages
    told = [instructions, *(text_of(message) for message in earlier if isinstance(message, SystemMessage))]
    said = [message for message in earlier if not isinstance(message, SystemMessage)]
    parts = [part for part in told if part.strip()]
    turns = [f"{role_of(message)}: {_spoken(message)}" for message in said[max(0, len(said) - most) :]]
    question = text_of(last)
    parts.append("\n".join([*turns, f"{role_of(last)}: {question}"]) if turns else question)
    return "\n\n".join(parts)


def role_of(message: BaseMessage) -> str:
    """The role under which a chat template knows a message; results of tools come from the user."""
    if isinstance(message, SystemMessage):
        return "system"
    if isinstance(message, AIMessage):
        return "assistant"
    if isinstance(message, ChatMessage):
        return message.role
    return "user"


def _turns(messages: Sequence[BaseMessage]) -> list[dict[str, str]]:
    return [{"role": role_of(message), "content": _spoken(message)} for message in messages]


def _lines(turns: Sequence[dict[str, str]], tokenizer: Any) -> str:
    lines = "".join(f"{turn['role']}: {turn['content']}\n" for turn in turns)
    return f"{tokenizer.bos_token or ''}{lines}assistant:"


def _spoken(message: BaseMessage) -> str:
    if isinstance(message, HumanMessage | AIMessage | SystemMessage | ChatMessage):
        return text_of(message)
    return f"Result of {message.name or 'a tool'}:\n{text_of(message)}"
