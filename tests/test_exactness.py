"""With every block refilled, the stock model's own numbers come out: the method adds no error of its own."""

import inspect

import numpy as np
import pytest
import torch
from conftest import FAMILIES, tiny_decoder
from transformers import DynamicCache

from acre_rag import generate
from acre_rag.cache import KV
from acre_rag.construct import ReadingPlan, construct, to_transformers
from acre_rag.decoder import Decoder
from acre_rag.generate import GenerationSettings, decode
from acre_rag.proxies import PooledProxy
from acre_rag.refill import refill


def refill_everything(decoder: Decoder, prefix: torch.Tensor, document: torch.Tensor, plan: ReadingPlan) -> KV:
    cache = construct(decoder, PooledProxy(), prefix_ids=prefix, token_ids=document, plan=plan)
    return refill([cache], [np.arange(cache.n_blocks)], rope=decoder.rope, l1_context=False)


def continued_logits(decoder: Decoder, slots: KV, question: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return decoder.model(input_ids=question[None], past_key_values=to_transformers(slots)).logits[0]


def stock_logits(decoder: Decoder, ids: torch.Tensor, n_last: int) -> torch.Tensor:
    with torch.inference_mode():
        return decoder.model(input_ids=ids[None]).logits[0, -n_last:]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("n_tokens", [160, 157, 16, 5])
def test_refilling_everything_gives_the_stock_logits(family: str, n_tokens: int) -> None:
    decoder = tiny_decoder(family)
    generator = torch.Generator().manual_seed(n_tokens)
    ids = torch.randint(3, 259, (7 + n_tokens + 9,), generator=generator)
    prefix, document, question = ids[:7], ids[7 : 7 + n_tokens], ids[7 + n_tokens :]
    slots = refill_everything(decoder, prefix, document, ReadingPlan(window=256, interval=8, stride=32))
    ours, stock = continued_logits(decoder, slots, question), stock_logits(decoder, ids, len(question))
    assert stock.abs().max() > 0.1  # a model that says nothing would agree with anything
    torch.testing.assert_close(ours, stock, atol=1e-4, rtol=0)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_implementations_agree(implementation: str) -> None:
    decoder = tiny_decoder("llama", implementation)
    ids = torch.arange(3, 103)
    slots = refill_everything(decoder, ids[:4], ids[4:90], ReadingPlan(window=256, interval=8, stride=24))
    torch.testing.assert_close(
        continued_logits(decoder, slots, ids[90:]), stock_logits(decoder, ids, 10), atol=1e-4, rtol=0
    )


@pytest.mark.model
def test_smollm2_gives_its_own_logits(smollm2: Decoder, alice: str) -> None:
    ids = torch.tensor(smollm2.tokenizer(alice[:6000], add_special_tokens=False).input_ids)
    prefix, document, question = ids[:20], ids[20:-12], ids[-12:]
    slots = refill_everything(smollm2, prefix, document, ReadingPlan(window=4096, interval=16, stride=512))
    ours, stock = continued_logits(smollm2, slots, question), stock_logits(smollm2, ids, len(question))
    # float32 rounding of a 30-layer model: relative to the size of the logits
    assert (ours - stock).abs().max() < 1e-4 * stock.abs().max()
    assert torch.equal(ours.argmax(-1), stock.argmax(-1))


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3"])
def test_a_batch_answers_as_each_row_alone(family: str) -> None:
    decoder = tiny_decoder(family)
    cache = construct(
        decoder,
        PooledProxy(),
        prefix_ids=torch.arange(3, 9),
        token_ids=torch.arange(10, 210),
        plan=ReadingPlan(window=128, interval=8, stride=32),
    )
    chosen = [np.array([0, 3]), np.array([], dtype=np.int64), np.array([4, 5, 20])]
    slots = [refill([cache], [blocks], rope=decoder.rope) for blocks in chosen]
    questions = [torch.arange(20, 20 + n) for n in (3, 11, 7)]
    settings = GenerationSettings(max_new_tokens=8)
    alone = [decode(decoder, [s], [q], settings)[0].text for s, q in zip(slots, questions, strict=True)]
    assert [g.text for g in decode(decoder, slots, questions, settings)] == alone
    assert len(set(alone)) == len(alone)


def test_greedy_answer_equals_the_stock_generate(tiny: Decoder) -> None:
    ids = torch.arange(5, 125)
    slots = refill_everything(tiny, ids[:6], ids[6:110], ReadingPlan(window=256, interval=8, stride=40))
    ours = decode(tiny, [slots], [ids[110:]], GenerationSettings(max_new_tokens=12))[0].text
    stock = tiny.model.generate(
        input_ids=ids[None],
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        max_new_tokens=12,
        do_sample=False,
        past_key_values=DynamicCache(),
    )
    assert ours == tiny.tokenizer.decode(stock[0, len(ids) :], skip_special_tokens=True).strip()


def test_older_transformers_are_told_where_the_question_stands(tiny: Decoder) -> None:
    """The option exists exactly where the model's forward pass takes it (5.2 does, 5.23 does not)."""
    takes_it = "cache_position" in inspect.signature(tiny.model.forward).parameters
    told = generate._slots_of(tiny, n_cached=7, n_new=3)
    assert (told["cache_position"].tolist() == [7, 8, 9]) if takes_it else told == {}
