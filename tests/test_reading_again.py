"""The cache of `benchmarks.reading_again` against a plain reading of the same tokens."""

import sys
from pathlib import Path

import numpy as np
import torch

from acre_rag import ACRE
from acre_rag.blocks import nested_order
from acre_rag.construct import slots_of, to_transformers
from acre_rag.refill import refill

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks import reading_again

TEXT = " ".join(f"The drum number {i} is in room {i * 3}." for i in range(12))


def test_reading_everything_again_gives_what_was_kept(tiny_acre: ACRE) -> None:
    document = tiny_acre.add(TEXT, id="drums")
    everything = np.arange(document.n_blocks)
    kept = refill([document.cache], [everything], rope=tiny_acre.decoder.rope, l1_context=False)
    again = reading_again.read_again(tiny_acre, document, everything, "alone")
    torch.testing.assert_close(again.keys, kept.keys, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(again.values, kept.values, rtol=1e-3, atol=1e-3)


def test_a_passage_alone_is_read_as_text_behind_the_prefix(tiny_acre: ACRE) -> None:
    decoder, document = tiny_acre.decoder, tiny_acre.add(TEXT, id="drums")
    blocks, interval = np.array([2, 3, 5]), document.interval
    ids = reading_again.token_ids(tiny_acre, document)
    chosen = torch.cat([ids[b * interval : (b + 1) * interval] for b in blocks])
    past = to_transformers(document.cache.prefix.slots(0, 0))
    with torch.inference_mode():
        decoder.base(input_ids=torch.cat([tiny_acre.prefix_ids, chosen])[None], past_key_values=past, use_cache=True)
    expected = slots_of(past, 0)
    found = reading_again.read_again(tiny_acre, document, blocks, "alone")
    found = found.slots(0, len(expected))  # the tail stands behind
    torch.testing.assert_close(found.keys, expected.keys, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.values, expected.values, rtol=1e-3, atol=1e-3)


def test_l1_entries_and_tail_stand_where_refilling_puts_them(tiny_acre: ACRE) -> None:
    document = tiny_acre.add(TEXT, id="drums")
    blocks, interval = np.array([1, 4]), document.interval
    kept = refill([document.cache], [blocks], rope=tiny_acre.decoder.rope)
    again = reading_again.read_again(tiny_acre, document, blocks, "nested")
    order = nested_order(blocks.tolist(), n_blocks=document.n_blocks, interval=interval)
    prefix = len(document.cache.prefix)
    entries = [prefix + i for i, slot in enumerate(order) if slot < document.n_blocks]
    torch.testing.assert_close(again.keys[:, :, entries], kept.keys[:, :, entries])
    fresh = [prefix + i for i, slot in enumerate(order) if slot >= document.n_blocks]
    assert not torch.allclose(again.keys[:, :, fresh], kept.keys[:, :, fresh], atol=1e-2)


def test_behind_all_l1_entries_the_passages_come_last_before_the_tail(tiny_acre: ACRE) -> None:
    decoder, document = tiny_acre.decoder, tiny_acre.add(TEXT, id="drums")
    cache, blocks = document.cache, np.array([1, 4])
    found = reading_again.kept(tiny_acre, document, blocks, "behind")
    taken = torch.cat([cache.l2.take(torch.tensor([b]))[0] for b in blocks], dim=-2)  # [L, 2, Hkv, 2 * l, D]
    keys = torch.cat([cache.prefix.keys, cache.l1.keys, taken[:, 0], cache.tail.keys], dim=2)
    torch.testing.assert_close(found.keys, decoder.rope.rotate(keys), rtol=1e-3, atol=1e-3)
