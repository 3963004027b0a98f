"""What a result file says first: its summary and its circumstances."""

import json
from collections.abc import Sequence
from typing import Any

from benchmarks.record import RESULTS


def read_result(name: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Summary and circumstances; `None` when nothing was measured."""
    path = RESULTS / f"{name}.jsonl"
    if not path.is_file():
        return None
    with path.open(encoding="utf-8") as file:
        first = json.loads(file.readline())
    return first["summary"], first["circumstances"]


def read_rows(name: str) -> list[dict[str, Any]]:
    """The rows behind a summary."""
    with (RESULTS / f"{name}.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in file][1:]


def table(head: Sequence[str], rows: Sequence[str]) -> str:
    """A Markdown table of finished rows."""
    return f"| {' | '.join(head)} |\n|{' --- |' * len(head)}\n" + "\n".join(rows) + "\n"
