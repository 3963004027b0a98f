"""A follow-up question and its history to a question that stands alone, by any LangChain model. Knows no engine."""

from collections.abc import Sequence
from typing import Any

from langchain_core.language_models import LanguageModelLike
from langchain_core.messages import BaseMessage, HumanMessage, convert_to_messages
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables import Runnable

CONDENSE = ChatPromptTemplate.from_messages(
    [
        MessagesPlaceholder("chat_history"),
        (
            "human",
            "Rewrite my next question so that it can be understood without our conversation. Answer with the "
            "question only.\n\nNext question: {input}",
        ),
    ]
)


def condenser(model: LanguageModelLike, prompt: ChatPromptTemplate = CONDENSE) -> Runnable[dict[str, Any], str]:
    """For `ACREDocumentQA(condense=...)`: rewrites a follow-up question with a model of your choice.

    Args:
        model: a chat model or any other that LangChain knows.
        prompt: takes `input` and `chat_history`.
    """
    return prompt | model | StrOutputParser()


def as_messages(history: str | Sequence[Any] | None) -> list[BaseMessage]:
    """A chat history in any of LangChain's forms: messages, (role, text) pairs, dictionaries, or one text."""
    if not history:
        return []
    if isinstance(history, str):
        return [HumanMessage(history)]
    return list(convert_to_messages(history))
