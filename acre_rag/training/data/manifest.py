"""The manifest of a folder of training shards: what is in it, where it came from, how it was made. JSON; no tensors.

It is written last and carries its own digest; a folder without a whole one is no training data.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from acre_rag.errors import TrainingDataError

FORMAT = "acre-rag-shards/1"
NAME = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One file of examples: gzipped JSON lines."""

    file: str
    examples: int
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What one folder holds.

    Attributes:
        stage: 1 (documents alone) or 2 (questions about documents).
        created: UTC time, ISO 8601.
        options: what it was built with, the seed included.
        sources: for each file, its name, SHA-256, records and licences with the number of records under each.
        counts: examples, characters, estimated tokens; and what was left out, by reason.
        exclusion: files that nothing may overlap with, the threshold, and some of what was dropped; empty without any.
        gold_places: of stage 2: how many examples have their evidence in each tenth of the document.
        shards: the files, in order.
    """

    stage: int
    created: str
    options: Mapping[str, Any]
    sources: Sequence[Mapping[str, Any]]
    counts: Mapping[str, int]
    exclusion: Mapping[str, Any]
    gold_places: Sequence[int]
    shards: Sequence[Shard]

    @property
    def n_examples(self) -> int:
        """In all shards."""
        return sum(shard.examples for shard in self.shards)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything above: what a trained adapter names as its data."""
        return _digest({"format": FORMAT, **asdict(self)})

    def dump(self) -> bytes:
        """The file's bytes, own digest included."""
        return json.dumps({"format": FORMAT, **asdict(self), "digest": self.digest}, indent=1).encode("ascii")


def load_manifest(folder: Path) -> Manifest:
    """Read the manifest of a folder.

    Raises:
        TrainingDataError: no such folder, no manifest in it, another format, or damaged.
    """
    path = folder / NAME
    if not path.is_file():
        raise TrainingDataError(
            f"{folder} holds no training shards: it has no {NAME}. Make some: acre data build --help"
        )
    try:
        record = json.loads(path.read_bytes())
    except (OSError, RecursionError, ValueError) as error:
        raise _damaged(path, f"it is not JSON ({error})") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        found = record.get("format") if isinstance(record, dict) else None
        raise _damaged(path, f"its format is {found!r}, not {FORMAT!r}")
    digest = record.pop("digest", None)
    if digest != _digest(record):
        raise _damaged(path, "its digest does not match")
    del record["format"]
    if record.keys() != {field.name for field in fields(Manifest)}:
        raise _damaged(path, "its fields are not those of this format")
    try:
        shards = [Shard(**shard) for shard in record.pop("shards")]
    except TypeError as error:
        raise _damaged(path, f"a shard is described wrongly ({error})") from error
    if wrong := [shard.file for shard in shards if Path(shard.file).name != shard.file]:
        raise _damaged(path, f"{wrong[0]!r} is not a file of this folder")
    return Manifest(**record, shards=shards)


def _damaged(path: Path, cause: str) -> TrainingDataError:
    return TrainingDataError(f"{path} is of no use: {cause}. Build the shards anew: acre data build --help")


def _digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode("ascii")).hexdigest()
