"""Files of rows that a killed run can go on with: one for each system and data set. Asks nobody.

Layout of a run's folder: `FOLDER/DATASET/SYSTEM.jsonl`, so that systems can be added later or run by several processes.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from acre_rag.errors import EvaluationError
from acre_rag.evaluation.rows import Row, Run, digest_of, plain
from acre_rag.fingerprint import differences
from acre_rag.replace import replace_file


class RowFile:
    """A file of rows, open for one process.

    Args:
        path: the file; made with its folder when missing. A half-written last line is cut off.
        run: what its rows must share.
        retry: forget failures, so that they are asked again. (That a system could not be made is always forgotten.)

    Raises:
        EvaluationError: damaged, written with other options, or open elsewhere.
    """

    def __init__(self, path: Path, run: Run, *, retry: bool = False) -> None:
        self.path, self.run = path, run
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(path.with_suffix(".lock"))
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise EvaluationError(f"Another process is writing {path}. Wait for it, or use another --out.") from error
        try:
            self.rows = self._kept(retry)
            self._file: BinaryIO = path.open("ab")
        except BaseException:
            self._unlock()
            raise

    @property
    def done(self) -> set[str]:
        """Items with a row."""
        return {row.item for row in self.rows if row.item is not None}

    def check_content(self, contents: Mapping[str, str]) -> None:
        """Items that were asked must still be what they were.

        Args:
            contents: `content_of` each item by its id.

        Raises:
            EvaluationError: one is not.
        """
        for row in self.rows:
            if row.item is not None and contents.get(row.item, row.content) != row.content:
                raise EvaluationError(
                    f"{self.path} holds an answer to {row.item!r} of {self.run.dataset}, whose document, question or "
                    "gold answer is another now. Use the same data, or another --out."
                )

    def append(self, row: Row) -> None:
        """Write one row, at once and for good."""
        self._file.write(row.to_line())
        self._file.flush()
        os.fsync(self._file.fileno())
        self.rows.append(row)

    def check_facts(self, facts: Mapping[str, str]) -> None:
        """The system must still be made of the same parts.

        Raises:
            EvaluationError: it is not; names what differs.
        """
        before = next((row.facts for row in self.rows if row.error is None), None)
        if before is not None and (differing := differences(before, facts)):
            raise EvaluationError(_other_options(self.path, differing))

    def close(self) -> None:
        """Give the file free."""
        self._file.close()
        self._unlock()

    def _unlock(self) -> None:
        with contextlib.suppress(OSError):  # while it is held: later, it may be another process' own
            self._lock_path.unlink(missing_ok=True)
        self._lock.release()

    @property
    def _lock_path(self) -> Path:
        return Path(self._lock.lock_file)

    def _kept(self, retry: bool) -> list[Row]:
        """Rows of the file that count; rewrites the file where some do not."""
        if not self.path.is_file():
            return []
        whole = _cut_half_line(self.path)
        found = _rows(whole, self.path)
        for row in found:
            if differing := differences(plain(row.run), plain(self.run)):
                raise EvaluationError(_other_options(self.path, differing))
        kept = [row for row in found if not row.refused and not (retry and row.error)]
        if len(kept) < len(found):
            replace_file(self.path, b"".join(row.to_line() for row in kept))
        return kept


def read_rows(folders: Sequence[Path]) -> list[Row]:
    """All rows under folders (or in files), also of runs that are still going.

    Raises:
        EvaluationError: no rows, or a damaged line; names file and line.
    """
    rows = []
    for folder in folders:
        for path in [folder] if folder.is_file() else sorted(folder.rglob("*.jsonl")):
            raw = path.read_bytes()
            rows += _rows(raw[: raw.rfind(b"\n") + 1], path)
    if not rows:
        raise EvaluationError(
            f"No rows in {', '.join(map(str, folders)) or 'no folder'}. Make some with: acre eval --out FOLDER"
        )
    return rows


def row_path(folder: Path, run: Run) -> Path:
    """Where the rows of a run stand."""
    return folder / _file_name(run.dataset) / f"{_file_name(run.system)}.jsonl"


def _rows(whole: bytes, path: Path) -> list[Row]:
    return [_row(line, path, number) for number, line in enumerate(whole.split(b"\n")[:-1], 1)]


def _row(line: bytes, path: Path, number: int) -> Row:
    try:
        return Row.from_line(line)
    except ValueError as error:
        raise EvaluationError(
            f"{path}, line {number} is not a row of an evaluation ({error}). Mend or remove the file."
        ) from error


def _cut_half_line(path: Path) -> bytes:
    """The file without a half-written last line, which is cut off the file too."""
    raw = path.read_bytes()
    whole = raw[: raw.rfind(b"\n") + 1]
    if len(whole) < len(raw):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return whole


def _other_options(path: Path, differing: Sequence[str]) -> str:
    return (
        f"{path} was written with other options: {', '.join(differing)}. Use the same options to go on with it, or "
        "another --out."
    )


def _file_name(label: str) -> str:
    """A label as a file name: other characters become "_", told apart by a digest."""
    safe = "".join(_safe(label))
    return safe if safe and safe == label else f"{safe}-{digest_of(label)[:8]}"


def _safe(label: str) -> Iterator[str]:
    for index, char in enumerate(label[:80]):
        yield char if char.isascii() and (char.isalnum() or char in "-_=,.") and (index or char != ".") else "_"
