"""Write results with what is needed to judge them: machine, commit, command, versions."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers

RESULTS = Path(__file__).parent / "results"
_LOAD_AT_START = round(os.getloadavg()[0], 2)  # read on import, before the run's own load


def circumstances() -> dict[str, Any]:
    """Machine, commit and command of this run."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "--short", "HEAD") + ("+changes" if _git("status", "--porcelain", "-uno") else ""),
        "command": "python -m " + " ".join([_module(), *map(_without_folder, sys.argv[1:])]),
        "machine": f"{platform.machine()}, {_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "load_at_start": _LOAD_AT_START,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def write(name: str, summary: dict[str, Any], rows: Iterable[dict[str, Any]] = ()) -> Path:
    """One `.jsonl` file: a first line with circumstances and summary, then one line per row."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for record in [{"circumstances": circumstances(), "summary": summary}, *rows]:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    return path


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
    return done.stdout.strip()


def _without_folder(argument: str) -> str:
    """Folders of one machine tell nobody anything."""
    return Path(argument).name if Path(argument).is_absolute() else argument


def _module() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if spec else Path(sys.argv[0]).name


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown processor"
