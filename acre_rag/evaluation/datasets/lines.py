"""JSON lines from plain files, gzip files and zip archives, each with its place; knows no fields."""

import gzip
import io
import json
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from acre_rag.errors import EvaluationError


def read_lines(path: Path, member: str | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """One object a line; blank lines are passed over.

    Args:
        path: a `.jsonl` or `.jsonl.gz` file, or a zip archive.
        member: file in the archive.

    Yields:
        The place ("FILE, line 7") and the object.

    Raises:
        EvaluationError: the file is missing, damaged or not UTF-8, or a line is not a JSON object; the line is named.
    """
    name = f"{path}:{member}" if member else str(path)
    number = 0
    try:
        with _opened(path, member) as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield f"{name}, line {number}", _object(line, f"{name}, line {number}")
    except UnicodeDecodeError as error:
        raise EvaluationError(f"{name} is not UTF-8 text after line {number} ({error.reason}).") from error
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, KeyError) as error:
        raise EvaluationError(f"{name} cannot be read after line {number} ({error}). Is it complete?") from error


@contextmanager
def _opened(path: Path, member: str | None) -> Iterator[io.TextIOBase]:
    if member is not None:
        with zipfile.ZipFile(path) as archive, archive.open(member) as raw:
            yield io.TextIOWrapper(raw, encoding="utf-8-sig")
    elif path.suffix == ".gz":
        with gzip.open(path, "rt", encoding="utf-8-sig") as lines:
            yield lines
    else:
        with path.open(encoding="utf-8-sig") as lines:
            yield lines


def _object(line: str, place: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise EvaluationError(f"{place} is not JSON ({error}). Mend or remove the line.") from error
    if not isinstance(record, dict):
        raise EvaluationError(f"{place} is {type(record).__name__}, not an object with fields.")
    return record
