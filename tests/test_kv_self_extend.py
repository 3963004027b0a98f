"""SelfExtend: the stock model within the neighbour window, a dense loop with both rotations beyond it."""

from typing import Any

import pytest
import torch
from conftest import tiny_decoder
from test_kv_systems import FAMILIES, FIRST, made, words
from torch import Tensor
from transformers import Cache

from acre_rag.baselines.base import Setting
from acre_rag.baselines.kv.prefill import prefill
from acre_rag.baselines.kv.self_extend import make_self_extend
from acre_rag.baselines.kv.two_rotations import TwoRotations, TwoRotationsLayer, self_extended
from acre_rag.baselines.prompted import token_ids
from acre_rag.decoder import Decoder
from acre_rag.errors import UnsupportedModelError
from acre_rag.generate import GenerationSettings

EVERY = [*FAMILIES, "llama-llama3", "llama-linear", "qwen2-yarn", "phi3-partial", "mistral"]
LONG = GenerationSettings(max_new_tokens=24)


def extended_logits(decoder: Decoder, ids: Tensor, *, neighbours: int, group: int, stride: int = 50) -> Tensor:
    """Of the last token, read in strides."""
    rotations = TwoRotations(decoder, neighbours=neighbours, group=group)
    cache = Cache(layers=[TwoRotationsLayer(rotations) for _ in range(decoder.n_layers)])
    with torch.inference_mode(), self_extended(decoder, rotations):
        prefill(decoder, ids[:-1], lambda *_: None, cache=cache, stride=stride)
        return decoder.model(ids[None, -1:], past_key_values=cache).logits[0, -1]


def dense_logits(decoder: Decoder, ids: Tensor, *, neighbours: int, group: int) -> Tensor:
    """Logits of the last token, layer by layer, each (query, key) pair rotated on its own by its own distance."""
    hidden = decoder.base.embed_tokens(ids[None])
    for layer in decoder.base.layers:
        rows = [_row(decoder, layer, hidden, q, neighbours, group) for q in range(len(ids))]
        hidden = hidden + layer.self_attn.o_proj(torch.stack(rows, dim=1))
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return decoder.model.lm_head(decoder.base.norm(hidden))[0, -1]


def _row(decoder: Decoder, layer: Any, hidden: Tensor, q: int, neighbours: int, group: int) -> Tensor:
    """What token `q` attends to, `[1, H * D]`: one query, one key at a time, rotated by their distance alone."""
    queries, keys, values = _projected(decoder, layer, hidden)  # [T, H, D], [T, Hkv, D], [T, Hkv, D]
    shares = decoder.n_heads // decoder.n_kv_heads
    distance = q - torch.arange(q + 1)
    grouped = q // group + neighbours - neighbours // group - torch.arange(q + 1) // group
    place = torch.where(distance < neighbours, distance, grouped)
    cos, sin = decoder.base.rotary_emb(hidden, place[None])
    turned = _rotate(queries[q][None].expand(q + 1, -1, -1), cos[0], sin[0])  # the query at the distance, the key at 0
    cos, sin = decoder.base.rotary_emb(hidden, torch.zeros(1, q + 1, dtype=torch.long))
    still = _rotate(keys[: q + 1], cos[0], sin[0])
    out = []
    for head in range(decoder.n_heads):
        logits = (turned[:, head] * still[:, head // shares]).sum(-1) * decoder.scaling
        out.append(logits.softmax(0) @ values[: q + 1, head // shares])
    return torch.cat(out)[None]


def _projected(decoder: Decoder, layer: Any, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    attention, x = layer.self_attn, layer.input_layernorm(hidden)[0]
    shapes = [decoder.n_heads, decoder.n_kv_heads, decoder.n_kv_heads]
    if hasattr(attention, "qkv_proj"):
        parts = attention.qkv_proj(x).split([n * decoder.head_dim for n in shapes], dim=-1)
    else:
        parts = [attention.q_proj(x), attention.k_proj(x), attention.v_proj(x)]
    q, k, v = (part.unflatten(-1, (n, decoder.head_dim)) for part, n in zip(parts, shapes, strict=True))
    return (attention.q_norm(q), attention.k_norm(k), v) if hasattr(attention, "q_norm") else (q, k, v)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`[T, H, D]` by `[T, R]`."""
    size = cos.shape[-1]
    part, rest = x[..., :size], x[..., size:]
    half = torch.cat([-part[..., size // 2 :], part[..., : size // 2]], dim=-1)
    return torch.cat([part * cos[:, None] + half * sin[:, None], rest], dim=-1)


@pytest.mark.parametrize("family", EVERY)
def test_within_the_neighbour_window_it_is_the_stock_model(family: str) -> None:
    decoder = tiny_decoder(family)
    ids = token_ids(decoder, words(120))
    with torch.inference_mode():
        expected = decoder.model(ids[None]).logits[0, -1]
    torch.testing.assert_close(extended_logits(decoder, ids, neighbours=120, group=4), expected, atol=1e-3, rtol=1e-3)
    shorter = extended_logits(decoder, ids, neighbours=60, group=4)
    assert not torch.allclose(shorter, expected, atol=1e-2), "beyond it, it is not"


@pytest.mark.parametrize("family", EVERY)
@pytest.mark.parametrize(("neighbours", "group"), [(16, 4), (10, 3)])
def test_beyond_it_equals_a_dense_loop_over_pairs(family: str, neighbours: int, group: int) -> None:
    decoder = tiny_decoder(family)
    ids = token_ids(decoder, words(45))
    with torch.inference_mode():
        expected = dense_logits(decoder, ids, neighbours=neighbours, group=group)
    for stride in (7, 64):
        got = extended_logits(decoder, ids, neighbours=neighbours, group=group, stride=stride)
        torch.testing.assert_close(got, expected, atol=2e-3, rtol=1e-3)


def test_rows_computed_in_small_parts_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = tiny_decoder()
    ids = token_ids(decoder, words(200))
    expected = extended_logits(decoder, ids, neighbours=32, group=4, stride=100)
    monkeypatch.setattr("acre_rag.baselines.kv.two_rotations._MOST_PAIRS", 232 * 3)
    torch.testing.assert_close(extended_logits(decoder, ids, neighbours=32, group=4, stride=100), expected)


def test_positions_stay_within_the_window() -> None:
    system = make_self_extend(Setting(decoder=tiny_decoder(), window=256))
    state = system.add(words(5000)).state
    rotations = state.cache.layers[0].rotations
    assert rotations.group == 16
    last = torch.tensor([state.n_slots + system.reserve_tokens - 1])
    seen = int(last // 16 + rotations.neighbours - rotations.neighbours // 16)
    assert seen <= 256 * 2 // 3


@pytest.mark.parametrize(("reach", "group"), [(256, 1), (64 + 106 * 2, 2), (64 + 106 * 4, 4), (64 + 106 * 8, 8)])
def test_the_smallest_group_that_fits_is_taken(reach: int, group: int) -> None:
    """Neighbours are a quarter of 256, and positions stay within two thirds of it, 170."""
    system = make_self_extend(Setting(decoder=tiny_decoder(), window=256))
    fits = reach - len(system.prefix_ids) - system.reserve_tokens
    for n_chars, wanted in ((fits, group), (fits + 1, 2 * group)):
        layer = system.add(words(n_chars)).state.cache.layers[0]
        assert (layer.rotations.group if isinstance(layer, TwoRotationsLayer) else 1) == wanted


def test_a_text_within_the_window_is_full_context() -> None:
    system, full = make_self_extend(Setting(decoder=tiny_decoder())), made("full")
    for each in (system, full):
        each.add(words(400))
    assert system.ask(FIRST, settings=LONG).text == full.ask(FIRST, settings=LONG).text


def test_a_rotation_that_changes_with_the_length_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="dynamically"):
        make_self_extend(Setting(decoder=tiny_decoder("llama-dynamic")))
