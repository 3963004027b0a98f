"""LangChain messages to text: a prompt in the model's chat format, or a question with its history. Knows no engine."""

from collections.abc import Callable, Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, ChatMessage, HumanMessage, SystemMessage

from acre_rag.errors import ConfigError
from acre_rag.prompts import chat_text


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
        ConfigError: there are no messages, one is not text, or the chat format refuses them.
    """
    if not messages:
        raise ConfigError("There are no messages to answer.")
    turns = _turns(messages)
    if getattr(tokenizer, "chat_template", None):
        return chat_text(turns, tokenizer)
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
    lines = _lines(_turns(messages), tokenizer)
    try:
        return chat_prompt(messages, tokenizer)
    except ConfigError:
        return lines


def question_with_history(
    messages: Sequence[BaseMessage],
    *,
    instructions: str = "",
    most: int,
    fits: Callable[[str], bool] = lambda text: True,
) -> str:
    """The last message as a question, what was said before it, and any instructions, in one text.

    A single message without instructions stays exactly as it is.

    Args:
        messages: the conversation, oldest first.
        instructions: what else the model was told.
        most: most earlier messages to keep, the latest; system messages are always kept.
        fits: whether there is room for such a text: the oldest messages are dropped until there is, or none is left.

    Raises:
        ConfigError: there are no messages, or one is not text.
    """
    if not messages:
        raise ConfigError("There is no question: the conversation holds only the document.")
    *earlier, last = messages
    told = [instructions, *(text_of(message) for message in earlier if isinstance(message, SystemMessage))]
    said = [message for message in earlier if not isinstance(message, SystemMessage)]
    turns = [f"{role_of(message)}: {_spoken(message)}" for message in said[max(0, len(said) - most) :]]
    while True:
        question = "\n".join([*turns, f"{role_of(last)}: {text_of(last)}"]) if turns else text_of(last)
        text = "\n\n".join([*(part for part in told if part.strip()), question])
        if not turns or fits(text):
            return text
        del turns[0]


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
