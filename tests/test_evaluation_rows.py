"""Rows and their files: nothing written is lost, nothing of other options is mixed in, damage has a name."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from acre_rag.errors import EvaluationError
from acre_rag.evaluation.row_files import RowFile, read_rows, row_path
from acre_rag.evaluation.rows import FORMAT, Row, Run, digest_of

RUN = Run(
    system="acre",
    name="acre",
    options={"budget": 512},
    dataset="own:toy",
    metric="qa_f1",
    model="tiny",
    weights="w",
    dtype="float32",
    window=512,
    template="t",
    max_new_tokens=8,
    stop=("\n",),
    seed=0,
    documents=None,
)
ROW = Row(run=RUN, item="1", content="c", document="d", question="Who?", gold=("she",), answer="he", score=12.5)


def write(path: Path, *rows: Row, run: Run = RUN) -> None:
    file = RowFile(path, run)
    for row in rows:
        file.append(row)
    file.close()


@pytest.mark.parametrize("text", ["plain", "two\nlines", "a\u2028b\x85c", "lone \udc80 surrogate", '"}{', ""])
def test_any_text_survives(tmp_path: Path, text: str) -> None:
    write(tmp_path / "r.jsonl", replace(ROW, answer=text, question=text, gold=(text,)), replace(ROW, item="2"))
    first, second = read_rows([tmp_path])
    assert (first.answer, first.question, list(first.gold)) == (text, text, [text])
    assert second.item == "2"
    assert first.run.options == {"budget": 512}


def test_a_half_written_line_is_cut_off_and_the_rest_kept(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    write(path, ROW, replace(ROW, item="2"))
    whole = path.read_bytes()
    half = whole[:-1] + b'\n{"run": {"sys'
    for cut in (len(whole), len(whole) + 1, len(half)):
        path.write_bytes(half[:cut])
        assert len(read_rows([path])) == 2  # a reader beside a running process sees whole rows only
        file = RowFile(path, RUN)
        assert file.done == {"1", "2"}
        file.append(replace(ROW, item="3"))
        file.close()
        assert [row.item for row in read_rows([path])] == ["1", "2", "3"]


def test_other_options_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    write(path, ROW)
    with pytest.raises(EvaluationError, match=r"seed \(stored 0, now 7\), window \(stored 512, now 256\)"):
        RowFile(path, replace(RUN, seed=7, window=256))
    with pytest.raises(EvaluationError, match="options"):
        RowFile(path, replace(RUN, options={"budget": 1024}))
    write(path)  # and the refusals left it free and whole
    assert len(read_rows([path])) == 1


def test_facts_and_content_must_stay(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    write(path, replace(ROW, facts={"embedder": "MiniLM"}))
    file = RowFile(path, RUN)
    file.check_facts({"embedder": "MiniLM"})
    file.check_content({"1": "c", "2": "anything"})
    with pytest.raises(EvaluationError, match=r"embedder \(stored MiniLM, now BGE-M3\)"):
        file.check_facts({"embedder": "BGE-M3"})
    with pytest.raises(EvaluationError, match="'1' of own:toy"):
        file.check_content({"1": "another"})
    file.close()


@pytest.mark.parametrize(
    "line, says",
    [
        ("not json", "line 2"),
        ("[1]", "not a row"),
        ("{}", "not a row"),
        (json.dumps({"run": {"format": "other/9"}}), "other/9"),
        (json.dumps({"run": {"format": FORMAT}}), "missing"),
        (json.dumps({"run": {"format": FORMAT}, "extra": 1}), "extra"),
    ],
)
def test_damage_names_file_and_line(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "r.jsonl"
    write(path, ROW)
    with path.open("a") as file:
        file.write(line + "\n")
    for opened in (lambda: read_rows([tmp_path]), lambda: RowFile(path, RUN)):
        with pytest.raises(EvaluationError, match=says) as raised:
            opened()
        assert "r.jsonl, line 2" in str(raised.value)


def test_two_processes_cannot_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    file = RowFile(path, RUN)
    with pytest.raises(EvaluationError, match="Another process"):
        RowFile(path, RUN)
    file.close()
    write(path, ROW)
    assert [each.name for each in tmp_path.iterdir()] == ["r.jsonl"]  # no lock is left behind


def test_refusals_are_forgotten_and_failures_on_request(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    failure = {"kind": "CapacityError", "message": "too long"}
    write(path, Row(run=RUN, error=failure), ROW, replace(ROW, item="2", error=failure))
    file = RowFile(path, RUN)
    assert file.done == {"1", "2"}
    file.close()
    file = RowFile(path, RUN, retry=True)
    assert file.done == {"1"}
    file.close()
    assert [row.item for row in read_rows([path])] == ["1"]


def test_no_rows_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="acre eval"):
        read_rows([tmp_path])


def test_every_label_has_a_file_of_its_own(tmp_path: Path) -> None:
    labels = ["acre", "acre,budget=512", "own:a/b", "own:a_b", "../../etc", "..", "x" * 300, "x" * 301, "é", ""]
    paths = [row_path(tmp_path, replace(RUN, system=label, dataset=label)) for label in labels]
    assert len(set(paths)) == len(labels)
    for path in paths:
        assert path.parent.parent == tmp_path
        assert path.resolve().is_relative_to(tmp_path.resolve())
        path.parent.mkdir()
        path.touch()
    assert row_path(tmp_path, RUN).name == "acre.jsonl"


def test_digests_tell_texts_apart() -> None:
    assert digest_of("ab", "c") != digest_of("a", "bc")
    assert digest_of("a") == digest_of("a")
