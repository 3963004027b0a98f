"""Tokens to blocks, blocks to nested slots, blocks to characters: plain arithmetic, no tensors, no model."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from acre_rag.errors import CapacityError


@dataclass(frozen=True)
class Run:
    """Neighbouring blocks `start <= b < stop`."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


def merge_runs(blocks: Iterable[int]) -> list[Run]:
    """Neighbouring block numbers merged into runs, in document order."""
    runs: list[Run] = []
    for block in sorted(set(blocks)):
        if runs and runs[-1].stop == block:
            runs[-1] = Run(runs[-1].start, block + 1)
        else:
            runs.append(Run(block, block + 1))
    return runs


def blocks_of_tokens(start: int, stop: int, *, interval: int, n_blocks: int) -> Run:
    """Smallest run of whole blocks that covers tokens `start <= t < stop` (the tail belongs to no block)."""
    first = min(start // interval, n_blocks)
    last = min(-(-stop // interval), n_blocks)
    return Run(first, max(first, last))


def tokens_of_chars(start: int, stop: int, offsets: NDArray[np.int64]) -> tuple[int, int]:
    """Tokens `a <= t < b` that overlap characters `start <= c < stop`.

    Args:
        start: first character.
        stop: one past the last character.
        offsets: `[N, 2]` character span of each token, ascending.
    """
    first = int(np.searchsorted(offsets[:, 1], start, side="right"))
    last = int(np.searchsorted(offsets[:, 0], stop, side="left"))
    return first, max(first, last)


def chars_of_tokens(start: int, stop: int, offsets: NDArray[np.int64]) -> tuple[int, int]:
    """Characters `a <= c < b` that tokens `start <= t < stop` cover."""
    if stop <= start:
        return 0, 0
    return int(offsets[start, 0]), int(offsets[stop - 1, 1])


def nested_order(chosen: Sequence[int], *, n_blocks: int, interval: int, l1_context: bool = True) -> NDArray[np.int64]:
    """Eq. 18-19: slots of the refilled cache in nested order, each block just before its L1 entry.

    Args:
        chosen: block numbers to refill, any order, no repeats.
        n_blocks: `M`.
        interval: `l`.
        l1_context: whether the L1 entries stand in the cache at all.

    Returns:
        Slot numbers: `0 <= s < M` is L1 entry `s`; `M + i * l + j` is token `j` of the `i`-th chosen block in
        document order.
    """
    ordered = sorted(chosen)
    if not l1_context:
        return n_blocks + np.arange(len(ordered) * interval, dtype=np.int64)
    l1 = np.arange(n_blocks, dtype=np.int64)
    l2 = n_blocks + np.arange(len(ordered) * interval, dtype=np.int64)
    return np.insert(l1, np.repeat(np.asarray(ordered, dtype=np.int64), interval), l2)


def distant_blocks(*, n_done: int, prefix: int, incoming: int, window: int, slots_per_block: int) -> int:
    """Eq. 13-14: how many of the blocks already read stand as L1 alone, so that `|K| <= W`.

    As many blocks as the window allows stay recent (all their slots attended to); the others are distant.

    Args:
        n_done: blocks read so far.
        prefix: keys of the prefix.
        incoming: keys of the stride about to be read, L1 tokens included.
        window: `W`.
        slots_per_block: keys of a recent block: `l` with pooled L1, `l + 1` with L1 tokens.

    Raises:
        CapacityError: even with every block distant the stride does not fit.
    """
    excess = prefix + n_done * slots_per_block + incoming - window
    if excess <= 0:
        return 0
    gain = slots_per_block - 1
    distant = -(-excess // gain) if gain else n_done + 1
    if distant > n_done:
        raise CapacityError(
            f"Reading on needs {prefix} prefix + {n_done} L1 + {incoming} new keys, more than window={window:,}. "
            "Use a larger window, a larger interval or a smaller stride."
        )
    return distant


def fitting_stride(
    most: int, *, n_tokens: int, interval: int, prefix: int, window: int, slots_per_block: int
) -> int | None:
    """Eq. 13-14: the longest stride with which a whole document can be read, so that no stride fails late.

    Args:
        most: the longest to consider, a multiple of `interval`, in tokens.
        n_tokens: `N`.
        interval: `l`.
        prefix: keys of the prefix.
        window: `W`.
        slots_per_block: keys of a recent block.

    Returns:
        A multiple of `interval`; `None` when not even one block a stride fits.
    """
    n_blocks, tail = divmod(n_tokens, interval)
    for blocks in range(most // interval, 0, -1):
        last = (n_blocks - 1) % blocks + 1 if n_blocks else 0
        needed = prefix + (n_blocks - last) + last * slots_per_block + tail
        if n_blocks > last:  # the stride before the last one is full
            needed = max(needed, prefix + (n_blocks - last - blocks) + blocks * slots_per_block)
        if needed <= window:
            return blocks * interval
    return None
