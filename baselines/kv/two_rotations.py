"""SelfExtend's attention: near keys at their true distance, far keys at the distance of their groups, one softmax.

Knows queries, keys and positions; nothing of documents. Source: arXiv 2401.01325, github.com/datamllab/LongLM.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers.cache_utils import DynamicLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from acre_rag.decoder import Decoder
from acre_rag.rope import rotated

_NAME = "acre_self_extend"
_MOST_PAIRS = 2**26  # of queries and keys in one mask: 128 MB in bfloat16


class TwoRotations:
    """The two rotations of one model.

    A query at `q` sees a key at `k` with `q - k < w` at positions `q` and `k`, and an earlier one at positions
    `q // g + w - w // g` and `k // g`: the distance goes on from `w`, `g` times slower.

    Args:
        decoder: the model.
        neighbours: `w`, in tokens.
        group: `g`, tokens that share a position.
    """

    def __init__(self, decoder: Decoder, *, neighbours: int, group: int) -> None:
        # The bare method: hooks on the module, ours below among them, are for the model's own calls.
        self._rotary = decoder.base.rotary_emb.forward
        self._probe = torch.zeros(1, device=decoder.device)
        self.neighbours, self.group = neighbours, group

    def near(self, x: Tensor, positions: Tensor) -> Tensor:
        """`x [..., T, D]` at its own positions `[T]`."""
        cos, sin = self._rotary(self._probe, positions[None])
        return rotated(x, cos[0].float(), sin[0].float())

    def far_key(self, x: Tensor, positions: Tensor) -> Tensor:
        """Keys at the positions of their groups."""
        return self.near(x, positions // self.group)

    def far_query(self, x: Tensor, positions: Tensor) -> Tensor:
        """Queries at the positions of their groups, moved so that far begins where near ends."""
        return self.near(x, positions // self.group + self.neighbours - self.neighbours // self.group)


class TwoRotationsLayer(DynamicLayer):
    """A cache layer that takes un-rotated keys, and keeps each at both rotations: `[1, Hkv, T, 2 D]`."""

    def __init__(self, rotations: TwoRotations) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rotations = rotations

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append `[1, Hkv, T, D]` un-rotated keys and their values."""
        first = self.get_seq_length()
        positions = torch.arange(first, first + key_states.shape[-2], device=key_states.device)
        both = [self.rotations.near(key_states, positions), self.rotations.far_key(key_states, positions)]
        keys, values = super().update(torch.cat(both, dim=-1), value_states, *args, **kwargs)
        return keys, values


@contextmanager
def self_extended(decoder: Decoder, rotations: TwoRotations) -> Iterator[None]:
    """Inside the block the model hands on un-rotated queries and keys, and attends by both rotations.

    For one row without padding, on a cache of `TwoRotationsLayer`. No model file is touched: the rotary module's output
    is replaced by "no rotation", and the attention is an attention function of transformers.
    """

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, _mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, None]:
        near_keys, far_keys = key.chunk(2, dim=-1)
        scaling = options.get("scaling") or query.shape[-1] ** -0.5
        return merged_attention(query, near_keys, far_keys, value, rotations, scaling=scaling), None

    config = decoder.model.config
    before = config._attn_implementation
    handle = decoder.base.rotary_emb.register_forward_hook(_no_rotation)
    ALL_ATTENTION_FUNCTIONS[_NAME] = attend  # no mask function of that name: transformers builds no mask
    config._attn_implementation = _NAME
    try:
        yield
    finally:
        config._attn_implementation = before
        del ALL_ATTENTION_FUNCTIONS[_NAME]
        handle.remove()


def _no_rotation(_module: nn.Module, _args: Any, output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    cos, sin = output
    return torch.ones_like(cos), torch.zeros_like(sin)


def merged_attention(
    query: Tensor, near_keys: Tensor, far_keys: Tensor, values: Tensor, rotations: TwoRotations, *, scaling: float
) -> Tensor:
    """Causal attention of the last `T` of `N` tokens.

    Args:
        query: `[1, H, T, D]`, un-rotated.
        near_keys: `[1, Hkv, N, D]` at their positions.
        far_keys: `[1, Hkv, N, D]` at the positions of their groups.
        values: `[1, Hkv, N, D]`.
        rotations: of the queries.
        scaling: factor of the logits.

    Returns:
        `[1, T, H, D]`.
    """
    n_tokens, shares = near_keys.shape[2], query.shape[1] // values.shape[1]
    rows = max(1, _MOST_PAIRS // (shares * (n_tokens + rotations.neighbours)))
    start, out = n_tokens - query.shape[2], []
    for part in query.split(rows, dim=2):
        out.append(_attend_rows(part, start, near_keys, far_keys, values, rotations, scaling))
        start += part.shape[2]
    return torch.cat(out, dim=2).transpose(1, 2)


def _attend_rows(
    query: Tensor,
    first: int,
    near_keys: Tensor,
    far_keys: Tensor,
    values: Tensor,
    rotations: TwoRotations,
    scaling: float,
) -> Tensor:
    """`[1, H, T, D]` for queries at the positions from `first` on, by the fused attention of torch.

    Queries hold both rotations, `2 D` wide, and each key one of them beside zeros: a far key's logit is the far query's
    and a near key's the near query's, in one softmax that is never laid out in memory. Keys that may be either stand
    twice, and the mask leaves each query one of the two. The kernel wants values as wide as keys: zeros once more.
    """
    dim, end = query.shape[-1], first + query.shape[2]
    positions = torch.arange(first, end, device=query.device)
    far, near = slice(0, max(0, end - rotations.neighbours)), slice(max(0, first - rotations.neighbours + 1), end)
    both = torch.cat([rotations.far_query(query, positions), rotations.near(query, positions)], dim=-1)
    keys = torch.cat([pad(far_keys[:, :, far], (0, dim)), pad(near_keys[:, :, near], (dim, 0))], dim=2)
    held = pad(torch.cat([values[:, :, far], values[:, :, near]], dim=2), (0, dim))
    distance = positions[:, None] - torch.arange(end, device=query.device)  # [T, N]
    is_near = (distance >= 0) & (distance < rotations.neighbours)
    mask = torch.cat([(distance >= rotations.neighbours)[:, far], is_near[:, near]], dim=-1)
    n_kv = values.shape[1]
    shares = query.shape[1] // n_kv
    out: Tensor = scaled_dot_product_attention(
        both.unflatten(1, (n_kv, shares)).flatten(2, 3), keys, held, attn_mask=mask.repeat(shares, 1), scale=scaling
    )
    out = out[..., :dim].unflatten(2, (shares, -1)).flatten(1, 2)
    return out
