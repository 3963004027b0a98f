"""What a result file says first: its summary and its circumstances."""

import json
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
