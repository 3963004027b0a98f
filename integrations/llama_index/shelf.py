"""The documents of one index: which cache of the engine is whose, and which ones a question may see. Asks nothing."""

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores.types import MetadataFilters

from acre_rag import ACRE
from acre_rag.errors import DocumentError
from acre_rag.integrations.llama_index.documents import cache_name, lasting_name, ref_doc_id_of, text_of
from acre_rag.integrations.llama_index.filters import passes
from acre_rag.integrations.reading import aread_text, read_text


@dataclass(frozen=True)
class Held:
    """A document on the shelf.

    Attributes:
        ref_doc_id: LlamaIndex's name for it.
        name: the engine's name for this version of it.
        node: its whole text and its metadata.
    """

    ref_doc_id: str
    name: str
    node: BaseNode


class Shelf:
    """An index's documents in an engine.

    Args:
        acre: the engine that reads and holds them.
        tenant: whose they are, in the engine.
        rebuild: read a document anew when the engine's store has its cache damaged, or from another model or other
            options; else that is an error.
    """

    def __init__(self, acre: ACRE, *, tenant: str = "", rebuild: bool = False) -> None:
        self.acre, self.tenant, self._rebuild = acre, tenant, rebuild
        self._held: dict[str, Held] = {}

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[Held]:
        return iter(list(self._held.values()))

    def __contains__(self, ref_doc_id: object) -> bool:
        return ref_doc_id in self._held

    def get(self, ref_doc_id: str) -> Held | None:
        """A document, if it is here."""
        return self._held.get(ref_doc_id)

    def put(self, node: BaseNode) -> Held:
        """Read a document; one of the same id is replaced once the new text has been read.

        Only metadata changed: nothing is read anew.

        Raises:
            CapacityError: too long for the engine's window.
            FingerprintError: the store has its cache, of another model or of other options.
            CorruptCacheError: the store has its cache, damaged.
        """
        new = self._named(node)
        read_text(self.acre, text_of(node), new.name, tenant=self.tenant, rebuild=self._rebuild)
        if old := self._replace(new):
            self._forget(old)
        return new

    async def aput(self, node: BaseNode) -> Held:
        """`put` on an event loop."""
        new = self._named(node)
        await aread_text(self.acre, text_of(node), new.name, tenant=self.tenant, rebuild=self._rebuild)
        if old := self._replace(new):
            await asyncio.to_thread(self._forget, old)
        return new

    def drop(self, ref_doc_id: str) -> None:
        """Forget a document and its cache; one that is not here is forgotten already."""
        if held := self._held.pop(ref_doc_id, None):
            self._forget(held)

    async def adrop(self, ref_doc_id: str) -> None:
        """`drop` on an event loop."""
        if held := self._held.pop(ref_doc_id, None):
            await asyncio.to_thread(self._forget, held)

    def choose(self, filters: MetadataFilters | None = None, doc_ids: Sequence[str] | None = None) -> list[Held]:
        """The documents that a question may see.

        Args:
            filters: on their metadata.
            doc_ids: their ids; all by default.

        Raises:
            DocumentError: an id that is not here.
        """
        if unknown := [each for each in doc_ids or () if each not in self._held]:
            raise DocumentError(
                f"No document {unknown[0]!r} in this index; there are: {', '.join(self._held) or 'none'}."
            )
        held = list(self._held.values()) if doc_ids is None else [self._held[each] for each in dict.fromkeys(doc_ids)]
        return [each for each in held if passes(each.node.metadata, filters)]

    def _named(self, node: BaseNode) -> Held:
        """A document with a name that no other has here: the same text twice is two documents."""
        ref_doc_id, text = ref_doc_id_of(node), text_of(node)
        if (old := self._held.get(ref_doc_id)) and text_of(old.node) == text:
            return Held(ref_doc_id, old.name, node)
        name = cache_name(lasting_name(node), text)
        taken = any(each.name == name for each in self if each.ref_doc_id != ref_doc_id)
        return Held(ref_doc_id, cache_name(ref_doc_id, text) if taken else name, node)

    def _replace(self, new: Held) -> Held | None:
        """Put `new` in its place; the version that stood there, if it was another."""
        old = self._held.get(new.ref_doc_id)
        self._held[new.ref_doc_id] = new
        return old if old and old.name != new.name else None

    def _forget(self, held: Held) -> None:
        with contextlib.suppress(DocumentError):  # somebody removed it from the engine by hand
            self.acre.remove(held.name, tenant=self.tenant)
