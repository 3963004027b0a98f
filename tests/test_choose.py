"""What is chosen within a budget: numbers in, blocks out."""

import numpy as np
import pytest
import torch
from conftest import tiny_decoder

from acre_rag import ACRE, ACREConfig, Document
from acre_rag.choose import spread_units
from acre_rag.retrieve import bm25_scores
from acre_rag.units import split_units
from acre_rag.whole import about_the_whole


def test_a_question_by_words_logs_nothing_of_the_librarys_own(caplog: pytest.LogCaptureFixture) -> None:
    assert max(bm25_scores("boat", ["A boat left.", "Nothing else."])) > 0
    assert caplog.records == []


def documents() -> list[Document]:
    """One document of several paragraphs."""
    text = "\n\n".join(f"Paragraph {i} says that the boat left harbour {i} before dawn." for i in range(12))
    return [ACRE(tiny_decoder(), config=ACREConfig(window=1024, passage_tokens=48, select="consensus")).add(text)]


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


@pytest.mark.parametrize("select", ["consensus", "hybrid"])
@pytest.mark.parametrize("n_documents", [1, 4])
def test_documents_of_one_passage_do_not_make_every_question_one_about_the_whole(select: str, n_documents: int) -> None:
    """All attention is on the one passage, whatever is asked: that says nothing of the question."""
    config = ACREConfig(window=1024, interval=8, passage_tokens=64, max_passages=2, select=select)  # type: ignore[arg-type]
    acre = ACRE(tiny_decoder(), config=config)
    for word in ["harbour", "station", "airport", "bridge"][:n_documents]:
        assert len(acre.add(f"The {word} opens early in the morning.", id=word).passages) == 1
    chosen = acre.prepare("When does the station open?").selection
    assert chosen.scope == "passages"
    best = sorted(chosen.unit_scores, key=lambda pair: -pair[1])[: config.max_passages]
    assert [unit.document for unit, _ in chosen.units] == [unit.document for unit, _ in best]


def test_a_document_of_one_passage_does_not_decide_for_a_long_one() -> None:
    acre = ACRE(tiny_decoder(), config=ACREConfig(window=1024, interval=8, passage_tokens=48, select="consensus"))
    short, long = acre.add("The boat is blue.", id="short"), acre.add(documents()[0].text, id="long")
    assert short.cache.prior and long.cache.prior
    everywhere = long.cache.prior.scores
    somewhere = torch.zeros_like(everywhere)
    somewhere[:, -40:] = 1
    for scores, whole in ((everywhere, True), (somewhere, False)):
        assert about_the_whole([scores], [long], peak=0.0) is whole
        for share in (0.0, 0.02, 0.05):  # of the one softmax; the long document has a dozen passages
            both = [share * short.cache.prior.scores, (1 - share) * scores]
            assert about_the_whole(both, [short, long], peak=0.0) is whole


def test_a_question_that_points_to_a_document_of_one_passage_is_not_about_the_whole() -> None:
    """What little it spreads over the long one looks like a content-free question's."""
    acre = ACRE(tiny_decoder(), config=ACREConfig(window=1024, interval=8, passage_tokens=48, select="consensus"))
    short, long = acre.add("The boat is blue.", id="short"), acre.add(documents()[0].text, id="long")
    assert short.cache.prior and long.cache.prior
    for share in (0.5, 0.9):
        raw = [share * short.cache.prior.scores, (1 - share) * long.cache.prior.scores]
        assert not about_the_whole(raw, [short, long], peak=0.0)
        assert not about_the_whole(raw[::-1], [long, short], peak=0.0)


@pytest.mark.parametrize("select", ["consensus", "hybrid", "retriever", "paper"])
def test_l1_alone_costs_no_choice(select: str, monkeypatch: pytest.MonkeyPatch) -> None:
    acre = ACRE(tiny_decoder(), config=ACREConfig(window=1024, select=select, budget=0))  # type: ignore[arg-type]
    read = acre.add("The boat left. " * 40)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("the question was read to choose nothing")

    monkeypatch.setattr("acre_rag.select.question_queries", never)
    prepared = acre.prepare("When?", read)
    assert [len(blocks) for blocks in prepared.selection.blocks] == [0] and prepared.sources == ()
