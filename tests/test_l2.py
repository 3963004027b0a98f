"""The exact layer, row by row: what is taken is what was asked for, and no more of it is touched."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import exact, tiny_decoder
from test_engine import TEXT
from torch import Tensor

from acre_rag import ACRE, ACREConfig
from acre_rag.blocks import nested_order
from acre_rag.cache import KV, BiLayerCache
from acre_rag.quantise import codec_of, with_codec
from acre_rag.refill import refill
from acre_rag.store import Store
from acre_rag.store.shards import ShardWriter

CONFIG = ACREConfig(window=512, interval=8, stride=64, passage_tokens=32, select="consensus")


@pytest.fixture(params=["memory", "8 bits", "4 bits", "store"])
def cache(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BiLayerCache:
    """One document's cache, its L2 at rest in each of the ways."""
    if request.param == "store":  # small groups and shards, so that rows come from many
        small = {"group_bytes": 10_000, "shard_bytes": 30_000}
        monkeypatch.setattr("acre_rag.store.store.ShardWriter", lambda l2, n: ShardWriter(l2, n, **small))
        ACRE(tiny_decoder(), config=CONFIG, store=tmp_path).add(TEXT, id="rooms")
        [entry] = Store(tmp_path).entries()
        assert len(entry.manifest.shards) > 3
        return entry.cache()
    read = ACRE(tiny_decoder(), config=CONFIG).add(TEXT).cache
    return with_codec(read, codec_of(int(request.param[0]))) if "bits" in request.param else read


def per_layer(cache: BiLayerCache, k: int) -> np.ndarray:
    """`[L, k]` ascending block numbers, each layer its own, some shared."""
    drawn = np.random.default_rng(k)
    return np.stack([np.sort(drawn.choice(cache.n_blocks, k, replace=False)) for _ in range(len(cache.l1.keys))])


def test_one_layer_of_a_block_is_what_the_whole_block_has_there(cache: BiLayerCache) -> None:
    blocks, layers = torch.tensor([5, 0, 5, cache.n_blocks - 1, 9]), torch.tensor([2, 1, 0, 1, 0])
    assert torch.equal(cache.l2.take(blocks, layers), exact(cache)[blocks, layers][:, None])
    nothing = torch.empty(0, dtype=torch.long)
    assert cache.l2.take(nothing, nothing).shape == (0, 1, *exact(cache).shape[2:])


def test_rows_are_gathered_straight_into_the_tensor_given(cache: BiLayerCache) -> None:
    made: list[Tensor] = []

    def new(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        made.append(torch.empty(shape, dtype=dtype))
        return made[-1]

    blocks = torch.tensor([3, 4, 11])
    for name, rows in cache.l2.parts.items():
        taken = rows.take(blocks, new=new)
        assert taken is made[-1], name
        assert torch.equal(taken, rows.take(torch.arange(cache.n_blocks))[blocks]), name
        of_one_layer = rows.take(blocks, torch.tensor([0, 2, 1]), new=new)
        assert of_one_layer is made[-1] and of_one_layer.nbytes * 3 == taken.nbytes, name


def reference(cache: BiLayerCache, chosen: np.ndarray) -> KV:
    """Layer by layer from the whole of L2, one slot at a time, un-rotated."""
    keys, values = [], []
    for layer, blocks in enumerate(chosen):
        order = nested_order(blocks.tolist(), n_blocks=cache.n_blocks, interval=cache.interval, l1_context=True)
        for kind, l1, out in ((0, cache.l1.keys, keys), (1, cache.l1.values, values)):
            raw = [exact(cache)[block, layer, kind, :, t] for block in blocks for t in range(cache.interval)]
            pool = [*l1[layer].unbind(1), *raw]
            out.append(torch.stack([pool[slot] for slot in order], dim=1))
    return KV(torch.stack(keys), torch.stack(values))


@pytest.mark.parametrize("k", [0, 1, 4])
def test_each_layers_own_blocks_are_refilled_as_a_plain_loop_does(cache: BiLayerCache, k: int) -> None:
    rope, chosen = tiny_decoder().rope, per_layer(cache, k)
    expected = KV.cat([cache.prefix, reference(cache, chosen), cache.tail])
    ours = refill([cache], [chosen], rope=rope)
    assert torch.equal(ours.keys, rope.rotate(expected.keys)) and torch.equal(ours.values, expected.values)


def test_each_layers_own_blocks_cost_no_more_than_themselves(
    cache: BiLayerCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[int] = []
    monkeypatch.setattr("acre_rag.refill.to_device", lambda x, device: moved.append(x.nbytes) or x.to(device))
    chosen = per_layer(cache, 4)
    assert len(np.unique(chosen)) > 4
    gathered: list[tuple[int, ...]] = []

    def staging(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        gathered.append(shape)
        return torch.empty(shape, dtype=dtype)

    monkeypatch.setattr("acre_rag.refill.staging_for", lambda _device: staging)
    refill([cache], [chosen], rope=tiny_decoder().rope)
    assert moved == [exact(cache)[:4].nbytes]
    assert {shape[:2] for shape in gathered} == {(chosen.size, 1)}
