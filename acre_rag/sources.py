"""The text behind a selection: where an answer stands. Knows no model."""

from collections.abc import Sequence

from acre_rag.answer import Source
from acre_rag.blocks import Run, merge_runs
from acre_rag.choose import Selection
from acre_rag.document import Document


def sources_of(selection: Selection, documents: Sequence[Document]) -> tuple[Source, ...]:
    """Refilled stretches of the documents, neighbouring blocks merged, best first."""
    found = []
    for index, document in enumerate(documents):
        if not document.n_blocks:  # shorter than one block: it stands in the working cache whole
            found.append(Source(document.id, 0, len(document.text), document.text, 0.0))
        scored = [(unit.blocks, score) for unit, score in selection.units if unit.document == index]
        for run in merge_runs(b for blocks, _ in scored for b in range(blocks.start, blocks.stop)):
            start, end = document.chars_of_blocks(run)
            score = max(score for blocks, score in scored if _overlap(blocks, run))
            found.append(Source(document.id, start, end, document.text[start:end], score))
    return tuple(sorted(found, key=lambda source: -source.score))


def _overlap(a: Run, b: Run) -> bool:
    return a.start < b.stop and b.start < a.stop
