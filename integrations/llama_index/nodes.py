"""Refilled passages as LlamaIndex nodes with scores, places and the metadata of their document; selects nothing."""

from collections.abc import Iterable, Sequence

from llama_index.core.schema import NodeRelationship, NodeWithScore, ObjectType, RelatedNodeInfo, TextNode

from acre_rag import Source
from acre_rag.integrations.llama_index.documents import shown_as
from acre_rag.integrations.llama_index.shelf import Held
from acre_rag.integrations.pages import PAGE_LABELS, PAGE_STARTS, page_label


def source_nodes(sources: Sequence[Source], held: Iterable[Held]) -> list[NodeWithScore]:
    """Sources as nodes, best first.

    A node's id names the version of its document and its place, so equal ids mean equal text. Its start and end count
    characters of the document's text; its SOURCE is the Document that was indexed.

    Args:
        sources: of one answer.
        held: the documents that were asked.
    """
    by_name = {each.name: each for each in held}
    return [NodeWithScore(node=_node(source, by_name[source.document]), score=source.score) for source in sources]


def _node(source: Source, held: Held) -> TextNode:
    whole = held.node
    metadata = {key: value for key, value in whole.metadata.items() if key not in (PAGE_STARTS, PAGE_LABELS)}
    if label := page_label(whole.metadata, source.start, source.end):
        metadata["page_label"] = label
    origin = whole.source_node or RelatedNodeInfo(
        node_id=held.ref_doc_id, node_type=ObjectType.TEXT, metadata=dict(whole.metadata), hash=whole.hash
    )
    return TextNode(
        id_=f"{held.name}:{source.start}-{source.end}",
        text=source.text,
        start_char_idx=source.start,
        end_char_idx=source.end,
        metadata=metadata,
        excluded_embed_metadata_keys=list(whole.excluded_embed_metadata_keys),
        excluded_llm_metadata_keys=list(whole.excluded_llm_metadata_keys),
        **shown_as(whole),
        relationships={NodeRelationship.SOURCE: origin},
    )
