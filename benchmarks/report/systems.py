"""Tables of systems that were asked the same questions (`benchmarks.compared`)."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from acre_rag.evaluation.sheets import counted, significant
from benchmarks.pictures import picture_path
from benchmarks.record import RESULTS
from benchmarks.report.results import read_result, read_rows, table

_TITLES = {
    "table1": "Side by side",
    "ablation": "One part left out at a time",
    "sweep": "One option over several values",
}


def tables(pattern: str) -> str:
    """Systems on the same questions, of each result file whose name fits, and what there is of pictures."""
    parts = []
    for path in sorted(RESULTS.glob(f"{pattern}.jsonl"), key=lambda path: path.stem):
        read = read_result(path.stem)
        assert read
        rows = read_rows(path.stem)
        for number, comparison in enumerate(read[0]["comparisons"]):
            own = _own(comparison, read[0]["runs"])
            parts.append(table_of(comparison, own, rows, path.stem))
            if (picture := picture_path(path, number)).is_file():
                parts.append(f"![{path.stem}](/{picture.relative_to(RESULTS.parent.parent).as_posix()})\n")
    return "\n".join(parts)


def table_of(
    comparison: Mapping[str, Any], runs: Mapping[int, Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], name: str
) -> str:
    """One comparison of a result file.

    Args:
        comparison: from the file's summary.
        runs: what its rows share, by their numbers in the file.
        rows: all rows of the file.
        name: of the file.
    """
    datasets, kind = comparison["datasets"], name.split("-")[0]
    ranked = sorted(comparison["systems"].items(), key=lambda pair: -(pair[1]["average"] or -1.0))
    asked = {system: each for system, each in ranked if each["questions"] or not each["refused"]}
    average = ["average"] if len(datasets) > 1 else []
    costs = _COSTS if kind == "table1" else {"KV tokens attended": _COSTS["KV tokens attended"]}
    lines = []
    for system, each in asked.items():
        scores = [_figure(each["scores"].get(dataset)) for dataset in datasets]
        means = [_figure(each["average"]) for _ in average]
        # of some of the data sets only, a cost is no match for the others'
        taken = [_cost(each, *costs[cost]) if each["average"] is not None else "" for cost in costs]
        lines.append(f"| {' | '.join([system, *scores, *means, _signed(each['difference']), *taken])} |")
    refused = [system for system in comparison["systems"] if system not in asked]
    told = f" Not run here, each with its reason in the result file: {', '.join(refused)}." if refused else ""
    seconds = " Seconds are of machines that did other work too." if kind == "table1" else ""
    return (
        f"**{_TITLES[kind]}**, {comparison['model']}, {comparison['setting']}, "
        f"{max(each['questions'] for _, each in ranked)} questions a system ({_about(runs, rows)}), the same prompts, "
        f"documents and settings for all; differences to {comparison['baseline']} (`benchmarks/compared.py`). Intervals, "
        f"seconds and every answer: `benchmarks/results/{name}.*`.{seconds}{told}\n\n"
        + table(("system", *datasets, *average, "difference", *costs), lines)
        + _retrieval(runs)
    )


_COSTS: dict[str, tuple[str, float, int]] = {
    "reading, s": ("read_s", 1, 2),
    "a question, s": ("question_s", 1, 2),
    "its peak memory, MiB": ("peak_bytes", 2**20, 2),
    "KV tokens attended": ("kv_tokens", 1, 0),
}
"""Field of the summary, unit, digits that it deserves (0: to the whole number)."""


def _own(comparison: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> dict[int, Mapping[str, Any]]:
    """Runs of this comparison's model and setting, by their numbers."""
    setting = (comparison["model"], comparison["setting"])
    return {
        number: run
        for number, run in enumerate(runs)
        if (run["model"], f"{run['dtype']}, window {run['window']:,}") == setting
    }


def _about(runs: Mapping[int, Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> str:
    """Questions and documents of each data set."""
    items: dict[str, dict[str, str]] = defaultdict(dict)
    for row in rows:
        if row["run"] in runs and row["item"] is not None:
            items[runs[row["run"]]["dataset"]][row["item"]] = row["document"]
    return "; ".join(
        f"{dataset}: {len(of)} about {counted(len(set(of.values())), 'document')}" for dataset, of in items.items()
    )


def _retrieval(runs: Mapping[int, Mapping[str, Any]]) -> str:
    """What dense retrieval was made of, as its systems said."""
    systems: dict[str, dict[str, None]] = defaultdict(dict)
    for run in runs.values():
        if said := run["facts"].get("embedder"):
            systems[said.partition(" (")[0]][run["system"]] = None
    return "".join(
        f"\nDense retrieval ({', '.join(of)}) is {embedder}{'' if 'bge-m3' in embedder.lower() else ', not BGE-M3'}.\n"
        for embedder, of in systems.items()
    )


def _cost(each: Mapping[str, Any], field: str, unit: float, digits: int) -> str:
    value = each[field]
    if value is None:
        return ""
    return significant(value / unit, digits) if digits else f"{value / unit:,.0f}"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}"


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.1f}"
