"""Findings as tables that Markdown, a terminal and a page can show. Knows no rows and computes nothing."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from rich.table import Table
from rich.text import Text

from acre_rag.evaluation import facts
from acre_rag.evaluation.report import Cell, Comparison, SystemFindings
from acre_rag.evaluation.statistics import ENOUGH_DOCUMENTS, Estimate

NOTHING = "–"
_MARKS = ("best", "second")
_NARROW = "on these few documents: for others they are too narrow."


@dataclass(frozen=True)
class Entry:
    """One cell.

    Attributes:
        text: what it says.
        mark: "best", "second" or nothing.
        aside: a smaller word behind it: the interval, a count.
    """

    text: str
    mark: str = ""
    aside: str = ""


@dataclass(frozen=True)
class Sheet:
    """One table.

    Attributes:
        title: above it.
        header: name of each column.
        lines: cells of each row; the first is its name.
        note: what a reader must know, below it.
    """

    title: str
    header: Sequence[str]
    lines: Sequence[Sequence[Entry]]
    note: str = ""


def sheets_of(comparison: Comparison) -> list[Sheet]:
    """Scores, differences to the baseline, costs, and what went wrong."""
    sheets = [_scores(comparison), _differences(comparison), _costs(comparison), _failures(comparison)]
    return [sheet for sheet in sheets if sheet.lines]


def heading(comparison: Comparison) -> str:
    """What was compared, in one line."""
    return f"{comparison.model} ({comparison.setting})"


def said_of(comparison: Comparison) -> list[str]:
    """What stands below the tables: embedding model, memory, adapter, options of their own; a line for those alike."""
    return facts.lines((each.title, each.facts) for each in comparison.systems)


def significant(value: float, digits: int) -> str:
    """A number with no more digits than it deserves."""
    places = digits - 1 - (math.floor(math.log10(abs(value))) if value else 0)
    return f"{round(value, places):,.{max(0, places)}f}"


def markdown(comparison: Comparison) -> str:
    """All tables and remarks."""
    parts = [f"## {_escaped(heading(comparison))}", f"Machine: {_escaped(comparison.machine) or 'unknown'}."]
    parts += [f"- {_escaped(remark)}" for remark in comparison.remarks]
    for sheet in sheets_of(comparison):
        parts += [f"### {_escaped(sheet.title)}", _markdown_table(sheet)]
        parts += [_escaped(sheet.note)] if sheet.note else []
    if said := said_of(comparison):
        parts += ["### What systems say of themselves", "\n".join(f"- {_escaped(line)}" for line in said)]
    return "\n\n".join(parts) + "\n"


def rich_table(sheet: Sheet) -> Table:
    """A table for a terminal."""
    caption = Text(sheet.note) if sheet.note else None
    table = Table(title=Text(sheet.title), caption=caption, title_justify="left", caption_justify="left")
    for index, name in enumerate(sheet.header):
        table.add_column(Text(name), justify="right" if index else "left", overflow="fold")
    styles = {"best": "bold green", "second": "underline", "": ""}
    for line in sheet.lines:
        table.add_row(
            *(
                Text.assemble((entry.text, styles[entry.mark]), (f" {entry.aside}" if entry.aside else "", "dim"))
                for entry in line
            )
        )
    return table


def _scores(comparison: Comparison) -> Sheet:
    systems = comparison.systems
    columns = [_column(comparison, name) for name in comparison.datasets]
    marks = _marked([each.average.mean if each.average else None for each in systems])
    averages = [_estimate(each.average, mark) for each, mark in zip(systems, marks, strict=True)]
    lines = [
        [Entry(each.title), *(column[index] for column in columns), averages[index], _failed(each)]
        for index, each in enumerate(systems)
    ]
    names = [
        f"{name} ({metric}, n={_most(comparison, name)}, {counted(_documents(comparison, name), 'document')})"
        for name, metric in comparison.datasets.items()
    ]
    note = (
        "Scores 0 to 100 with 95 % bootstrap intervals; a failed question counts 0. Best in bold, second best "
        f"underlined. The average weighs each data set the same. {_drawn(comparison)}"
    )
    return Sheet("Scores", ["system", *names, "average", "failed"], lines, note)


def _column(comparison: Comparison, dataset: str) -> list[Entry]:
    """One data set's scores, best ones marked; the number of questions stands where it is not everybody's."""
    cells = [each.cells.get(dataset) for each in comparison.systems]
    entries = []
    for system, cell, mark in zip(comparison.systems, cells, _marked([_mean(cell) for cell in cells]), strict=True):
        if cell is None:
            entries.append(Entry("refused" if dataset in system.refusals else NOTHING))
            continue
        entry = _estimate(cell.score, mark)
        fewer = cell.n < _most(comparison, dataset)
        entries.append(replace(entry, aside=f"{entry.aside} n={cell.n}".strip()) if fewer else entry)
    return entries


def _most(comparison: Comparison, dataset: str) -> int:
    return max((each.cells[dataset].n for each in comparison.systems if dataset in each.cells), default=0)


def _documents(comparison: Comparison, dataset: str) -> int:
    return max((each.cells[dataset].documents for each in comparison.systems if dataset in each.cells), default=0)


def counted(n: int, thing: str) -> str:
    """A number of things."""
    return f"{n} {thing}{'' if n == 1 else 's'}"


def _drawn(comparison: Comparison) -> str:
    """What the intervals are over: a few documents are too few to be drawn anew."""
    few = [name for name in comparison.datasets if _documents(comparison, name) < ENOUGH_DOCUMENTS]
    if len(few) == len(comparison.datasets):
        return f"Intervals are over questions, {_NARROW}"
    over = "Intervals are over documents and the questions about each"
    return f"{over}; of {', '.join(few)} over questions alone, {_NARROW}" if few else f"{over}."


def _failed(system: SystemFindings) -> Entry:
    cells = system.cells.values()
    return Entry(f"{sum(cell.failed for cell in cells)} of {sum(cell.n for cell in cells)}" if cells else NOTHING)


def _differences(comparison: Comparison) -> Sheet:
    lines = []
    for each in comparison.systems:
        if each.system == comparison.baseline or not each.cells:
            continue
        cells = [
            _estimate(cell.difference if (cell := each.cells.get(name)) else None, signed=True)
            for name in comparison.datasets
        ]
        lines.append([Entry(each.title), *cells, _estimate(each.difference, signed=True)])
    title = next((each.title for each in comparison.systems if each.system == comparison.baseline), comparison.baseline)
    note = (
        f"Score minus that of {title} on the same question, with 95 % bootstrap intervals; an interval without 0 is a "
        "difference that these questions show on these documents, others may not. Intervals are as those of the scores."
    )
    has_baseline = any(each.system == comparison.baseline for each in comparison.systems)
    return Sheet(f"Against {title}", ["system", *comparison.datasets, "average"], lines if has_baseline else [], note)


def _costs(comparison: Comparison) -> Sheet:
    header = ["system", "read a document, s", "a question, s", "its first token, s"]
    header += ["peak memory reading, MiB", "peak memory asking, MiB", "KV attended"]
    costs = [each.cost for each in comparison.systems]
    lines = [
        [
            Entry(each.title, aside=_only(each, comparison)),
            *(_seconds(value) for value in (each.cost.read_s, each.cost.question_s, each.cost.first_token_s)),
            *(_number(value, unit=2**20) for value in (each.cost.read_peak_bytes, each.cost.peak_bytes)),
            _number(each.cost.kv_tokens),
        ]
        for each in comparison.systems
        if each.cells
    ]
    kinds = sorted({cost.memory for cost in costs} - {""})
    note = (
        "Means over documents and questions; a document is read once. KV attended: tokens of prompt and cache when the "
        "answer begins. Peak memory: the highest while any document was read, and of any question "
        f"({'; '.join(kinds) or 'not measured'}). Costs of a system that has only some of the data sets are "
        "of those, and no match for the others'."
    )
    return Sheet("Costs", header, lines, note)


def _only(system: SystemFindings, comparison: Comparison) -> str:
    """The data sets that its costs are of, where they are not all."""
    return "" if len(system.cells) == len(comparison.datasets) else f"(only {', '.join(system.cells)})"


def _failures(comparison: Comparison) -> Sheet:
    lines = []
    for each in comparison.systems:
        for why in dict.fromkeys(each.refusals.values()):
            names = ", ".join(name for name, reason in each.refusals.items() if reason == why)
            lines.append([Entry(each.title), Entry(f"could not be made for {names}"), Entry(why)])
        lines += [[Entry(each.title), Entry(f"{count} questions"), Entry(why)] for why, count in each.failures.items()]
    return Sheet("What failed", ["system", "where", "why"], lines)


def _estimate(estimate: Estimate | None, mark: str = "", *, signed: bool = False) -> Entry:
    if estimate is None:
        return Entry(NOTHING)
    number = "{:+.1f}" if signed else "{:.1f}"
    interval = "" if estimate.low is None else f"({number.format(estimate.low)} to {number.format(estimate.high)})"
    return Entry(number.format(estimate.mean), mark, interval)


def _number(value: float | None, *, unit: float = 1) -> Entry:
    return Entry(NOTHING if value is None else f"{value / unit:,.0f}")


def _seconds(value: float | None) -> Entry:
    return Entry(NOTHING if value is None else significant(value, 3))


def _mean(cell: Cell | None) -> float | None:
    return cell.score.mean if cell else None


def _marked(values: Sequence[float | None]) -> list[str]:
    """Marks of the best and the second best value; equal ones share a mark, and a mark needs something below it."""
    steps = sorted({round(value, 1) for value in values if value is not None}, reverse=True)
    marks = dict(zip(steps, _MARKS, strict=False)) if len(steps) > 1 else {}
    return ["" if value is None else marks.get(round(value, 1), "") for value in values]


def _markdown_table(sheet: Sheet) -> str:
    frames: dict[str, Callable[[str], str]] = {
        "best": lambda text: f"**{text}**",
        "second": lambda text: f"<u>{text}</u>",
        "": lambda text: text,
    }
    lines = [[_escaped(name) for name in sheet.header], ["---"] * len(sheet.header)]
    for line in sheet.lines:
        lines.append(
            [
                frames[entry.mark](_escaped(entry.text)) + (f" {_escaped(entry.aside)}" if entry.aside else "")
                for entry in line
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escaped(text: str) -> str:
    """Text that cannot leave its cell, nor become markup."""
    plain = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*|\[\]])", r"\\\1", plain)
