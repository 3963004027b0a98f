"""LangChain documents into an engine: their ids, their metadata, read once each. Asks nothing."""

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from langchain_core.documents import Document as LangChainDocument

from acre_rag.errors import DocumentError
from acre_rag.integrations.langchain.pages import join_pages as pages_joined

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Added:
    """What was read.

    Attributes:
        ids: the engine's ids, in order.
        metadata: id to the metadata of the document.
    """

    ids: list[str] = field(default_factory=list)
    metadata: dict[str, dict[str, Any]] = field(default_factory=dict)

    def note(self, id: str, document: LangChainDocument) -> None:
        """One more; the same text again is the same document."""
        if id not in self.metadata:
            self.ids.append(id)
        self.metadata[id] = dict(document.metadata)


def add_documents(
    add: Callable[[str, str | None], Any], documents: Iterable[LangChainDocument], *, join_pages: bool = False
) -> Added:
    """Have documents read by whoever `add` belongs to; those that are there already are not read anew.

    A document is named by its `id`, else by its `source` if no other has it, else by a digest of its text.

    Args:
        add: reads a text under a name.
        documents: the documents; blank ones are left out.
        join_pages: join those of one `source` (see `pages.join_pages`).

    Raises:
        DocumentError: all are blank, or an id names another text.
    """
    added, several = Added(), _to_read(documents, join_pages=join_pages)
    for document, id in zip(several, _ids(several), strict=True):
        added.note(add(document.page_content, id).id, document)
    return added


async def aadd_documents(
    add: Callable[[str, str | None], Awaitable[Any]],
    documents: Iterable[LangChainDocument],
    *,
    join_pages: bool = False,
) -> Added:
    """`add_documents` on an event loop."""
    added, several = Added(), _to_read(documents, join_pages=join_pages)
    for document, id in zip(several, _ids(several), strict=True):
        added.note((await add(document.page_content, id)).id, document)
    return added


def as_documents(
    texts: Iterable[str], metadatas: Sequence[dict[str, Any]] | None, ids: Sequence[str] | None
) -> list[LangChainDocument]:
    """Texts as LangChain documents."""
    several = list(texts)
    names: Sequence[str | None] = ids if ids is not None else [None] * len(several)
    return [
        LangChainDocument(page_content=text, metadata=metadata, id=id)
        for text, metadata, id in zip(several, metadatas or [{}] * len(several), names, strict=True)
    ]


def _to_read(documents: Iterable[LangChainDocument], *, join_pages: bool) -> list[LangChainDocument]:
    """What there is to read: a loader makes a blank document of an empty page."""
    given = list(documents)
    several = pages_joined(given) if join_pages else given
    full = [document for document in several if document.page_content.strip()]
    if given and not full:
        raise DocumentError(
            f"All of the {len(given)} documents are blank: there is nothing to read. Scanned pages need a loader that "
            "recognises their text."
        )
    if len(full) < len(several):
        _log.warning("%d of %d documents are blank and were left out.", len(several) - len(full), len(several))
    return full


def _ids(documents: Sequence[LangChainDocument]) -> list[str | None]:
    sources = Counter(document.metadata.get("source") for document in documents)
    return [
        document.id or (str(source) if (source := document.metadata.get("source")) and sources[source] == 1 else None)
        for document in documents
    ]
