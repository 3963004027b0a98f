"""Arithmetic of blocks: property tests of Eq. 13-19 against slow, obvious counting."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acre_rag.blocks import (
    Run,
    blocks_of_tokens,
    chars_of_tokens,
    distant_blocks,
    fitting_stride,
    merge_runs,
    nested_order,
    tokens_of_chars,
)
from acre_rag.choose import refill_budget
from acre_rag.config import INTERVALS, ACREConfig, auto_interval
from acre_rag.errors import CapacityError, ConfigError


@given(
    st.integers(1, 12),
    st.integers(0, 200),
    st.integers(1, 8),
    st.integers(0, 60),
    st.integers(8, 120),
    st.integers(0, 1),
)
def test_the_fitting_stride_is_the_longest_that_reads_to_the_end(
    most: int, n_tokens: int, interval: int, prefix: int, window: int, extra: int
) -> None:
    def fits(blocks: int) -> bool:
        """Stride by stride, as the reader asks."""
        n_blocks, tail = divmod(n_tokens, interval)
        done = 0
        while True:
            new = min(blocks, n_blocks - done)
            incoming = new * (interval + extra) + (tail if done + new == n_blocks else 0)
            try:
                distant_blocks(
                    n_done=done, prefix=prefix, incoming=incoming, window=window, slots_per_block=interval + extra
                )
            except CapacityError:
                return False
            done += new
            if done == n_blocks:
                return True

    stride = fitting_stride(
        most * interval,
        n_tokens=n_tokens,
        interval=interval,
        prefix=prefix,
        window=window,
        slots_per_block=interval + extra,
    )
    longest = next((blocks * interval for blocks in range(most, 0, -1) if fits(blocks)), None)
    assert stride == longest


@given(st.sets(st.integers(0, 60)))
def test_runs_hold_the_same_blocks_and_never_touch(blocks: set[int]) -> None:
    runs = merge_runs(blocks)
    assert [b for run in runs for b in range(run.start, run.stop)] == sorted(blocks)
    assert all(a.stop < b.start for a, b in zip(runs, runs[1:], strict=False))


@given(
    st.integers(0, 12).flatmap(lambda m: st.tuples(st.just(m), st.sets(st.integers(0, max(0, m - 1))))),
    st.integers(1, 5),
)
def test_nested_order_puts_each_block_just_before_its_l1_entry(blocks: tuple[int, set[int]], interval: int) -> None:
    n_blocks, chosen = blocks
    chosen = {b for b in chosen if b < n_blocks}
    expected = []
    rank = {block: i for i, block in enumerate(sorted(chosen))}
    for block in range(n_blocks):
        if block in chosen:
            expected += [n_blocks + rank[block] * interval + j for j in range(interval)]
        expected.append(block)
    assert nested_order(list(chosen), n_blocks=n_blocks, interval=interval).tolist() == expected
    alone = nested_order(list(chosen), n_blocks=n_blocks, interval=interval, l1_context=False).tolist()
    assert alone == [slot for slot in expected if slot >= n_blocks]


@given(st.integers(0, 40), st.integers(0, 30), st.integers(1, 60), st.integers(1, 400), st.integers(2, 20))
def test_distant_blocks_are_the_fewest_that_fit(done: int, prefix: int, incoming: int, window: int, slots: int) -> None:
    fitting = [d for d in range(done + 1) if prefix + d + (done - d) * slots + incoming <= window]
    if fitting:
        got = distant_blocks(n_done=done, prefix=prefix, incoming=incoming, window=window, slots_per_block=slots)
        assert got == fitting[0]
    else:
        with pytest.raises(CapacityError, match=f"window={window:,}"):
            distant_blocks(n_done=done, prefix=prefix, incoming=incoming, window=window, slots_per_block=slots)


def asked(n_l1: int, *, prefix: int = 0, tail: int = 0) -> Any:
    """A document of `n_l1` blocks, as the budget sees it."""
    cache = SimpleNamespace(n_blocks=n_l1, prefix=range(prefix), tail=range(tail))
    return SimpleNamespace(cache=cache)


@given(
    st.integers(64, 40_000),
    st.lists(st.integers(0, 9_000), min_size=1, max_size=3),
    st.integers(0, 8_192),
    st.integers(0, 600),
    st.integers(0, 100),
    st.booleans(),
)
def test_eq_17_is_never_exceeded(
    window: int, n_l1: list[int], budget: int, reserved: int, fixed: int, l1_context: bool
) -> None:
    documents = [asked(n, prefix=fixed, tail=fixed) for n in n_l1]
    config = ACREConfig(budget=budget, l1_context=l1_context)
    standing = fixed * (1 + len(n_l1)) + reserved + (sum(n_l1) if l1_context else 0)
    if standing > window:
        with pytest.raises(CapacityError, match=f"window={window:,}"):
            refill_budget(documents, window=window, reserved_tokens=reserved, config=config)
        return
    tokens = refill_budget(documents, window=window, reserved_tokens=reserved, config=config)
    assert 0 <= tokens <= budget and standing + tokens <= window
    assert tokens == budget or standing + tokens == window


@given(st.integers(0, 300_000), st.integers(64, 32_768))
def test_automatic_interval_is_the_smallest_that_fits(n_tokens: int, window: int) -> None:
    fitting = [interval for interval in INTERVALS if interval >= 16 and n_tokens / interval <= window // 2]
    if fitting:
        assert auto_interval(n_tokens, window) == fitting[0]
    else:
        with pytest.raises(CapacityError, match=f"{n_tokens:,} tokens"):
            auto_interval(n_tokens, window)


def test_the_papers_numbers_at_512k_tokens() -> None:
    full = asked(524_288 // 16)
    assert refill_budget([full], window=32_768, reserved_tokens=0, config=ACREConfig(budget=4096)) == 0
    assert auto_interval(524_288, 32_768) == 32


@given(st.lists(st.integers(1, 6), min_size=1, max_size=30), st.data())
def test_characters_to_tokens_and_blocks_cover_each_other(widths: list[int], data: st.DataObject) -> None:
    ends = np.cumsum(widths)
    offsets = np.stack([ends - widths, ends], axis=1)
    start = data.draw(st.integers(0, int(ends[-1]) - 1))
    stop = data.draw(st.integers(start + 1, int(ends[-1])))
    first, last = tokens_of_chars(start, stop, offsets)
    assert [t for t in range(len(offsets)) if offsets[t, 0] < stop and offsets[t, 1] > start] == list(
        range(first, last)
    )
    low, high = chars_of_tokens(first, last, offsets)
    assert low <= start and stop <= high
    interval = data.draw(st.integers(1, 7))
    n_blocks = len(offsets) // interval
    run = blocks_of_tokens(first, last, interval=interval, n_blocks=n_blocks)
    assert all(run.start <= t // interval < run.stop for t in range(first, last) if t < n_blocks * interval)


def test_a_run_knows_its_length() -> None:
    assert len(Run(3, 7)) == 4


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("window", 3),
        ("window", -8192),
        ("interval", 0),
        ("stride", 0),
        ("budget", -1),
        ("passage_tokens", 0),
        ("max_passages", 0),
        ("min_interval", -2),
        ("select", "best"),
        ("granularity", "words"),
        ("interval", 2.5),
        ("budget", True),
    ],
)
def test_absurd_options_are_refused_by_name(option: str, value: object) -> None:
    with pytest.raises(ConfigError, match=option):
        ACREConfig(**{option: value})


def test_an_interval_above_half_the_window_is_refused() -> None:
    with pytest.raises(ConfigError, match="at most 64"):
        ACREConfig(window=128, interval=65)
