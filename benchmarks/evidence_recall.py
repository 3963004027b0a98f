"""Whether what a system refilled or read holds the answer where its question was asked for, for every committed row.

python -m benchmarks.evidence_recall --data data/longqa_dev

From the places that rows of `squad_article` name as their sources: nothing is asked again. Beside the recall stands the
share of the document that the sources cover, which is what chance would find.
"""

import argparse
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS, write
from benchmarks.squad import answer_places, load

DATASET = "squad_article"
Places = Sequence[tuple[int, int]]


def main() -> None:
    """Write benchmarks/results/evidence_recall.jsonl."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of squad_article")
    items, texts = load(parser.parse_args().data)
    known = {item["id"]: item for item in items}
    rows = [row for path in compared() for row in recalls(path, known, texts)]
    print(write("evidence_recall", {"dataset": DATASET}, rows))


def compared() -> list[Path]:
    """Committed rows of systems that were asked the same."""
    return sorted(path for kind in ("table1", "sweep") for path in RESULTS.glob(f"{kind}-*.jsonl"))


def recalls(path: Path, items: Mapping[str, Mapping[str, Any]], texts: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """One row a system and window: recall, share of the document, F1, questions.

    Args:
        path: a committed result.
        items: of the data set, by id.
        texts: of its documents, by name.
    """
    first, *lines = path.read_text(encoding="utf-8").splitlines()
    runs = json.loads(first)["summary"]["runs"]
    asked: dict[tuple[str, int], list[tuple[bool, float, float]]] = {}
    forms = {run["system"]: {"name": run["name"], "options": run["options"]} for run in runs}
    for row in map(json.loads, lines):
        run = runs[row["run"]]
        if run["dataset"] != DATASET or not row["sources"]:
            continue  # a system without sources says nothing of where it looked
        item = items[row["item"]]
        text = texts[item["doc_id"]]
        hit = holds(row["sources"], answer_places(text, dict(item)))
        asked.setdefault((run["system"], run["window"]), []).append(
            (hit, covered(row["sources"], len(text)), row["score"])
        )
    for (system, window), found in asked.items():
        hits, shares, scores = zip(*found, strict=True)
        yield {
            "result": path.stem,
            **forms[system],
            "window": window,
            "questions": len(found),
            "recall": round(statistics.mean(hits), 3),
            "covered": round(statistics.mean(shares), 3),
            "f1": round(statistics.mean(scores), 1),
        }


def holds(sources: Places, answers: Places) -> bool:
    """Whether a source has the whole of one answer."""
    return any(start <= at and end <= stop for start, stop in sources for at, end in answers)


def covered(sources: Places, n_chars: int) -> float:
    """Share of a document's characters in sources, which may overlap."""
    n_covered, reached = 0, 0
    for start, stop in sorted(sources):
        n_covered += max(0, stop - max(start, reached))
        reached = max(reached, stop)
    return n_covered / n_chars


if __name__ == "__main__":
    main()
