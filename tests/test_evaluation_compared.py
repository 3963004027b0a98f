"""Committed comparisons: what `benchmarks.compared` writes of rows, and the tables that documents show of it."""

import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from evaluation_case import BY_HAND, items, row, run

from acre_rag.errors import ConfigError
from acre_rag.evaluation.forms import Form
from acre_rag.evaluation.report import compare
from acre_rag.evaluation.rows import Row
from acre_rag.evaluation.sweep import Sweep

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks import compared, record
from benchmarks.compared import baseline_of, page_of
from benchmarks.report import results, systems

EMBEDDER = "all-MiniLM-L6-v2 (BGE-M3 is not on this machine)"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where results are written and read."""
    made = tmp_path / "repository" / "benchmarks" / "results"
    made.mkdir(parents=True)
    for module in (record, results, systems):
        monkeypatch.setattr(module, "RESULTS", made)
    return made


def write(
    rows: list[Row], name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, *flags: str
) -> list[dict[str, Any]]:
    """Rows as the command takes them; the lines of the result file."""
    runs = folder.parent / f"runs-{name}"
    runs.mkdir(exist_ok=True)
    (runs / "rows.jsonl").write_bytes(b"".join(each.to_line() for each in rows))
    monkeypatch.setattr(sys, "argv", ["compared", str(runs), "--name", name, *flags])
    compared.main()
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def by_hand() -> list[Row]:
    """With an embedding model behind one system, digests, spans, and six documents in one data set."""
    more = [row(system, "a", str(i), 10.0 * i) for system in ("acre", "rag") for i in range(3, 6)]
    rows = [
        replace(each, run=replace(each.run, system="rag", name="rag")) if each.run.system == "bm25" else each
        for each in [*BY_HAND, *more]
    ]
    source = {"start": 7, "end": 19, "score": 1.0, "text": "the harp is in room 2"}
    facts = {"rag": {"embedder": EMBEDDER}}
    return [
        replace(each, content="digest", sources=[] if each.refused else [source], facts=facts.get(each.run.system, {}))
        for each in rows
    ]


def test_a_result_file_keeps_digests_facts_and_its_page(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, *lines = write(by_hand(), "table1-hand", folder, monkeypatch)
    assert {line["content"] for line in lines if line["item"]} == {"digest"}
    found = first["summary"]["comparisons"][0]["systems"]
    assert found["rag"]["facts"] == {"embedder": EMBEDDER} and found["acre"]["facts"] == {}
    page = (folder / "table1-hand.html").read_text(encoding="utf-8")
    assert "bm25 says" in page and "characters 7-19: the harp is in room 2" in page
    assert "Quotations are left out" not in page


def test_differences_to_another_system_stand_in_a_file_of_their_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(by_hand(), "table1-hand", folder, monkeypatch, "--also", "rag")
    expected = "\n".join(map(compared.markdown, compare(by_hand(), baseline="rag")))
    against = (folder / "table1-hand-against-rag.md").read_text(encoding="utf-8")
    assert against == expected != (folder / "table1-hand.md").read_text(encoding="utf-8")


def test_new_rows_stand_beside_those_that_a_result_holds(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, *held = write(by_hand(), "table1-hand", folder, monkeypatch)
    rows = compared.earlier_rows(folder / "table1-hand.jsonl")
    runs: dict[str, int] = {}
    assert [compared.line_of(each, runs) for each in rows] == held
    assert "\n".join(map(compared.markdown, compare(rows))) == (folder / "table1-hand.md").read_text(encoding="utf-8")

    new = [row("rag", "a", "3", 77.0), row("full", "c", "3", 50.0)]
    first, *after = write(new, "table1-hand", folder, monkeypatch, "--keep")
    runs_now = first["summary"]["runs"]
    asked = Counter((runs_now[line["run"]]["system"], runs_now[line["run"]]["dataset"]) for line in after)
    assert asked["acre", "a"] == 6 and asked["full", "c"] == 1
    assert asked["rag", "a"] == 1  # asked anew: the earlier rows are gone
    page = (folder / "table1-hand.html").read_text(encoding="utf-8")
    assert "evidence: 7-19" in page and "the harp" not in page  # a result file has spans, so its page has them, too


def test_what_failed_names_no_folder_of_the_measuring_machine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message = "No adapter for '/home/me/model.gguf'; see https://a.org/b/c and/or [/R_Evidences]."
    failed = replace(row("full", "a", "0", 0.0), error={"kind": "UnavailableError", "message": message})
    _, *lines = write([*by_hand(), failed], "table1-hand", folder, monkeypatch)
    told = [line["error"]["message"] for line in lines if line["error"]]
    assert "No adapter for 'model.gguf'; see https://a.org/b/c and/or [/R_Evidences]." in told
    assert not any("/home/me" in path.read_text(encoding="utf-8") for path in folder.iterdir())


def test_a_large_page_tells_where_evidence_stands_instead_of_quoting_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found = compare(by_hand())
    monkeypatch.setattr(compared, "_MOST_PAGE_BYTES", len(page_of(found).encode()) - 1)
    page = page_of(found)
    assert "Quotations are left out" in page
    assert "the harp" not in page and "evidence: 7-19" in page and "bm25 says" in page


def test_the_baseline_of_a_sweep_is_the_form_that_was_asked_first(tmp_path: Path) -> None:
    swept = Sweep(option="budget", values=(64, 0))
    rows = run(tmp_path, items(), forms=swept.forms)
    timed = [replace(each, where={"time": f"{each.run.options['budget'] == 0}"}) for each in rows]
    best = [replace(each, score=100.0 if each.run.options["budget"] == 0 else 0.0) for each in timed]
    assert baseline_of(best, "acre") == swept.forms[0].label
    at_once = [replace(each, where={}) for each in best]
    assert baseline_of(at_once, "acre") == Form(name="acre", options={"budget": 0, "max_passages": 100_000}).label
    assert baseline_of([*best, row("acre", "a", "0", 1.0)], "acre") == "acre"
    assert baseline_of(best, "bm25") == "bm25"  # asked for by name: it is refused where it is not


def test_a_baseline_stays_when_rows_are_added_and_each_setting_has_its_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = "acre,budget=64", "acre,budget=0"

    def asked(system: str, time: str, window: int) -> Row:
        plain = row("acre", "a", "0", 1.0)
        run_of = replace(plain.run, system=system, window=window, options={"budget": int(system.split("=")[1])})
        return replace(plain, run=run_of, where={**plain.where, **({"time": time} if time else {})})

    def baselines(line: dict[str, Any]) -> list[str]:
        return [each["baseline"] for each in line["summary"]["comparisons"]]

    line, *_ = write(
        [asked(second, "2026-02", 1024), asked(first, "2026-01", 1024)], "sweep-budget", folder, monkeypatch
    )
    assert baselines(line) == [first]
    line, *_ = write(
        [asked("acre,budget=8", "2026-03", 1024), asked(second, "2026-04", 2048)],
        "sweep-budget",
        folder,
        monkeypatch,
        "--keep",
    )
    assert baselines(line) == [first, second]

    monkeypatch.setattr(sys, "argv", ["compared", "--name", "sweep-budget", "--keep"])
    compared.main()  # drawn anew from what it holds
    assert len(compared.earlier_rows(folder / "sweep-budget.jsonl")) == 4

    untimed = [asked(second, "", 1024), asked(first, "2026-01", 1024)]
    assert baseline_of(untimed, "acre") == second  # of a file that was written before times were kept


def test_a_sweep_of_a_form_without_the_option_is_refused_with_a_remedy(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="acre was asked without budget=VALUE: call such a result table1-NAME"):
        write(by_hand(), "sweep-budget-hand", folder, monkeypatch)


def test_documents_show_costs_of_what_has_all_data_sets_and_name_the_retrieval(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(by_hand(), "table1-hand", folder, monkeypatch)
    text = systems.tables("table1-*")
    assert "(a: 6 about 6 documents; b: 2 about 2 documents)" in text
    assert "\nDense retrieval (rag) is all-MiniLM-L6-v2, not BGE-M3.\n" in text
    lines = {line.split(" | ")[0]: line for line in text.splitlines()}
    assert lines["| system"].endswith(
        "| difference | reading, s | a question, s | its peak memory, MiB | KV tokens attended |"
    )
    assert lines["| acre"].endswith(" | 4.0 | 2.0 | 1.0 | 100 |")
    assert lines["| full"].endswith("|  |  |  |  |  |  |")  # asked of one data set: no cost beside the others'
    others = [replace(each, facts={}) for each in by_hand()]
    write(others, "ablation-hand", folder, monkeypatch)
    assert "Dense" not in systems.tables("ablation-*") and "a question, s" not in systems.tables("ablation-*")
