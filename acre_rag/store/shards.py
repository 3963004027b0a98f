"""L2 on disk: groups of blocks in shards, each group with its digest, mapped into memory. Knows one document's files.

A shard is a safetensors file with one tensor per part, `[blocks, ...]`. Mapped shards cost no memory: a question reads
just the groups of the blocks that it chose, and checks a group's digest the first time it reads from it.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from acre_rag.l2 import L2, HostRows, NewTensor, pageable
from acre_rag.store.manifest import Manifest

_SHARD_BYTES = 64 << 20
_GROUP_BYTES = 4 << 20


class ShardWriter:
    """Cuts an L2 into shards and digests its groups.

    Args:
        l2: any L2, wherever its rows are.
        n_blocks: `M`.
        shard_bytes: about the size of one shard (never less than one group).
        group_bytes: about the size of one group (never less than one block).
    """

    def __init__(
        self, l2: L2, n_blocks: int, *, shard_bytes: int = _SHARD_BYTES, group_bytes: int = _GROUP_BYTES
    ) -> None:
        self._l2, self._n_blocks = l2, n_blocks
        per_block = max(1, l2.n_bytes // max(1, n_blocks))
        self.group_blocks = max(1, group_bytes // per_block)
        self._shard_blocks = max(1, shard_bytes // per_block // self.group_blocks) * self.group_blocks
        self.digests: dict[str, list[str]] = {name: [] for name in l2.parts}
        self.parts: dict[str, tuple[tuple[int, ...], str]] = {}
        self.shards: list[tuple[str, int]] = []

    def files(self) -> Iterator[tuple[str, bytes]]:
        """(name, bytes) of each shard, one at a time; digests are complete when all were taken."""
        # A document shorter than one block has one empty shard: its parts keep their shapes.
        for number, start in enumerate(range(0, max(1, self._n_blocks), self._shard_blocks)):
            blocks = torch.arange(start, min(start + self._shard_blocks, self._n_blocks))
            tensors = {name: rows.take(blocks).contiguous() for name, rows in self._l2.parts.items()}
            for name, tensor in tensors.items():
                self.parts[name] = (tuple(tensor.shape[1:]), str(tensor.dtype).removeprefix("torch."))
                groups = tensor.split(self.group_blocks) if len(tensor) else ()
                self.digests[name] += [tensor_digest(group) for group in groups]
            self.shards.append((f"l2-{number:05d}.safetensors", len(blocks)))
            yield self.shards[-1][0], save(tensors)


class MappedRows:
    """One part of an L2, mapped from its shards.

    Args:
        name: of the part.
        shards: opened shards, shared by all parts.
    """

    def __init__(self, name: str, shards: "MappedShards") -> None:
        self._name, self._shards = name, shards

    def take(self, blocks: Tensor, layers: Tensor | None = None, *, new: NewTensor = pageable) -> Tensor:
        """Copies of some rows, or of one layer of each, their groups checked."""
        return self._shards.take(self._name, blocks, layers, new=new)

    @property
    def host_bytes(self) -> int:
        """None: the pages belong to the file cache."""
        return 0

    @property
    def n_bytes(self) -> int:
        """On disk."""
        return self._shards.n_bytes(self._name)


class MappedShards:
    """All shards of one document, mapped and checked as they are read.

    Args:
        folder: the document's folder.
        manifest: what should be in it.
        damaged: called with what is wrong; raises.

    Raises:
        CorruptCacheError: a shard is missing, of another length, or not what the manifest says.
    """

    def __init__(self, folder: Path, manifest: Manifest, damaged: Callable[[str], NoReturn]) -> None:
        self._folder, self._manifest, self._damaged = folder, manifest, damaged
        self._starts = np.cumsum([0, *(blocks for _, blocks in manifest.shards)])
        self._tensors = [self._open(name, blocks) for name, blocks in manifest.shards]
        per_shard = [-(-blocks // manifest.group_blocks) for _, blocks in manifest.shards]
        self._first_group = np.cumsum([0, *per_shard])
        self._checked = {name: np.zeros(int(self._first_group[-1]), dtype=bool) for name in manifest.parts}

    def rows(self) -> dict[str, MappedRows]:
        """The parts."""
        return {name: MappedRows(name, self) for name in self._manifest.parts}

    def n_bytes(self, part: str) -> int:
        """Bytes of one part."""
        return sum(tensors[part].nbytes for tensors in self._tensors)

    def take(self, part: str, blocks: Tensor, layers: Tensor | None = None, *, new: NewTensor = pageable) -> Tensor:
        """`[k]` block numbers to `[k, L, ...]`, or with layers to `[k, 1, ...]`."""
        wanted = blocks.numpy()
        (n_layers, *shape), dtype = self._manifest.parts[part]
        picked = new((len(wanted), n_layers if layers is None else 1, *shape), getattr(torch, dtype))
        shard_of = np.searchsorted(self._starts, wanted, side="right") - 1
        for shard in np.unique(shard_of):
            here = np.flatnonzero(shard_of == shard)
            inside = wanted[here] - self._starts[shard]
            self._check_length(int(shard))
            for group in np.unique(inside // self._manifest.group_blocks):
                self._check(part, int(shard), int(group))
            rows = HostRows(self._tensors[shard][part])
            picked[here] = rows.take(torch.from_numpy(inside), None if layers is None else layers[here])
        return picked

    def check_all(self) -> None:
        """Read and check every group."""
        for part in self._manifest.parts:
            for shard, (_, blocks) in enumerate(self._manifest.shards):
                self._check_length(shard)
                for group in range(-(-blocks // self._manifest.group_blocks)):
                    self._check(part, shard, group)

    def _open(self, name: str, n_blocks: int) -> Mapping[str, Tensor]:
        self._check_length_of(name)
        try:
            with safe_open(self._folder / name, framework="pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            self._damaged(f"{name} cannot be read ({error})")
        found = {key: (tuple(t.shape), str(t.dtype).removeprefix("torch.")) for key, t in tensors.items()}
        expected = {key: ((n_blocks, *shape), dtype) for key, (shape, dtype) in self._manifest.parts.items()}
        if found != expected:
            self._damaged(f"{name} holds {found}, expected {expected}")
        return tensors

    def _check_length(self, shard: int) -> None:
        """A mapped file that became shorter would crash the process when it is read."""
        self._check_length_of(self._manifest.shards[shard][0])

    def _check_length_of(self, name: str) -> None:
        path, expected = self._folder / name, self._manifest.files[name].bytes
        try:
            actual = path.stat().st_size
        except OSError:
            return self._check_gone(name)
        if actual != expected or path.is_symlink():
            self._damaged(f"{name} has {actual:,} bytes, expected {expected:,}")

    def _check_gone(self, name: str) -> None:
        """A mapping outlives its folder's removal; a folder without one of its files is damaged."""
        if self._folder.exists() or not hasattr(self, "_tensors"):
            self._damaged(f"{name} is missing")

    def _check(self, part: str, shard: int, group: int) -> None:
        place = int(self._first_group[shard]) + group
        if self._checked[part][place]:
            return
        size = self._manifest.group_blocks
        rows = self._tensors[shard][part][group * size : (group + 1) * size]
        if tensor_digest(rows) != self._manifest.digests[part][place]:
            first, file = group * size, self._manifest.shards[shard][0]
            self._damaged(f"blocks {first} to {first + len(rows) - 1} of {file} were changed (tensor {part!r})")
        self._checked[part][place] = True


def tensor_digest(tensor: Tensor) -> str:
    """SHA-256 of a contiguous tensor's bytes."""
    raw: Any = tensor.contiguous().view(torch.uint8).numpy()
    return hashlib.sha256(raw).hexdigest()
