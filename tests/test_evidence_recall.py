"""Whether the sources of committed rows hold the answer."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.evidence_recall import covered, holds, recalls

TEXT = "Title\n\nThe mill burned in 1845.\n\nThe town rebuilt the mill in 1845 and 1846."


def test_a_source_holds_the_whole_of_an_answer() -> None:
    assert holds([(0, 4), (10, 20)], [(12, 20)])
    assert not holds([(0, 4), (10, 20)], [(12, 21)])
    assert not holds([(0, 4), (4, 8)], [(2, 6)]), "half in each of two is in none"


def test_sources_that_overlap_cover_once() -> None:
    assert covered([(30, 50), (0, 20), (10, 40)], 100) == pytest.approx(0.5)


def test_recall_is_of_the_paragraph_that_was_asked_for(tmp_path: Path) -> None:
    runs = [
        {"system": "acre,budget=8", "name": "acre", "options": {"budget": 8}, "dataset": "squad_article", "window": 64},
        {"system": "full", "name": "full", "options": {}, "dataset": "squad_article", "window": 64},
        {"system": "acre", "name": "acre", "options": {}, "dataset": "covidqa", "window": 64},
    ]
    first, second = TEXT.index("1845"), TEXT.rindex("1845")
    rows = [
        {"run": 0, "item": "q", "score": 50.0, "sources": [[first - 3, first + 9]]},
        {"run": 0, "item": "q", "score": 100.0, "sources": [[second - 3, second + 9]]},
        {"run": 1, "item": "q", "score": 9.0, "sources": []},
        {"run": 2, "item": "other", "score": 9.0, "sources": [[0, 9]]},
    ]
    path = tmp_path / "table1-x.jsonl"
    path.write_text("\n".join(json.dumps(each) for each in [{"summary": {"runs": runs}}, *rows]), encoding="utf-8")
    items = {"q": {"doc_id": "d", "paragraph": 1, "answers": ["1845"]}}
    [found] = recalls(path, items, {"d": TEXT})
    share = pytest.approx(12 / len(TEXT), abs=1e-3)
    assert found == {
        "result": "table1-x",
        "name": "acre",
        "options": {"budget": 8},
        "window": 64,
        "questions": 2,
        "recall": 0.5,
        "covered": share,
        "f1": 75.0,
    }
