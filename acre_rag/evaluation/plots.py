"""Pictures of findings: quality against cost, bars per data set, score by length, sweeps. Computes no score itself.

All text is drawn as it stands: names and answers are never read as formulas.
"""

import io
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from acre_rag.errors import EvaluationError, MissingExtraError
from acre_rag.evaluation.report import Comparison, SystemFindings
from acre_rag.evaluation.statistics import Estimate, mean_of

_FAMILY_COLOURS = {"acre": "YlOrRd", "retrieval": "PuBu", "kv": "YlGn", "": "Greys"}
_MOST_WHISKERS = 4  # curves with intervals in one panel; more hide each other
_MARKERS = "osD^vP*X<>hd"
_INK, _GRID = "#22303c", "#d9dfe5"


def new_figure(width: float, height: float) -> Any:
    """An empty matplotlib figure that no window shows.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "evaluation", "A picture") from error
    return Figure(figsize=(width, height), layout="constrained")


def svg_of(figure: Any) -> bytes:
    """The figure as SVG, the same bytes for the same figure."""
    import matplotlib as mpl

    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "acre-rag"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def save(figure: Any, path: Path) -> None:
    """Write a figure; the suffix says the format.

    Raises:
        EvaluationError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130)
    except (OSError, ValueError) as error:
        raise EvaluationError(
            f"The picture {path} cannot be written ({error}). Use a .png, .svg or .pdf path in a folder of yours."
        ) from error


def quality_against_cost(comparison: Comparison, *, costs: Sequence[str] = ("seconds", "tokens")) -> Any | None:
    """Average score over what a question costs; `None` without a system to show.

    Args:
        comparison: the findings.
        costs: one panel each: "seconds" of a question once its document is read, "tokens" attended.
    """
    shown = [each for each in comparison.systems if each.average and each.cost.question_s and each.cost.kv_tokens]
    if not shown:
        return None
    figure = new_figure(4.6 + 3.2 * len(costs), 4.6)
    panels = figure.subplots(1, len(costs), sharey=True, squeeze=False)[0]
    for axis, name in zip(panels, costs, strict=True):
        _scatter(axis, shown, *_COSTS[name])
    panels[0].set_ylabel("average score")
    _legend(figure, panels[0])
    return figure


_COSTS: dict[str, tuple[Callable[[SystemFindings], float], str]] = {
    "seconds": (lambda each: each.cost.question_s or 0.0, "seconds of a question, once its document is read"),
    "tokens": (lambda each: each.cost.kv_tokens or 0.0, "tokens attended when the answer begins"),
}


def bars_by_dataset(comparison: Comparison) -> Any:
    """One panel a data set, one bar a system, whiskers for intervals."""
    names, systems = list(comparison.datasets), [each for each in comparison.systems if each.cells]
    colours = _colours(comparison.systems)
    columns = min(3, len(names))
    lines = math.ceil(len(names) / columns)
    figure = new_figure(3 + 2.9 * columns, lines * (1.1 + 0.27 * len(systems)))
    panels = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for axis in panels.flat[len(names) :]:
        axis.set_visible(False)
    for axis, name in zip(panels.flat, names, strict=False):
        _plain(axis, grid="x")
        for place, system in enumerate(systems):
            if cell := system.cells.get(name):
                axis.barh(place, cell.score.mean, color=colours[system.system], alpha=0.85, height=0.7)
                _whisker(axis, cell.score, place, across=True)
        axis.set_title(name, fontsize=10, parse_math=False)
        axis.set_xlabel(comparison.datasets[name], fontsize=8, parse_math=False)
        axis.set_yticks(range(len(systems)), [each.title for each in systems], fontsize=8, parse_math=False)
    panels[0, 0].invert_yaxis()
    return figure


def score_by_length(comparison: Comparison) -> Any | None:
    """Mean score over document length in powers of two; `None` when all documents are about as long."""
    colours = _colours(comparison.systems)
    bins: dict[str, dict[int, dict[str, list[float]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for (dataset, _, label), row in comparison.rows.items():
        length = max(0, int(math.log2(max(1, row.document_tokens))))
        bins[label][length][f"{dataset} {row.document}"].append(row.score)
    lengths = sorted({length for each in bins.values() for length in each})
    if len(lengths) < 2:
        return None
    figure = new_figure(9, 4.4)
    axis = figure.subplots()
    _plain(axis)
    for index, system in enumerate(comparison.systems):
        of = bins.get(system.system, {})
        if not of:
            continue
        estimates = {length: mean_of(of[length]) for length in sorted(of)}
        nudge = 0.02 * (index - len(comparison.systems) / 2)  # so that points do not hide each other
        places = [length + 0.5 + nudge for length in estimates]
        style = _curve_style(index, colours[system.system])
        axis.plot(places, [e.mean for e in estimates.values()], label=system.title, **style)
        for place, estimate in zip(places, estimates.values(), strict=True) if len(bins) <= _MOST_WHISKERS else ():
            _whisker(axis, estimate, place, across=False, colour=colours[system.system])
    counts = {length: max(sum(map(len, each.get(length, {}).values())) for each in bins.values()) for length in lengths}
    labels = [f"{2**n:,}-{2 ** (n + 1):,}\nn={counts[n]}" for n in lengths]
    axis.set_xticks([n + 0.5 for n in lengths], labels, fontsize=8)
    axis.set_xlabel("document length in tokens")
    axis.set_ylabel("score, all data sets together")
    _legend(figure, axis)
    return figure


def sweep_plot(curves: Sequence[tuple[str, Sequence[tuple[float, Estimate]]]], *, xlabel: str) -> Any:
    """Score over the values of an option.

    Args:
        curves: name of each curve with its points: value, score.
        xlabel: what was swept.
    """
    figure = new_figure(7.5, 4.4)
    axis = figure.subplots()
    _plain(axis)
    values = sorted({value for _, points in curves for value, _ in points})
    for index, (name, unordered) in enumerate(curves):
        points = sorted(unordered, key=lambda point: point[0])
        places = [values.index(value) for value, _ in points]
        [line] = axis.plot(places, [e.mean for _, e in points], marker=_MARKERS[index % len(_MARKERS)], label=name)
        bounded = [(place, e) for place, (_, e) in zip(places, points, strict=True) if e.low is not None]
        axis.fill_between(
            [place for place, _ in bounded],
            [e.low for _, e in bounded],
            [e.high for _, e in bounded],
            color=line.get_color(),
            alpha=0.12,
            linewidth=0,
        )
    axis.set_xticks(range(len(values)), [f"{value:,g}" for value in values])
    axis.set_xlabel(xlabel, parse_math=False)
    axis.set_ylabel("score, with 95 % interval")
    _legend(figure, axis)
    return figure


def _scatter(axis: Any, systems: Sequence[SystemFindings], cost: Callable[[SystemFindings], float], label: str) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    _plain(axis)
    colours = _colours(systems)
    for index, system in enumerate(systems):
        assert system.average is not None
        colour, marker = colours[system.system], _MARKERS[index % len(_MARKERS)]
        _whisker(axis, system.average, cost(system), across=False, colour=colour)
        axis.scatter(
            [cost(system)], [system.average.mean], color=colour, marker=marker, s=60, zorder=3, label=system.title
        )
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))  # all of 1 to 9 would write over each other
    axis.xaxis.set_major_formatter("{x:,g}")
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.tick_params(axis="x", labelsize=8)
    axis.set_xlabel(label)


def _colours(systems: Sequence[SystemFindings]) -> dict[str, Any]:
    """A shade of its family's colour for each system."""
    import matplotlib as mpl

    found = {}
    for family, name in _FAMILY_COLOURS.items():
        members = [each.system for each in systems if each.family == family]
        shades = mpl.colormaps[name]
        for index, system in enumerate(members):
            found[system] = shades(0.9 - 0.5 * index / max(1, len(members) - 1))
    return found


def _whisker(axis: Any, estimate: Estimate, place: float, *, across: bool, colour: Any = _INK) -> None:
    if estimate.low is None or estimate.high is None:
        return
    ends, at = [estimate.low, estimate.high], [place, place]
    axis.plot(*((ends, at) if across else (at, ends)), color=colour, linewidth=1.1, alpha=0.8, zorder=2)


def _curve_style(index: int, colour: Any) -> dict[str, Any]:
    return {
        "color": colour,
        "marker": _MARKERS[index % len(_MARKERS)],
        "linestyle": ("-", "--", ":", "-.")[index % 4],
        "linewidth": 1.2,
        "markersize": 5,
    }


def _legend(figure: Any, axis: Any) -> None:
    handles, labels = axis.get_legend_handles_labels()
    legend = figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8)
    for text in legend.get_texts():
        text.set_parse_math(False)


def _plain(axis: Any, *, grid: str = "both") -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(visible=True, axis=grid, color=_GRID, linewidth=0.6)
    axis.set_axisbelow(True)
