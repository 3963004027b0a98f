"""KIVI: rounding within half a step, groups as published, the residual exact, nothing rounded twice: against a loop."""

import pytest
import torch
from conftest import tiny_decoder
from hypothesis import given, settings
from hypothesis import strategies as st
from test_kv_systems import FAMILIES, FIRST, made, words
from torch import Tensor

from acre_rag.baselines.base import Setting
from acre_rag.baselines.kv.base import Prefilled
from acre_rag.baselines.kv.codes import encode
from acre_rag.baselines.kv.kivi import KiviLayer, make_kivi
from acre_rag.generate import GenerationSettings


def rounded(group: Tensor, bits: int) -> Tensor:
    """One group, number by number."""
    low, high = float(group.min()), float(group.max())
    step = max((high - low) / (2**bits - 1), torch.finfo(torch.float32).tiny)
    return torch.tensor([round((x - low) / step) * step + low for x in group.tolist()])


def reference(x: Tensor, *, bits: int, group: int, per_channel: bool) -> Tensor:
    """`[1, Hkv, T, D]` rounded as published: keys by `group` tokens of a channel, values by channels of a token."""
    out = x.clone()
    _, n_heads, length, dim = x.shape
    for head in range(n_heads):
        if per_channel:
            for channel in range(dim):
                for t in range(0, length, group):
                    out[0, head, t : t + group, channel] = rounded(x[0, head, t : t + group, channel], bits)
        else:
            for t in range(length):
                for c in range(0, dim, group):
                    out[0, head, t, c : c + group] = rounded(x[0, head, t, c : c + group], bits)
    return out


def random_kv(n_tokens: int, *, dim: int = 16, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Keys with a channel far from zero, as real ones have, and values."""
    generator = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(2, 1, 2, n_tokens, dim, generator=generator)
    keys[..., 3] += 40
    return keys, values


@given(
    bits=st.sampled_from([2, 4, 8]),
    shape=st.sampled_from([(2, 3, 32), (1, 64)]),
    numbers=st.sampled_from(
        [
            (torch.float32, 1e-3, 0.0),
            (torch.float32, 1.0, 1000.0),
            (torch.float32, 100.0, -7.0),
            (torch.float16, 1.0, -7.0),
            (torch.float16, 100.0, 1000.0),
            (torch.bfloat16, 1e-3, 0.0),
            (torch.bfloat16, 1.0, -7.0),
            (torch.bfloat16, 100.0, 1000.0),
        ]
    ),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_codes_are_within_half_a_step_of_their_group(
    bits: int, shape: tuple[int, ...], numbers: tuple[torch.dtype, float, float], seed: int
) -> None:
    """Of types, spreads and shifts in which the type's own rounding is small beside the spread."""
    dtype, spread, shift = numbers
    generator = torch.Generator().manual_seed(seed)
    x = (torch.randn(*shape, generator=generator) * spread + shift).to(dtype)
    codes = encode(x, bits=bits, group=16)
    groups = x.double().unflatten(-1, (-1, 16))
    reach = groups.amax(-1) - groups.amin(-1)
    off = (codes.decode().double().unflatten(-1, (-1, 16)) - groups).abs().amax(-1)
    rounding = torch.finfo(dtype).eps * groups.abs().amax(-1) * 2  # of the number type, on the way in and out
    most = 0.5 * reach / (2**bits - 1) * (1 + 1e-3) + rounding
    assert (most < 0.4 * reach).all(), "or a decoder that knows the group's middle alone would pass"
    assert (off <= most).all()
    assert codes.decode().dtype == dtype and codes.packed.nbytes == x.numel() * bits // 8


def test_equal_numbers_are_kept_exactly() -> None:
    x = torch.full((2, 32), 3.7)
    assert torch.equal(encode(x, bits=4, group=16).decode(), x)


@pytest.mark.parametrize("bits", [2, 4])
def test_a_layer_rounds_keys_per_channel_and_values_per_token_and_keeps_the_residual(bits: int) -> None:
    keys, values = random_kv(75)
    layer = KiviLayer(bits=bits, group=8, residual=16)
    first = layer.update(keys, values)
    assert torch.equal(first[0], keys) and torch.equal(first[1], values), "reading is in full precision"
    nothing = torch.empty(1, 2, 0, 16)
    held_keys, held_values = layer.update(nothing, nothing)
    old_keys, old_values = 64, 75 - 16  # keys go 16 at a time, values as soon as 16 stand behind them
    expected = reference(keys[:, :, :old_keys], bits=bits, group=8, per_channel=True)
    torch.testing.assert_close(held_keys[:, :, :old_keys], expected, atol=1e-4, rtol=1e-5)
    expected = reference(values[:, :, :old_values], bits=bits, group=8, per_channel=False)
    torch.testing.assert_close(held_values[:, :, :old_values], expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(held_keys[:, :, old_keys:], keys[:, :, old_keys:])
    assert torch.equal(held_values[:, :, old_values:], values[:, :, old_values:])
    assert not torch.equal(held_keys[:, :, :old_keys], keys[:, :, :old_keys])


def test_a_channel_far_from_zero_keeps_its_levels_where_zero_would_cost_them() -> None:
    keys, values = random_kv(64)
    layer = KiviLayer(bits=4, group=8, residual=8)
    layer.update(keys, values)
    held, _ = layer.update(keys[:, :, :0], values[:, :, :0])
    far = (held - keys)[..., 3].abs().max()
    assert far < 0.25, "half a step over a range of at most 6; with zero in the range it were 40 / 15 / 2"


def test_token_by_token_gives_the_codes_of_reading_at_once() -> None:
    keys, values = random_kv(75)
    at_once, slowly = (KiviLayer(bits=4, group=8, residual=16) for _ in range(2))
    at_once.update(keys, values)
    for t in range(75):
        slowly.update(keys[:, :, t : t + 1], values[:, :, t : t + 1])
    for one, other in zip(
        (at_once.key_codes, at_once.value_codes), (slowly.key_codes, slowly.value_codes), strict=True
    ):
        assert one and other and torch.equal(one.packed, other.packed) and torch.equal(one.low, other.low)
    assert torch.equal(at_once.keys, slowly.keys) and torch.equal(at_once.values, slowly.values)
    assert at_once.get_seq_length() == slowly.get_seq_length() == 75


def test_bytes_are_those_that_the_bits_imply() -> None:
    keys, values = random_kv(75)
    layer = KiviLayer(bits=4, group=8, residual=16)
    layer.update(keys, values)
    coded, exact = (64 + 59) * 2 * 16, (11 + 16) * 2 * 16
    assert layer.n_bytes == coded // 2 + coded // 8 * 2 * 4 + exact * 4


@pytest.mark.parametrize("family", FAMILIES)
def test_the_documents_cache_is_rounded_after_it_was_read_in_full(family: str) -> None:
    kivi, full = made("kivi", family), made("full", family)
    text = words(400)
    coded, exact = (system.add(text).state for system in (kivi, full))
    assert isinstance(coded, Prefilled) and coded.n_slots == exact.n_slots
    for layer, plain in zip(coded.cache.layers, exact.cache.layers, strict=True):
        nothing = plain.keys[:, :, :0]
        keys, values = layer.update(nothing, nothing)
        n_old = coded.n_slots // 16 * 16
        expected = reference(plain.keys[:, :, :n_old], bits=4, group=8, per_channel=True)
        torch.testing.assert_close(keys[:, :, :n_old], expected, atol=1e-4, rtol=1e-4)
        assert torch.equal(keys[:, :, n_old:], plain.keys[:, :, n_old:])
        assert torch.equal(values[:, :, -16:], plain.values[:, :, -16:])
        break  # one layer tells; the loop is slow


def test_a_residual_that_holds_everything_is_full_context_and_eight_bits_nearly() -> None:
    long = GenerationSettings(max_new_tokens=24)
    full, exact = made("full"), made("kivi", residual=2048)
    for system in (full, exact):
        system.add(words(400))
    assert exact.ask(FIRST, settings=long).text == full.ask(FIRST, settings=long).text
    eight = make_kivi(Setting(decoder=tiny_decoder()), bits=8, group=8, residual=16)
    eight.add(words(400))
    assert eight.ask(FIRST, settings=long).text == full.ask(FIRST, settings=long).text
