"""Sweeps: one option, several values; what is refilled follows it, and the curves are the findings'."""

from dataclasses import replace
from pathlib import Path

import pytest
from evaluation_case import items, run

from acre_rag.errors import ConfigError
from acre_rag.evaluation import plots
from acre_rag.evaluation.forms import Form
from acre_rag.evaluation.rows import Row
from acre_rag.evaluation.sweep import Sweep


def refilled(rows: list[Row]) -> dict[str, int]:
    return {row.run.system: max(0, *(each.tokens["refilled"] for each in rows if each.run == row.run)) for row in rows}


def test_the_budget_is_what_bounds_what_is_refilled(tmp_path: Path) -> None:
    swept = Sweep(option="budget", values=(0, 64, 256), systems=("acre", "acre-paper"))
    rows = run(tmp_path, items(), forms=swept.forms)
    assert sorted(refilled(rows).values()) == [0, 0, 64, 64, 256, 256]
    comparison = swept.comparison(rows)
    curves = swept.curves(comparison)
    assert [title for title, _ in curves] == ["ACRE (consensus)", "ACRE (Eq. 15-17)"]
    scores = {each.system: each.average for each in comparison.systems}
    for name, (_, points) in zip(swept.systems, curves, strict=True):
        assert [value for value, _ in points] == [0, 64, 256]
        labels = [form.label for form in swept.forms if form.name == name]
        assert [score for _, score in points] == [scores[label] for label in labels]


def test_a_value_that_failed_everywhere_is_no_point_of_the_curve(tmp_path: Path) -> None:
    swept = Sweep(option="budget", values=(0, 64))
    rows = [
        replace(row, score=0.0, error={"kind": "CapacityError", "message": "too long"})
        if row.run.options["budget"] == 64
        else row
        for row in run(tmp_path, items(), forms=swept.forms)
    ]
    [(_, points)] = swept.curves(swept.comparison(rows))
    assert [value for value, _ in points] == [0]


def test_each_interval_is_a_reading_of_its_own(tmp_path: Path) -> None:
    swept = Sweep(option="interval", values=(8, 32))
    rows = run(tmp_path, items(), forms=swept.forms)
    l1 = {row.run.system: row.tokens["cached"] - row.tokens["refilled"] for row in rows}
    assert l1["acre,interval=8"] > l1["acre,interval=32"]


def test_the_other_option_is_held(tmp_path: Path) -> None:
    held = Sweep(option="budget", values=(0, 64), fixed={"interval": 32})
    own = Sweep(option="budget", values=(0, 64))
    rows = run(tmp_path, items(), forms=[*held.forms, *own.forms])
    l1 = {
        row.run.system: row.tokens["cached"] - row.tokens["refilled"] for row in rows if not row.run.options["budget"]
    }
    assert l1[held.forms[0].label] < l1[own.forms[0].label]
    assert [each.system for each in held.comparison(rows).systems] == [form.label for form in held.forms]


def test_other_rows_and_other_models_do_not_mix_in(tmp_path: Path) -> None:
    swept = Sweep(option="budget", values=(0, 64))
    rows = run(tmp_path, items(), forms=[*swept.forms, Form(name="acre-l1")])
    assert [each.system for each in swept.comparison(rows).systems] == [form.label for form in swept.forms]
    other = [replace(row, run=replace(row.run, window=128)) for row in rows]
    with pytest.raises(ConfigError, match="window 128"):
        swept.comparison([*rows, *other])


@pytest.mark.parametrize(
    "option, values, systems, says",
    [
        ("seed", (1,), ("acre",), "budget, interval"),
        ("budget", (), ("acre",), "needs values"),
        ("budget", (5, 5), ("acre",), "each once"),
        ("budget", (-1,), ("acre",), "budget=-1"),
        ("interval", (0,), ("acre",), "interval=0"),
        ("budget", (5,), ("bm25",), "'bm25' has no budget"),
        ("budget", (5,), ("acer",), "'acer'"),
    ],
)
def test_mistakes_are_told_at_once(option: str, values: tuple[int, ...], systems: tuple[str, ...], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Sweep(option=option, values=values, systems=systems)


def test_passages_of_several_lengths_fill_the_same_budget(tmp_path: Path) -> None:
    swept = Sweep(option="passage_tokens", values=(32, 128), fixed={"budget": 128})
    rows = run(tmp_path, items(), forms=swept.forms)
    assert list(refilled(rows).values()) == [128, 128]


def test_the_picture_shows_every_value_in_order(tmp_path: Path) -> None:
    swept = Sweep(option="budget", values=(256, 0, 64, 1024))
    comparison = swept.comparison(run(tmp_path, items(), forms=swept.forms))
    axis = plots.sweep_plot(swept.curves(comparison), xlabel="tokens").axes[0]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["0", "64", "256", "1,024"]
    assert list(axis.lines[0].get_xdata()) == [0, 1, 2, 3]
    budgets = [each.title.split()[-3].strip(",") for each in comparison.systems]
    assert budgets == ["0", "64", "256", "1024"]  # in the tables too
