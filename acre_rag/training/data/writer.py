"""Writes shards: one after another, with no more than one in memory, and whole or not at all. Knows no sources.

Equal examples give equal bytes: the gzip headers carry no name and no time.
"""

import gzip
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from uuid import uuid4

from acre_rag.errors import TrainingDataError
from acre_rag.store.files import make_dir, rename, sync_dir, write_file
from acre_rag.training.data.example import TrainingExample
from acre_rag.training.data.manifest import Shard

_SHARD_BYTES = 16 * 2**20


class ShardWriter:
    """Fills a folder with shards.

    Args:
        folder: where they go; it exists.
        shard_examples: most examples of one; a shard of long documents ends earlier, at 16 MiB before compression.
    """

    def __init__(self, folder: Path, *, shard_examples: int) -> None:
        self.shards: list[Shard] = []
        self._folder = folder
        self._most = shard_examples
        self._open()

    def add(self, example: TrainingExample) -> bool:
        """One more example; says whether it filled a shard."""
        line = json.dumps(asdict(example), ensure_ascii=False).encode() + b"\n"
        self._gzip.write(line)
        self._examples += 1
        self._bytes += len(line)
        full = self._examples >= self._most or self._bytes >= _SHARD_BYTES
        if full:
            self.flush()
        return full

    def flush(self) -> None:
        """Write what is in memory."""
        if not self._examples:
            return
        self._gzip.close()
        data = self._buffer.getvalue()
        name = f"shard-{len(self.shards):05d}.jsonl.gz"
        write_file(self._folder / name, [data])
        digest = hashlib.sha256(data).hexdigest()
        self.shards.append(Shard(file=name, examples=self._examples, bytes=len(data), sha256=digest))
        self._open()

    def _open(self) -> None:
        self._buffer = io.BytesIO()
        self._gzip = gzip.GzipFile(filename="", mode="wb", fileobj=self._buffer, mtime=0)
        self._examples = self._bytes = 0


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to fill; at the end of the block it is at `target`, and on any error nothing is.

    Raises:
        TrainingDataError: `target` exists, or cannot be written.
    """
    if os.path.lexists(target):
        raise TrainingDataError(f"{target} exists. Name a new folder, or remove that one first.")
    made = target.with_name(f".{target.name}.{uuid4().hex}")
    try:
        make_dir(made)
        yield made
        sync_dir(made)
        rename(made, target)
        sync_dir(target.parent)
    except OSError as error:
        raise TrainingDataError(
            f"{target} cannot be written ({error}). Free some room, or name another folder."
        ) from error
    finally:
        shutil.rmtree(made, ignore_errors=True)
