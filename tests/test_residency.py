"""Budgets and tiers: what does not fit moves down, comes back unchanged, and its memory is really free."""

import gc
from pathlib import Path

import pytest
import torch
from conftest import tiny_decoder
from test_engine import SHORT, TEXT

from acre_rag import ACRE, ACREConfig
from acre_rag.cache import BiLayerCache
from acre_rag.errors import CapacityError, DocumentError
from acre_rag.residency import Residency

CONFIG = ACREConfig(window=512, interval=8, stride=64, passage_tokens=32, max_passages=2, select="consensus")
NAMES = ("one", "two", "three")


def engine(**options) -> ACRE:
    return ACRE(tiny_decoder(), **{"config": CONFIG, **options})


def texts() -> dict[str, str]:
    return {name: TEXT.replace("room", f"{name} room") for name in NAMES}


def sizes() -> tuple[int, int]:
    """Bytes of one document's compact part and of its L2."""
    acre = engine()
    cache = acre.add(texts()["three"], id="three").cache
    return cache.device_bytes, cache.host_bytes


def live_bytes() -> int:
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if type(thing) is torch.Tensor:
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def test_the_least_recently_used_document_makes_room(tmp_path: Path) -> None:
    compact, l2 = sizes()
    acre = engine(store=tmp_path, device_bytes=int(2.5 * compact), host_bytes=10 * (compact + l2))
    documents = {name: acre.add(text, id=name) for name, text in texts().items()}
    tier = acre._library.residency.tier
    assert [tier(documents[name]) for name in NAMES] == ["host", "device", "device"]
    acre.ask("Where is the drum?", "two", settings=SHORT)
    acre.ask("Where is the drum?", "one", settings=SHORT)
    assert [tier(documents[name]) for name in NAMES] == ["device", "device", "host"]
    statistics = acre.statistics
    assert (statistics.hits, statistics.misses, statistics.evictions) == (1, 1, 2)
    assert statistics.device_bytes <= 2.5 * compact


def test_answers_are_the_same_from_every_tier(tmp_path: Path) -> None:
    free = engine()
    expected = {name: free.add(text, id=name) and free.ask("Where is the lamp?", name, settings=SHORT).text
                for name, text in texts().items()}  # fmt: skip
    compact, l2 = sizes()
    for device_bytes, host_bytes in ((compact * 2, None), (compact * 2, l2), (None, 0), (compact * 2, 0)):
        acre = engine(store=tmp_path / f"{device_bytes}-{host_bytes}", device_bytes=device_bytes, host_bytes=host_bytes)
        acre._library.residency._poison = True
        for name, text in texts().items():
            acre.add(text, id=name)
        for name in (*NAMES, *reversed(NAMES), *NAMES):
            assert acre.ask("Where is the lamp?", name, settings=SHORT).text == expected[name]
        assert acre.statistics.host_bytes <= (host_bytes if host_bytes is not None else 1 << 40)


def test_a_pinned_document_stays(tmp_path: Path) -> None:
    compact, _ = sizes()
    acre = engine(store=tmp_path, device_bytes=int(2.5 * compact))
    first = acre.add(texts()["one"], id="one")
    acre.pin("one")
    for name in ("two", "three"):
        acre.add(texts()[name], id=name)
    tier = acre._library.residency.tier
    assert tier(first) == "device" and tier(acre.documents["two"]) == "host"
    acre.pin("one", False)
    acre.ask("Where?", "two", settings=SHORT)
    assert tier(first) == "host"


def test_without_a_store_a_budget_that_cannot_be_met_is_told_and_nothing_is_kept() -> None:
    compact, l2 = sizes()
    acre = engine(host_bytes=int(1.5 * l2))
    acre.add(texts()["one"], id="one")
    with pytest.raises(CapacityError, match=r"host_bytes=[\d,]+.*store=DIR"):
        acre.add(texts()["two"], id="two")
    assert list(acre.documents) == ["one"]
    assert acre.ask("Where is the drum?", settings=SHORT).sources
    with pytest.raises(CapacityError, match="device_bytes"):
        engine(device_bytes=compact // 2).add(TEXT)


def test_removing_and_releasing_give_the_memory_back(tmp_path: Path) -> None:
    warm = engine()
    warm.add(TEXT[:300])
    warm.ask("Where?", settings=SHORT)
    del warm
    before = live_bytes()
    acre = engine()
    kept = acre.add(TEXT, id="rooms")
    acre.ask("Where is the drum?", settings=SHORT)
    held = live_bytes() - before
    assert held >= kept.cache.device_bytes + kept.cache.host_bytes
    acre.remove("rooms")
    assert live_bytes() - before < held / 50, "a handle that is still around must not hold the cache"
    with pytest.raises(DocumentError, match="removed"):
        _ = kept.cache

    stored = engine(store=tmp_path)
    document = stored.add(TEXT, id="rooms")
    before = live_bytes()
    stored.release(document)
    assert before - live_bytes() >= 0.9 * held
    assert stored.statistics.device_bytes == stored.statistics.host_bytes == 0
    assert stored.ask("Where is the drum?", document, settings=SHORT).sources


def test_releasing_what_only_memory_has_is_refused() -> None:
    acre = engine()
    acre.add(TEXT, id="rooms")
    with pytest.raises(DocumentError, match="would lose it"):
        acre.release("rooms")
    assert acre.ask("Where?", "rooms", settings=SHORT)


def test_freed_tensors_are_poisoned_in_a_test_build() -> None:
    acre = engine()
    acre._library.residency = Residency(acre.decoder.device, poison=True)
    cache = acre.add(TEXT, id="rooms").cache
    acre.remove("rooms")
    assert cache.l1.keys.isnan().all() and cache.l2.parts["blocks"].tensor.isnan().all()


@pytest.mark.parametrize("way", ["to the device", "to the host"])
def test_a_move_that_runs_out_of_memory_loses_nothing(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compact, _ = sizes()
    acre = engine(device_bytes=int(1.5 * compact))
    for name in ("one", "two"):
        acre.add(texts()[name], id=name)
    expected = {name: acre.ask("Where is the lamp?", name, settings=SHORT).text for name in ("one", "two")}
    real, failing = BiLayerCache.to, [torch.device("cpu")] if way == "to the host" else []

    def refused_once(cache: BiLayerCache, device: torch.device) -> BiLayerCache:
        if failing != ["done"] and (way == "to the device" or cache is acre.get("two").holder.cache):
            failing[:] = ["done"]
            raise torch.OutOfMemoryError("no room to move")
        return real(cache, device)

    monkeypatch.setattr(BiLayerCache, "to", refused_once)
    answers = {name: acre.ask("Where is the lamp?", name, settings=SHORT).text for name in ("one", "two")}
    assert failing == ["done"] and answers == expected
