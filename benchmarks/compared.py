"""Rows of `acre eval`, `acre sweep` or `acre ablate` as a committed result, the rendered table, a page and a picture.

acre eval --systems acre,acre-hybrid,bm25,rag,full,... --data squad_article=data/longqa_dev ... --out runs/NAME
python -m benchmarks.compared runs/NAME --name table1-NAME          (--keep adds to what is committed)
python -m benchmarks.compared --keep --name table1-NAME             (draws what is committed anew)

docs/results.md shows what is called table1-*, sweep-OPTION-* or ablation-*. Differences are to `acre`; where nothing
is called so, as in a sweep, to the form that was asked first, whatever it scored.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from acre_rag.evaluation import plots
from acre_rag.evaluation.ablation import beside
from acre_rag.evaluation.facts import told
from acre_rag.evaluation.page import page
from acre_rag.evaluation.report import Comparison, by_setting, compare, registry_order
from acre_rag.evaluation.row_files import read_rows
from acre_rag.evaluation.rows import Row, Run, plain
from acre_rag.evaluation.sheets import markdown
from benchmarks import record
from benchmarks.pictures import picture, picture_path

_BASELINE = "acre"
_MOST_PAGE_BYTES = 1_500_000  # a page is committed, and a browser loads all of it


def main() -> None:
    """Write results/NAME.jsonl, results/NAME.md, results/NAME.html and results/NAME.svg."""
    options = _options()
    rows = read_rows(options.folders) if options.folders or not options.keep else []
    if options.keep:
        rows = beside_earlier(rows, earlier_rows(record.RESULTS / f"{options.name}.jsonl"))
    if options.fine_tuned:
        rows = beside(rows, read_rows([options.fine_tuned]))
    if options.model:
        rows = [replace(row, run=replace(row.run, model=options.model)) for row in rows]
    rows = [_publishable(row) for row in rows]
    comparisons = [
        found for alike in by_setting(rows) for found in compare(alike, baseline=baseline_of(alike, options.baseline))
    ]
    runs: dict[str, int] = {}
    lines = [line_of(row, runs) for row in rows]
    summary = {"comparisons": [summary_of(each) for each in comparisons], "runs": [*map(json.loads, runs)]}
    path = record.write(options.name, summary, lines)
    path.with_suffix(".md").write_text("\n".join(map(markdown, comparisons)), encoding="utf-8")
    if options.also:
        against = "\n".join(map(markdown, compare(rows, baseline=options.also)))
        path.with_name(f"{path.stem}-against-{options.also}.md").write_text(against, encoding="utf-8")
    path.with_suffix(".html").write_text(page_of(comparisons), encoding="utf-8", errors="backslashreplace")
    for number, comparison in enumerate(comparisons):
        picture_path(path, number).write_bytes(plots.svg_of(picture(options.name, comparison)))
    print(f"{len(lines)} rows in {path}")


def _publishable(row: Row) -> Row:
    """Errors name models by their files, which lie where they were measured."""
    if not row.error:
        return row
    return replace(row, error={**row.error, "message": record.without_folders(str(row.error["message"]))})


def baseline_of(rows: Sequence[Row], wanted: str) -> str:
    """The system that others of one setting are compared with: never chosen by what it scored.

    Rows without a time were committed before times were, so they come first.
    """
    asked = [row for row in rows if not row.refused]
    if wanted != _BASELINE or not asked or any(row.run.system == wanted for row in asked):
        return wanted
    first = min(asked, key=lambda row: (row.where.get("time", ""), registry_order((row.run.system, row.run.name))))
    return first.run.system


def page_of(comparisons: Sequence[Comparison]) -> str:
    """Every question with each system's answer and evidence; without quotations where they make the page too large."""
    whole = page(comparisons)
    return (
        whole if len(whole.encode("utf-8", "backslashreplace")) <= _MOST_PAGE_BYTES else page(comparisons, quoted=False)
    )


def line_of(row: Row, runs: dict[str, int]) -> dict[str, Any]:
    """A row with the number of its run instead of the run, and spans instead of quoted evidence."""
    key = json.dumps({**plain(row.run), "facts": dict(row.facts), "where": _place(row)})
    number = runs.setdefault(key, len(runs))
    kept = ("item", "content", "document", "document_tokens", "question", "gold", "answer", "score", "finished")
    kept += ("tokens", "seconds", "memory", "trace", "notes", "error")
    sources = [[source["start"], source["end"]] for source in row.sources]
    own = {name: getattr(row, name) for name in kept}
    return {"run": number, "time": row.where.get("time", ""), **own, "sources": sources}


def earlier_rows(path: Path) -> list[Row]:
    """Rows of a committed result: the inverse of `line_of`, but for the words of the evidence."""
    first, *lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    runs = first["summary"]["runs"]
    return [_row_of(runs[line["run"]], line) for line in lines]


def _row_of(run: dict[str, Any], line: dict[str, Any]) -> Row:
    shared = {name: value for name, value in run.items() if name not in ("facts", "where")}
    own = {name: value for name, value in line.items() if name not in ("run", "time", "sources")}
    where = {**run["where"], **({"time": line["time"]} if line.get("time") else {})}
    sources = [{"start": start, "end": end} for start, end in line["sources"]]
    return Row(run=Run(**shared), facts=run["facts"], where=where, sources=sources, **own)


def beside_earlier(rows: Sequence[Row], earlier: Sequence[Row]) -> list[Row]:
    """Earlier rows and new ones; where a system was asked a data set anew in the same setting, the new ones alone."""
    anew = set(map(_asked, rows))
    return [*(row for row in earlier if _asked(row) not in anew), *rows]


def _asked(row: Row) -> tuple[str, str, str, int]:
    """What asking again replaces. Not the model: `--model` gives rows its full name after they were asked."""
    return row.run.system, row.run.dataset, row.run.dtype, row.run.window


def _place(row: Row) -> dict[str, Any]:
    return {name: value for name, value in row.where.items() if name != "time"}


def summary_of(comparison: Comparison) -> dict[str, Any]:
    """Means, costs and what each system says of itself."""
    return {
        "model": comparison.model,
        "setting": comparison.setting,
        "baseline": comparison.baseline,
        "datasets": dict(comparison.datasets),
        "systems": {
            each.system: {
                "scores": {name: round(cell.score.mean, 4) for name, cell in each.cells.items()},
                "average": round(each.average.mean, 4) if each.average else None,
                "difference": round(each.difference.mean, 4) if each.difference else None,
                "failed": sum(cell.failed for cell in each.cells.values()),
                "questions": sum(cell.n for cell in each.cells.values()),
                "refused": dict(each.refusals),
                "read_s": each.cost.read_s,
                "question_s": each.cost.question_s,
                "kv_tokens": each.cost.kv_tokens,
                "read_peak_bytes": each.cost.read_peak_bytes,
                "peak_bytes": each.cost.peak_bytes,
                "facts": told(each.facts),
            }
            for each in comparison.systems
        },
        "remarks": list(comparison.remarks),
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="*", help="folders of rows; none with --keep, to draw anew")
    parser.add_argument("--name", required=True, help="name of the result files")
    parser.add_argument("--keep", action="store_true", help="keep the rows that this result holds already")
    parser.add_argument("--baseline", default=_BASELINE, help="the system that others are compared with")
    parser.add_argument("--also", help="another such system: NAME-against-ALSO.md has the tables with it")
    parser.add_argument("--model", help="the model's full name, where the rows have only that of its file")
    parser.add_argument("--fine-tuned", type=Path, help="folder of the fine-tuned model's rows (`acre ablate`)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
