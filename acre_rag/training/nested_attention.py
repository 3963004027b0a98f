"""Attention over a whole nested sequence in one forward pass, equal to reading it step by step, gradients included.

Knows layouts, keys and queries; nothing of what is trained. The model rotates every slot to its place in the whole
line of slots. A step sees some earlier slots as if the unseen ones between had never been there, so what lies left of a
gap is *moved*: its key is rotated on by the number of unseen slots. Recent slots stay as they are. Three ways to
compute the same thing:

- "strided": one attention call a step over just the keys that it sees. No work is wasted.
- "dense": all keys, moved copies behind them, and one boolean mask.
- "flex": the same keys and the same mask as a FlexAttention block mask, for CUDA devices.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, cached_property
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from acre_rag.decoder import Decoder
from acre_rag.errors import ConfigError
from acre_rag.rope import rotated
from acre_rag.training.layout import Layout, Step

Way = Literal["strided", "dense", "flex"]
Watch = Callable[[int, Tensor, Tensor], None]
"""Called with (layer, queries `[B, H, T, D]`, keys `[B, Hkv, T, D]`) of all slots, each rotated to its slot."""

_NAME = "acre_nested"
_BLOCK = 128  # slots and keys of one block of FlexAttention's masks


@contextmanager
def nested_attention(decoder: Decoder, layout: Layout, *, way: Way | None = None) -> Iterator[dict[str, Any]]:
    """Inside the block the model attends as the layout says.

    Args:
        decoder: the model; its own attention is back when the block is left.
        layout: who sees whom.
        way: how it is computed; by default "flex" on CUDA devices and "strided" elsewhere.

    Yields:
        What to pass to the model's forward call, together with all slots as one sequence.

    Raises:
        ConfigError: the model's rotation changes with the length, and this line of slots is beyond its window.
    """
    _check_rotation(decoder, layout)
    way = way or ("flex" if decoder.device.type == "cuda" else "strided")
    with switched(decoder):
        yield {"nested": _WAYS[way](decoder, layout)}


@contextmanager
def switched(decoder: Decoder) -> Iterator[None]:
    """Inside the block the model's layers call the attention of this file; what they are to see comes with the call."""
    config = decoder.model.config
    before = config._attn_implementation
    ALL_ATTENTION_FUNCTIONS.register(_NAME, _attention)
    config._attn_implementation = _NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, _mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """What transformers calls in every layer."""
    nested: _Strided | _Masked = options["nested"]
    watch: Watch | None = options.get("watch")
    if watch:
        watch(cast(int, module.layer_idx), query, key)
    return nested.attend(module, query, key, value, options.get("scaling")), None


class _Strided:
    """One attention call a step."""

    def __init__(self, decoder: Decoder, layout: Layout) -> None:
        self._steps = [(step, _Moves(decoder, [step])) for step in layout.steps]
        self._masks = [_lower_right(step, decoder.device) for step in layout.steps]

    def attend(self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, scaling: float | None) -> Tensor:
        """`q [B, H, T, D]`, `k, v [B, Hkv, T, D]`, rotated to their slots; returns `[B, T, H, D]`."""
        out = []
        for (step, moves), mask in zip(self._steps, self._masks, strict=True):
            near = slice(step.start - len(step.seen) + step.n_moved, step.stop)
            keys = torch.cat([moves.keys(k), k[:, :, near]], dim=2)
            values = torch.cat([moves.values(v), v[:, :, near]], dim=2)
            queries = q[:, :, step.start : step.stop]
            out.append(sdpa_attention_forward(module, queries, keys, values, mask, scaling=scaling)[0])
        return torch.cat(out, dim=1)


class _Masked:
    """All slots, then the moved copies of every step, under one mask."""

    def __init__(self, decoder: Decoder, layout: Layout) -> None:
        self._device = decoder.device
        self._moves = _Moves(decoder, layout.steps)
        self._n_slots = layout.n_slots
        sizes = torch.tensor([step.stop - step.start for step in layout.steps])
        near = torch.tensor([step.start - len(step.seen) + step.n_moved for step in layout.steps])
        moved = torch.tensor([step.n_moved for step in layout.steps])
        numbers = torch.arange(len(layout.steps))
        self._step_of_slot = numbers.repeat_interleave(sizes).to(self._device)  # [T]
        self._near_of_slot = near.repeat_interleave(sizes).to(self._device)  # [T]
        copies = numbers.repeat_interleave(moved).to(self._device)
        self._step_of_key = torch.cat([self._step_of_slot, copies])  # [T + copies]

    def visible(self, _batch: Any, _head: Any, q: Tensor, key: Tensor) -> Tensor:
        """Whether slot `q` attends to key number `key`: a near slot, or its own step's copy of a moved one."""
        near = (key <= q) & (key >= self._near_of_slot[q])
        copy = (key >= self._n_slots) & (self._step_of_key[key] == self._step_of_slot[q])
        return near | copy

    def attend(self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, scaling: float | None) -> Tensor:
        """As `_Strided.attend`."""
        keys = torch.cat([k, self._moves.keys(k)], dim=2)
        values = torch.cat([v, self._moves.values(v)], dim=2)
        return self.compute(module, q, keys, values, scaling)

    def compute(self, module: nn.Module, q: Tensor, keys: Tensor, values: Tensor, scaling: float | None) -> Tensor:
        """With a boolean mask `[T, T + copies]`."""
        return sdpa_attention_forward(module, q, keys, values, self._mask[None, None], scaling=scaling)[0]

    @cached_property
    def _mask(self) -> Tensor:
        slots = torch.arange(self._n_slots, device=self._device)
        keys = torch.arange(len(self._step_of_key), device=self._device)
        return self.visible(None, None, slots[:, None], keys[None])


class _Flex(_Masked):
    """The same with a block mask: blocks of slots that see nothing of a block of keys cost nothing."""

    def compute(self, module: nn.Module, q: Tensor, keys: Tensor, values: Tensor, scaling: float | None) -> Tensor:
        """With FlexAttention, compiled where that pays."""
        out: Tensor = _flex_attention(q.device.type)(
            q, keys, values, block_mask=self._block_mask, scale=scaling, enable_gqa=q.shape[1] != keys.shape[1]
        )
        return out.transpose(1, 2).contiguous()

    @cached_property
    def _block_mask(self) -> Any:
        from torch.nn.attention.flex_attention import BlockMask

        def visible(batch: Tensor, head: Tensor, q: Tensor, key: Tensor) -> Tensor:
            return self.visible(batch, head, q, key)  # FlexAttention takes functions, not methods

        n_visible = torch.stack([self._visible_in_row(first) for first in range(0, self._n_slots, _BLOCK)])
        whole = n_visible == _BLOCK**2
        return BlockMask.from_kv_blocks(
            *_chosen_first((n_visible > 0) & ~whole),
            *_chosen_first(whole),
            BLOCK_SIZE=_BLOCK,
            mask_mod=visible,
            seq_lengths=(self._n_slots, len(self._step_of_key)),
        )

    def _visible_in_row(self, first: int) -> Tensor:
        """`[blocks of keys]` pairs that attend in one row of blocks; torch's own way holds the mask of all rows."""
        slots = torch.arange(first, min(first + _BLOCK, self._n_slots), device=self._device)
        keys = torch.arange(len(self._step_of_key), device=self._device)
        mask = self.visible(None, None, slots[:, None], keys[None])
        blocks: Tensor = nn.functional.pad(mask, (0, -len(keys) % _BLOCK)).unflatten(1, (-1, _BLOCK))
        return blocks.sum((0, 2))


def _chosen_first(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """`[rows, n]` to how many each row has, and all its numbers, the chosen ones first; as torch orders them."""
    order = chosen.int().argsort(dim=1, descending=True, stable=True)
    return chosen.sum(1, dtype=torch.int32)[None, None], order.int()[None, None]


_WAYS: dict[str, Callable[[Decoder, Layout], Any]] = {"strided": _Strided, "dense": _Masked, "flex": _Flex}


class _Moves:
    """The seen slots of some steps that move, one step after another, and their rotation."""

    def __init__(self, decoder: Decoder, steps: Sequence[Step]) -> None:
        self._slots = torch.cat([step.seen[: step.n_moved] for step in steps]).to(decoder.device)
        moved = [step.shifts[: step.n_moved] for step in steps]
        shifts = torch.cat([*moved, torch.zeros(1)]).to(decoder.device)  # a module takes no empty one
        with torch.no_grad():
            cos, sin = decoder.base.rotary_emb(torch.zeros(1, device=decoder.device), shifts[None])
        norm = (cos[0, :, :1] ** 2 + sin[0, :, :1] ** 2).sqrt()  # scaled rotations (yarn) have scaled the key already
        self._cos, self._sin = (cos[0] / norm)[:-1], (sin[0] / norm)[:-1]  # [n, R]

    def keys(self, k: Tensor) -> Tensor:
        """`[B, Hkv, n, D]`, rotated on to where the steps see them."""
        return rotated(k.index_select(2, self._slots), self._cos, self._sin)

    def values(self, v: Tensor) -> Tensor:
        """`[B, Hkv, n, D]`."""
        return v.index_select(2, self._slots)


def _lower_right(step: Step, device: torch.device) -> Tensor | None:
    """`[1, 1, T, K + T]`: all that is seen, and itself causally; `None` where plain causal attention does."""
    if not len(step.seen):
        return None
    n_new = step.stop - step.start
    mask = torch.ones(n_new, len(step.seen) + n_new, dtype=torch.bool, device=device)
    return mask.tril(len(step.seen))[None, None]


def _check_rotation(decoder: Decoder, layout: Layout) -> None:
    rope = getattr(decoder.model.config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "dynamic" and layout.n_slots > decoder.model_window:
        raise ConfigError(
            f"The frequencies of this model's rotation change beyond {decoder.model_window:,} places, and the nested "
            f"sequence has {layout.n_slots:,}. Train on shorter documents, or with reading='sequential'."
        )


@cache
def _flex_attention(device: str) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True) if device == "cuda" else flex_attention
