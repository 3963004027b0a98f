"""A LangChain retriever in the form in which the engine asks for spans; knows no model and no cache.

Splitters strip and join white space, so a passage is looked for word by word where it does not stand letter by letter.
"""

import logging
import re
from collections.abc import Iterator, Sequence
from typing import Any

from langchain_core.documents import Document as LangChainDocument
from langchain_core.retrievers import BaseRetriever

from acre_rag import Document
from acre_rag.retrieve import Span

_log = logging.getLogger(__name__)
_ID_KEYS = ("document_id", "id", "source")
_START_KEYS = ("start", "start_index")


class RetrieverGuide:
    """Lets a LangChain retriever guide refilling: `acre.using(select="hybrid", retriever=RetrieverGuide(retriever))`.

    It is asked on the model's thread. It may ask the same engine there, one question after another; from other threads
    (`batch`) that is refused, and from those of a plain thread pool, which nobody can see, it waits for ever.

    The order of its results counts, not their scores, which mean something else in every retriever.

    Args:
        retriever: returns passages of the documents that the engine has read.
    """

    def __init__(self, retriever: BaseRetriever) -> None:
        self.retriever = retriever

    def __call__(self, question: str, documents: Sequence[Document]) -> list[Span]:
        """The passages that the retriever returns, as spans of these documents; those of other texts are left out."""
        found = self.retriever.invoke(question)
        spans = [
            Span(document, start, end, 1.0 / rank)
            for rank, passage in enumerate(found, 1)
            for document, start, end in _places(passage, documents)
        ]
        if found and not spans:
            _log.warning(
                "None of the %d passages of %s stands in the documents asked: it guides nothing.",
                len(found),
                self.retriever.get_name(),
            )
        return spans


def _places(passage: LangChainDocument, documents: Sequence[Document]) -> Iterator[tuple[str, int, int]]:
    """Where a passage stands: where its metadata says, else in every document that holds its text."""
    named = [document for document in documents if document.id in _names(passage)]
    start = next((passage.metadata[key] for key in _START_KEYS if key in passage.metadata), None)
    for document in named or documents:
        place = _stated_place(passage, start, document, trusted=bool(named)) or _find(passage.page_content, document)
        if place:
            yield (document.id, *place)


def _stated_place(
    passage: LangChainDocument, start: Any, document: Document, *, trusted: bool
) -> tuple[int, int] | None:
    """The place that the metadata states; without a document's id only if the text does stand there."""
    if not isinstance(start, int) or not 0 <= start < len(document.text):
        return None
    end = start + len(passage.page_content)
    if document.text[start:end] == passage.page_content:
        return start, end
    stated = passage.metadata.get("end")
    return (start, stated) if trusted and isinstance(stated, int) and start < stated <= len(document.text) else None


def _find(text: str, document: Document) -> tuple[int, int] | None:
    words = text.split()
    if not words:
        return None
    if (start := document.text.find(text)) >= 0:
        return start, start + len(text)
    match = re.search(r"\s+".join(map(re.escape, words)), document.text)
    return match.span() if match else None


def _names(passage: LangChainDocument) -> set[str]:
    return {str(name) for name in (passage.id, *(passage.metadata.get(key) for key in _ID_KEYS)) if name}
