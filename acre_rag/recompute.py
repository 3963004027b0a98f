"""Chosen blocks read anew where they stand in the working cache, instead of as L2 keeps them. Knows no questions.

L2 keeps what a token was when the whole document was read, much of it through L1. Read anew, a passage has in view the
prompt, the L1 entries (if they stay) and the passages before it, as text retrieval would show it. Beyond the paper; it
costs one forward pass over the refilled tokens for each question.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache

from acre_rag.blocks import merge_runs
from acre_rag.cache import KV, BiLayerCache
from acre_rag.construct import slots_of
from acre_rag.decoder import Decoder


def recompute(
    decoder: Decoder,
    caches: Sequence[BiLayerCache],
    token_ids: Sequence[NDArray[np.int32]],
    chosen: Sequence[NDArray[np.int64]],
    *,
    l1_context: bool = True,
) -> KV:
    """The working cache of `refill.refill`, its blocks computed anew at their contiguous positions.

    A run of neighbouring blocks is read in one pass and stands before its L1 entries.

    Args:
        decoder: the model.
        caches: of the documents asked.
        token_ids: `[N]` of each document.
        chosen: `[k]` block numbers of each, ascending, the same for all layers.
        l1_context: whether the L1 entries stand between the refilled blocks.

    Returns:
        Rotated keys and values; new tensors.
    """
    view = _GrowingView(decoder)
    view.append(caches[0].prefix)
    for cache, ids, blocks in zip(caches, token_ids, chosen, strict=True):
        entries = cache.l1 if l1_context else cache.l1.slots(0, 0)
        done = 0
        for run in merge_runs(blocks.tolist()):
            view.append(entries.slots(done, run.start))
            view.read(ids[run.start * cache.interval : run.stop * cache.interval])
            done = run.start
        view.append(entries.slots(done, len(entries)))
        view.append(cache.tail)
    return slots_of(view.cache, 0)


class _GrowingView:
    """An ordinary transformers cache that grows by kept slots and by tokens read behind them."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder, self.cache = decoder, DynamicCache()

    def append(self, slots: KV) -> None:
        """Put un-rotated slots behind what stands."""
        if not len(slots):
            return
        keys = self._decoder.rope.rotate(slots.keys, self.cache.get_seq_length())
        for layer, (own_keys, own_values) in enumerate(zip(keys, slots.values, strict=True)):
            self.cache.update(own_keys[None], own_values[None], layer)

    def read(self, ids: NDArray[np.int32]) -> None:
        """Read tokens behind what stands."""
        batch = torch.from_numpy(ids.astype(np.int64)).to(self._decoder.device)[None]
        with torch.inference_mode():
            self._decoder.base(input_ids=batch, past_key_values=self.cache, use_cache=True)
