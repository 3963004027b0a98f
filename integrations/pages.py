"""The pages that a reader made of one file as one text, and which of them a place stands on. Knows no framework."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any, TypeVar

PAGE_STARTS = "page_starts"
"""Metadata of a joined document: where each page begins, in characters."""
PAGE_LABELS = "page_labels"
"""Metadata of a joined document: the label of each page."""

_BETWEEN_PAGES = "\n\n"

D = TypeVar("D")


def by_file(documents: Iterable[D], file_of: Callable[[D], str | None]) -> list[tuple[str | None, list[D]]]:
    """Documents of one file together, in the order given; one that names no file stands alone.

    Args:
        documents: as a reader returned them.
        file_of: the file that a document is a page of.
    """
    groups: dict[str | int, tuple[str | None, list[D]]] = {}
    for place, document in enumerate(documents):
        file = file_of(document)
        groups.setdefault(place if file is None else file, (file, []))[1].append(document)
    return list(groups.values())


def joined_text(texts: Sequence[str]) -> tuple[str, list[int]]:
    """The text of all pages, and where each of them begins in it."""
    lengths = [len(text) + len(_BETWEEN_PAGES) for text in texts]
    return _BETWEEN_PAGES.join(texts), [0, *accumulate(lengths)][:-1]


def shared_metadata(several: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the metadata of all pages say alike."""
    return {
        key: value
        for key, value in several[0].items()
        if all(key in other and other[key] == value for other in several)
    }


def pages_at(metadata: Mapping[str, Any], start: int, end: int) -> tuple[int, int] | None:
    """First and last page, from 0, of characters `start <= c < end` of a joined document; `None` for any other."""
    if not (starts := metadata.get(PAGE_STARTS)):
        return None
    first, last = (max(0, sum(begin <= place for begin in starts) - 1) for place in (start, max(start, end - 1)))
    return first, last


def page_label(metadata: Mapping[str, Any], start: int, end: int) -> str | None:
    """Page, or pages "3-4", of characters `start <= c < end` of a joined document; `None` for any other."""
    labels = metadata.get(PAGE_LABELS)
    if not labels or (pages := pages_at(metadata, start, end)) is None:
        return None
    first, last = pages
    return str(labels[first]) if first == last else f"{labels[first]}-{labels[last]}"
