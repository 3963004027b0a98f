"""The documents of each tenant: read or opened once, found by id, kept in residency and store, forgotten.

Runs on the worker's thread. One tenant's shelf knows nothing of another's.
"""

import hashlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from acre_rag.construct import ProgressCallback
from acre_rag.document import Document
from acre_rag.errors import DocumentError
from acre_rag.reading import Reader
from acre_rag.residency import Residency


class Library:
    """All documents of one engine.

    Args:
        reader: reads new texts.
        residency: keeps their caches within budgets.
    """

    def __init__(self, reader: Reader, residency: Residency) -> None:
        self._reader, self.residency = reader, residency
        self._shelves: dict[str, dict[str, Document]] = {}

    def shelf(self, tenant: str) -> Mapping[str, Document]:
        """A tenant's documents by id."""
        return MappingProxyType(self._shelves.setdefault(tenant, {}))

    def add(self, text: str, id: str | None, tenant: str, progress: ProgressCallback | None) -> Document:
        """Read a text, or return the document that is there.

        Raises:
            DocumentError: empty, or the id names another text.
            CapacityError: too long, or no memory.
        """
        name = id if id is not None else hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
        shelf = self._shelves.setdefault(tenant, {})
        if (known := shelf.get(name)) is not None:
            if known.text == text:
                return known
            raise DocumentError(f"A document named {name!r} with another text is there; remove it first.")
        tokens = self._reader.tokenise(text, name)
        document = self._reader.read(
            text, tokens, name, tenant=tenant, progress=progress, free_memory=self.residency.free_idle
        )
        self.residency.admit(document, None)
        shelf[name] = document
        return document

    def find(self, documents: Sequence[Document | str] | Document | str | None, tenant: str) -> list[Document]:
        """The documents asked: objects or ids; all of the tenant's by default.

        Raises:
            DocumentError: unknown, another tenant's, or none at all.
        """
        if documents is None:
            chosen = list(self.shelf(tenant).values())
        else:
            several = [documents] if isinstance(documents, Document | str) else documents
            chosen = [self.get(each, tenant) for each in several]
        if not chosen:
            raise DocumentError("There is no document to ask: add one first with ACRE.add(text).")
        return chosen

    def get(self, document: Document | str, tenant: str) -> Document:
        """One document of a tenant.

        Raises:
            DocumentError: the tenant has none of that name.
        """
        name = document if isinstance(document, str) else document.id
        shelf = self.shelf(tenant)
        if name not in shelf or (isinstance(document, Document) and shelf[name] is not document):
            raise DocumentError(f"No document {name!r}; there are: {', '.join(shelf) or 'none'}.")
        return shelf[name]

    def remove(self, document: Document | str, tenant: str) -> None:
        """Forget a document everywhere."""
        known = self.get(document, tenant)
        del self._shelves[tenant][known.id]
        self.residency.forget(known)

    def release(self, document: Document | str, tenant: str) -> None:
        """Free a document's memory; the store keeps it."""
        self.residency.rest(self.get(document, tenant))
