"""Which of many documents stay when not all fit the window, and what that costs a retriever."""

from collections.abc import Sequence

import pytest
from test_engine import SHORT, TEXT

from acre_rag import ACRE, Document
from acre_rag.retrieve import Span

HALLS = [f"halls {number}" for number in range(5)]


@pytest.fixture
def acre(tiny_acre: ACRE) -> ACRE:
    """Five documents of 95 blocks, more than half of the window of 512."""
    for name in HALLS:
        tiny_acre.add(TEXT.replace("room", name), id=name)
    return tiny_acre


@pytest.mark.parametrize("select", ["retriever", "hybrid"])
def test_a_retriever_is_asked_once_for_a_question(acre: ACRE, select: str) -> None:
    asked: list[str] = []

    def remote(question: str, documents: Sequence[Document]) -> list[Span]:
        asked.append(question)
        return [Span(name, 40, 60, 100.0 if name == "halls 3" else 1.0) for name in HALLS]

    answers = acre.using(select=select, retriever=remote).ask_batch(["Drum?", "Kite?"], settings=SHORT)
    assert all("a first pass chose" in answer.notes[0] for answer in answers)
    assert all("halls 3" in {source.document for source in answer.sources} for answer in answers)
    assert asked == ["Drum?", "Kite?"]


@pytest.mark.parametrize("select", ["retriever", "hybrid"])
def test_a_document_shorter_than_a_block_stays_when_the_retriever_found_it(acre: ACRE, select: str) -> None:
    """All of it stands in the window; no head scores it."""
    for number in range(3):
        assert not acre.add(f"No. {number}", id=f"note {number}").n_blocks

    def finds(question: str, documents: Sequence[Document]) -> list[Span]:
        return [Span("note 1", 0, 5, 100.0), *(Span(name, 40, 60, 1.0) for name in HALLS)]

    question, everything = acre.question("Which number?"), list(acre.documents.values())
    with acre.holding(everything):
        order = acre._selector.by_promise(question, everything, select=select, retriever=finds)
        by_heads = acre._selector.by_promise(question, everything)
    assert everything[order[0]].id == "note 1"
    assert sorted(order) == sorted(by_heads) == list(range(len(everything)))
    kept = acre.using(select=select, retriever=finds).prepare("Which number?").documents
    assert "note 1" in {document.id for document in kept}
