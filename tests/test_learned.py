"""Learned L1 against a slow and obvious reference: every key of the whole nested sequence, and a mask."""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
import torch
from conftest import exact
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, Phi3Config, Qwen2Config, Qwen3Config

from acre_rag.cache import KV, BiLayerCache
from acre_rag.construct import ReadingPlan, construct
from acre_rag.decoder import Decoder
from acre_rag.errors import CapacityError
from acre_rag.proxies import LearnedProxy, PooledProxy, Proxy
from acre_rag.proxies.learned import L1Parameters, l1_projections, l1_rows, nested_embeddings

HEADS, KV_HEADS, DIM, THETA = 4, 2, 8, 10_000.0
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "vocab_size": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.3,  # keys large enough that attention is far from uniform: a wrong place shows
    "rope_parameters": {"rope_type": "default", "rope_theta": THETA},
}
CONFIGS = {
    "llama": lambda: LlamaConfig(**SHAPE),
    "qwen2": lambda: Qwen2Config(**SHAPE),  # biases
    "qwen3": lambda: Qwen3Config(**SHAPE, head_dim=DIM),  # norms after the projections
    "phi3": lambda: Phi3Config(**SHAPE),  # one fused projection
}


def build(family: str) -> Decoder:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[family]()).eval().requires_grad_(False)
    for name, weight in model.named_parameters():
        if name.endswith("bias") or "norm" in name:
            weight.add_(0.3 * torch.randn_like(weight))
    return Decoder(model=model, tokenizer=None, name=family)


DECODERS = {family: build(family) for family in CONFIGS}


def noisy(decoder: Decoder, rank: int = 0) -> L1Parameters:
    """L1 parameters so far from the base model's that a row of the wrong kind shows."""
    torch.manual_seed(1)
    parameters = L1Parameters(decoder, rank=rank)
    with torch.no_grad():
        for weight in parameters.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    return parameters


# The reference


@dataclass
class Reference:
    """Reads a document with hand-written attention over every slot there ever was, and a mask of what is visible.

    `slots` says what each slot of the nested sequence is: ("prefix", i), ("token", i) or ("l1", block). `keys` and
    `values` hold, per layer, one un-rotated `[Hkv, D]` of each of them.
    """

    decoder: Decoder
    parameters: L1Parameters
    slots: list[tuple[str, int]] = field(default_factory=list)
    keys: list[list[Tensor]] = field(default_factory=lambda: [[] for _ in range(3)])
    values: list[list[Tensor]] = field(default_factory=lambda: [[] for _ in range(3)])
    n_keys: list[int] = field(default_factory=list)
    most_distant: int = 0

    def read(self, prefix: Tensor, document: Tensor, *, interval: int, stride: int, window: int) -> None:
        if len(prefix):
            places = [("prefix", i) for i in range(len(prefix))]
            self._forward(places, prefix, hidden_blocks=0, interval=interval)
        n_blocks = len(document) // interval
        ends = [*range(0, n_blocks, stride // interval), n_blocks] if n_blocks else [0, 0]
        for first, last in pairwise(ends):
            incoming: list[tuple[str, int]] = []
            for block in range(first, last):
                incoming += [("token", block * interval + j) for j in range(interval)] + [("l1", block)]
            if last == n_blocks:
                incoming += [("token", t) for t in range(n_blocks * interval, len(document))]
            distant = next(
                d for d in range(first + 1) if len(prefix) + d + (first - d) * (interval + 1) + len(incoming) <= window
            )
            self.most_distant = max(self.most_distant, distant)
            self._forward(incoming, document, hidden_blocks=distant, interval=interval)
            self.n_keys.append(len(prefix) + distant + (first - distant) * (interval + 1) + len(incoming))

    def _forward(self, incoming: list[tuple[str, int]], ids: Tensor, *, hidden_blocks: int, interval: int) -> Tensor:
        """Hidden states `[T, hidden]` after one pass over `incoming`; of the first `hidden_blocks` blocks, only L1 can be seen."""
        n_before = len(self.slots)
        self.slots += incoming
        seen = torch.tensor([kind != "token" or i >= hidden_blocks * interval for kind, i in self.slots])
        places = seen.cumsum(0) - 1  # contiguous among what can be seen
        order = torch.arange(len(self.slots))
        mask = seen[None, :] & (order[None, :] <= order[n_before:, None])  # [T, all slots]
        is_l1 = [kind == "l1" for kind, _ in incoming]

        hidden = torch.stack(
            [
                self.parameters.embedding if kind == "l1" else self.decoder.base.embed_tokens.weight[ids[i]]
                for kind, i in incoming
            ]
        )
        for index, layer in enumerate(self.decoder.base.layers):
            x = layer.input_layernorm(hidden)
            attention = layer.self_attn
            queries = self._project("q", index, x, is_l1).view(-1, HEADS, DIM)
            new_keys = self._project("k", index, x, is_l1).view(-1, KV_HEADS, DIM)
            new_values = self._project("v", index, x, is_l1).view(-1, KV_HEADS, DIM)
            if hasattr(attention, "q_norm"):
                queries, new_keys = attention.q_norm(queries), attention.k_norm(new_keys)
            self.keys[index] += list(new_keys)
            self.values[index] += list(new_values)

            keys, values = torch.stack(self.keys[index]), torch.stack(self.values[index])
            per_head = []
            for head in range(HEADS):
                kv_head = head // (HEADS // KV_HEADS)
                logits = turn(queries[:, head], places[n_before:]) @ turn(keys[:, kv_head], places).T / DIM**0.5
                weights = logits.masked_fill(~mask, -torch.inf).softmax(-1)
                per_head.append(weights @ values[:, kv_head])
            hidden = hidden + attention.o_proj(torch.cat(per_head, dim=-1))
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        return self.decoder.base.norm(hidden)

    def _project(self, kind: str, index: int, x: Tensor, is_l1: list[bool]) -> Tensor:
        """Row by row: the base projection, or the L1 projection (Eq. 6)."""
        attention, l1 = self.decoder.base.layers[index].self_attn, self.parameters.layers[index][kind]
        start, width = {"q": (0, HEADS), "k": (HEADS, KV_HEADS), "v": (HEADS + KV_HEADS, KV_HEADS)}[kind]
        if hasattr(attention, "qkv_proj"):
            weight, bias = attention.qkv_proj.weight[start * DIM : (start + width) * DIM], None
        else:
            weight, bias = (getattr(getattr(attention, f"{kind}_proj"), part) for part in ("weight", "bias"))
        rows = []
        for row, own in zip(x, is_l1, strict=True):
            if not own or self.parameters.rank:
                y = weight @ row if bias is None else weight @ row + bias
                rows.append(y + l1.up @ (l1.down @ row) if own else y)
            else:
                rows.append(l1.weight @ row if l1.bias is None else l1.weight @ row + l1.bias)
        return torch.stack(rows)

    def entries(self, kind: str, start: int, stop: int) -> KV:
        """`[L, Hkv, n, D]` of the slots `(kind, start <= i < stop)`, keys un-rotated."""
        picked = [s for s, (k, i) in enumerate(self.slots) if k == kind and start <= i < stop]
        shape = (len(self.keys), KV_HEADS, 0, DIM)
        if not picked:
            return KV(torch.empty(shape), torch.empty(shape))
        return KV(
            *(
                torch.stack([torch.stack([layer[s] for s in picked], dim=1) for layer in layers])
                for layers in (self.keys, self.values)
            )
        )


def turn(x: Tensor, places: Tensor) -> Tensor:
    """RoPE of `x [T, D]` at `places [T]`: each pair (i, i + D / 2) turned by its own angle."""
    first, second = x[:, : DIM // 2], x[:, DIM // 2 :]
    angles = places[:, None] * THETA ** (-torch.arange(0, DIM, 2) / DIM)
    return torch.cat(
        [first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()], dim=-1
    )


def assert_equals(cache: BiLayerCache, reference: Reference, n_tokens: int) -> None:
    interval, whole = cache.interval, cache.n_blocks * cache.interval
    l2 = KV(*(exact(cache)[:, :, i].permute(1, 2, 0, 3, 4).flatten(2, 3) for i in (0, 1)))
    assert cache.n_blocks == n_tokens // interval
    for ours, theirs in (
        (cache.l1, reference.entries("l1", 0, cache.n_blocks)),
        (l2, reference.entries("token", 0, whole)),
        (cache.tail, reference.entries("token", whole, n_tokens)),
        (cache.prefix, reference.entries("prefix", 0, 1000)),
    ):
        torch.testing.assert_close(ours.keys, theirs.keys, atol=1e-4, rtol=0)
        torch.testing.assert_close(ours.values, theirs.values, atol=1e-4, rtol=0)


CASES = {  # N, l, S, W (without the prefix), whether blocks turn distant
    "everything stays recent": (64, 8, 16, 512, False),
    "distant": (96, 8, 16, 50, True),
    "distant, a tail": (93, 8, 16, 50, True),
    "distant, one block a stride": (80, 8, 8, 32, True),
    "only L1 fits": (64, 8, 16, 24, True),
    "last stride shorter": (60, 4, 24, 48, True),
    "last stride shorter, a tail": (61, 4, 24, 48, True),
    "shorter than a stride": (30, 8, 64, 128, False),
    "shorter than a block": (5, 8, 16, 64, False),
    "one block": (8, 8, 16, 64, False),
    "blocks of one token": (20, 1, 4, 24, True),
    "stride not a multiple of the interval": (70, 8, 20, 48, True),
}


def check(decoder: Decoder, parameters: L1Parameters, case: str, n_prefix: int) -> None:
    n_tokens, interval, stride, window, any_distant = CASES[case]
    ids = torch.randint(3, 64, (n_prefix + n_tokens,), generator=torch.Generator().manual_seed(n_tokens))
    prefix, document = ids[:n_prefix], ids[n_prefix:]
    plan = ReadingPlan(window=window + n_prefix, interval=interval, stride=stride)
    reference = Reference(decoder, parameters)
    with torch.no_grad():
        reference.read(prefix, document, interval=interval, stride=stride, window=plan.window)
    n_keys: list[int] = []
    cache = construct(
        decoder,
        LearnedProxy(parameters),
        prefix_ids=prefix,
        token_ids=document,
        plan=plan,
        on_keys=n_keys.append,
    )
    assert (reference.most_distant > 0) == any_distant  # the case is what its name says
    assert n_keys == reference.n_keys
    assert_equals(cache, reference, n_tokens)


@pytest.mark.parametrize("n_prefix", [0, 5])
@pytest.mark.parametrize("case", CASES)
def test_learned_reading_equals_the_reference(case: str, n_prefix: int) -> None:
    check(DECODERS["llama"], noisy(DECODERS["llama"]), case, n_prefix)


@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.parametrize("family", CONFIGS)
def test_every_family_and_rank_equals_the_reference(family: str, rank: int) -> None:
    check(DECODERS[family], noisy(DECODERS[family], rank), "distant, a tail", 5)


def test_the_reference_tells_l1_rows_from_base_rows() -> None:
    """Were L1 rows read with the base projections, the comparison above would see it."""
    decoder = DECODERS["llama"]
    parameters, copies = noisy(decoder), L1Parameters(decoder)
    with torch.no_grad():
        copies.embedding.copy_(parameters.embedding)
    document, none = torch.arange(3, 60), torch.empty(0, dtype=torch.long)
    reference = Reference(decoder, copies)
    with torch.no_grad():
        reference.read(none, document, interval=8, stride=16, window=64)
    plan = ReadingPlan(window=64, interval=8, stride=16)
    cache = construct(decoder, LearnedProxy(parameters), prefix_ids=none, token_ids=document, plan=plan)
    assert (cache.l1.keys - reference.entries("l1", 0, 7).keys).abs().max() > 1
    assert (exact(cache)[1:, 1:, 0].flatten() - reference.entries("token", 8, 56).keys[1:].flatten()).abs().max() > 0.1


# The window


class Measured:
    """A proxy that notes how many keys the model's cache really holds after each stride."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy, self.name, self.extra_slots = proxy, proxy.name, proxy.extra_slots
        self.split = proxy.split
        self.n_keys: list[int] = []

    def read(self, decoder: Decoder, token_ids: Tensor, *, n_blocks: int, interval: int, past: Any) -> None:
        self._proxy.read(decoder, token_ids, n_blocks=n_blocks, interval=interval, past=past)
        self.n_keys.append(past.get_seq_length())


def keys_by_brute_force(n_tokens: int, n_prefix: int, plan: ReadingPlan, extra: int) -> list[int] | None:
    """Most keys within the window at each step, trying every count of distant blocks; `None` if none fits."""
    if n_prefix >= plan.window // 2:
        return None
    n_blocks, per_stride = n_tokens // plan.interval, plan.stride // plan.interval
    n_keys, done = [], 0
    while True:
        now = min(per_stride, n_blocks - done)
        tail = n_tokens % plan.interval if done + now == n_blocks else 0
        slots = plan.interval + extra
        counts = [n_prefix + d + (done - d + now) * slots + tail for d in range(done + 1)]
        fitting = [count for count in counts if count <= plan.window]
        if not fitting:
            return None
        n_keys.append(max(fitting))
        done += now
        if done == n_blocks:
            return n_keys


@pytest.mark.parametrize("kind", ["pooled", "learned"])
@settings(deadline=None, max_examples=40)
@given(
    n_tokens=st.integers(1, 150),
    interval=st.sampled_from([2, 3, 4, 8]),
    blocks_per_stride=st.integers(1, 5),
    window=st.integers(8, 160),
    n_prefix=st.integers(0, 6),
)
def test_no_step_attends_to_more_than_the_window(
    kind: str, n_tokens: int, interval: int, blocks_per_stride: int, window: int, n_prefix: int
) -> None:
    decoder = DECODERS["llama"]
    proxy = Measured(PooledProxy() if kind == "pooled" else LearnedProxy(L1Parameters(decoder)))
    plan = ReadingPlan(window=window, interval=interval, stride=blocks_per_stride * interval)
    expected = keys_by_brute_force(n_tokens, n_prefix, plan, proxy.extra_slots)
    reported: list[int] = []

    def read() -> BiLayerCache:
        return construct(
            decoder,
            proxy,
            prefix_ids=torch.arange(n_prefix),
            token_ids=torch.arange(n_tokens) % 64,
            plan=plan,
            on_keys=reported.append,
        )

    if expected is None:
        with pytest.raises(CapacityError):
            read()
    else:
        cache = read()
        assert reported == expected  # as many recent blocks as the window allows
        assert cache.n_blocks * interval + len(cache.tail) == cache.n_tokens == n_tokens
    assert reported == proxy.n_keys
    assert all(count <= window for count in reported)


# The hooks


def nested_pass(decoder: Decoder, parameters: L1Parameters, ids: Tensor, *, n_blocks: int, interval: int) -> Tensor:
    embeds = nested_embeddings(decoder, parameters, ids, n_blocks=n_blocks, interval=interval)
    with l1_projections(decoder, parameters, l1_rows(n_blocks, interval, decoder.device)):
        hidden: Tensor = decoder.base(inputs_embeds=embeds[None]).last_hidden_state
    return hidden


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("family", CONFIGS)
def test_gradients_reach_all_l1_parameters_and_no_base_weight(family: str, rank: int) -> None:
    decoder = DECODERS[family]
    parameters = noisy(decoder, rank)
    ids = torch.arange(3, 25)
    hidden = nested_pass(decoder, parameters, ids, n_blocks=2, interval=8)
    slots = [slot for b in (0, 1) for slot in [*(("token", 8 * b + j) for j in range(8)), ("l1", b)]]
    slots += [("token", t) for t in range(16, 22)]
    expected = Reference(decoder, parameters)._forward(slots, ids, hidden_blocks=0, interval=8)
    gradients = torch.autograd.grad(expected.pow(3).sum(), list(parameters.parameters()))
    hidden.pow(3).sum().backward()
    for (name, weight), reference in zip(parameters.named_parameters(), gradients, strict=True):
        assert reference.abs().sum() > 0 and weight.grad is not None, name
        torch.testing.assert_close(weight.grad, reference, atol=1e-3 * float(reference.abs().max()), rtol=0)
    assert all(weight.grad is None for weight in decoder.model.parameters())


def test_l1_rows_owe_nothing_to_the_frozen_projection() -> None:
    """Full rank replaces the row, so no gradient goes back through the base weights even where they could train."""
    decoder = build("qwen2")
    parameters, rows = noisy(decoder), torch.tensor([1, 4])
    projection = decoder.base.layers[1].self_attn.k_proj.requires_grad_(True)
    x = torch.randn(1, 6, 32)
    with l1_projections(decoder, parameters, rows):
        y = projection(x)
    y[:, rows].sum().backward()
    assert not projection.weight.grad.any() and not projection.bias.grad.any()
    assert parameters.layers[1]["k"].weight.grad.any()


@pytest.mark.parametrize("family", CONFIGS)
def test_other_rows_are_the_base_models_own(family: str) -> None:
    decoder = DECODERS[family]
    rows, others = torch.tensor([1, 4]), torch.tensor([0, 2, 3, 5])
    x = torch.randn(2, 6, 32)
    attention = decoder.attentions[2]
    modules = [getattr(attention, n) for n in ("q_proj", "k_proj", "v_proj", "qkv_proj") if hasattr(attention, n)]
    for module in modules:
        plain = module(x)
        with l1_projections(decoder, noisy(decoder), rows):
            y = module(x)
        assert torch.equal(y[:, others], plain[:, others])
        assert ((y[:, rows] - plain[:, rows]).abs() > 0.1).any(dim=-1).all()


def test_the_hooks_go_when_the_block_is_left_by_an_error() -> None:
    decoder = DECODERS["llama"]
    ids = torch.arange(3, 20)[None]
    before = decoder.base(input_ids=ids).last_hidden_state
    with pytest.raises(RuntimeError, match="stop"), l1_projections(decoder, noisy(decoder), torch.tensor([3])):
        raise RuntimeError("stop")
    assert torch.equal(decoder.base(input_ids=ids).last_hidden_state, before)


@pytest.mark.parametrize("family", CONFIGS)
def test_untrained_parameters_are_the_base_model_reading_its_end_token(family: str) -> None:
    """Full rank starts as a copy and low rank as no change: an L1 token is then an end-of-text token."""
    decoder = DECODERS[family]
    ids = torch.arange(3, 22)
    nested = torch.cat([ids[:8], torch.tensor([2]), ids[8:16], torch.tensor([2]), ids[16:]])
    plain = decoder.base(input_ids=nested[None]).last_hidden_state
    for rank in (0, 2):
        hidden = nested_pass(decoder, L1Parameters(decoder, rank=rank), ids, n_blocks=2, interval=8)
        torch.testing.assert_close(hidden, plain, atol=1e-5, rtol=0)
