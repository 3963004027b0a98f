"""The pages that a loader made of one file as one LangChain document, and the page of a passage. Reads nothing."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from langchain_core.documents import Document as LangChainDocument

from acre_rag.integrations.pages import (
    PAGE_LABELS,
    PAGE_STARTS,
    by_file,
    joined_text,
    page_label,
    pages_at,
    shared_metadata,
)

PAGE_NUMBERS = "page_numbers"
"""Metadata of a joined document: what LangChain calls the `page` of each page."""


def join_pages(documents: Iterable[LangChainDocument]) -> list[LangChainDocument]:
    """Join the documents that a loader made of the pages of one file, in the order given.

    Documents belong together when their metadata names the same `source`. The joined document is named by it, keeps
    the metadata that all pages share, and remembers where each page begins: its sources say on which `page` they begin
    (from 0 where the loader counts so, as `PyPDFLoader` does) and which pages they cover (`page_label`). Documents of
    a single page, and those without a source, stay as they are.

    Args:
        documents: as a loader returned them.
    """
    return [
        pages[0] if source is None or len(pages) == 1 else _joined(source, pages)
        for source, pages in by_file(documents, _source_of)
    ]


def passage_metadata(metadata: Mapping[str, Any], start: int, end: int) -> dict[str, Any]:
    """The metadata of a document for a passage of it: its pages instead of where each page begins."""
    pages = pages_at(metadata, start, end)
    if pages is None or PAGE_NUMBERS not in metadata:  # not a joined document
        return dict(metadata)
    own = {key: value for key, value in metadata.items() if key not in (PAGE_STARTS, PAGE_LABELS, PAGE_NUMBERS)}
    return own | {"page": metadata[PAGE_NUMBERS][pages[0]], "page_label": page_label(metadata, start, end)}


def _source_of(document: LangChainDocument) -> str | None:
    source = document.metadata.get("source")
    return str(source) if source else None


def _joined(source: str, pages: Sequence[LangChainDocument]) -> LangChainDocument:
    text, starts = joined_text([page.page_content for page in pages])
    numbers = [page.metadata.get("page", number) for number, page in enumerate(pages)]
    labels = [str(page.metadata.get("page_label", n)) for page, n in zip(pages, map(_counted, numbers), strict=True)]
    shared = shared_metadata([page.metadata for page in pages])
    own = {PAGE_STARTS: starts, PAGE_NUMBERS: numbers, PAGE_LABELS: labels}
    return LangChainDocument(id=source, page_content=text, metadata=shared | own)


def _counted(number: Any) -> Any:
    """A page's number as people count."""
    return number + 1 if isinstance(number, int) else number
