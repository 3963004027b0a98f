"""A manifest: what one stored document is and which bytes belong to it. JSON, checked field by field. Knows no tensors.

The manifest is written last and carries its own digest; a folder without a whole one is no document.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from acre_rag.fingerprint import FORMAT, Fingerprint
from acre_rag.store.formats import check_format

NAME = "manifest.json"
_MOST_BYTES = 1 << 28
_HEX = set("0123456789abcdef")


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """One file: its bytes, and their SHA-256 (empty for a shard, whose groups of blocks have their own)."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What one folder holds.

    Attributes:
        id: the user's name for the document.
        model: the model's name, for people.
        fingerprint: what the cache depends on.
        text_sha256: of the text in UTF-8.
        n_tokens: `N`.
        construct_s: seconds that reading took.
        created: UTC time, ISO 8601.
        notes: what the user should know of the reading.
        files: by name.
        parts: of L2: name to shape of one row and type, e.g. {"blocks": [[30, 2, 3, 16, 64], "bfloat16"]}.
        group_blocks: blocks under one digest.
        shards: file names of L2 in order, each with its number of blocks.
        digests: for every part, the SHA-256 of each group of blocks, over all shards; no group crosses a shard.
    """

    id: str
    model: str
    fingerprint: Fingerprint
    text_sha256: str
    n_tokens: int
    construct_s: float
    created: str
    notes: tuple[str, ...]
    files: Mapping[str, StoredFile]
    parts: Mapping[str, tuple[tuple[int, ...], str]]
    group_blocks: int
    shards: tuple[tuple[str, int], ...]
    digests: Mapping[str, tuple[str, ...]]

    @property
    def n_bytes(self) -> int:
        """Bytes on disk, the manifest's own excepted."""
        return sum(file.bytes for file in self.files.values())

    def dump(self) -> bytes:
        """The file's bytes, own digest included."""
        record = asdict(self)
        return json.dumps({**record, "digest": _digest(record)}, indent=1).encode("ascii")


def parse(raw: bytes, folder: Path) -> Manifest:
    """Read a manifest.

    Args:
        raw: the file's bytes.
        folder: where it stands, for messages.

    Raises:
        ValueError: damaged; says what is wrong.
        StoreFormatError: whole or not, another version of acre-rag wrote it.
    """
    if len(raw) > _MOST_BYTES:
        raise ValueError("it is far too long")
    try:
        record = json.loads(raw)
    except (UnicodeDecodeError, RecursionError, ValueError) as error:
        raise ValueError("it is not JSON") from error
    if not isinstance(record, dict):
        raise ValueError("it is not a JSON object")
    check_format(_format_of(record), folder)
    digest = record.pop("digest", None)
    if record.get("fingerprint", {}) and _format_of(record) != FORMAT:
        raise ValueError(f"its format is {_format_of(record)!r}, not {FORMAT!r}")
    if digest != _digest(record):
        raise ValueError("its digest does not match")
    if record.keys() != {field.name for field in fields(Manifest)}:
        raise ValueError("its fields are not those of this format")
    try:
        return _checked(record)
    except (TypeError, KeyError, AttributeError, IndexError) as error:
        raise ValueError(f"a field has the wrong type ({error})") from error


def _format_of(record: dict[str, Any]) -> Any:
    fingerprint = record.get("fingerprint")
    return fingerprint.get("format") if isinstance(fingerprint, dict) else None


def _checked(record: dict[str, Any]) -> Manifest:
    manifest = Manifest(
        id=_text(record["id"]),
        model=_text(record["model"]),
        fingerprint=dict(record["fingerprint"]),
        text_sha256=_hex(record["text_sha256"]),
        n_tokens=_count(record["n_tokens"]),
        construct_s=float(record["construct_s"]),
        created=_text(record["created"]),
        notes=tuple(map(_text, record["notes"])),
        files={
            _file(name): StoredFile(bytes=_count(f["bytes"]), sha256=f["sha256"] and _hex(f["sha256"]))
            for name, f in record["files"].items()
        },
        parts={_text(n): (tuple(map(_count, shape)), _text(dtype)) for n, (shape, dtype) in record["parts"].items()},
        group_blocks=_count(record["group_blocks"]),
        shards=tuple((_file(name), _count(blocks)) for name, blocks in record["shards"]),
        digests={_text(name): tuple(map(_hex, each)) for name, each in record["digests"].items()},
    )
    if manifest.parts.keys() != manifest.digests.keys() or manifest.group_blocks < 1:
        raise ValueError("parts and digests do not belong together")
    if any(name not in manifest.files for name, _ in manifest.shards):
        raise ValueError("a shard is missing from the list of files")
    groups = sum(-(-blocks // manifest.group_blocks) for _, blocks in manifest.shards)
    if any(len(each) != groups for each in manifest.digests.values()):
        raise ValueError("the number of digests does not fit the number of blocks")
    return manifest


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    return value


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TypeError(f"{value!r} is not a count")
    return value


def _hex(value: Any) -> str:
    if not isinstance(value, str) or len(value) != 64 or not set(value) <= _HEX:
        raise TypeError(f"{value!r} is not a SHA-256")
    return value


def _file(value: Any) -> str:
    """A plain file name of ours; never a path."""
    name = _text(value)
    if not name or not all(c.isascii() and (c.isalnum() or c in "-.") for c in name) or name.startswith("."):
        raise TypeError(f"{name!r} is not a file of a stored document")
    return name


def _digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode("ascii")).hexdigest()
