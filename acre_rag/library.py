"""The documents of each tenant: read or opened once, found by id, kept in residency and store, forgotten.

One tenant's shelf knows nothing of another's. Reading, opening and removing run on the worker's thread.
"""

import threading
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType

from acre_rag.cache import BiLayerCache
from acre_rag.construct import ProgressCallback
from acre_rag.document import Document, text_digest
from acre_rag.errors import AcreError, CapacityError, CorruptCacheError, DocumentError, FingerprintError, StoreError
from acre_rag.fingerprint import Fingerprint, differences, document_fingerprint
from acre_rag.reading import Reader, Tokens
from acre_rag.residency import Residency
from acre_rag.store import Entry, Store


class Library:
    """All documents of one engine.

    Args:
        reader: reads new texts.
        residency: keeps their caches within budgets.
        store: keeps them on disk; `None` for memory only.
        fingerprint: what the caches of this engine depend on; only asked for with a store.
    """

    def __init__(
        self, reader: Reader, residency: Residency, store: Store | None = None, fingerprint: Fingerprint | None = None
    ) -> None:
        self._reader, self.residency, self.store = reader, residency, store
        self._fingerprint = fingerprint or {}
        self._shelves: dict[str, dict[str, Document]] = {}
        self._places: dict[Document, Path] = {}
        self._damaged: dict[str, dict[str, str]] = {}  # of each tenant: id to what is wrong
        self._changing = threading.RLock()

    def shelf(self, tenant: str) -> Mapping[str, Document]:
        """A tenant's documents by id, those of the store included."""
        with self._changing:
            if tenant not in self._shelves:
                self._shelves[tenant] = {}
                self._look_again(tenant)
            return MappingProxyType(dict(self._shelves[tenant]))

    def add(
        self, text: str, id: str | None, tenant: str, progress: ProgressCallback | None, *, rebuild: bool = False
    ) -> Document:
        """Read a text, or return the document that is there, in memory or in the store.

        Raises:
            DocumentError: empty, or the id names another text.
            CapacityError: too long, or no memory.
            FingerprintError: stored by another model or with other options; names the fields.
            CorruptCacheError: stored, but damaged.
            StoreError: it cannot be written.
        """
        name = id if id is not None else text_digest(text)[:12]
        if (known := self._still_there(name, tenant)) is not None:
            if known.text != text:
                raise DocumentError(f"A document named {name!r} with another text is there; remove it first.")
            if not rebuild:
                return known
        tokens = self._reader.tokenise(text, name)
        fingerprint = document_fingerprint(self._fingerprint, self._reader.plan(len(tokens.ids)))
        if self.store and not rebuild:
            place = self.store.folder(tenant, name, fingerprint, tokens.ids)
            if entry := self.store.entry_at(place):  # another process stored it meanwhile, or it is damaged
                _check_same(entry, text)  # lone surrogates have the tokens of the character U+FFFD
                return self._taken_up(entry, tenant)
        stale = self._stale(text, name, tenant, rebuild=rebuild)
        document = self._reader.read(
            text, tokens, name, tenant=tenant, progress=progress, free_memory=self.residency.free_idle
        )
        return self._shelve(document, fingerprint, tokens, stale, known, rebuild=rebuild)

    def find(self, documents: Sequence[Document | str] | Document | str | None, tenant: str) -> list[Document]:
        """The documents asked, each once: objects or ids; all of the tenant's by default.

        Raises:
            DocumentError: unknown, another tenant's, or none at all.
        """
        if documents is None:
            if self._damaged.get(tenant):  # it may be whole again
                self._look_again(tenant)
            chosen = list(self.shelf(tenant).values())
        else:
            several = [documents] if isinstance(documents, Document | str) else documents
            chosen = list(dict.fromkeys(self.get(each, tenant) for each in several))
        if not chosen:
            damaged = " ".join(self._damaged.get(tenant, {}).values())
            raise DocumentError(damaged or "There is no document to ask: add one first with ACRE.add(text).")
        return chosen

    def left_out(self, tenant: str) -> tuple[str, ...]:
        """What the user should know of stored documents that are not among "all documents" because of damage."""
        return tuple(f"left out: {reason}" for reason in self._damaged.get(tenant, {}).values())

    def unharmed(self, documents: Sequence[Document], tenant: str, error: AcreError) -> list[Document]:
        """Those of some documents that are still there and are not the one that an error calls damaged."""
        shelf = self.shelf(tenant)
        damaged = error.folder if isinstance(error, CorruptCacheError) else None
        there = [document for document in documents if shelf.get(document.id) is document]
        return [document for document in there if damaged is None or self._places.get(document) != damaged]

    def get(self, document: Document | str, tenant: str) -> Document:
        """One document of a tenant; the store is looked through again for a name that is not known yet.

        Raises:
            DocumentError: the tenant has none of that name.
            FingerprintError: it is stored, but by another model or with other options.
            CorruptCacheError: it is stored, but damaged.
        """
        name = document if isinstance(document, str) else document.id
        shelf = self.shelf(tenant)
        if name not in shelf and self.store:
            self._look_again(tenant)
            shelf = self.shelf(tenant)
            if name not in shelf and (others := self.store.find(name, tenant)):
                if ours := [entry for entry in others if not self._differences(entry)]:
                    return self._taken_up(ours[-1], tenant)  # raises what is wrong with it
                raise self._other_fingerprint(others[-1])
        if name not in shelf:
            raise _unknown(name, shelf)
        if isinstance(document, Document) and shelf[name] is not document:
            raise DocumentError(
                f"The document {name!r} was read anew since this Document was made, or that was another engine's. Ask "
                "by its id, or with the Document that ACRE.add or ACRE.get returns."
            )
        return shelf[name]

    def remove(self, document: Document | str, tenant: str) -> None:
        """Forget a document everywhere: by its id, also what is stored of it by other models or with other options.

        Raises:
            DocumentError: the tenant has none of that name, not even a damaged one.
        """
        name = document if isinstance(document, str) else self.get(document, tenant).id
        known = self.shelf(tenant).get(name)
        stored = self.store.find(name, tenant) if self.store else []
        if not known and not stored:
            raise _unknown(name, self.shelf(tenant))
        if known:
            self._forget(known)
        self._damaged.get(tenant, {}).pop(name, None)
        if self.store:
            for entry in stored:
                self.store.remove(entry.folder)

    def release(self, document: Document | str, tenant: str) -> None:
        """Free a document's memory; the store keeps it."""
        self.residency.rest(self.get(document, tenant))

    def _look_again(self, tenant: str) -> None:
        """Take up what the store has for this engine, made by an earlier or another process."""
        if not self.store:
            return
        self._damaged[tenant] = {}
        for entry in self.store.entries(tenant):
            if entry.id not in self._shelves[tenant] and not self._differences(entry):
                try:
                    self._taken_up(entry, tenant)
                except CorruptCacheError as error:  # raised where it is asked by name; told where all are asked
                    self._damaged[tenant][entry.id] = str(error)
                except StoreError:
                    continue  # removed by another process in between

    def _taken_up(self, entry: Entry, tenant: str) -> Document:
        document = entry.document(tenant)
        self._put_up(document, entry)
        return document

    def _put_up(self, document: Document, entry: Entry | None) -> None:
        self.residency.admit(document, partial(self._reload, document, entry) if entry else None)
        with self._changing:
            self._shelves[document.tenant][document.id] = document
            self._damaged.get(document.tenant, {}).pop(document.id, None)
            if entry:
                self._places[document] = entry.folder

    def _reload(self, document: Document, entry: Entry) -> BiLayerCache:
        """A document's cache from the store; a document that another process removed is forgotten here, too."""
        try:
            return entry.reload()
        except StoreError:
            if not entry.folder.exists():
                # Without our lock: residency's is held here, and whoever holds ours may be waiting for that one.
                self._places.pop(document, None)
                if self._shelves[document.tenant].get(document.id) is document:
                    self._shelves[document.tenant].pop(document.id, None)
                self.residency.forget(document)
            raise

    def _still_there(self, name: str, tenant: str) -> Document | None:
        """The shelf's document of a name, forgotten if another process removed it from the store meanwhile."""
        known = self.shelf(tenant).get(name)
        if known is None or known not in self._places or self._places[known].exists():
            return known
        self._forget(known)
        return None

    def _differences(self, entry: Entry) -> list[str]:
        try:
            plan = self._reader.plan(entry.manifest.n_tokens)
        except CapacityError:  # too long for this engine's window
            wanted: Fingerprint = {**self._fingerprint, "window": self._reader.window}
        else:
            wanted = document_fingerprint(self._fingerprint, plan)
        return differences(entry.manifest.fingerprint, wanted)

    def _other_fingerprint(self, entry: Entry) -> FingerprintError:
        return FingerprintError(
            f"The stored cache of {entry.id!r} was built by another model or with other options: "
            f"{'; '.join(self._differences(entry))}. Use those, or build it anew: acre build FILE --rebuild, or "
            "ACRE.add(text, id, rebuild=True)."
        )

    def _stale(self, text: str, name: str, tenant: str, *, rebuild: bool) -> list[Path]:
        """Folders that the new document will replace; without `rebuild`, they are refused."""
        entries = self.store.find(name, tenant) if self.store else []
        for entry in entries:
            _check_same(entry, text)
            if not rebuild:
                raise self._other_fingerprint(entry)
        return [entry.folder for entry in entries]

    def _shelve(
        self,
        document: Document,
        fingerprint: Fingerprint,
        tokens: Tokens,
        stale: Sequence[Path],
        known: Document | None,
        *,
        rebuild: bool,
    ) -> Document:
        """Store the new document, then let go of what it replaces."""
        entry = None
        if self.store:
            target = self.store.folder(document.tenant, document.id, fingerprint, tokens.ids)
            model = self._reader.decoder.name
            entry = self.store.save(document, fingerprint, tokens.ids, model=model, replace=rebuild)
            for folder in set(stale) - {target}:
                self.store.remove(folder)
        if known:
            self._forget(known)
        self._put_up(document, entry)
        return document

    def _forget(self, document: Document) -> None:
        with self._changing:
            self._places.pop(document, None)
            self._shelves[document.tenant].pop(document.id, None)
        self.residency.forget(document)


def _check_same(entry: Entry, text: str) -> None:
    if entry.manifest.text_sha256 != text_digest(text):
        raise DocumentError(f"A document named {entry.id!r} with another text is stored; remove it first.")


def _unknown(name: str, shelf: Mapping[str, Document]) -> DocumentError:
    return DocumentError(f"No document {name!r}; there are: {', '.join(shelf) or 'none'}.")
