"""One forward pass over a whole nested sequence against the loop of steps, and that loop against construction."""

import pytest
import torch
from conftest import tiny_decoder
from torch import Tensor
from transformers import DynamicCache

from acre_rag.cache import BiLayerCache
from acre_rag.construct import ReadingPlan, construct, to_transformers
from acre_rag.decoder import Decoder
from acre_rag.errors import CapacityError, ConfigError
from acre_rag.proxies import LearnedProxy
from acre_rag.proxies.learned import L1Parameters
from acre_rag.question import global_view, question_queries
from acre_rag.refill import refill
from acre_rag.scores import pooled_scores
from acre_rag.training.layout import Layout, reading
from acre_rag.training.losses import RetrievalWatch
from acre_rag.training.nested_attention import nested_attention
from acre_rag.training.reader import NestedReader

FAMILIES = ["llama", "llama-dynamic", "qwen2", "qwen2-yarn", "qwen3", "phi3", "phi3-partial"]
CASES = {  # P, N, l, S, W
    "distant, a tail": (5, 93, 8, 16, 55),
    "no prefix, earlier strides seen through L1 alone": (0, 96, 8, 16, None),
    "stride not a multiple of the interval": (5, 90, 8, 20, 60),
    "everything stays recent": (3, 61, 4, 24, 512),
    "shorter than a block": (2, 5, 8, 16, None),
    "blocks of one token": (4, 40, 1, 8, 56),
}
QUESTION, ANSWER = 7, 9


def noisy(decoder: Decoder, rank: int = 0) -> L1Parameters:
    """L1 parameters so far from the base model's that a row of the wrong kind shows."""
    torch.manual_seed(1)
    l1 = L1Parameters(decoder, rank=rank)
    with torch.no_grad():
        for weight in l1.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    return l1


def layout_of(case: str, *, asked: bool = True) -> Layout:
    n_prefix, n_tokens, interval, stride, window = CASES[case]
    layout = reading(n_prefix=n_prefix, n_tokens=n_tokens, interval=interval, stride=stride, window=window)
    if not asked:
        return layout
    return layout.asking(QUESTION).asking(ANSWER, refilled=[b for b in (1, 4) if b < layout.n_blocks])


def ids_of(case: str) -> Tensor:
    n_prefix, n_tokens, *_ = CASES[case]
    length = n_prefix + n_tokens + QUESTION + ANSWER
    return torch.randint(3, 250, (length,), generator=torch.Generator().manual_seed(n_tokens))


def logits_and_gradients(
    decoder: Decoder, l1: L1Parameters, layout: Layout, ids: Tensor, **how: object
) -> tuple[Tensor, dict[str, Tensor]]:
    reader = NestedReader(decoder, l1, **how)
    l1.zero_grad()
    logits = decoder.model.lm_head(reader(ids, layout))
    (logits.log_softmax(-1)[:, 7].mean() + logits.pow(3).mean()).backward()
    return logits.detach(), {name: w.grad.clone() for name, w in l1.named_parameters() if w.grad is not None}


def assert_same(ours: tuple[Tensor, dict[str, Tensor]], theirs: tuple[Tensor, dict[str, Tensor]]) -> None:
    torch.testing.assert_close(ours[0], theirs[0], atol=1e-4, rtol=0)
    assert ours[1].keys() == theirs[1].keys()
    for name, gradient in theirs[1].items():
        torch.testing.assert_close(ours[1][name], gradient, atol=1e-4 * float(gradient.abs().max() + 1e-3), rtol=0)


@pytest.mark.parametrize("way", ["strided", "dense"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rank", [0, 2])
def test_one_pass_equals_the_loop_with_gradients_for_every_family(family: str, rank: int, way: str) -> None:
    decoder, case = tiny_decoder(family), "distant, a tail"
    l1, layout, ids = noisy(decoder, rank), layout_of(case), ids_of(case)
    assert any(len(step.seen) > step.n_moved > layout.n_prefix for step in layout.steps[:-2])  # distant and recent ones
    loop = logits_and_gradients(decoder, l1, layout, ids, reading="sequential")
    assert all(gradient.any() for gradient in loop[1].values())
    assert_same(logits_and_gradients(decoder, l1, layout, ids, way=way), loop)


@pytest.mark.parametrize("way", ["strided", "dense"])
@pytest.mark.parametrize("case", CASES)
def test_one_pass_equals_the_loop_with_gradients_for_every_shape(case: str, way: str) -> None:
    decoder = tiny_decoder("llama")
    l1, layout, ids = noisy(decoder), layout_of(case), ids_of(case)
    loop = logits_and_gradients(decoder, l1, layout, ids, reading="sequential")
    assert_same(logits_and_gradients(decoder, l1, layout, ids, way=way), loop)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("case", ["distant, a tail", "everything stays recent"])
def test_the_block_mask_is_the_same_pattern(case: str) -> None:
    """The forward pass tells mask and keys. Gradients have no test: PyTorch's FlexAttention refuses inputs that require
    them on CPU, compiled or not (2.15), so only a CUDA device can tell.
    """
    decoder = tiny_decoder("qwen3")
    l1, layout, ids = noisy(decoder), layout_of(case), ids_of(case)
    with torch.no_grad():
        flex = NestedReader(decoder, l1, way="flex")(ids, layout)
        torch.testing.assert_close(flex, NestedReader(decoder, l1, way="dense")(ids, layout), atol=1e-4, rtol=0)


def test_gradient_checkpointing_changes_nothing_but_memory() -> None:
    decoder, case = tiny_decoder("phi3"), "distant, a tail"
    l1, layout, ids = noisy(decoder), layout_of(case), ids_of(case)
    plain = logits_and_gradients(decoder, l1, layout, ids)
    recomputed: list[int] = []
    handle = decoder.base.layers[0].input_layernorm.register_forward_hook(lambda *_: recomputed.append(1))
    try:
        assert_same(logits_and_gradients(decoder, l1, layout, ids, checkpointing=True), plain)
    finally:
        handle.remove()
        NestedReader(decoder, l1)
    assert len(recomputed) == 2
    assert not any(module.training for module in decoder.model.modules())


# The loop is the inference that the engine runs


def built(decoder: Decoder, l1: L1Parameters, layout: Layout, ids: Tensor, case: str) -> BiLayerCache:
    n_prefix, n_tokens, interval, stride, window = CASES[case]
    # `construct` keeps as many recent blocks as fit: the narrowest window for a layout without recent ones has no such W
    plan = ReadingPlan(window=window or 10**6, interval=interval, stride=stride)
    prefix, document = ids[:n_prefix], ids[n_prefix : n_prefix + n_tokens]
    return construct(decoder, LearnedProxy(l1), prefix_ids=prefix, token_ids=document, plan=plan)


@pytest.mark.parametrize("family", ["llama", "qwen2-yarn", "phi3"])
@pytest.mark.parametrize("case", [case for case in CASES if CASES[case][-1]])
def test_a_question_meets_what_the_engine_would_show_it(family: str, case: str) -> None:
    """Construction, the global view and refilling, by the code that answers questions, against one training pass."""
    decoder = tiny_decoder(family)
    l1, layout, ids = noisy(decoder), layout_of(case), ids_of(case)
    cache = built(decoder, l1, layout, ids, case)
    with torch.no_grad():
        hidden = NestedReader(decoder, l1)(ids, layout)
        view = global_view([cache])
        over_l1 = read_over(decoder, to_transformers(type(view)(decoder.rope.rotate(view.keys), view.values)), ids, 0)
        blocks = torch.tensor([b for b in (1, 4) if b < layout.n_blocks]).numpy()
        refilled = read_over(decoder, to_transformers(refill([cache], [blocks], rope=decoder.rope)), ids, QUESTION)
    torch.testing.assert_close(hidden[-QUESTION - ANSWER : -ANSWER], over_l1, atol=1e-4, rtol=0)
    torch.testing.assert_close(hidden[-ANSWER:], refilled, atol=1e-4, rtol=0)


def read_over(decoder: Decoder, past: DynamicCache, ids: Tensor, skipped: int) -> Tensor:
    asked = ids[-ANSWER:] if skipped else ids[-QUESTION - ANSWER : -ANSWER]
    hidden: Tensor = decoder.base(input_ids=asked[None], past_key_values=past, use_cache=True).last_hidden_state[0]
    return hidden


@pytest.mark.parametrize("family", ["llama", "qwen2-yarn", "qwen3"])
def test_the_watched_attention_is_what_selection_scores(family: str) -> None:
    decoder, case = tiny_decoder(family), "distant, a tail"
    l1, layout, ids = noisy(decoder), layout_of(case), ids_of(case)
    own = slice(2, 5)
    first = layout.n_slots - QUESTION - ANSWER
    watch = RetrievalWatch(decoder, layout, slice(first + own.start, first + own.stop))
    NestedReader(decoder, l1)(ids, layout, watch=watch)
    cache = built(decoder, l1, layout, ids, case)
    queries = question_queries(decoder, global_view([cache]), ids[-QUESTION - ANSWER : -ANSWER], own=own)
    scores = pooled_scores(queries, cache.l1.keys, scaling=decoder.scaling)
    torch.testing.assert_close(torch.stack(list(watch.masses.values())), scores, atol=1e-4, rtol=0)
    assert watch.loss([1, 4]).item() == pytest.approx(-scores.mean(dim=0)[[1, 4]].sum().log().item(), abs=1e-4)


# What is left behind, and what is refused


def test_the_models_own_attention_is_back_after_an_error() -> None:
    decoder = tiny_decoder("llama")
    before = decoder.model.config._attn_implementation
    ids = torch.arange(3, 20)[None]
    plain = decoder.base(input_ids=ids).last_hidden_state
    with pytest.raises(RuntimeError, match="stop"), nested_attention(decoder, layout_of("distant, a tail")):
        raise RuntimeError("stop")
    assert decoder.model.config._attn_implementation == before
    assert torch.equal(decoder.base(input_ids=ids).last_hidden_state, plain)


def test_what_cannot_be_read_is_refused_with_the_numbers() -> None:
    with pytest.raises(ConfigError, match="stride of at least 16"):
        reading(n_prefix=0, n_tokens=64, interval=16, stride=8)
    with pytest.raises(CapacityError, match="window=64"):
        reading(n_prefix=40, n_tokens=64, interval=16, stride=16, window=64)
    with (
        pytest.raises(ConfigError, match="1,024 places"),
        nested_attention(tiny_decoder("llama-dynamic"), reading(n_prefix=0, n_tokens=2000, interval=16, stride=64)),
    ):
        pass
    with pytest.raises(ConfigError, match="reading='other'"):
        NestedReader(tiny_decoder("llama"), noisy(tiny_decoder("llama")), reading="other")
