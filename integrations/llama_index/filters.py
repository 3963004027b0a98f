"""Whether a document's metadata passes MetadataFilters, nested ones included; knows no documents.

The framework's own function decides a single filter; it refuses nested ones, which are walked here.
"""

from collections.abc import Mapping
from typing import Any

from llama_index.core.vector_stores.types import FilterCondition, MetadataFilter, MetadataFilters
from llama_index.core.vector_stores.utils import build_metadata_filter_fn


def passes(metadata: Mapping[str, Any], filters: MetadataFilters | None) -> bool:
    """Whether metadata passes; everything passes no filters.

    Args:
        metadata: of one document.
        filters: single filters and groups of filters, joined by and, or, or not (none of them).
    """
    if filters is None or not filters.filters:
        return True
    verdicts = [
        passes(metadata, each) if isinstance(each, MetadataFilters) else _passes_one(metadata, each)
        for each in filters.filters
    ]
    if filters.condition == FilterCondition.OR:
        return any(verdicts)
    if filters.condition == FilterCondition.NOT:
        return not any(verdicts)
    return all(verdicts)


def _passes_one(metadata: Mapping[str, Any], single: MetadataFilter) -> bool:
    return bool(build_metadata_filter_fn(lambda _: metadata, MetadataFilters(filters=[single]))(""))
