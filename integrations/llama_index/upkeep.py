"""Inserting, replacing, deleting and restoring an index's documents, each with its own cache; asks nothing.

Reading comes first, the docstore after: what cannot be read changes nothing.
"""

import asyncio
import itertools
from collections.abc import Sequence
from logging import getLogger
from typing import Any

from llama_index.core.indices.base import BaseIndex
from llama_index.core.schema import BaseNode, Document, TransformComponent
from llama_index.core.storage.docstore.types import RefDocInfo

from acre_rag import ACRE
from acre_rag.errors import ConfigError, DocumentError
from acre_rag.integrations.llama_index.documents import WholeDocument, is_blank, ref_doc_id_of, refuse_parts
from acre_rag.integrations.llama_index.shelf import Shelf
from acre_rag.integrations.llama_index.struct import ACREIndexStruct

_logger = getLogger(__name__)


class WholeDocumentIndex(BaseIndex[ACREIndexStruct]):
    """Keeps documents in an engine; see `ACREIndex`, which asks them too."""

    index_struct_cls = ACREIndexStruct

    def __init__(
        self,
        nodes: Sequence[BaseNode] | None = None,
        *,
        acre: ACRE | None = None,
        tenant: str = "",
        rebuild: bool = False,
        index_struct: ACREIndexStruct | None = None,
        transformations: list[TransformComponent] | None = None,
        **options: Any,
    ) -> None:
        if acre is None:
            raise ConfigError(
                "An ACREIndex needs an engine: pass acre=ACRE.from_pretrained(...), also to load_index_from_storage."
            )
        self.acre = acre
        self._shelf = Shelf(acre, tenant=index_struct.tenant if index_struct else tenant, rebuild=rebuild)
        super().__init__(
            nodes=nodes,
            index_struct=index_struct,
            # An empty list would mean the framework's own splitter.
            transformations=never_splitting(transformations),
            **options,
        )
        if index_struct:
            self._restore()

    @property
    def ref_doc_info(self) -> dict[str, RefDocInfo]:
        """Documents of the index with their nodes and metadata."""
        return {
            held.ref_doc_id: RefDocInfo(node_ids=self._nodes_of(held.ref_doc_id), metadata=dict(held.node.metadata))
            for held in self._shelf
        }

    def cache_names(self) -> dict[str, str]:
        """Document id to the engine's name for it: for `acre.documents`, heat maps and diagnosis."""
        return {held.ref_doc_id: held.name for held in self._shelf}

    def _build_index_from_nodes(self, nodes: Sequence[BaseNode], **_: Any) -> ACREIndexStruct:
        refuse_parts(nodes)
        before = set(self.acre.documents_of(self._shelf.tenant))
        try:
            for node in nodes:
                self._shelf.put(node)
        except BaseException:
            for held in self._shelf:  # nobody will own what was read so far
                if held.name not in before:
                    self._shelf.drop(held.ref_doc_id)
            raise
        return ACREIndexStruct(nodes={n.node_id: ref_doc_id_of(n) for n in nodes}, tenant=self._shelf.tenant)

    def insert_nodes(self, nodes: Sequence[BaseNode], **_: Any) -> None:
        """Insert whole documents as nodes, one after another; a document of the same id is replaced.

        Raises:
            DocumentError: several nodes of one document.
            CapacityError: a document is too long; what was there under its id stays, and what came before it is in.
        """
        refuse_parts(nodes)
        with self._callback_manager.as_trace("insert_nodes"):
            try:
                self._insert(nodes)
            finally:
                self._storage_context.index_store.add_index_struct(self._index_struct)

    def _insert(self, nodes: Sequence[BaseNode], **_: Any) -> None:
        for node in nodes:  # each wholly, so that one that fails leaves the index as the ones before it made it
            self._shelf.put(node)
            for node_id in self._take_over(node):
                self.docstore.delete_document(node_id, raise_error=False)
            self.docstore.add_documents([node], allow_update=True)

    async def ainsert_nodes(self, nodes: Sequence[BaseNode], **_: Any) -> None:
        """`insert_nodes` on an event loop (the framework's own form would block it while reading)."""
        refuse_parts(nodes)
        with self._callback_manager.as_trace("ainsert_nodes"):
            try:
                for node in nodes:
                    await self._shelf.aput(node)
                    for node_id in self._take_over(node):
                        await self._aforget_node(node_id)
                    await self.docstore.async_add_documents([node], allow_update=True)
            finally:
                await self._storage_context.index_store.async_add_index_struct(self._index_struct)

    def _take_over(self, node: BaseNode) -> list[str]:
        """Enter a node; the nodes that stood for its document, to be deleted lest their metadata live on."""
        ref_doc_id = ref_doc_id_of(node)
        replaced = self._nodes_of(ref_doc_id)
        for node_id in replaced:
            del self._index_struct.nodes[node_id]
        self._index_struct.nodes[node.node_id] = ref_doc_id
        return replaced

    def _nodes_of(self, ref_doc_id: str) -> list[str]:
        return [node_id for node_id, each in self._index_struct.nodes.items() if each == ref_doc_id]

    def delete_ref_doc(self, ref_doc_id: str, delete_from_docstore: bool = False, **delete_kwargs: Any) -> None:
        """Delete a document and its cache; the nodes that other indexes have of it in the same docstore stay."""
        if nodes := self._known_nodes_of(ref_doc_id):
            self.delete_nodes(nodes, delete_from_docstore=delete_from_docstore, **delete_kwargs)

    async def adelete_ref_doc(self, ref_doc_id: str, delete_from_docstore: bool = False, **delete_kwargs: Any) -> None:
        """`delete_ref_doc` on an event loop."""
        if nodes := self._known_nodes_of(ref_doc_id):
            await self.adelete_nodes(nodes, delete_from_docstore=delete_from_docstore, **delete_kwargs)

    def _known_nodes_of(self, ref_doc_id: str) -> list[str]:
        if not (nodes := self._nodes_of(ref_doc_id)):
            _logger.warning("This index has no document %r; nothing deleted.", ref_doc_id)
        return nodes

    def _delete_node(self, node_id: str, **_: Any) -> None:
        if ref_doc_id := self._index_struct.nodes.pop(node_id, None):  # a shared docstore has others' nodes too
            self._shelf.drop(ref_doc_id)

    async def adelete_nodes(self, node_ids: list[str], delete_from_docstore: bool = False, **_: Any) -> None:
        """Delete nodes and their caches, on an event loop."""
        for node_id in node_ids:
            if ref_doc_id := self._index_struct.nodes.pop(node_id, None):
                await self._shelf.adrop(ref_doc_id)
            if delete_from_docstore:
                await self._aforget_node(node_id)
        await self._storage_context.index_store.async_add_index_struct(self._index_struct)

    async def _aforget_node(self, node_id: str) -> None:
        """Delete from the docstore. Its own asynchronous form leaves the document's entry behind (0.14)."""
        await asyncio.to_thread(self.docstore.delete_document, node_id, raise_error=False)

    def update_ref_doc(self, document: Document, **update_kwargs: Any) -> None:
        """Replace a document. Its old version answers until the new one has been read; equal text is not read anew."""
        with self._callback_manager.as_trace("update_ref_doc"):
            if is_blank(document):
                self.delete_ref_doc(document.id_, delete_from_docstore=True)
            self.insert(document, **update_kwargs.get("insert_kwargs", {}))

    async def aupdate_ref_doc(self, document: Document, **update_kwargs: Any) -> None:
        """`update_ref_doc` on an event loop."""
        with self._callback_manager.as_trace("aupdate_ref_doc"):
            if is_blank(document):
                await self.adelete_ref_doc(document.id_, delete_from_docstore=True)
            await self.ainsert(document, **update_kwargs.get("insert_kwargs", {}))

    def refresh_ref_docs(self, documents: Sequence[Document], **update_kwargs: Any) -> list[bool]:
        """Insert documents that are new, replace those whose text or metadata changed; true for each that was."""
        with self._callback_manager.as_trace("refresh_ref_docs"):
            changed = [self._differs(each, self.docstore.get_document_hash(each.id_)) for each in documents]
            for document in itertools.compress(documents, changed):
                self.update_ref_doc(document, **update_kwargs.get("update_kwargs", {}))
            return changed

    async def arefresh_ref_docs(self, documents: Sequence[Document], **update_kwargs: Any) -> list[bool]:
        """`refresh_ref_docs` on an event loop."""
        with self._callback_manager.as_trace("arefresh_ref_docs"):
            changed = [self._differs(each, await self.docstore.aget_document_hash(each.id_)) for each in documents]
            for document in itertools.compress(documents, changed):
                await self.aupdate_ref_doc(document, **update_kwargs.get("update_kwargs", {}))
            return changed

    def _differs(self, document: Document, known_hash: str | None) -> bool:
        """The docstore may still have the hash of a document that was deleted, or that of another index's text."""
        if is_blank(document):
            return known_hash != document.hash
        held = self._shelf.get(document.id_)
        source = held.node.source_node if held else None
        # Transformations of the user's may have changed the Document before it became a node.
        own_hash = source.hash if source and len(self._transformations) == 1 else known_hash
        return held is None or own_hash != document.hash

    def _restore(self) -> None:
        """Texts from the docstore to the engine, which takes their caches from its store or reads them anew."""
        for node_id in self._index_struct.nodes:
            node = self.docstore.get_document(node_id, raise_error=False)
            if node is None:
                raise DocumentError(
                    f"The docstore has no node {node_id!r} of this index. Load the docstore that was persisted with it."
                )
            self._shelf.put(node)


def never_splitting(transformations: Sequence[TransformComponent] | None) -> list[TransformComponent]:
    """What the user gave, and last of all the one that makes whole nodes."""
    given = [each for each in transformations or () if not isinstance(each, WholeDocument)]
    return [*given, WholeDocument()]
