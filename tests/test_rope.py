"""Rotation: what the model itself would have cached, and its inverse."""

import pytest
import torch
from conftest import FAMILIES, tiny_decoder

from acre_rag.rope import Rope


@pytest.mark.parametrize("family", FAMILIES)
def test_rerotation_equals_rotation_from_scratch(family: str) -> None:
    rope = tiny_decoder(family).rope
    keys = torch.randn(2, 3, 9, tiny_decoder(family).head_dim, generator=torch.Generator().manual_seed(0))
    moved = rope.rotate(rope.unrotate(rope.rotate(keys, 500), 500), 3)
    torch.testing.assert_close(moved, rope.rotate(keys, 3), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(rope.unrotate(rope.rotate(keys, 77), 77), keys, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_rotation_is_the_models_own(family: str) -> None:
    """Layer 0 keys of one token at several positions are one key, rotated."""
    from transformers import DynamicCache

    decoder = tiny_decoder(family)
    cache = DynamicCache()
    with torch.inference_mode():
        decoder.base(input_ids=torch.full((1, 12), 9), past_key_values=cache, use_cache=True)
    cached = cache.layers[0].keys[0]
    alone = decoder.rope.unrotate(cached[:, :1])
    torch.testing.assert_close(decoder.rope.rotate(alone.repeat(1, 12, 1)), cached, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(cached[:, 0], cached[:, 5], atol=1e-3)  # positions do matter


def test_half_precision_loses_no_more_than_its_rounding() -> None:
    rope = tiny_decoder().rope
    keys = torch.randn(4, 64, 8, generator=torch.Generator().manual_seed(1))
    moved = rope.unrotate(rope.rotate(keys.bfloat16(), 100), 100).float()
    assert (moved - keys).norm() / keys.norm() < 8e-3


def test_growing_tables_never_change_the_frequencies_within_the_window() -> None:
    decoder = tiny_decoder("llama-dynamic")
    keys = torch.randn(1, 700, decoder.head_dim, generator=torch.Generator().manual_seed(2))
    fresh = Rope(decoder.base.rotary_emb, decoder.device)
    at_once = fresh.rotate(keys)
    grown = Rope(decoder.base.rotary_emb, decoder.device)
    grown.rotate(keys[:, :600])
    torch.testing.assert_close(grown.rotate(keys), at_once)
    torch.testing.assert_close(grown.rotate(keys[:, :600]), at_once[:, :600])
