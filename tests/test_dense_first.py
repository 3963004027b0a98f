"""The cache of `benchmarks.dense_first`, whose layers differ in length, against caches whose layers do not."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AttentionInterface

from acre_rag import ACRE
from acre_rag.construct import to_transformers
from acre_rag.question import global_view
from acre_rag.refill import refill

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks import dense_first

TEXT = " ".join(f"The drum number {i} is in room {i * 3}." for i in range(12))


@pytest.fixture
def acre(tiny_acre: ACRE) -> Iterator[ACRE]:
    """Reads as always, and asks with the attention of the benchmark."""
    model = tiny_acre.decoder.model
    AttentionInterface.register(dense_first.LENGTHS_APART, dense_first.lengths_apart)
    tiny_acre.add(TEXT, id="drums")
    before = model.config._attn_implementation
    model.set_attn_implementation(dense_first.LENGTHS_APART)
    yield tiny_acre
    model.set_attn_implementation(before)


@pytest.mark.parametrize("everything", [False, True])
def test_no_dense_layer_is_the_compact_view_and_all_of_them_are_full_attention(acre: ACRE, everything: bool) -> None:
    decoder, document = acre.decoder, acre.documents["drums"]
    whole, short = dense_first._whole(acre, document), global_view([document.cache])
    mixed = dense_first.dense_first(acre, whole, short, decoder.n_layers if everything else 0)
    ids = acre.question("Where is drum 7?").ids[None]
    slots = refill([document.cache], [dense_first._all(document)], rope=decoder.rope, l1_context=False)
    if not everything:
        slots = type(short)(decoder.rope.rotate(short.keys), short.values)
    with torch.inference_mode():
        found = decoder.base(input_ids=ids, past_key_values=mixed, use_cache=True).last_hidden_state
        decoder.model.set_attn_implementation("sdpa")
        expected = decoder.base(input_ids=ids, past_key_values=to_transformers(slots), use_cache=True).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
