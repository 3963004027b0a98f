"""What question-answering Runnables take and give: the forms, read leniently. Asks nothing."""

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.documents import Document as LangChainDocument
from langchain_core.messages import BaseMessage, HumanMessage
from langchain_core.runnables.utils import AddableDict
from pydantic import BaseModel, Field

from acre_rag.errors import ConfigError
from acre_rag.integrations.langchain.calls import Asked
from acre_rag.integrations.langchain.history import as_messages
from acre_rag.integrations.langchain.messages import text_of


class QAInput(BaseModel):
    """Input of `ACREDocumentQA` and `SystemQA`, as retrieval chains take it."""

    input: str = Field(description="The question.")
    documents: list[str] | None = Field(default=None, description="Ids of the documents to ask; all by default.")
    chat_history: list[Any] | None = Field(default=None, description="What was said before.")


class QAOutput(BaseModel):
    """Output of `ACREDocumentQA`, as retrieval chains give it."""

    input: str
    context: list[LangChainDocument]
    answer: str


class SystemOutput(QAOutput):
    """Output of `SystemQA`."""

    metadata: dict[str, Any] = Field(description="Usage, timings, scope, notes and trace of the answer.")


@dataclass(frozen=True)
class Given:
    """One input, read.

    Attributes:
        shown: the input as it came, for the output.
        question: its text.
        documents: documents to ask; `None` for the chain's own.
        history: what was said before.
    """

    shown: Any
    question: str
    documents: Asked
    history: list[BaseMessage]

    @property
    def messages(self) -> list[BaseMessage]:
        """The conversation, the question last."""
        return [*self.history, HumanMessage(self.question)]

    @property
    def follow_up(self) -> dict[str, Any]:
        """What a condenser takes."""
        return {"input": self.question, "chat_history": self.history}


def read_input(given: Any) -> Given:
    """A question, or a dictionary with `input` and perhaps `documents` and `chat_history`.

    Where `input` is a conversation, its last message is the question and the others follow the history.

    Raises:
        ConfigError: neither.
    """
    if not isinstance(given, dict):
        given = {"input": given}
    if "input" not in given:
        raise ConfigError(f"The input needs the key 'input'; it has: {', '.join(map(str, given)) or 'none'}.")
    return Given(
        shown=given["input"],
        question=question_text(given["input"]),
        documents=given.get("documents"),
        history=[*as_messages(given.get("chat_history")), *_said_before(given["input"])],
    )


def gathered(chunks: Iterator[Any]) -> Any:
    """An input that comes in pieces, put together."""
    whole = None
    for chunk in chunks:
        whole = _added(whole, chunk)
    return whole


async def agathered(chunks: AsyncIterator[Any]) -> Any:
    """`gathered` on an event loop."""
    whole = None
    async for chunk in chunks:
        whole = _added(whole, chunk)
    return whole


def _added(whole: Any, chunk: Any) -> Any:
    chunk = AddableDict(chunk) if isinstance(chunk, dict) else chunk
    return chunk if whole is None else whole + chunk


def _said_before(shown: Any) -> list[BaseMessage]:
    """What stands before the question, where the input is a list of messages that ends with it."""
    conversation = isinstance(shown, list | tuple) and shown and isinstance(shown[-1], BaseMessage)
    return as_messages(shown[:-1]) if conversation else []


def question_text(shown: str | BaseMessage | Sequence[BaseMessage]) -> str:
    """The text of a question that may be a message, or a list that ends with one."""
    last = shown[-1] if isinstance(shown, list | tuple) and shown else shown
    if isinstance(last, BaseMessage):
        return text_of(last)
    if isinstance(last, str):
        return last
    raise ConfigError(f"The question must be text or a message, not {type(last).__name__}.")
