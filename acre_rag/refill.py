"""Chosen blocks to an ordinary transformers cache (Eq. 18-19); knows nothing of why they were chosen."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from acre_rag.blocks import nested_order
from acre_rag.cache import KV, BiLayerCache
from acre_rag.rope import Rope
from acre_rag.transfer import staging_for, to_device


def refill(
    caches: Sequence[BiLayerCache],
    chosen: Sequence[NDArray[np.int64]],
    *,
    rope: Rope,
    l1_context: bool = True,
) -> KV:
    """The refilled working cache: prefix, then each document in nested order with its tail, at contiguous positions.

    Args:
        caches: the documents asked.
        chosen: per document `[k]` block numbers, or `[L, k]` when each layer has its own; ascending.
        rope: the model's rotation.
        l1_context: whether the L1 entries stand between the refilled blocks.

    Returns:
        Rotated keys and values; new tensors, so the documents' caches are never changed.
    """
    parts = [caches[0].prefix]
    for cache, blocks in zip(caches, chosen, strict=True):
        parts += [_nested(cache, blocks, l1_context=l1_context), cache.tail]
    slots = KV.cat(parts)
    return KV(rope.rotate(slots.keys), slots.values)


def _nested(cache: BiLayerCache, blocks: NDArray[np.int64], *, l1_context: bool) -> KV:
    refilled = _gather_shared(cache, blocks) if blocks.ndim == 1 else _gather_per_layer(cache, blocks)
    pool = KV.cat([cache.l1, refilled])
    orders = np.stack(
        [
            nested_order(row.tolist(), n_blocks=cache.n_blocks, interval=cache.interval, l1_context=l1_context)
            for row in np.atleast_2d(blocks)
        ]
    )
    order = torch.as_tensor(orders, device=pool.keys.device)  # [1 or L, n]
    if len(order) == 1:
        return KV(pool.keys.index_select(2, order[0]), pool.values.index_select(2, order[0]))
    index = order[:, None, :, None].expand(-1, pool.keys.shape[1], -1, pool.keys.shape[3])
    return KV(pool.keys.gather(2, index), pool.values.gather(2, index))


def _gather_shared(cache: BiLayerCache, blocks: NDArray[np.int64]) -> KV:
    """`[k]` blocks of all layers: each one contiguous run of host memory."""
    picked = _fetched(cache, torch.from_numpy(blocks))  # [k, L, 2, Hkv, l, D]
    return _unblocked(picked.permute(1, 2, 3, 0, 4, 5))


def _gather_per_layer(cache: BiLayerCache, blocks: NDArray[np.int64]) -> KV:
    """`[L, k]`: as the paper selects, each layer its own blocks; nothing else of them is touched."""
    layers = torch.arange(len(blocks)).repeat_interleave(blocks.shape[1])
    picked = _fetched(cache, torch.from_numpy(blocks.reshape(-1)), layers)  # [L * k, 1, 2, Hkv, l, D]
    return _unblocked(picked.squeeze(1).unflatten(0, blocks.shape).permute(0, 2, 3, 1, 4, 5))


def _fetched(cache: BiLayerCache, blocks: Tensor, layers: Tensor | None = None) -> Tensor:
    """Blocks of L2 on the model's device, in host memory only once on their way."""
    device = cache.l1.keys.device
    return to_device(cache.l2.take(blocks, layers, new=staging_for(device)), device)


def _unblocked(picked: Tensor) -> KV:
    """`[L, 2, Hkv, k, l, D]` to keys and values `[L, Hkv, k * l, D]`."""
    flat = picked.flatten(3, 4)
    return KV(flat[:, 0], flat[:, 1])
