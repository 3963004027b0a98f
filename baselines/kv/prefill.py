"""Token ids to a transformers cache, stride by stride, and copies of a cache. Knows no method."""

import copy
from collections.abc import Iterator

from torch import Tensor
from transformers import Cache, DynamicCache

from acre_rag.construct import ProgressCallback
from acre_rag.decoder import Decoder

STRIDE = 2048
"""Tokens of one forward pass: bounds the memory of reading."""


def strides(n_tokens: int, *, stride: int = STRIDE, last: int = 1) -> Iterator[tuple[int, int]]:
    """(start, stop) of each forward pass; a rest of fewer than `last` tokens goes with the pass before it."""
    starts = [start for start in range(0, n_tokens, stride) if start == 0 or n_tokens - start >= last]
    return zip(starts, [*starts[1:], n_tokens], strict=True)


def prefill(
    decoder: Decoder, ids: Tensor, progress: ProgressCallback, *, cache: Cache | None = None, stride: int = STRIDE
) -> Cache:
    """What the stock model caches of `ids [N]`: the same as in one forward pass, in less memory.

    Args:
        decoder: the model.
        ids: the tokens.
        progress: called with (tokens read, tokens in all) after each stride.
        cache: takes the keys and values; an ordinary `DynamicCache` by default.
        stride: tokens of one forward pass.
    """
    cache = DynamicCache() if cache is None else cache
    for start, stop in strides(len(ids), stride=stride):
        forward(decoder, ids[start:stop], cache)
        progress(stop, len(ids))
    return cache


def forward(decoder: Decoder, ids: Tensor, cache: Cache) -> None:
    """Read `ids [T]` behind what `cache` holds; the cache grows by them."""
    decoder.base(input_ids=ids[None], past_key_values=cache, use_cache=True)


def copied(cache: Cache) -> Cache:
    """A cache that grows on its own, while `cache` stays as it is.

    Tensors are shared, not copied: the layers of transformers that grow, and ours, replace their tensors and never
    write into them.
    """
    twin = copy.copy(cache)
    twin.layers = [copy.copy(layer) for layer in cache.layers]
    return twin
