"""Learned L1 against a slow and obvious reference: every key of the whole nested sequence, and a mask."""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, Phi3Config, Qwen2Config, Qwen3Config

from acre_rag.cache import KV, BiLayerCache
from acre_rag.construct import ReadingPlan, construct
from acre_rag.errors import CapacityError
from acre_rag.models import Decoder
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
        self._forward([("prefix", i) for i in range(len(prefix))], prefix, hidden_blocks=0, interval=interval)
        n_blocks = len(document) // interval
        ends = [*range(0, n_blocks, stride // interval), n_blocks] if n_blocks else [0, 0]
        for first, last in pairwise(ends):
            incoming: list[tuple[str, int]] = []
            for block in range(first, last):
                incoming += [("token", block * interval + j) for j in range(interval)] + [("l1", block)]
            if last == n_blocks:
                incoming += [("token", t) for t in range(n_blocks * interval, len(document))]
            if not incoming:
                continue
            distant = next(
                d
                for d in range(first + 1)
                if len(prefix) + d + (first - d) * (interval + 1) + len(incoming) <= window
            )
            self.most_distant = max(self.most_distant, distant)
            self._forward(incoming, document, hidden_blocks=distant, interval=interval)
            self.n_keys.append(len(prefix) + distant + (first - distant) * (interval + 1) + len(incoming))

    def _forward(
        self, incoming: list[tuple[str, int]], ids: Tensor, *, hidden_blocks: int, interval: int
    ) -> None:
        """One pass over `incoming`; of the first `hidden_blocks` blocks only the L1 slots can be seen."""
        n_before = len(self.slots)
        self.slots += incoming
        seen = torch.tensor([kind != "token" or i >= hidden_blocks * interval for kind, i in self.slots])
        places = seen.cumsum(0) - 1  # contiguous among what can be seen
        order = torch.arange(len(self.slots))
        mask = seen[None, :] & (order[None, :] <= order[n_before:, None])  # [T, all slots]
        is_l1 = [kind == "l1" for kind, _ in incoming]

        hidden = torch.stack([
            self.parameters.embedding if kind == "l1" else self.decoder.base.embed_tokens.weight[ids[i]]
            for kind, i in incoming
        ])
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
        return KV(*(
            torch.stack([torch.stack([layer[s] for s in picked], dim=1) for layer in layers])
            for layers in (self.keys, self.values)
        ))


def turn(x: Tensor, places: Tensor) -> Tensor:
    """RoPE of `x [T, D]` at `places [T]`: each pair (i, i + D / 2) turned by its own angle."""
    first, second = x[:, : DIM // 2], x[:, DIM // 2 :]
    angles = places[:, None] * THETA ** (-torch.arange(0, DIM, 2) / DIM)
    return torch.cat(
        [first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()], dim=-1
    )


def assert_equals(cache: BiLayerCache, reference: Reference, n_tokens: int) -> None:
    interval, whole = cache.interval, cache.n_blocks * cache.interval
    l2 = KV(*(cache.l2[:, :, i].permute(1, 2, 0, 3, 4).flatten(2, 3) for i in (0, 1)))
    assert cache.n_blocks == n_tokens // interval
    for ours, theirs in (
        (cache.l1, reference.entries("l1", 0, cache.n_blocks)),
        (l2, reference.entries("token", 0, whole)),
        (cache.tail, reference.entries("token", whole, n_tokens)),
        (cache.prefix, reference.entries("prefix", 0, 1000)),
    ):
        torch.testing.assert_close(ours.keys, theirs.keys, atol=1e-4, rtol=0)
        torch.testing.assert_close(ours.values, theirs.values, atol=1e-4, rtol=0)


CASES = {  # N, l, S, W, whether blocks turn distant
    "whole strides": (64, 8, 16, 512, False),
    "distant": (96, 8, 16, 50, True),
    "distant, one block a stride": (80, 8, 8, 32, True),
    "distant, a tail": (93, 8, 16, 50, True),
    "last stride shorter, a tail": (61, 4, 24, 48, True),
    "last stride shorter, no tail": (60, 4, 24, 48, True),
    "nothing recent fits": (64, 8, 16, 31, True),
    "one stride is more than the document": (30, 8, 64, 128, False),
    "shorter than a block": (5, 8, 16, 64, False),
    "exactly a block": (8, 8, 16, 64, False),
    "blocks of one token": (20, 1, 4, 24, True),
    "stride not a multiple of the interval": (70, 8, 20, 48, True),
}


def check(decoder: Decoder, parameters: L1Parameters, case: str, n_prefix: int) -> None:
    n_tokens, interval, stride, window, any_distant = CASES[case]
    generator = torch.Generator().manual_seed(n_tokens)
    ids = torch.randint(3, 64, (n_prefix + n_tokens,), generator=generator)
    prefix, document = ids[:n_prefix], ids[n_prefix:]
    reference, n_keys = Reference(decoder, parameters), []
    with torch.no_grad():
        if n_prefix:
            pass
        reference.read(prefix, document, interval=interval, stride=stride, window=window)
    cache = construct(
        decoder,
        LearnedProxy(parameters),
        prefix_ids=prefix,
        token_ids=document,
        plan=ReadingPlan(window=window, interval=interval, stride=stride),
        on_keys=n_keys.append,
    )
    assert (reference.most_distant > 0) == any_distant  # the case is what its name says
    assert n_keys == reference.n_keys
    assert_equals(cache, reference, n_tokens)
