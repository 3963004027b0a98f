"""Messages and options to one call of the engine: which prompt or question, which documents. Knows no callbacks."""

import json
from collections.abc import AsyncIterator, Callable, Container, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from time import monotonic
from typing import Any

from langchain_core.documents import Document as LangChainDocument
from langchain_core.messages import BaseMessage
from langchain_core.runnables.config import run_in_executor

from acre_rag import ACRE, Answer, Document, GenerationSettings
from acre_rag.document import text_digest
from acre_rag.errors import DocumentError
from acre_rag.integrations.langchain.identity import document_identities, engine_identity
from acre_rag.integrations.langchain.messages import text_of
from acre_rag.integrations.remembered import Carried
from acre_rag.integrations.room import has_room
from acre_rag.streams import TextStream

ALL = "*"
"""Stands for all of a tenant's documents."""

Shortened = Callable[[Callable[[str], bool]], str]
"""Whether there is room for a text, to one for which there is."""

Named = str | Document | LangChainDocument


@dataclass(frozen=True)
class Found:
    """Documents to ask.

    Attributes:
        documents: the very objects, so that one that is replaced meanwhile is refused, not mixed up.
        left_out: what to tell of those that are damaged, where all are asked.
    """

    documents: tuple[Document, ...] = ()
    left_out: tuple[str, ...] = ()


Asked = Named | Sequence[Named] | Found | None
"""Ids, or documents that carry one; `ALL`; what was found already; `None` for no document at all."""


@dataclass(frozen=True)
class Call:
    """One call, ready for the engine.

    Attributes:
        text: a prompt for the model alone, or a question.
        settings: how to decode.
        timeout_s: most seconds of waiting, reading and answering together.
        tenant: whose documents.
        documents: documents asked.
        left_out: what to tell of those that could not be among them.
        carried: a text that has to be read first, then asked.
        shortened: a question's text with less of what was said before it, until it has room; `None` leaves `text`.
    """

    text: str
    settings: GenerationSettings
    timeout_s: float | None
    tenant: str = ""
    documents: tuple[Document, ...] = ()
    left_out: tuple[str, ...] = ()
    carried: Carried | None = None
    shortened: Shortened | None = None

    @property
    def plain(self) -> bool:
        """Whether the model is asked without any document."""
        return not self.documents and self.carried is None

    def put(self, acre: ACRE, documents: Sequence[Document]) -> str:
        """The text as these documents are asked: of a conversation, as much as the window has room for beside them."""
        if self.shortened is None:
            return self.text
        return self.shortened(lambda text: has_room(acre, text, documents, self.settings))

    def answer(self, acre: ACRE) -> Answer:
        """The answer, for a thread."""
        if self.plain:
            return acre.complete(self.text, settings=self.settings, timeout_s=self.timeout_s)
        left_s = _countdown(self.timeout_s)
        with self._documents(acre) as documents:
            return acre.ask(self.put(acre, documents), documents, **self._options(documents, left_s()))

    async def aanswer(self, acre: ACRE) -> Answer:
        """The answer, for an event loop."""
        if self.plain:
            return await acre.acomplete(self.text, settings=self.settings, timeout_s=self.timeout_s)
        left_s = _countdown(self.timeout_s)
        async with self._adocuments(acre) as documents:
            question = await run_in_executor(None, self.put, acre, documents)
            return await acre.aask(question, documents, **self._options(documents, left_s()))

    @contextmanager
    def stream(self, acre: ACRE) -> Iterator[TextStream[Answer]]:
        """The answer piece by piece, for a thread; leaving the block stops the model."""
        left_s = _countdown(self.timeout_s)
        with self._documents(acre) as documents:
            question = self.put(acre, documents)
            with self._stream(acre, question, documents, left_s()) as stream:
                yield stream

    @asynccontextmanager
    async def astream(self, acre: ACRE) -> AsyncIterator[TextStream[Answer]]:
        """The answer piece by piece, for an event loop; leaving the block stops the model."""
        left_s = _countdown(self.timeout_s)
        async with self._adocuments(acre) as documents:
            question = await run_in_executor(None, self.put, acre, documents)
            stream = self._stream(acre, question, documents, left_s())
            try:
                yield stream
            finally:
                await stream.aclose()

    def identity(self, acre: ACRE) -> str:
        """Everything that decides the answer."""
        facts = {
            "engine": engine_identity(acre),
            "text": text_digest(self.text),
            "settings": asdict(self.settings),
            "tenant": self.tenant,
            "documents": document_identities(self.documents),
            "carried": None if self.carried is None else text_digest(self.carried.text),
        }
        return json.dumps(facts, sort_keys=True)

    def _stream(
        self, acre: ACRE, text: str, documents: Sequence[Document], timeout_s: float | None
    ) -> TextStream[Answer]:
        if not documents:
            return acre.stream_complete(text, settings=self.settings, timeout_s=timeout_s)
        return acre.stream(text, documents, **self._options(documents, timeout_s))

    def _options(self, documents: Sequence[Document], timeout_s: float | None) -> dict[str, Any]:
        return {"tenant": documents[0].tenant, "settings": self.settings, "timeout_s": timeout_s}

    @contextmanager
    def _documents(self, acre: ACRE) -> Iterator[Sequence[Document]]:
        """The documents to ask; one that is carried is read, and not forgotten inside the block."""
        if self.carried is None:
            yield self.documents
        else:
            with self.carried.holding(self.timeout_s) as document:
                yield [document]

    @asynccontextmanager
    async def _adocuments(self, acre: ACRE) -> AsyncIterator[Sequence[Document]]:
        if self.carried is None:
            yield self.documents
        else:
            async with self.carried.aholding(self.timeout_s) as document:
                yield [document]


def _countdown(timeout_s: float | None) -> Callable[[], float | None]:
    """Seconds that are left of a deadline which begins now; `None` without one."""
    begun = monotonic()
    return lambda: None if timeout_s is None else max(0.0, timeout_s - (monotonic() - begun))


def find_documents(acre: ACRE, asked: Asked, tenant: str) -> Found:
    """The engine's documents behind ids or LangChain documents.

    A name that is new to the engine may be one that another process stored: that takes its turn on the model's thread.
    So does looking again for what is damaged.

    Raises:
        DocumentError: none of that name, or there are none at all, or only damaged ones.
        FingerprintError: it was stored by another model or with other options.
    """
    if asked is None:
        return Found()
    if isinstance(asked, Found):
        return asked
    shelf = acre.documents_of(tenant)
    if asked == ALL:
        whole = shelf and not acre.library.left_out(tenant)
        documents = tuple(shelf.values() if whole else acre.find(tenant=tenant))
        return Found(documents, acre.library.left_out(tenant))
    names = names_of(asked, shelf)
    if not names:
        raise DocumentError("There is no document to ask: add one first, or name one that is there.")
    return Found(tuple(shelf[name] if name in shelf else acre.get(name, tenant=tenant) for name in names))


async def afind_documents(acre: ACRE, asked: Asked, tenant: str) -> Found:
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


def names_of(asked: Asked, known: Container[str] = ()) -> list[str]:
    """The ids that name these documents.

    Args:
        asked: ids or documents. A LangChain document goes by the first of its names that is known: the `document_id`
            of a passage, its own id, and what `adding.add_documents` calls one without: a digest of its text, its
            `source`.
        known: ids of the documents that are there.
    """
    if asked is None:
        return []
    if isinstance(asked, Found):
        return [document.id for document in asked.documents]
    several = [asked] if isinstance(asked, str | Document | LangChainDocument) else asked
    return [_name(each, known) for each in several]


def _name(named: Named, known: Container[str]) -> str:
    if not isinstance(named, LangChainDocument):
        return named if isinstance(named, str) else named.id
    metadata, digest = named.metadata, text_digest(named.page_content)[:12]
    names = [str(name) for name in (metadata.get("document_id"), named.id, digest, metadata.get("source")) if name]
    return next((name for name in names if name in known), next((name for name in names if name != digest), digest))
