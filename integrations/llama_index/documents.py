"""LlamaIndex Documents to nodes that are read whole, one cache each, and the names of those caches; asks no model."""

import logging
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any
from uuid import UUID

from llama_index.core.schema import (
    BaseNode,
    Document,
    MetadataMode,
    NodeRelationship,
    TextNode,
    TransformComponent,
)

from acre_rag.document import text_digest
from acre_rag.errors import DocumentError
from acre_rag.integrations.pages import PAGE_LABELS, PAGE_STARTS, by_file, joined_text, shared_metadata

_logger = logging.getLogger(__name__)


def text_of(node: BaseNode) -> str:
    """The text alone, without metadata."""
    return node.get_content(metadata_mode=MetadataMode.NONE)


def shown_as(node: BaseNode) -> dict[str, Any]:
    """How a node's text and metadata are put to other models: its templates, for a node made of it."""
    names = ("text_template", "metadata_template", "metadata_separator")
    return {name: getattr(node, name) for name in names if hasattr(node, name)}


def is_blank(node: BaseNode) -> bool:
    """Whether there is nothing to read."""
    return not text_of(node).strip()


def cache_name(lasting: str, text: str) -> str:
    """What the engine calls one version of one document.

    Args:
        lasting: the document's own name (see `lasting_name`).
        text: its text in this version.

    The text is part of the name: two versions never share a cache or an entry of any response cache, and questions are
    answered from the old version until the new one has been read. Metadata is not: it changes no cache.
    """
    return f"{lasting}@{text_digest(text)[:12]}"


def lasting_name(node: BaseNode) -> str:
    """What a document is called at every start: its id, if that is not drawn at random.

    The framework draws an id (UUID 4) for every Document that is given none, readers do so for each file. Such a
    document goes by its file's name, which with its text finds its cache again after a restart.
    """
    ref_doc_id = ref_doc_id_of(node)
    if not _is_drawn(ref_doc_id):
        return ref_doc_id
    file = _file_of(node)
    return PurePath(file).name if file else "document"


def _is_drawn(id: str) -> bool:
    try:
        return str(UUID(id)) == id and UUID(id).version == 4
    except ValueError:
        return False


def ref_doc_id_of(node: BaseNode) -> str:
    """The document that a node stands for; the node itself where it names none."""
    return node.ref_doc_id or node.node_id


class WholeDocument(TransformComponent):
    """The transformation that does not split: one node for each Document. Blank ones are left out."""

    @classmethod
    def class_name(cls) -> str:
        """Name in serialised pipelines."""
        return "ACREWholeDocument"

    def __call__(self, nodes: Sequence[BaseNode], **_: Any) -> list[BaseNode]:
        """Documents, or what earlier transformations made of them, to whole nodes.

        Raises:
            DocumentError: earlier transformations split a document.
        """
        whole = [_whole(node) for node in nodes if not is_blank(node)]
        if len(whole) < len(nodes):
            names = ", ".join(_label(node) for node in nodes if is_blank(node))
            _logger.warning("Left out, for there is no text in it (scanned pages need OCR first): %s", names)
        refuse_parts(whole)
        return list(whole)


def _label(node: BaseNode) -> str:
    """What a user knows a Document by."""
    return str(node.metadata.get("file_name") or node.node_id)


def refuse_blanks(documents: Sequence[Document]) -> None:
    """Documents of which none holds text would make an index that answers nothing.

    Raises:
        DocumentError: there are documents, and all of them are blank.
    """
    if documents and all(map(is_blank, documents)):
        raise DocumentError(
            f"There is no text in {', '.join(map(_label, documents))}. Scanned pages need OCR before they can be read."
        )


def refuse_parts(nodes: Sequence[BaseNode]) -> None:
    """A document is read whole; parts of it would each need their own cache and know nothing of one another.

    Raises:
        DocumentError: two nodes stand for the same document.
    """
    seen: set[str] = set()
    for node in nodes:
        ref_doc_id = ref_doc_id_of(node)
        if ref_doc_id in seen:
            raise DocumentError(
                f"Document {ref_doc_id!r} came in several nodes. ACRE reads a document whole: leave node parsers out "
                "of the transformations (ACREIndex.from_documents needs none), or give every part its own id."
            )
        seen.add(ref_doc_id)


def _whole(node: BaseNode) -> TextNode:
    text = text_of(node)
    source = node.as_related_node_info() if isinstance(node, Document) else node.source_node
    return (
        TextNode(  # with an id of its own: another index in the same docstore may know another text by this document's
            text=text,
            start_char_idx=0,
            end_char_idx=len(text),
            metadata=dict(node.metadata),
            excluded_embed_metadata_keys=list(node.excluded_embed_metadata_keys),
            excluded_llm_metadata_keys=list(node.excluded_llm_metadata_keys),
            **shown_as(node),
            relationships={NodeRelationship.SOURCE: source or node.as_related_node_info()},
        )
    )


def join_pages(documents: Sequence[Document]) -> list[Document]:
    """Join the Documents that a reader made of the pages of one file, in the order given.

    Documents belong together when their metadata names the same `file_path` (else `file_name`). The joined Document is
    named by that path, keeps the metadata that all pages share, and remembers where each page begins: its sources say
    on which page they stand (`page_label`). Documents of a single page, and those that name no file, stay as they are.

    Args:
        documents: as a reader returned them.
    """
    return [
        pages[0] if file is None or len(pages) == 1 else _joined(file, pages)
        for file, pages in by_file(documents, _file_of)
    ]


def _file_of(document: BaseNode) -> str | None:
    file = document.metadata.get("file_path") or document.metadata.get("file_name")
    return str(file) if file else None


def _joined(file: str, pages: Sequence[Document]) -> Document:
    text, starts = joined_text([text_of(page) for page in pages])
    first = pages[0]
    labels = [str(page.metadata.get("page_label", number)) for number, page in enumerate(pages, 1)]
    return Document(
        id_=file,
        text=text,
        metadata=shared_metadata([page.metadata for page in pages]) | {PAGE_STARTS: starts, PAGE_LABELS: labels},
        excluded_embed_metadata_keys=[*first.excluded_embed_metadata_keys, PAGE_STARTS, PAGE_LABELS],
        excluded_llm_metadata_keys=[*first.excluded_llm_metadata_keys, PAGE_STARTS, PAGE_LABELS],
        **shown_as(first),
    )
