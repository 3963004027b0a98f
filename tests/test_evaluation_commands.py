"""`acre eval`, `acre compare`, `acre sweep`, `acre ablate` as a shell user meets them, on the tiny model."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import byte_tokenizer, tiny_decoder
from evaluation_case import write_data

from acre_rag import cli
from acre_rag.evaluation.row_files import read_rows

Acre = Callable[..., str]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tiny")
    tiny_decoder().model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def acre(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Acre:
    """The command in this process; what it printed."""

    def run(*arguments: str, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["acre", *arguments])
        for console in (cli.stdout, cli.stderr):
            console._file = None  # the stream of today, not of import time
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        assert int(ended.value.code or 0) == code, said.err
        return said.out if code == 0 else said.err

    return run


def test_from_data_to_page(acre: Acre, model: str, tmp_path: Path) -> None:
    data, out = write_data(tmp_path / "own.jsonl"), str(tmp_path / "out")
    asked = ["eval", "--model", model, "--data", f"own={data}", "--limit", "3", "--out", out, "--systems"]
    said = acre(*asked, "acre, acre-l1,acre-learned").splitlines()
    assert [line.partition(":")[0] for line in said] == ["own · acre", "own · acre-l1", "own · acre-learned"]
    assert "3 questions (3 new, 0 failed)" in said[0] and "not run (UnavailableError" in said[2]
    assert "3 questions (0 new, 0 failed)" in acre(*asked, "acre")
    table = acre("compare", out, "--out", str(tmp_path / "report"), "--questions", "2")
    assert "| ACRE (consensus) |" in table and "### Against ACRE (consensus)" in table
    assert table.count("gold: room") == 2
    page = (tmp_path / "report" / "comparison.html").read_text(encoding="utf-8")
    assert page.count('class="answer"') == 3 * 2
    assert (tmp_path / "report" / "comparison.md").read_text(encoding="utf-8") in table + "\n"
    against = acre("compare", out, "--baseline", "acre-l1")
    assert "### Against ACRE (L1 only)" in against


def test_a_system_is_asked_with_options_of_its_own(acre: Acre, model: str, tmp_path: Path) -> None:
    data, out = write_data(tmp_path / "own.jsonl"), str(tmp_path / "out")
    asked = ["eval", "--model", model, "--data", f"own={data}", "--limit", "2", "--out", out]
    said = acre(*asked, "--system", "acre,budget=64,prior=false", "--system", "bm25,hits=1").splitlines()
    names = [line.partition(":")[0] for line in said]
    assert names == ["own · acre,budget=64,prior=False", "own · bm25,hits=1"]  # and not the usual ones
    rows = {row.run.system: row for row in read_rows([Path(out)])}
    assert rows["acre,budget=64,prior=False"].tokens["refilled"] <= 64
    assert len(rows["bm25,hits=1"].sources) == 1
    said = acre(*asked, "--systems", "acre-l1", "--system", "bm25,hits=1").splitlines()
    assert [line.partition(":")[0] for line in said] == ["own · acre-l1", "own · bm25,hits=1"]


def test_made_data_of_several_lengths(acre: Acre, model: str, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    acre("eval", "--model", model, "--systems", "acre-l1", "--data", "ruler_vt=700,1500", "--limit", "4", "--out", out)
    lengths = sorted(row.document_tokens for row in read_rows([Path(out)]))
    assert len(lengths) == 4
    assert all(500 < length <= 700 for length in lengths[:2]) and all(1300 < length <= 1500 for length in lengths[2:])


def test_an_ablation_is_one_command(acre: Acre, model: str, tmp_path: Path) -> None:
    picture, data = tmp_path / "parts.svg", write_data(tmp_path / "own.jsonl")
    options = ["--model", model, "--data", f"own={data}", "--limit", "2", "--out", str(tmp_path / "out")]
    said = acre("ablate", *options, "--trained", "untrained", "--fine-tuned", model, "--plot", str(picture), code=2)
    assert "'acre-learned,adapter=untrained' is named twice" in said
    said = acre("ablate", *options, "--fine-tuned", model, "--plot", str(picture))
    for part in ("prior False", "heads none", "ACRE (Eq. 15-17), granularity passages", "ACRE (L1 only)"):
        assert f"| ACRE (consensus), {part} |" in said or f"| {part} |" in said
    assert "<svg" in picture.read_text(encoding="utf-8")
    fine_tuned = read_rows([tmp_path / "out" / "fine-tuned"])
    assert {row.run.system for row in fine_tuned} == {"full"}
    assert "| Full context, weights fine-tuned |" in said, "the fine-tuned model stands in the same table"
    [rows] = (tmp_path / "out" / "parts").rglob("acre.jsonl")
    elsewhere = tmp_path / "out" / "parts" / "window" / "acre.jsonl"
    elsewhere.parent.mkdir()
    elsewhere.write_text(rows.read_text().replace('"window": 1024', '"window": 512'))
    assert "of several settings" in acre("ablate", *options, code=2)


@pytest.mark.parametrize(("option", "values"), [("budget", (0, 64)), ("interval", (8, 32))])
def test_a_sweep_is_one_command(option: str, values: tuple[int, int], acre: Acre, model: str, tmp_path: Path) -> None:
    data, out, plot = write_data(tmp_path / "own.jsonl"), str(tmp_path / "out"), tmp_path / "curve.svg"
    options = ["--model", model, "--data", f"own={data}", "--limit", "2", "--out", out, "--plot", str(plot)]
    said = acre("sweep", option, "--values", ",".join(map(str, values)), *options)
    assert f"{option} {values[1]}" in said and "### Scores" in said
    assert plot.read_bytes().startswith(b"<?xml")
    assert {row.run.options[option] for row in read_rows([Path(out)])} == set(values)


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["eval", "--data", "own=x", "--out", "o", "--systems", "acer"], "acer"),
        (["eval", "--data", "own=x", "--data", "own=y", "--out", "o"], "twice"),
        (["eval", "--data", "own=x", "--out", "o", "--system", "rag,hit=3"], "rag has no option 'hit'. It has: fusion"),
        (["eval", "--data", "ruler_vt=many", "--out", "o"], "whole numbers"),
        (["sweep", "budget", "--values", "1,two", "--data", "own=x", "--out", "o"], "1,two"),
        (["sweep", "budget", "--fixed", "budget=8", "--data", "own=x", "--out", "o"], "'budget' cannot be held"),
        (["sweep", "budget", "--data", "own=x", "--out", "o", "--plot", "curve.bmp"], "Use one of: .png"),
        (["ablate", "--data", "own=x", "--out", "o", "--plot", "bars.bmp"], "Use one of: .png"),
        (["sweep", "warmth", "--data", "own=x", "--out", "o"], "warmth"),
    ],
)
def test_wrong_usage_is_told_without_a_model(
    acre: Acre, arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert says in acre(*arguments, "--model", "smollm2-135m", code=2)
    assert not (tmp_path / "o").exists()


def test_missing_things_are_told(acre: Acre, tmp_path: Path) -> None:
    assert "acre eval" in acre("compare", str(tmp_path), code=1)
    assert "nowhere" in acre("eval", "--data", "own=nowhere.jsonl", "--out", str(tmp_path / "o"), code=1)
    unnamed = acre("eval", "--data", "questions.jsonl", "--out", str(tmp_path / "o"), code=1)
    assert "own=PATH" in unnamed.splitlines()[0]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"run": 1}) + "\n")
    assert "rows.jsonl, line 1" in acre("compare", str(tmp_path), code=1)
