"""L2 in 8 or 4 bits (library: torchao): keys per channel of a block, values per token, as KIVI found best. No model.

arXiv 2402.02750: keys have outlier channels, values do not; so a key is scaled with its channel's `l` tokens, a value
with the `D` channels of its token.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from acre_rag.cache import BiLayerCache
from acre_rag.errors import MissingExtraError
from acre_rag.l2 import L2, Codec, HostRows, PlainCodec

_CHUNK_BLOCKS = 256
_AXES = {"keys": 3, "values": 4}  # of [n, L, Hkv, l, D]: the axis that shares one scale


class QuantisedCodec:
    """Blocks in 8 or 4 bits with one scale and zero point per group, in the blocks' own type.

    Args:
        bits: 8 or 4.
    """

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self._ops = _torchao()

    @property
    def _highest(self) -> int:
        return int(2**self.bits - 1)

    def encode(self, blocks: Tensor) -> dict[str, Tensor]:
        """`[n, L, 2, Hkv, l, D]` to codes (`[n, L, Hkv, l, D]`, two per byte at 4 bits), steps and lowest values.

        The library lets no group's range leave out zero, and a key channel far from zero (a model with biases) would
        lose most of its levels: so each group is moved to begin at zero, or just above it, first.
        """
        parts = {}
        for kind, (name, axis) in enumerate(_AXES.items()):
            exact = blocks[:, :, kind].float()
            low = _rounded_down(exact.amin(axis, keepdim=True), blocks.dtype)
            x = exact - low.float()
            group = _group(x, axis)
            scale, zero = self._ops.choose_qparams_affine(
                x, self._ops.MappingType.ASYMMETRIC, group, torch.uint8, 0, self._highest, scale_dtype=torch.float32
            )
            scale = scale.to(blocks.dtype).float()  # kept in the blocks' own type, so it must be used as such
            codes = self._ops.quantize_affine(x, group, scale, zero, torch.uint8, 0, self._highest)
            parts[name] = _packed(codes) if self.bits == 4 else codes
            parts[f"{name}_scale"] = scale.to(blocks.dtype)
            parts[f"{name}_low"] = low
        return parts

    def decode(self, parts: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        """Back to `[n, L, 2, Hkv, l, D]`; each value is off by half a step of its group at most."""
        both = []
        for name, axis in _AXES.items():
            codes = _unpacked(parts[name]) if self.bits == 4 else parts[name]
            scale = parts[f"{name}_scale"].float()
            zero = torch.zeros_like(scale, dtype=torch.int32)
            moved = self._ops.dequantize_affine(
                codes, _group(codes, axis), scale, zero, torch.uint8, 0, self._highest, output_dtype=torch.float32
            )
            both.append((moved + parts[f"{name}_low"].float()).to(dtype))
        return torch.stack(both, dim=2)


def codec_of(bits: int) -> Codec:
    """The codec of 16 (as they are), 8 or 4 bits.

    Raises:
        MissingExtraError: torchao is not installed.
    """
    return PlainCodec() if bits == 16 else QuantisedCodec(bits)


def with_codec(cache: BiLayerCache, codec: Codec) -> BiLayerCache:
    """The same cache with its L2 written by another codec, in host memory."""
    if codec.bits == cache.l2.codec.bits:
        return cache
    parts: dict[str, Tensor] = {}
    for start in range(0, cache.n_blocks, _CHUNK_BLOCKS):
        chunk = codec.encode(cache.l2.take(torch.arange(start, min(start + _CHUNK_BLOCKS, cache.n_blocks))))
        for name, rows in chunk.items():
            if name not in parts:
                parts[name] = rows.new_empty(cache.n_blocks, *rows.shape[1:])
            parts[name][start : start + len(rows)] = rows
    if not parts:
        return cache
    return replace(cache, l2=L2({name: HostRows(rows) for name, rows in parts.items()}, codec, cache.l2.dtype))


def _group(x: Tensor, axis: int) -> tuple[int, ...]:
    return tuple(size if i == axis else 1 for i, size in enumerate(x.shape))


def _rounded_down(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The greatest number of `dtype` that is not above each of `x`."""
    near = x.to(dtype)
    return torch.where(near.float() > x, torch.nextafter(near, torch.full_like(near, -torch.inf)), near)


def _packed(codes: Tensor) -> Tensor:
    """Two 4-bit codes to a byte, along the last axis."""
    return codes[..., 0::2] | codes[..., 1::2] << 4


def _unpacked(packed: Tensor) -> Tensor:
    return torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2)


def _torchao() -> Any:
    log = logging.getLogger("torch.utils._pytree")
    log.addFilter(_silent)  # torch speaks of torchao's own classes while they are imported
    try:
        from torchao.quantization import quant_primitives
    except ImportError as error:
        raise MissingExtraError("torchao", "quantised", "An L2 of 8 or 4 bits") from error
    finally:
        log.removeFilter(_silent)
    return quant_primitives


def _silent(_record: logging.LogRecord) -> bool:
    return False
