"""Messages and options to one call of the engine: which prompt or question, which documents. Knows no callbacks."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from langchain_core.documents import Document as LangChainDocument
from langchain_core.messages import BaseMessage
from langchain_core.runnables.config import run_in_executor

from acre_rag import ACRE, Answer, Document, GenerationSettings
from acre_rag.document import text_digest
from acre_rag.errors import DocumentError
from acre_rag.integrations.langchain.identity import document_identities, engine_identity
from acre_rag.integrations.langchain.messages import text_of
from acre_rag.streams import TextStream

ALL = "*"
"""Stands for all of a tenant's documents."""

Named = str | Document | LangChainDocument
Asked = Named | Sequence[Named] | None
"""Ids, or documents that carry one; `ALL`; `None` for no document at all."""


@dataclass(frozen=True)
class Call:
    """One call, ready for the engine.

    Attributes:
        text: a prompt for the model alone, or a question.
        settings: how to decode.
        timeout_s: most seconds of waiting and answering.
        tenant: whose documents.
        documents: documents asked; the very objects, so that one that is replaced meanwhile is refused, not mixed up.
        carried: a text that has to be read first, then asked.
    """

    text: str
    settings: GenerationSettings
    timeout_s: float | None
    tenant: str = ""
    documents: tuple[Document, ...] = ()
    carried: str | None = None

    @property
    def plain(self) -> bool:
        """Whether the model is asked without any document."""
        return not self.documents and self.carried is None

    def answer(self, acre: ACRE) -> Answer:
        """The answer, for a thread."""
        if self.plain:
            return acre.complete(self.text, settings=self.settings, timeout_s=self.timeout_s)
        return acre.ask(
            self.text, self._read(acre), tenant=self.tenant, settings=self.settings, timeout_s=self.timeout_s
        )

    async def aanswer(self, acre: ACRE) -> Answer:
        """The answer, for an event loop."""
        if self.plain:
            return await acre.acomplete(self.text, settings=self.settings, timeout_s=self.timeout_s)
        documents = await self._aread(acre)
        return await acre.aask(
            self.text, documents, tenant=self.tenant, settings=self.settings, timeout_s=self.timeout_s
        )

    def stream(self, acre: ACRE) -> TextStream[Answer]:
        """The answer piece by piece, for a thread."""
        return self._stream(acre, self._read(acre))

    async def astream(self, acre: ACRE) -> TextStream[Answer]:
        """The answer piece by piece, for an event loop."""
        return self._stream(acre, await self._aread(acre))

    def identity(self, acre: ACRE) -> str:
        """Everything that decides the answer."""
        facts = {
            "engine": engine_identity(acre),
            "text": text_digest(self.text),
            "settings": asdict(self.settings),
            "tenant": self.tenant,
            "documents": document_identities(self.documents),
            "carried": None if self.carried is None else text_digest(self.carried),
        }
        return json.dumps(facts, sort_keys=True)

    def _stream(self, acre: ACRE, documents: Sequence[Document]) -> TextStream[Answer]:
        if not documents:
            return acre.stream_complete(self.text, settings=self.settings, timeout_s=self.timeout_s)
        return acre.stream(self.text, documents, tenant=self.tenant, settings=self.settings, timeout_s=self.timeout_s)

    def _read(self, acre: ACRE) -> Sequence[Document]:
        if self.carried is None:
            return self.documents
        return [acre.add(self.carried, tenant=self.tenant, timeout_s=self.timeout_s)]

    async def _aread(self, acre: ACRE) -> Sequence[Document]:
        if self.carried is None:
            return self.documents
        return [await acre.aadd(self.carried, tenant=self.tenant, timeout_s=self.timeout_s)]


def find_documents(acre: ACRE, asked: Asked, tenant: str) -> tuple[Document, ...]:
    """The engine's documents behind ids or LangChain documents.

    A name that is new to the engine may be one that another process stored: that takes its turn on the model's thread.

    Raises:
        DocumentError: none of that name, or there are none at all.
        FingerprintError: it was stored by another model or with other options.
    """
    if asked is None:
        return ()
    shelf = acre.documents_of(tenant)
    names = list(shelf) if asked == ALL else names_of(asked)
    if not names:
        raise DocumentError("There is no document to ask: add one first, or name one that is there.")
    return tuple(shelf[name] if name in shelf else acre.get(name, tenant=tenant) for name in names)


async def afind_documents(acre: ACRE, asked: Asked, tenant: str) -> tuple[Document, ...]:
    """`find_documents` on an event loop."""
    return await run_in_executor(None, find_documents, acre, asked, tenant)


def carried_documents(
    acre: ACRE, first: BaseMessage, *, tenant: str, least_chars: int
) -> tuple[tuple[Document, ...], str]:
    """Documents of the engine whose text stands in a message, and what else the message says.

    Args:
        acre: the engine.
        first: the message.
        tenant: whose documents.
        least_chars: shorter documents are not looked for.
    """
    rest = text_of(first)
    found = []
    for document in sorted(acre.documents_of(tenant).values(), key=lambda each: -len(each.text)):
        if len(document.text) >= least_chars and document.text in rest:
            found.append(document)
            rest = rest.replace(document.text, "")
    return tuple(found), rest.strip()


def names_of(asked: Asked) -> list[str]:
    """The ids that name these documents."""
    if asked is None:
        return []
    several = [asked] if isinstance(asked, str | Document | LangChainDocument) else asked
    return [_name(each) for each in several]


def _name(named: Named) -> str:
    if isinstance(named, LangChainDocument):
        return str(named.metadata.get("document_id") or named.id)
    return named if isinstance(named, str) else named.id
