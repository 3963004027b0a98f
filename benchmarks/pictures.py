"""Pictures of committed comparisons: quality against cost, or the curves of a sweep. Asks nobody."""

from pathlib import Path
from typing import Any

from acre_rag.errors import ConfigError
from acre_rag.evaluation import plots
from acre_rag.evaluation.forms import title_of
from acre_rag.evaluation.report import Comparison
from acre_rag.evaluation.statistics import Estimate
from acre_rag.evaluation.sweep import OPTIONS


def picture_path(result: Path, number: int) -> Path:
    """Where the picture of a result file's comparison lies; further ones are numbered from 2."""
    return result.with_name(f"{result.stem}{f'-{number + 1}' if number else ''}.svg")


def picture(name: str, comparison: Comparison) -> Any:
    """A figure for a result of that name: `sweep-OPTION-...` gets curves over the option, `table1-...` the tokens attended.

    No seconds: rows of a table are asked on machines that do other work too.
    """
    kind, option, *_ = name.split("-")
    if kind == "sweep":
        return plots.sweep_plot(_curves(comparison, option), xlabel=OPTIONS[option])
    tokens = plots.quality_against_cost(comparison, costs=["tokens"]) if kind == "table1" else None
    return tokens or plots.bars_by_dataset(comparison)


def _curves(comparison: Comparison, option: str) -> list[tuple[str, list[tuple[float, Estimate]]]]:
    """Average score by value, one curve for each form and each value of the other options.

    Raises:
        ConfigError: a form was not asked with a value of that option.
    """
    runs = {label: row.run for (_, _, label), row in comparison.rows.items()}
    curves: dict[str, list[tuple[float, Estimate]]] = {}
    for each in comparison.systems:
        run = runs[each.system]
        if option not in run.options:
            raise ConfigError(
                f"{each.system} was asked without {option}=VALUE: call such a result table1-NAME instead."
            )
        others = {name: value for name, value in run.options.items() if name not in (option, "max_passages")}
        if each.average:
            curves.setdefault(title_of(run.name, others), []).append((run.options[option], each.average))
    return list(curves.items())
