"""Passages read anew, against the stock model on the same tokens, and against what L2 keeps of them."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_decoder
from test_exactness import stock_logits

from acre_rag import ACRE, ACREConfig, GenerationSettings
from acre_rag.cache import KV, BiLayerCache
from acre_rag.construct import ReadingPlan, construct, slots_of, to_transformers
from acre_rag.decoder import Decoder
from acre_rag.errors import ConfigError
from acre_rag.proxies import PooledProxy
from acre_rag.recompute import recompute
from acre_rag.refill import refill

L = 8
PREFIX, DOCUMENT, QUESTION = torch.arange(3, 10), torch.arange(20, 20 + 12 * L), torch.arange(140, 149)
TEXT = "\n\n".join(
    f"The {thing} is in room {n}." for n, thing in enumerate(["drum", "lamp", "kite", "mask", "oar"] * 4)
)
SHORT = GenerationSettings(max_new_tokens=8)


def read(decoder: Decoder, ids: torch.Tensor = DOCUMENT) -> BiLayerCache:
    plan = ReadingPlan(window=64, interval=L, stride=2 * L)  # shorter than the document: L2 was read over L1 entries
    return construct(decoder, PooledProxy(), prefix_ids=PREFIX, token_ids=ids, plan=plan)


def anew(decoder: Decoder, caches: Sequence[BiLayerCache], chosen: Sequence[list[int]], *, l1_context: bool) -> KV:
    ids = [DOCUMENT.numpy().astype(np.int32) for _ in caches]
    blocks = [np.array(each, dtype=np.int64) for each in chosen]
    return recompute(decoder, caches, ids, blocks, l1_context=l1_context)


def continued(decoder: Decoder, slots: KV) -> torch.Tensor:
    with torch.inference_mode():
        return decoder.model(input_ids=QUESTION[None], past_key_values=to_transformers(slots)).logits[0]


def behind(decoder: Decoder, standing: list[KV], ids: torch.Tensor) -> KV:
    """Un-rotated slots of tokens that are read behind others."""
    before = KV.cat(standing)
    past = to_transformers(KV(decoder.rope.rotate(before.keys), before.values))
    with torch.inference_mode():
        decoder.base(input_ids=ids[None], past_key_values=past, use_cache=True)
    new = slots_of(past, len(before))
    return KV(decoder.rope.unrotate(new.keys, len(before)), new.values)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("chosen", [[0], [2, 3, 7], list(range(12))])
def test_passages_alone_give_the_stock_logits_of_their_text(family: str, chosen: list[int]) -> None:
    decoder = tiny_decoder(family)
    text = torch.cat([DOCUMENT[b * L : (b + 1) * L] for b in chosen])
    ours = continued(decoder, anew(decoder, [read(decoder)], [chosen], l1_context=False))
    stock = stock_logits(decoder, torch.cat([PREFIX, text, QUESTION]), len(QUESTION))
    assert stock.abs().max() > 0.1
    torch.testing.assert_close(ours, stock, atol=1e-4, rtol=0)
    kept = continued(decoder, refill([read(decoder)], [np.array(chosen)], rope=decoder.rope, l1_context=False))
    assert chosen == [0] or not torch.allclose(kept, stock, atol=1e-3)  # L2 kept them in their context


def test_between_l1_entries_each_run_stands_before_its_own_and_is_read_over_what_stands_before_it() -> None:
    decoder = tiny_decoder("llama")
    cache = read(decoder)
    kept = [cache.prefix, cache.l1.slots(0, 2), cache.l1.slots(2, 7), cache.l1.slots(7, 12)]
    first = behind(decoder, kept[:2], DOCUMENT[2 * L : 4 * L])
    second = behind(decoder, [*kept[:2], first, kept[2]], DOCUMENT[7 * L : 8 * L])
    expected = KV.cat([*kept[:2], first, kept[2], second, kept[3]])
    found = anew(decoder, [cache], [[2, 3, 7]], l1_context=True)
    torch.testing.assert_close(found.keys, decoder.rope.rotate(expected.keys), atol=1e-4, rtol=0)
    torch.testing.assert_close(found.values, expected.values, atol=1e-4, rtol=0)


def test_two_documents_stand_one_behind_the_other_with_their_ends() -> None:
    decoder = tiny_decoder("llama")
    one, other = read(decoder, torch.cat([DOCUMENT, DOCUMENT[:5]])), read(decoder)
    assert len(one.tail) == 5
    both = anew(decoder, [one, other], [[1], []], l1_context=False)
    alone = anew(decoder, [one], [[1]], l1_context=False)
    assert torch.equal(both.keys, alone.keys) and len(both) == len(PREFIX) + L + 5
    with_l1 = anew(decoder, [one, other], [[1], []], l1_context=True)
    assert len(with_l1) == len(PREFIX) + 12 + L + 5 + 12


def test_nothing_chosen_leaves_the_compact_view() -> None:
    decoder = tiny_decoder("llama")
    cache, nothing = read(decoder), np.empty(0, dtype=np.int64)
    found, expected = anew(decoder, [cache], [[]], l1_context=True), refill([cache], [nothing], rope=decoder.rope)
    torch.testing.assert_close(found.keys, expected.keys, atol=1e-5, rtol=0)


@pytest.mark.parametrize("granularity", ["passages", "blocks"])
def test_the_engine_reads_again_also_what_a_store_gave_back(tiny: Decoder, granularity: str, tmp_path: Path) -> None:
    config = ACREConfig(window=512, interval=L, stride=64, passage_tokens=32, budget=64, recompute=True)
    asked = {"granularity": granularity}
    acre = ACRE(tiny, config=config, store=tmp_path).using(**asked)
    acre.add(TEXT, id="rooms")
    answer = acre.ask("Where is the kite?", settings=SHORT)
    assert answer.sources == acre.using(recompute=False).ask("Where is the kite?", settings=SHORT).sources
    asker, documents = acre._desk.asker, list(acre.documents.values())
    again, as_kept = (
        asker.prepare("Where is the kite?", documents, SHORT).slots,
        acre.prepare("Where is the kite?").slots,
    )
    assert len(again) == len(as_kept) and not torch.allclose(again.values, as_kept.values, atol=1e-3)
    restarted = ACRE(tiny, config=config, store=tmp_path).using(**asked)
    assert restarted.ask("Where is the kite?", "rooms", settings=SHORT).text == answer.text
    batch = acre.ask_batch(["Where is the kite?", "Oar?"], settings=SHORT)
    assert batch[0].text == answer.text


def test_each_layer_its_own_blocks_cannot_be_read_again() -> None:
    with pytest.raises(ConfigError, match="use another strategy"):
        ACREConfig(select="paper", recompute=True)


def test_the_tokens_of_a_document_are_its_text(tiny_acre: ACRE) -> None:
    document = tiny_acre.add(TEXT, id="rooms")
    assert tiny_acre.decoder.tokenizer.decode(document.token_ids) == TEXT
    assert all(a <= b for a, b in pairwise(document.offsets[:, 0]))


def test_a_retriever_reads_nothing_anew(tiny_acre: ACRE, forwards: list[int]) -> None:
    tiny_acre.add(TEXT, id="rooms")
    forwards.clear()
    tiny_acre.retrieve("Where is the kite?")
    kept = list(forwards)
    forwards.clear()
    tiny_acre.using(recompute=True).retrieve("Where is the kite?")
    assert forwards == kept != []
