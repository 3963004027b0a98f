"""What is chosen within a budget: numbers in, blocks out."""

import numpy as np
import pytest
from conftest import tiny_decoder

from acre_rag import ACRE, ACREConfig, Document
from acre_rag.choose import spread_units
from acre_rag.retrieve import bm25_scores
from acre_rag.units import split_units


def test_a_question_by_words_logs_nothing_of_the_librarys_own(caplog: pytest.LogCaptureFixture) -> None:
    assert max(bm25_scores("boat", ["A boat left.", "Nothing else."])) > 0
    assert caplog.records == []


def documents() -> list[Document]:
    """One document of several paragraphs."""
    text = "\n\n".join(f"Paragraph {i} says that the boat left harbour {i} before dawn." for i in range(12))
    return [ACRE(tiny_decoder(), config=ACREConfig(window=1024, passage_tokens=48)).add(text)]


@pytest.mark.parametrize("budget", [0, 16, 32, 200])
def test_a_spread_keeps_to_its_budget_and_begins_with_the_opening(budget: int) -> None:
    read = documents()
    units = split_units(read, "passages")
    config = ACREConfig(max_passages=4)
    chosen = spread_units(units, np.zeros(len(units)), read, config, budget).blocks[0]
    interval = read[0].cache.interval
    widest = max(len(unit.blocks) for unit in units) * interval
    assert len(chosen) * interval <= budget
    if budget >= interval:
        assert chosen[0] == 0, "a budget smaller than the widest passage still refills the opening"
    if budget >= 2 * widest:
        assert chosen[-1] == units[-1].blocks.stop - 1


@pytest.mark.parametrize("select", ["consensus", "hybrid", "retriever", "paper"])
def test_l1_alone_costs_no_choice(select: str, monkeypatch: pytest.MonkeyPatch) -> None:
    acre = ACRE(tiny_decoder(), config=ACREConfig(window=1024, select=select, budget=0))  # type: ignore[arg-type]
    read = acre.add("The boat left. " * 40)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("the question was read to choose nothing")

    monkeypatch.setattr("acre_rag.select.question_queries", never)
    prepared = acre.prepare("When?", read)
    assert [len(blocks) for blocks in prepared.selection.blocks] == [0] and prepared.sources == ()
