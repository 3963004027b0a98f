"""Reading: the window is never exceeded, memory does not grow with the document, Ctrl-C leaves nothing."""

import gc

import pytest
import torch
from conftest import exact, tiny_decoder
from hypothesis import given, settings
from hypothesis import strategies as st

from acre_rag import ACRE, ACREConfig
from acre_rag.construct import ReadingPlan, construct
from acre_rag.decoder import Decoder
from acre_rag.errors import CapacityError, ConfigError
from acre_rag.prompts import PromptTemplate
from acre_rag.proxies import PooledProxy


def read(decoder: Decoder, n_tokens: int, plan: ReadingPlan, n_prefix: int = 5, **options):
    ids = torch.randint(3, 259, (n_prefix + n_tokens,), generator=torch.Generator().manual_seed(n_tokens))
    return construct(decoder, PooledProxy(), prefix_ids=ids[:n_prefix], token_ids=ids[n_prefix:], plan=plan, **options)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 300), st.sampled_from([4, 8, 16]), st.integers(1, 6), st.integers(64, 160))
def test_every_token_is_read_within_the_window(n_tokens: int, interval: int, blocks: int, window: int) -> None:
    plan = ReadingPlan(window=window, interval=interval, stride=blocks * interval)
    steps: list[int] = []
    done: list[tuple[int, int]] = []
    try:
        cache = read(tiny_decoder(), n_tokens, plan, on_keys=steps.append, progress=lambda *pair: done.append(pair))
    except CapacityError as error:
        assert str(window) in str(error)
        return
    assert max(steps) <= window
    assert done[-1] == (n_tokens, n_tokens) and done == sorted(done)
    assert cache.n_blocks == n_tokens // interval == len(exact(cache))
    assert len(cache.tail) == n_tokens % interval
    assert cache.n_tokens == n_tokens


def test_pooled_entries_are_the_means_of_their_blocks() -> None:
    cache = read(tiny_decoder(), 90, ReadingPlan(window=64, interval=8, stride=16))
    for block in range(cache.n_blocks):
        torch.testing.assert_close(cache.l1.keys[:, :, block], exact(cache)[block, :, 0].mean(dim=2))
        torch.testing.assert_close(cache.l1.values[:, :, block], exact(cache)[block, :, 1].mean(dim=2))


def test_retrieval_head_keys_are_slices_of_l2() -> None:
    cache = read(tiny_decoder(), 90, ReadingPlan(window=64, interval=8, stride=16), key_heads=[(0, 1), (2, 0)])
    for row, (layer, head) in enumerate([(0, 1), (2, 0)]):
        assert torch.equal(cache.head_keys[row], exact(cache)[:, layer, 0, head].flatten(0, 1))


def test_within_the_window_the_stride_does_not_matter() -> None:
    one, many = (read(tiny_decoder(), 120, ReadingPlan(window=256, interval=8, stride=s)) for s in (120, 8))
    torch.testing.assert_close(exact(one), exact(many), atol=1e-4, rtol=1e-3)


def live_tensors() -> list[torch.Tensor]:
    """All tensors that have memory; a compiler's, which other tests may have left, have none."""
    return [thing for thing in gc.get_objects() if type(thing) in (torch.Tensor, torch.nn.Parameter)]


def live_tensor_bytes(known: set[int]) -> int:
    """Bytes of all float tensors that came to life since `known` was taken, each storage once."""
    storages = [tensor.untyped_storage() for tensor in live_tensors() if tensor.is_floating_point()]
    return sum({each.data_ptr(): each.nbytes() for each in storages if each.data_ptr() not in known}.values())


def test_working_memory_grows_with_l1_alone() -> None:
    """Live tensor bytes at every stride, minus L1 and L2, stay flat however long the document is."""
    decoder = tiny_decoder()
    read(decoder, 64, ReadingPlan(window=256, interval=8, stride=32))  # fill the rotation tables
    known = {tensor.untyped_storage().data_ptr() for tensor in live_tensors()}
    working = {}
    for n_tokens in (400, 800, 1600):
        peaks: list[int] = []
        read(
            decoder,
            n_tokens,
            ReadingPlan(window=256, interval=8, stride=32),
            progress=lambda *_, peaks=peaks: peaks.append(live_tensor_bytes(known)),
        )
        # per token: L2 itself, and one L1 entry (prefilled buffer) per block
        l2 = (n_tokens // 8) * 8 * decoder.kv_bytes_per_token
        l1 = (n_tokens // 8) * decoder.kv_bytes_per_token
        working[n_tokens] = max(peaks) - l2 - l1
    # what remains is one window of slots, and the distant L1 entries once more, rotated
    window_bytes = 256 * decoder.kv_bytes_per_token
    assert all(0 < each <= 4 * window_bytes for each in working.values()), working
    assert working[1600] <= 1.1 * working[400], working


def test_ctrl_c_leaves_no_half_made_document(tiny_acre: ACRE) -> None:
    def interrupt(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny_acre.add("abc def. " * 60, id="book", progress=interrupt)
    assert tiny_acre.documents == {}
    document = tiny_acre.add("abc def. " * 60, id="book")
    assert document.n_tokens == 540
    assert tiny_acre.ask("what?", settings=None).sources


def test_a_document_that_cannot_fit_is_refused_with_numbers(tiny: Decoder) -> None:
    acre = ACRE(tiny, config=ACREConfig(window=64, interval=8))
    with pytest.raises(CapacityError, match=r"interval of at least 63"):
        acre.add("x" * 2000)
    with pytest.raises(CapacityError, match=r"at most 4,096 fit"):
        ACRE(tiny, config=ACREConfig(window=64)).add("x" * 5000)
    with pytest.raises(CapacityError, match=r"104,857,600 characters"):
        ACRE(tiny, config=ACREConfig(window=1024, select="consensus")).add("x" * (100 << 20))


def test_host_memory_too_small_for_l2_is_told_with_its_bytes(tiny: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[tuple[int, ...]] = []

    def refused(shape: tuple[int, ...], *_: object) -> None:
        tried.append(shape)
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    monkeypatch.setattr("acre_rag.construct.HostWriter", refused)
    acre = ACRE(tiny, config=ACREConfig(window=512, interval=8, stride=32, select="consensus"))
    n_bytes = 400 // 8 * 8 * tiny.kv_bytes_per_token
    with pytest.raises(CapacityError, match=rf"L2 takes {n_bytes:,} bytes of host memory.*shorter document"):
        acre.add("x" * 403)
    assert len(tried) > 1  # also with everything else freed


def test_a_long_prompt_shortens_the_stride_or_is_refused_before_reading(tiny: Decoder) -> None:
    """120 L1 entries and 100 tokens of prompt leave 36 of the window's 256 places: the default stride takes 64."""
    template = PromptTemplate(before="p" * 98, after="{question}")
    acre = ACRE(tiny, config=ACREConfig(window=256, interval=8, select="consensus"), template=template)
    begun: list[int] = []
    assert len(acre.add("x" * 960, progress=lambda done, _: begun.append(done)).offsets) == 960
    assert acre.plan(960).stride == begun[0] == 40
    assert acre.plan(400).stride == 64
    begun.clear()
    wide = PromptTemplate(before="p" * 126, after="{question}")
    acre = ACRE(tiny, config=ACREConfig(window=256, interval=8, select="consensus"), template=wide)
    with pytest.raises(CapacityError, match=r"\(127 tokens\), 125 L1 entries and one block of 8 tokens"):
        acre.add("x" * 1000, progress=lambda done, _: begun.append(done))
    assert begun == []


def test_a_stride_smaller_than_a_block_is_refused() -> None:
    with pytest.raises(ConfigError, match="stride of at least 16"):
        ReadingPlan(window=64, interval=16, stride=8)
