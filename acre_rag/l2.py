"""The exact layer: rows of blocks, wherever they are and however they are coded. Knows no documents and no model.

Rows are any of: a tensor in host memory, shards mapped from a store (store/). A codec says how they are written down.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

NewTensor = Callable[[tuple[int, ...], torch.dtype], Tensor]
"""Makes an empty tensor of a shape and a type in host memory."""


def pageable(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An empty tensor in ordinary memory."""
    return torch.empty(shape, dtype=dtype)


class Rows(Protocol):
    """Host rows `[M, L, ...]`, one per block."""

    def take(self, blocks: Tensor, layers: Tensor | None = None, *, new: NewTensor = pageable) -> Tensor:
        """`[k]` block numbers to `[k, L, ...]`, in host memory.

        Args:
            blocks: block numbers.
            layers: `[k]`, the one layer wanted of each: the result is `[k, 1, ...]`; `None` for all layers.
            new: makes the tensor that takes them.
        """
        ...

    @property
    def host_bytes(self) -> int:
        """Bytes of memory that they hold (0 when mapped from disk)."""
        ...

    @property
    def n_bytes(self) -> int:
        """Bytes of all rows, wherever they are."""
        ...


@dataclass(frozen=True)
class HostRows:
    """Rows in host memory."""

    tensor: Tensor

    def take(self, blocks: Tensor, layers: Tensor | None = None, *, new: NewTensor = pageable) -> Tensor:
        """Copies of some rows, or of one layer of each."""
        rows = self.tensor
        if layers is not None:
            blocks, rows = blocks * rows.shape[1] + layers, rows.flatten(0, 1)[:, None]
        return torch.index_select(rows, 0, blocks, out=new((len(blocks), *rows.shape[1:]), rows.dtype))

    @property
    def host_bytes(self) -> int:
        """All of them."""
        return int(self.tensor.nbytes)

    @property
    def n_bytes(self) -> int:
        """All of them."""
        return int(self.tensor.nbytes)


class Codec(Protocol):
    """How blocks are written down."""

    bits: int

    def encode(self, blocks: Tensor) -> dict[str, Tensor]:
        """`[n, L, 2, Hkv, l, D]` to named parts `[n, ...]`."""
        ...

    def decode(self, parts: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        """The inverse, exactly or nearly."""
        ...


class PlainCodec:
    """Blocks as they are: exact."""

    bits = 16

    def encode(self, blocks: Tensor) -> dict[str, Tensor]:
        """One part."""
        return {"blocks": blocks}

    def decode(self, parts: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        """The part."""
        return parts["blocks"]


@dataclass(frozen=True)
class L2:
    """Keys (un-rotated) and values of all blocks.

    Attributes:
        parts: named rows, as the codec writes them.
        codec: how they are written.
        dtype: type of the decoded blocks.
    """

    parts: Mapping[str, Rows]
    codec: Codec
    dtype: torch.dtype

    @classmethod
    def plain(cls, blocks: Tensor) -> "L2":
        """Exact blocks `[M, L, 2, Hkv, l, D]` in host memory."""
        return cls({"blocks": HostRows(blocks)}, PlainCodec(), blocks.dtype)

    def take(self, blocks: Tensor, layers: Tensor | None = None, *, new: NewTensor = pageable) -> Tensor:
        """`[k]` block numbers to `[k, L, 2, Hkv, l, D]`, or `[k, 1, 2, Hkv, l, D]`, in host memory. As `Rows.take`."""
        parts = {name: rows.take(blocks, layers, new=new) for name, rows in self.parts.items()}
        return self.codec.decode(parts, self.dtype)

    @property
    def host_bytes(self) -> int:
        """Bytes of host memory held."""
        return sum(rows.host_bytes for rows in self.parts.values())

    @property
    def n_bytes(self) -> int:
        """Bytes in all, on disk or in memory."""
        return sum(rows.n_bytes for rows in self.parts.values())
