"""Any LlamaIndex retriever as the engine's text retriever: nodes to the characters they came from. Scores nothing."""

from collections.abc import Mapping, Sequence
from logging import getLogger

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.schema import BaseNode, NodeWithScore, QueryBundle, TextNode

from acre_rag import Document
from acre_rag.integrations.llama_index.documents import text_of
from acre_rag.integrations.llama_index.shelf import Shelf
from acre_rag.retrieve import Retriever, Span

_logger = getLogger(__name__)


def guided_by(retriever: BaseRetriever, shelf: Shelf) -> Retriever:
    """Let a LlamaIndex retriever guide refilling, with `select="retriever"` or `"hybrid"`.

    A node is placed by its document's id and its character offsets where the document has its text there, else by
    finding its text in that document, or in any of those asked when it names none. A page of a file that was joined
    (`join_pages`) names the file in its metadata. What cannot be placed is left out.

    Args:
        retriever: finds nodes; its synchronous form runs on the model's thread. It may ask the same engine there; from
            other threads that is refused, and from those of a plain thread pool, which nobody can see, waits for ever.
        shelf: whose documents are asked.
    """

    def retrieve(question: str, documents: Sequence[Document]) -> list[Span]:
        names = {held.name: held.ref_doc_id for held in shelf}
        by_ref = {names.get(document.id, document.id): document for document in documents}
        found = retriever.retrieve(QueryBundle(question))
        spans = [_span(place, each, _named(each.node, by_ref, shelf)) for place, each in enumerate(found)]
        placed = [span for span in spans if span]
        if found and not placed:
            _logger.warning(
                "None of the %d nodes of %s stands in the documents asked: it guides nothing.",
                len(found),
                type(retriever).__name__,
            )
        return placed

    return retrieve


def _named(node: BaseNode, by_ref: Mapping[str, Document], shelf: Shelf) -> Sequence[Document]:
    """The documents asked that a node may stand in: the one it names; all of them where it names none."""
    if node.ref_doc_id is None:
        return list(by_ref.values())
    files = [str(file) for key in ("file_path", "file_name") if (file := node.metadata.get(key))]
    # A document that is here but not asked was filtered out of this question: its file is not looked for.
    names = (node.ref_doc_id,) if node.ref_doc_id in shelf else (node.ref_doc_id, *files)
    return [by_ref[name] for name in names if name in by_ref][:1]


def _span(place: int, found: NodeWithScore, documents: Sequence[Document]) -> Span | None:
    # A retriever that scores nothing still ranks: the order stands for the score.
    score = 1.0 / (1 + place) if found.score is None else float(found.score)
    for document in documents:
        if (where := _characters(found.node, document.text)) is not None:
            return Span(document.id, *where, score)
    _logger.debug("Node %s of the retriever stands in no document asked; left out.", found.node.node_id)
    return None


def _characters(node: BaseNode, text: str) -> tuple[int, int] | None:
    content = text_of(node)
    if isinstance(node, TextNode) and node.start_char_idx is not None and node.end_char_idx is not None:
        start, end = node.start_char_idx, node.end_char_idx
        if content and text[start:end] == content:
            return start, end
    stripped = content.strip()
    start = text.find(stripped) if stripped else -1
    return None if start < 0 else (start, start + len(stripped))
