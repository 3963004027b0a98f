"""Tables of systems that were asked the same questions (`benchmarks.compared`)."""

from typing import Any

from benchmarks.pictures import picture_path
from benchmarks.record import RESULTS
from benchmarks.report.results import read_result

_TITLES = {
    "table1": "Side by side",
    "ablation": "One part left out at a time",
    "sweep": "One option over several values",
}


def tables(pattern: str) -> str:
    """Systems on the same questions, of each result file whose name fits, and what there is of pictures."""
    parts = []
    for path in sorted(RESULTS.glob(f"{pattern}.jsonl")):
        read = read_result(path.stem)
        assert read
        for number, comparison in enumerate(read[0]["comparisons"]):
            parts.append(_table(comparison, path.stem))
            if (picture := picture_path(path, number)).is_file():
                parts.append(f"![{path.stem}](/{picture.relative_to(RESULTS.parent.parent).as_posix()})\n")
    return "\n".join(parts)


def _table(comparison: dict[str, Any], name: str) -> str:
    datasets = comparison["datasets"]
    ranked = sorted(comparison["systems"].items(), key=lambda pair: -(pair[1]["average"] or -1.0))
    average = ["average"] if len(datasets) > 1 else []
    head = ["system", *datasets, *average, "difference", "KV tokens attended"]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for system, each in ranked:
        scores = [_figure(each["scores"].get(dataset), 1) for dataset in datasets]
        if each["refused"] and not each["questions"]:
            continue
        means = [_figure(each["average"], 1) for _ in average]
        cells = [*scores, *means, _signed(each["difference"]), _figure(each["kv_tokens"], 0)]
        lines.append(f"| {system} | {' | '.join(cells)} |")
    refused = [system for system, each in ranked if each["refused"] and not each["questions"]]
    questions = max(each["questions"] for _, each in ranked)
    told = f" Not run here, each with its reason in the result file: {', '.join(refused)}." if refused else ""
    return (
        f"**{_TITLES[name.split('-')[0]]}**, {comparison['model']}, {comparison['setting']}, {questions} questions a system, the same prompts, "
        f"documents and settings for all; differences to {comparison['baseline']} (`benchmarks/compared.py`). Intervals, "
        f"seconds and every answer: `benchmarks/results/{name}.*`.{told}\n\n" + "\n".join(lines) + "\n"
    )


def _figure(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.1f}"
