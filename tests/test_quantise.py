"""L2 in 8 or 4 bits: within half a step of the exact values, smaller by what the bits imply, and ours equals a plain loop."""

import weakref

import pytest
import torch
from conftest import exact, tiny_decoder
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine import SHORT, TEXT

from acre_rag import ACRE, ACREConfig
from acre_rag.errors import ConfigError
from acre_rag.quantise import QuantisedCodec, codec_of, with_codec

CONFIG = ACREConfig(window=512, interval=8, stride=64, passage_tokens=32, max_passages=2, select="consensus")


def reference(blocks: torch.Tensor, bits: int) -> torch.Tensor:
    """Group by group: keys of one channel of one block share a scale, values of one token do."""
    out = blocks.clone()
    n, n_layers, _, n_heads, length, dim = blocks.shape
    for b in range(n):
        for layer in range(n_layers):
            for head in range(n_heads):
                for channel in range(dim):
                    out[b, layer, 0, head, :, channel] = rounded(blocks[b, layer, 0, head, :, channel], bits)
                for token in range(length):
                    out[b, layer, 1, head, token] = rounded(blocks[b, layer, 1, head, token], bits)
    return out


def rounded(group: torch.Tensor, bits: int) -> torch.Tensor:
    low = group.min()
    step = max(float(group.max() - low) / (2**bits - 1), torch.finfo(torch.float32).eps)
    return ((group - low) / step).round().clamp(0, 2**bits - 1) * step + low


@pytest.mark.parametrize("bits", [8, 4])
@given(seed=st.integers(0, 99), spread=st.sampled_from([0.01, 1.0, 50.0]))
@settings(max_examples=8, deadline=None)
def test_codes_equal_a_plain_loop_and_stay_within_half_a_step(bits: int, seed: int, spread: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randn(2, 2, 2, 2, 8, 6, generator=generator) * spread
    blocks[..., 3] *= 10  # an outlier channel, as real keys have
    codec = QuantisedCodec(bits)
    decoded = codec.decode(codec.encode(blocks), torch.float32)
    expected = reference(blocks, bits)
    torch.testing.assert_close(decoded, expected, atol=2e-3 * spread * 10 if bits == 8 else 2e-2 * spread * 10, rtol=0)
    for kind, axis in ((0, -2), (1, -1)):
        x = blocks[:, :, kind]
        step = (x.amax(axis, keepdim=True) - x.amin(axis, keepdim=True)) / (2**bits - 1)
        assert ((decoded[:, :, kind] - x).abs() <= 0.5 * step * 1.01 + 1e-6).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_channel_far_from_zero_keeps_its_levels(dtype: torch.dtype) -> None:
    blocks = torch.randn(2, 2, 2, 2, 16, 8, generator=torch.Generator().manual_seed(0))
    blocks[:, :, 0, ..., 5] += 100  # as the keys of a model with biases
    blocks = blocks.to(dtype)
    codec = QuantisedCodec(4)
    error = (codec.decode(codec.encode(blocks), torch.float32) - blocks.float()).abs()
    assert error[:, :, 0, ..., 5].max() < 0.3
    assert error.max() < 0.3


def test_bytes_are_those_that_the_bits_imply() -> None:
    acre = ACRE(tiny_decoder(), config=CONFIG)
    cache = acre.add(TEXT).cache
    full = cache.l2.n_bytes
    numbers = full // 4  # float32
    n_layers, n_heads, length, dim = 3, 2, 8, 8
    groups = cache.n_blocks * n_layers * n_heads * (dim + length)
    for bits in (8, 4):
        small = with_codec(cache, codec_of(bits))
        assert small.l2.n_bytes == numbers * bits // 8 + groups * (4 + 4)
        error = (exact(small) - exact(cache)).abs().max()
        assert 0 < error < exact(cache).abs().max() / 2 ** (bits - 2)
    assert with_codec(cache, codec_of(16)) is cache


@pytest.mark.parametrize("bits", [8, 4])
def test_an_engine_answers_from_fewer_bits(bits: int) -> None:
    from dataclasses import replace

    plain = ACRE(tiny_decoder(), config=CONFIG)
    plain.add(TEXT)
    expected = plain.ask("Where is the drum?", settings=SHORT)
    acre = ACRE(tiny_decoder(), config=replace(CONFIG, l2_bits=bits))
    document = acre.add(TEXT)
    answer = acre.ask("Where is the drum?", settings=SHORT)
    assert answer.sources == expected.sources, "what is chosen does not depend on L2"
    assert document.cache.host_bytes <= plain.statistics.host_bytes / 2
    if bits == 8:
        assert answer.text == expected.text


def test_codes_are_written_where_they_stay_chunk_by_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No chunk outlives the next: all of them and their concatenation would be as large as the codes twice."""
    cache = ACRE(tiny_decoder(), config=CONFIG).add(TEXT).cache
    codec = QuantisedCodec(8)
    whole = codec.encode(exact(cache))
    chunks: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []
    encode = codec.encode

    def watched(blocks: torch.Tensor) -> dict[str, torch.Tensor]:
        parts = encode(blocks)
        chunks.extend(weakref.ref(part) for part in parts.values())
        alive.append(sum(chunk() is not None for chunk in chunks))
        return parts

    monkeypatch.setattr(codec, "encode", watched)
    monkeypatch.setattr("acre_rag.quantise._CHUNK_BLOCKS", 3)
    written = with_codec(cache, codec)
    assert len(alive) == -(-cache.n_blocks // 3) > 3 and max(alive) <= 2 * len(whole)
    assert {name: part.tensor.tolist() for name, part in written.l2.parts.items()} == {
        name: part.tolist() for name, part in whole.items()
    }


def test_other_bits_are_refused() -> None:
    with pytest.raises(ConfigError, match="l2_bits=3"):
        ACREConfig(l2_bits=3)
