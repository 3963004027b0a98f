"""From a question's queries to a score for each document token or block: pure functions of tensors."""

from collections.abc import Sequence

import torch
from torch import Tensor

from acre_rag.heads import Head
from acre_rag.rope import Rope

CHUNK_TOKENS = 65_536
"""Document tokens scored at once: bounds the memory of scoring a very long document."""


def attention_mass(queries: Tensor, keys: Tensor, *, scaling: float, chunk: int = CHUNK_TOKENS) -> Tensor:
    """Mean over question tokens of `softmax(q k / sqrt(D))`, over all keys, chunk by chunk.

    Args:
        queries: `[T, D]`.
        keys: `[N, D]`, with the same (or no) rotation.
        scaling: factor of the logits.
        chunk: keys per chunk.

    Returns:
        `[N]` float32, sums to one.
    """
    scaled = queries.float() * scaling
    pieces = keys.split(chunk)
    norms = torch.stack([torch.logsumexp(scaled @ piece.float().T, dim=-1) for piece in pieces])  # [n, T]
    norm = torch.logsumexp(norms, dim=0)[:, None]
    return torch.cat([torch.exp(scaled @ piece.float().T - norm).mean(dim=0) for piece in pieces])


def head_scores(queries: Tensor, head_keys: Tensor, *, rows: Sequence[tuple[Head, int]], scaling: float) -> Tensor:
    """Attention of each retrieval head over every document token, un-rotated.

    Args:
        queries: `[L, H, T, D]` un-rotated.
        head_keys: `[G, N, D]` un-rotated.
        rows: each head with the row of its keys.
        scaling: factor of the logits.

    Returns:
        `[n, N]` float32, one row per head.
    """
    masses = [attention_mass(queries[h.layer, h.head], head_keys[row], scaling=scaling) for h, row in rows]
    return torch.stack(masses)


def pooled_scores(
    queries: Tensor, l1_keys: Tensor, *, scaling: float, rope: Rope | None = None, distance: int = 0
) -> Tensor:
    """Eq. 15, pooled over heads and question tokens: attention of the question over the L1 entries.

    Args:
        queries: `[L, H, T, D]` un-rotated.
        l1_keys: `[L, Hkv, M, D]` un-rotated.
        scaling: factor of the logits.
        rope: rotates both as the paper does; `None` scores un-rotated.
        distance: slots between the first L1 entry and the question's first token, for the rotation.

    Returns:
        `[L, M]` float32.
    """
    layers = []
    for layer_queries, layer_keys in zip(queries, l1_keys, strict=True):
        if rope is not None:
            layer_queries, layer_keys = rope.rotate(layer_queries, distance), rope.rotate(layer_keys)
        layers.append(_layer_scores(layer_queries, layer_keys, scaling=scaling))
    return torch.stack(layers)


def _layer_scores(queries: Tensor, keys: Tensor, *, scaling: float) -> Tensor:
    """One layer of `pooled_scores`: `[H, T, D]` and `[Hkv, M, D]` to `[M]`.

    Layer by layer, and the query heads of one KV head as rows of one product: all layers at once, each key repeated
    for every query head, take over 10 GB for a 7B model and a long document.
    """
    grouped = queries.float().reshape(len(keys), -1, queries.shape[-1]) * scaling  # [Hkv, H / Hkv * T, D]
    return (grouped @ keys.float().mT).softmax(dim=-1).mean(dim=(0, 1))
