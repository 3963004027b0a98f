"""Numbers in few bits, as KIVI writes them: groups along the last axis, each with its lowest value and its step.

Knows no cache. Ours, because torchao's public quantiser lets no group leave out zero (a key channel far from zero would
lose most of its levels), and quanto compiles C++ on its first use.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Codes:
    """`[..., n]` numbers in `bits` bits.

    Attributes:
        packed: `[..., n * bits / 8]` uint8, the first number of a byte in its lowest bits.
        low: `[..., n / G]`, each group's lowest value.
        step: `[..., n / G]`, the difference between neighbouring levels; at least the type's smallest normal number.
        bits: 2, 4 or 8.
        dtype: type of the numbers.
    """

    packed: Tensor
    low: Tensor
    step: Tensor
    bits: int
    dtype: torch.dtype

    def decode(self) -> Tensor:
        """The numbers, each off by half a step of its group at most."""
        shifts = _shifts(self.bits, self.packed.device)
        codes = (self.packed[..., None] >> shifts & (2**self.bits - 1)).flatten(-2)  # [..., n]
        groups: Tensor = codes.unflatten(-1, (self.low.shape[-1], -1)).to(self.step.dtype)
        return torch.addcmul(self.low[..., None], groups, self.step[..., None]).flatten(-2).to(self.dtype)

    def cat(self, more: "Codes", dim: int) -> "Codes":
        """These numbers and more of the same kind."""
        packed, low, step = (torch.cat(pair, dim) for pair in zip(self._parts, more._parts, strict=True))
        return Codes(packed, low, step, self.bits, self.dtype)

    @property
    def n_bytes(self) -> int:
        """Bytes held."""
        return sum(part.nbytes for part in self._parts)

    @property
    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.packed, self.low, self.step


def encode(x: Tensor, *, bits: int, group: int) -> Codes:
    """Asymmetric rounding to the nearest of `2 ** bits` levels between each group's lowest and highest value.

    Args:
        x: `[..., n]`, `n` a multiple of `group` and of the numbers in a byte.
        bits: 2, 4 or 8.
        group: neighbouring numbers that share a step.
    """
    # bfloat16 has too few digits for the lowest value of a channel far from zero.
    kept = torch.float32 if x.dtype == torch.bfloat16 else x.dtype
    groups = x.unflatten(-1, (-1, group)).to(kept)
    low, high = groups.aminmax(dim=-1, keepdim=True)
    step = ((high - low) / (2**bits - 1)).clamp_min(torch.finfo(kept).tiny)
    codes = ((groups - low) / step).round().clamp(0, 2**bits - 1).to(torch.uint8).flatten(-2)
    shifts = _shifts(bits, x.device)
    packed = (codes.unflatten(-1, (-1, len(shifts))) << shifts).sum(-1, dtype=torch.uint8)
    return Codes(packed, low[..., 0], step[..., 0], bits, x.dtype)


def _shifts(bits: int, device: torch.device) -> Tensor:
    return torch.arange(0, 8, bits, dtype=torch.uint8, device=device)
