"""Any LlamaIndex retriever as the engine's text retriever: nodes to the characters they came from. Scores nothing."""

from collections.abc import Sequence
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
    finding its text in that document, or in any of those asked when it names none. What cannot be placed is left out.

    Args:
        retriever: finds nodes; its synchronous form runs on the model's thread.
        shelf: whose documents are asked.
    """

    def retrieve(question: str, documents: Sequence[Document]) -> list[Span]:
        names = {held.name: held.ref_doc_id for held in shelf}
        by_ref = {names.get(document.id, document.id): document for document in documents}
        found = retriever.retrieve(QueryBundle(question))
        spans = [_span(place, each, by_ref) for place, each in enumerate(found)]
        return [span for span in spans if span]

    return retrieve


def _span(place: int, found: NodeWithScore, by_ref: dict[str, Document]) -> Span | None:
    # A retriever that scores nothing still ranks: the order stands for the score.
    score = 1.0 / (1 + place) if found.score is None else float(found.score)
    node = found.node
    if node.ref_doc_id is not None and node.ref_doc_id not in by_ref:
        return None  # filtered out of this question, or a document of another index
    own = by_ref.get(node.ref_doc_id or "")
    for document in [own] if own else by_ref.values():
        if (where := _characters(node, document.text)) is not None:
            return Span(document.id, *where, score)
    _logger.debug("Node %s of the retriever stands in no document asked; left out.", node.node_id)
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
