"""Files and folders of texts and QA records, read one record at a time. Knows no models and no shards."""

import gzip
import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from acre_rag.errors import DocumentError, TrainingDataError
from acre_rag.extract import extract
from acre_rag.training.data.conversations import UnsplitError
from acre_rag.training.data.record import Record, parts_of, records_of

_RECORDS = {".jsonl", ".json"}
_LISTING = "manifest.jsonl"  # of a folder of texts: {"file", "title", "licence"} a line
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Source:
    """One file.

    Attributes:
        path: where it is.
        title: of a text; its name by default.
        licence: of a text, where a listing says it. Records say their own.
    """

    path: Path
    title: str = ""
    licence: str = ""

    @property
    def name(self) -> str:
        """The file's name; folders of one machine tell nobody anything."""
        return self.path.name

    @property
    def holds_records(self) -> bool:
        """JSON lines, gzipped or not, as against one text."""
        return Path(self.name.removesuffix(".gz")).suffix in _RECORDS

    @cached_property
    def sha256(self) -> str:
        """Of its bytes as they are on disk."""
        digest = hashlib.sha256()
        with self.path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
        return digest.hexdigest()

    def records(self, *, unsplit: Callable[[str], None] = lambda reason: None) -> Iterator[Record]:
        """Everything in it, to train on.

        Args:
            unsplit: called with the line and the reason for each conversation that is left out, because its document
                cannot be told from its question.

        Raises:
            TrainingDataError: it cannot be read; an object of an unknown form, by file and line; nothing but
                conversations to leave out.
        """
        return self._read(records_of, unsplit)

    def parts(self) -> Iterator[Record]:
        """Everything in it, to keep out: records may lack their document, or their answers.

        Raises:
            TrainingDataError: as for `records`.
        """
        return self._read(lambda row: [parts_of(row)], lambda reason: None)

    def _read(self, understood: Callable[[Any], list[Record]], unsplit: Callable[[str], None]) -> Iterator[Record]:
        if not self.holds_records:
            yield self._text()
            return
        reason, n_read = "", 0
        for number, row in json_lines(self.path):
            try:
                yield from understood(row)
                n_read += 1
            except UnsplitError as error:
                reason = f"line {number}: {error}"
                unsplit(reason)
            except ValueError as error:
                raise TrainingDataError(
                    f"{self.path}, line {number}, is of no form that is understood: {error}. "
                    "Give context, question and answers; or text; or conversations."
                ) from error
        if reason and not n_read:
            raise TrainingDataError(f"No conversation of {self.path} can be used. The last, {reason}.")

    def _text(self) -> Record:
        try:
            text = extract(self.path).text
        except DocumentError as error:
            raise TrainingDataError(str(error)) from error
        name = self.name.removesuffix(".gz")
        stem = Path(name).stem
        return Record(document=text, title=self.title or stem, source=stem, licence=self.licence, id=stem)


def sources_of(paths: Sequence[Path], *, licence: str = "") -> list[Source]:
    """Files, and the files in folders, in the order of their names; hidden ones and listings are passed over.

    Args:
        paths: files or folders.
        licence: of texts that no listing names.

    Raises:
        TrainingDataError: a path that does not exist, a folder without files, two sources of one name.
    """
    sources: list[Source] = []
    for path in paths:
        if path.is_dir():
            listed = _listing(path / _LISTING)
            files = sorted(
                p for p in path.rglob("*") if p.is_file() and not p.name.startswith(".") and p.name != _LISTING
            )
            if not files:
                raise TrainingDataError(f"{path} has no files. Put texts (.txt, .md, ...) or records (.jsonl) there.")
            sources += [_described(file, listed.get(file.name, {}), licence) for file in files]
        elif path.is_file():
            sources.append(_described(path, _listing(path.parent / _LISTING).get(path.name, {}), licence))
        else:
            raise TrainingDataError(f"{path} does not exist. Give files or folders of texts or JSON lines.")
    name, times = Counter(source.path.resolve() for source in sources).most_common(1)[0]
    if times > 1:
        raise TrainingDataError(f"{name} is given twice. Name it once.")
    return sources


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Line numbers, from 1, and what stands on those lines; gzipped by the name's ending.

    Raises:
        TrainingDataError: the file cannot be read, or a line is not JSON.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    number = 0
    try:
        with opener(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if number == 1 and line.lstrip().startswith("["):
                    raise TrainingDataError(f"{path} is one JSON list. Write an object a line: jq -c '.[]' FILE")
                if line.strip():
                    yield number, json.loads(line)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, RecursionError, json.JSONDecodeError) as error:
        raise TrainingDataError(f"{path} cannot be read as JSON lines, near line {number} ({error}).") from error


def load_pairs(path: Path) -> list[Record]:
    """All questions of a file.

    Raises:
        TrainingDataError: there is no such file, it cannot be read, or holds a record without a question.
    """
    if path.is_dir():
        raise TrainingDataError(f"{path} is a folder. Name the file of questions: .jsonl or .jsonl.gz.")
    if not path.exists():
        raise TrainingDataError(f"There is no file {path}. Name a file of questions: .jsonl or .jsonl.gz.")
    records = list(Source(path).records())
    if not records or any(record.question is None for record in records):
        raise TrainingDataError(f"{path} needs one object a line with the fields context, question and answers.")
    return records


def _described(path: Path, facts: dict[str, Any], licence: str) -> Source:
    return Source(path, str(facts.get("title") or ""), str(facts.get("licence") or facts.get("license") or licence))


def _listing(path: Path) -> dict[str, dict[str, Any]]:
    """What a folder's listing says, by file name; nothing where there is none."""
    if not path.is_file():
        return {}
    return {str(row["file"]): row for _, row in json_lines(path) if isinstance(row, dict) and "file" in row}
