"""Write results with what is needed to judge them: machine, commit, command, versions."""

import json
import os
import re
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from acre_rag.evaluation import circumstances as package

RESULTS = Path(__file__).parent / "results"
_FOLDERS = re.compile(r"(?<![\w/.:])/(?:[^\s/'\"]+/)+")  # absolute, so no address, no "and/or"
_LOAD_AT_START = round(os.getloadavg()[0], 2)  # read on import, before the run's own load


def circumstances() -> dict[str, Any]:
    """Machine, commit and command of this run."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": "python -m " + " ".join([_module(), *map(_without_folder, sys.argv[1:])]),
        "load_at_start": _LOAD_AT_START,
        **package.circumstances(),
    }


def write(name: str, summary: dict[str, Any], rows: Iterable[dict[str, Any]] = ()) -> Path:
    """One `.jsonl` file: a first line with circumstances and summary, then one line per row."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for record in [{"circumstances": circumstances(), "summary": summary}, *rows]:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    return path


def without_folders(text: str) -> str:
    """Words in which files of the measuring machine keep their names alone."""
    return _FOLDERS.sub("", text)


def _without_folder(argument: str) -> str:
    """Folders of one machine tell nobody anything; not in `NAME=PATH` either."""
    name, equals, path = argument.rpartition("=")
    return f"{name}{equals}{Path(path).name}" if Path(path).is_absolute() else argument


def _module() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if spec else Path(sys.argv[0]).name
