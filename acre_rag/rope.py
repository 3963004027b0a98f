"""Rotate and un-rotate keys with a model's own RoPE module; knows nothing of caches or blocks.

Keys are kept *un-rotated* (position-free), and rotated once when they get their place in a working cache: a rotation
by the difference of two positions is the same thing (RoPE is a rotation), but would need every key's old position.
"""

import torch
from torch import Tensor, nn


class Rope:
    """The rotation of one model: frequencies and scaling come from its own rotary module.

    Args:
        rotary: the model's rotary module: `rotary(x, position_ids [1, T]) -> cos, sin [1, T, R]`, `R <= D`.
        device: where the tables live.
    """

    def __init__(self, rotary: nn.Module, device: torch.device) -> None:
        self._rotary = rotary
        self._device = device
        self._cos = torch.empty(0, 0, device=device)
        self._sin = torch.empty(0, 0, device=device)

    def rotate(self, x: Tensor, start: int = 0) -> Tensor:
        """Rotate `x [..., T, D]` to positions `start, start + 1, ...`, in float32, back in the dtype of `x`."""
        cos, sin = self._tables(start, x.shape[-2])
        return rotated(x, cos, sin)

    def unrotate(self, x: Tensor, start: int = 0) -> Tensor:
        """Inverse of `rotate` for `x [..., T, D]`; exact up to rounding.

        Scaled rotations (yarn multiplies cos and sin by one factor) are divided by that factor squared, because
        `R(-p) s R(p) s k = s^2 k`.
        """
        cos, sin = self._tables(start, x.shape[-2])
        norm = cos[:, :1] ** 2 + sin[:, :1] ** 2
        return rotated(x, cos / norm, -sin / norm)

    def _tables(self, start: int, length: int) -> tuple[Tensor, Tensor]:
        if self._cos.shape[0] < start + length:
            # Longer than asked, so that it seldom grows; not beyond the model's window: "dynamic" scaling changes every
            # frequency there.
            spare = min(2 * self._cos.shape[0], int(getattr(self._rotary, "original_max_seq_len", 0)))
            positions = torch.arange(max(start + length, spare), device=self._device)
            with torch.no_grad():
                cos, sin = self._rotary(torch.zeros(1, device=self._device), positions[None])
            self._cos, self._sin = cos[0].float(), sin[0].float()  # [T, R]
        return self._cos[start : start + length], self._sin[start : start + length]


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`x cos + rotate_half(x) sin` over the first `R` dimensions; the others (partial rotary) pass.

    Args:
        x: `[..., T, D]`.
        cos: `[T, R]`.
        sin: `[T, R]`.
    """
    rotary_dim = cos.shape[-1]
    part = x[..., :rotary_dim].float()
    first, second = part.chunk(2, dim=-1)
    half = rotary_dim // 2
    out = torch.empty_like(x)
    out[..., :half] = first * cos[:, :half] - second * sin[:, :half]
    out[..., half:rotary_dim] = second * cos[:, half:] + first * sin[:, half:]
    out[..., rotary_dim:] = x[..., rotary_dim:]
    return out
