"""Scores against the model's own attention weights and against the plain softmax."""

from typing import Any

import pytest
import torch
from conftest import tiny_decoder
from torch.utils._python_dispatch import TorchDispatchMode

from acre_rag import ACRE, ACREConfig
from acre_rag.cache import KV
from acre_rag.construct import to_transformers
from acre_rag.decoder import Decoder
from acre_rag.heads import Head
from acre_rag.question import global_view, question_queries
from acre_rag.scores import attention_mass, head_scores, pooled_scores

TEXT = "The drum is in room one. The flute is in room two. " * 9


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_scoring_in_chunks_is_the_plain_softmax(chunk: int) -> None:
    generator = torch.Generator().manual_seed(0)
    queries, keys = torch.randn(5, 8, generator=generator) * 4, torch.randn(100, 8, generator=generator)
    plain = torch.softmax(queries @ keys.T * 0.3, dim=-1).mean(dim=0)
    torch.testing.assert_close(attention_mass(queries, keys, scaling=0.3, chunk=chunk), plain)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "phi3", "phi-norm", "stablelm-norm"])
def test_pooled_scores_are_the_models_own_attention_over_l1(family: str) -> None:
    """Eq. 15: the eager model's attention weights on the L1 slots, renormalised over them."""
    decoder = tiny_decoder(family, "eager")
    acre = ACRE(decoder, config=ACREConfig(window=512, interval=8, stride=64, select="consensus"))
    cache = acre.add(TEXT).cache
    question = acre.question("Where is the drum?")
    view = global_view([cache])
    past = to_transformers(KV(decoder.rope.rotate(view.keys), view.values))
    with torch.inference_mode():
        weights = decoder.base(input_ids=question.ids[None], past_key_values=past, output_attentions=True).attentions
    first = len(cache.prefix)
    expected = []
    for layer in weights:  # [1, H, T, keys]
        on_l1 = layer[0, :, question.own, first : first + cache.n_blocks]
        expected.append((on_l1 / on_l1.sum(dim=-1, keepdim=True)).mean(dim=(0, 1)))
    ours = pooled_scores(
        question_queries(decoder, view, question.ids, own=question.own),
        cache.l1.keys,
        scaling=decoder.scaling,
        rope=decoder.rope,
        distance=cache.n_blocks + len(cache.tail) + question.own.start,
    )
    torch.testing.assert_close(ours, torch.stack(expected), atol=1e-5, rtol=1e-3)
    assert ours.max() > 1.2 * ours.min()  # far enough from uniform to tell


def test_head_scores_read_the_kv_head_of_their_query_head(tiny: Decoder) -> None:
    generator = torch.Generator().manual_seed(1)
    queries = torch.randn(3, 4, 6, 8, generator=generator)
    keys = torch.randn(2, 50, 8, generator=generator)
    rows = [(Head(0, 3, 0.5), 1), (Head(2, 0, 0.5), 0)]
    scores = head_scores(queries, keys, rows=rows, scaling=0.35)
    for row, (head, at) in enumerate(rows):
        expected = torch.softmax(queries[head.layer, head.head] @ keys[at].T * 0.35, dim=-1).mean(dim=0)
        torch.testing.assert_close(scores[row], expected)


def test_pooled_scores_by_layer_are_those_of_all_heads_at_once() -> None:
    """The slow form: every key repeated for every query head. The fast one holds one layer's logits at a time."""
    generator = torch.Generator().manual_seed(2)
    queries = torch.randn(5, 6, 3, 8, generator=generator)
    keys = torch.randn(5, 2, 40, 8, generator=generator)
    logits = torch.einsum("lhtd,lhmd->lhtm", queries * 0.35, keys.repeat_interleave(3, dim=1))
    ours = pooled_scores(queries, keys, scaling=0.35)
    torch.testing.assert_close(ours, logits.softmax(dim=-1).mean(dim=(1, 2)))


@pytest.mark.parametrize("rotated", [True, False])
def test_pooled_scores_hold_one_layer_at_a_time(tiny: Decoder, rotated: bool) -> None:
    queries, keys = torch.randn(24, 8, 2, 8), torch.randn(24, 2, 2048, 8, dtype=torch.bfloat16)
    made: list[int] = []

    class Made(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.dtype == torch.float32:
                made.append(result.nbytes)
            return result

    with Made():
        pooled_scores(queries, keys, scaling=0.25, rope=tiny.rope if rotated else None)
    assert max(made) <= keys.nbytes / 6  # one layer in float32, of 24 in bfloat16; its logits are as large
