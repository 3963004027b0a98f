"""Training shards, read in a shuffled order that the seed alone decides. Knows no model and no training.

The order of a pass: shards are shuffled, taken a few at a time, and the examples of those few are shuffled. So the
place of every example is known from the manifest alone, and a resumed run opens only the shards it still needs. All
ranks walk the same order and take turns: rank r of w reads examples r, r + w, r + 2w, ..., as one process would read
them in batches of w.
"""

import gzip
import hashlib
import json
import random
import zlib
from collections.abc import Iterator
from copy import copy
from dataclasses import fields
from itertools import count
from pathlib import Path
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from acre_rag.errors import TrainingDataError
from acre_rag.training.data.example import TrainingExample
from acre_rag.training.data.manifest import Manifest, Shard, load_manifest


class ShardedExamples(IterableDataset[TrainingExample]):
    """Examples of a folder of shards, shuffled by shard and within a buffer of a few shards.

    Args:
        folder: made by `acre data build`.
        seed: of the order.
        rank: this process, of `world_size`.
        world_size: how many processes share the examples. All read equally many: what is left over is left out.
        passes: times that everything is read, each time in another order; None never ends.
        buffer_shards: shards in memory at a time.

    Workers of a torch `DataLoader` share the examples of their rank: each is read once, in another order than without
    workers. Every shard's digest is checked when it is opened.

    Raises:
        TrainingDataError: no shards there, a damaged manifest, or fewer examples than processes.
    """

    def __init__(
        self,
        folder: Path,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        passes: int | None = 1,
        buffer_shards: int = 4,
    ) -> None:
        if not 0 <= rank < world_size or buffer_shards < 1 or (passes is not None and passes < 1):
            raise TrainingDataError(
                f"rank={rank} must be 0 or more and less than world_size={world_size}; passes={passes} and "
                f"buffer_shards={buffer_shards} must be 1 or more."
            )
        self.folder = Path(folder)
        self.manifest: Manifest = load_manifest(self.folder)
        self._seed, self._rank, self._world_size = seed, rank, world_size
        self._passes, self._buffer_shards = passes, buffer_shards
        self._skipped = 0
        self._a_pass = self.manifest.n_examples // world_size
        if not self._a_pass:
            raise TrainingDataError(
                f"{folder} holds {self.manifest.n_examples} examples, too few for {world_size} processes."
            )

    def __len__(self) -> int:
        """Examples that this rank still reads.

        Raises:
            TypeError: they never end.
        """
        if self._passes is None:
            raise TypeError("examples that are read for ever have no number")
        return max(0, self._passes * self._a_pass - self._skipped)

    def skip(self, n: int) -> "ShardedExamples":
        """The same order without the next `n` examples of this rank: to resume exactly."""
        later = copy(self)
        later._skipped += n
        return later

    def __iter__(self) -> Iterator[TrainingExample]:
        """The examples of this rank, or of this worker of it."""
        first = self._skipped // self._a_pass
        for number in count(first) if self._passes is None else range(first, self._passes):
            yield from self._one_pass(number)

    def _one_pass(self, number: int) -> Iterator[TrainingExample]:
        shards = list(self.manifest.shards)
        rng = random.Random(f"{self._seed} {number}")
        rng.shuffle(shards)
        index = count()
        for at in range(0, len(shards), self._buffer_shards):
            group = shards[at : at + self._buffer_shards]
            rows = [(shard, row) for shard in group for row in range(shard.examples)]
            rng.shuffle(rows)
            wanted = [place for place in rows if self._is_mine(number, next(index))]
            if wanted:
                lines = {shard.file: shard_lines(self.folder, shard) for shard in group}
                yield from (parsed(lines[shard.file][row], shard) for shard, row in wanted)

    def _is_mine(self, number: int, index: int) -> bool:
        """Whether the example at a place in a pass is for this rank and worker, and was not skipped."""
        worker = get_worker_info()
        mine, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        turn, rank = divmod(index, self._world_size)
        since = number * self._a_pass + turn - self._skipped  # turns of this rank since where reading begins
        return rank == self._rank and turn < self._a_pass and since >= 0 and since % workers == mine


def shard_lines(folder: Path, shard: Shard) -> list[bytes]:
    """The examples of a shard, each still a line of JSON.

    Raises:
        TrainingDataError: it is missing, or its bytes are not those of the manifest.
    """
    path = folder / shard.file
    remedy = "Copy the folder again, or build it anew: acre data build --help"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TrainingDataError(f"{path} cannot be read ({error}). {remedy}") from error
    if hashlib.sha256(data).hexdigest() != shard.sha256:
        raise TrainingDataError(f"{path} is damaged: its digest is not the one in the manifest. {remedy}")
    try:
        lines = gzip.decompress(data).splitlines()
    except (OSError, EOFError, zlib.error) as error:
        raise TrainingDataError(f"{path} is not gzip ({error}). {remedy}") from error
    if len(lines) != shard.examples:
        raise TrainingDataError(f"{path} holds {len(lines)} examples; the manifest says {shard.examples}. {remedy}")
    return lines


def parsed(line: bytes, shard: Shard) -> TrainingExample:
    """An example from its line.

    Raises:
        TrainingDataError: it is not one.
    """
    try:
        row: dict[str, Any] = json.loads(line)
        gold = tuple((int(start), int(stop)) for start, stop in row.pop("gold"))
        example = TrainingExample(**row, gold=gold)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        names = ", ".join(field.name for field in fields(TrainingExample))
        raise TrainingDataError(f"{shard.file} holds a line that is no example of {names} ({error}).") from error
    return example


def verify(folder: Path) -> Manifest:
    """Read every byte of a folder of shards.

    Raises:
        TrainingDataError: anything is missing, damaged, or out of its place.
    """
    manifest = load_manifest(folder)
    for shard in manifest.shards:
        for line in shard_lines(folder, shard):
            example = parsed(line, shard)
            if any(not 0 <= start < stop <= len(example.document) for start, stop in example.gold):
                raise TrainingDataError(f"{shard.file}: the gold of {example.id!r} is not within its document.")
            if (example.question is None) != (manifest.stage == 1):
                raise TrainingDataError(f"{shard.file}: {example.id!r} is no example of stage {manifest.stage}.")
    return manifest
