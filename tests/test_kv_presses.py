"""StreamingLLM, SnapKV and FINCH keep what was published, and go on at the right positions: against kvpress' own
pipeline, the stock model with explicit positions, and a plain loop."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

import pytest
import torch
from conftest import byte_tokenizer, tiny_decoder
from test_kv_systems import FAMILIES, FIRST, RUNNING, made, words
from torch import Tensor
from transformers import DynamicCache

from acre_rag.baselines.base import Call, Setting
from acre_rag.baselines.kv.base import KVBaseline
from acre_rag.baselines.kv.prefill import copied, strides
from acre_rag.baselines.kv.pressing import load_kvpress, moved_back, pressing, ratio_that_keeps
from acre_rag.baselines.prompted import token_ids
from acre_rag.baselines.registry import make_system
from acre_rag.cache import KV
from acre_rag.construct import to_transformers
from acre_rag.decoder import Decoder
from acre_rag.errors import CapacityError, UnsupportedModelError
from acre_rag.generate import GenerationSettings
from acre_rag.reading import tokenised_question

LONG = GenerationSettings(max_new_tokens=24)
TEXT = words(400)
SCALED = ["llama-linear", "llama-llama3", "qwen2-yarn"]


def state_of(system: KVBaseline, text: str = TEXT) -> Any:
    return system.add(text).state


def whole_ids(system: KVBaseline, text: str = TEXT) -> Tensor:
    return torch.cat([system.prefix_ids, token_ids(system.decoder, text)])


def stock_cache(decoder: Decoder, ids: Tensor) -> Any:
    cache = DynamicCache()
    with torch.inference_mode():
        decoder.base(input_ids=ids[None], past_key_values=cache)
    return cache


def slots(cache: Any) -> KV:
    return KV(
        torch.stack([layer.keys[0] for layer in cache.layers]), torch.stack([layer.values[0] for layer in cache.layers])
    )


@contextmanager
def cache_positions(model: Any) -> Iterator[None]:
    """What transformers before 5.4 passed on, and kvpress asks for: true positions, from the cache's length."""

    def put(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        past = kwargs["past_key_values"].get_seq_length(module.layer_idx)
        return args, kwargs | {"cache_position": torch.arange(past, past + kwargs["hidden_states"].shape[1])}

    handles = [layer.self_attn.register_forward_pre_hook(put, with_kwargs=True) for layer in model.model.layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class UpToSpecial:
    """A tokenizer for the pipeline, which ends at `eos` only: text up to the first special token, as our answers."""

    def decode(self, ids: Tensor, **_: Any) -> str:
        special = set(byte_tokenizer().all_special_ids)
        return str(byte_tokenizer().decode(list(takewhile(lambda token: token not in special, ids.tolist()))))


def pipeline_answer(model: Any, press: Any, context_ids: Tensor, question_ids: Tensor) -> str:
    """kvpress' own pipeline."""
    pipe = load_kvpress().KVPressTextGenerationPipeline(model=model, tokenizer=byte_tokenizer())
    pipe.tokenizer = UpToSpecial()
    inputs = {"context_ids": context_ids[None], "questions_ids": [question_ids[None]]}
    with torch.inference_mode(), cache_positions(model):
        [answer] = pipe._forward(inputs, press=press, max_new_tokens=LONG.max_new_tokens)
    for layer in model.model.layers:
        if hasattr(layer.self_attn, "rotary_emb"):
            del layer.self_attn.rotary_emb
    return str(answer).strip()


@pytest.mark.parametrize("family", [*FAMILIES, "llama-llama3", "llama-linear"])
def test_streaming_llm_keeps_exactly_sinks_and_recents(family: str) -> None:
    """In the first layer neither keys nor values depend on what is attended to: they name their tokens."""
    system = made("streaming-llm", family, window=512, kept_tokens=90)
    text = words(3000)
    got, decoder = slots(state_of(system, text).cache), system.decoder
    ids = whole_ids(system, text)
    kept = torch.cat([torch.arange(4), torch.arange(len(ids) - 86, len(ids))])
    stock = slots(stock_cache(decoder, ids[kept]))  # the kept tokens alone, at positions 0 to 89
    assert got.keys.shape[2] == 90
    torch.testing.assert_close(got.values[0], stock.values[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got.keys[0], stock.keys[0], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(got.values[1], stock.values[1], atol=1e-3), "deeper layers have seen what was dropped"


def test_streaming_llm_equals_a_plain_loop() -> None:
    system = made("streaming-llm", window=256, kept_tokens=90)
    text = words(1000)
    got, decoder, ids = slots(state_of(system, text).cache), system.decoder, whole_ids(system, text)
    past = KV(torch.empty(3, 2, 0, 8), torch.empty(3, 2, 0, 8))  # un-rotated
    for start in range(0, len(ids), 256 - 90):
        cache = to_transformers(KV(decoder.rope.rotate(past.keys), past.values))
        with torch.inference_mode():
            decoder.base(input_ids=ids[None, start : start + 256 - 90], past_key_values=cache)
        now = slots(cache)
        all_slots = KV(decoder.rope.unrotate(now.keys), now.values)
        n = len(all_slots)
        past = all_slots if n <= 90 else KV.cat([all_slots.slots(0, 4), all_slots.slots(n - 86, n)])
    torch.testing.assert_close(got.values, past.values, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(got.keys, decoder.rope.rotate(past.keys), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_streaming_llm_equals_the_librarys_pipeline(family: str) -> None:
    system = made("streaming-llm", family)
    system.add(TEXT)
    kvpress, ids = load_kvpress(), whole_ids(system)
    ratio = ratio_that_keeps(100, of=len(ids))
    press = kvpress.KeyRerotationPress(kvpress.StreamingLLMPress(compression_ratio=ratio, n_sink=4))
    asked = token_ids(system.decoder, system.prompt.ask(FIRST)[0])
    expected = pipeline_answer(system.decoder.model, press, ids, asked)
    assert system.ask(FIRST, settings=LONG).text == expected


@pytest.mark.parametrize("family", [*FAMILIES, *SCALED])
def test_snapkv_equals_the_librarys_pipeline(family: str) -> None:
    """The pipeline reads in one pass, leaves keys where they are, and gives the question explicit positions."""
    system = made("snapkv", family, observe="document")
    system.add(TEXT)
    ids = whole_ids(system)
    press = load_kvpress().SnapKVPress(compression_ratio=ratio_that_keeps(100, of=len(ids)), window_size=16)
    asked = token_ids(system.decoder, system.prompt.ask(FIRST)[0])
    expected = pipeline_answer(system.decoder.model, press, ids, asked)
    assert system.ask(FIRST, settings=LONG).text == expected


@pytest.mark.parametrize("observed", [16, 200])
@pytest.mark.parametrize("family", [*FAMILIES, *SCALED])
def test_snapkv_at_the_prompts_end_equals_the_librarys_pipeline(family: str, observed: int) -> None:
    """The pipeline reads document and question as one context; ours reads the document once, for all questions."""
    system = made("snapkv", family, observed_tokens=observed, kept_tokens=210)
    system.add(TEXT)
    ids, asked = whole_ids(system), token_ids(system.decoder, system.prompt.ask(FIRST)[0])
    n_slots, n_asked = len(ids) + len(asked) - 1, len(asked) - 1
    ratio = ratio_that_keeps(210 + n_asked, of=n_slots)
    press = load_kvpress().SnapKVPress(compression_ratio=ratio, window_size=min(observed, n_asked - 1))
    expected = pipeline_answer(system.decoder.model, press, torch.cat([ids, asked[:-1]]), asked[-1:])
    answer = system.ask(FIRST, settings=LONG)
    assert answer.text == expected
    assert answer.usage.cached_tokens == 210 and answer.usage.prompt_tokens == len(asked)


@pytest.mark.parametrize("family", [*FAMILIES, *SCALED])
def test_keys_moved_back_mean_the_same_as_later_positions(family: str) -> None:
    """Logits of a question behind every third slot: explicit positions from N on, or all keys moved back."""
    decoder = tiny_decoder(family)
    ids, asked = token_ids(decoder, words(300)), token_ids(decoder, FIRST)
    cache = stock_cache(decoder, ids)
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys[:, :, ::3], layer.values[:, :, ::3]
    moved, place = copied(cache), torch.arange(300, 300 + len(asked))[None]
    moved_back(moved, decoder.rope, 200)
    with torch.inference_mode():
        expected = decoder.model(asked[None], past_key_values=copied(cache), position_ids=place).logits
        got = decoder.model(asked[None], past_key_values=moved).logits
        wrong = decoder.model(asked[None], past_key_values=copied(cache)).logits
    torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-3)
    assert not torch.allclose(wrong, expected, atol=1e-2)


@pytest.mark.parametrize("family", FAMILIES)
def test_finch_equals_the_librarys_pipeline(family: str) -> None:
    """The pipeline reads document, delimiter and question in one pass; ours reads the document once, for all."""
    system = made("finch", family)
    system.add(TEXT)
    asked = tokenised_question(FIRST, system.prompt, system.decoder)
    model = system.decoder.model
    question, rest = asked.ids[: asked.own.stop], asked.ids[asked.own.stop :]
    ids = whole_ids(system)
    press = load_kvpress().FinchPress(
        compression_ratio=ratio_that_keeps(200 + len(question), of=len(ids) + len(question))
    )
    press.delimiter_token_id = model.config.vocab_size - 1  # an id that the tokenizer never gives
    context = torch.cat([ids, torch.tensor([press.delimiter_token_id]), question])
    expected = pipeline_answer(model, press, context, rest)
    answer = system.ask(FIRST, settings=LONG)
    assert answer.text == expected
    assert answer.usage.cached_tokens == 200 and answer.usage.prompt_tokens == len(asked.ids)


def test_finch_always_keeps_the_question() -> None:
    system = made("finch")
    state = state_of(system)
    asked = tokenised_question(FIRST, system.prompt, system.decoder)
    cache, rest = system.working_cache(state, asked, Call(LONG))
    n_question = len(asked.ids) - len(rest)
    full = copied(state.cache)
    with torch.inference_mode():
        system.decoder.base(input_ids=asked.ids[None, :n_question], past_key_values=full)
    for layer, whole in zip(cache.layers, full.layers, strict=True):
        torch.testing.assert_close(layer.values[:, :, -n_question:], whole.values[:, :, -n_question:])


def kept_by_attention(
    decoder: Decoder, past: KV, chunk: Tensor, question: Tensor, n_kept: int, n_seen: int
) -> tuple[KV, KV]:
    """One step as published: chunk and question in one pass behind what is kept, the question's attention over heads of
    a group and its tokens, each row times the tokens it sees; un-rotated slots that stay, and the question's."""
    rope, cache = decoder.rope, to_transformers(KV(decoder.rope.rotate(past.keys), past.values))
    with torch.inference_mode():
        out = decoder.base(torch.cat([chunk, question])[None], past_key_values=cache, output_attentions=True)
    now, n_question = slots(cache), len(question)
    everything = KV(rope.unrotate(now.keys), now.values)
    context = len(everything) - n_question
    assert context == n_seen
    layers = []
    for layer, weights in enumerate(out.attentions):
        rows = weights[0, :, -n_question:, :context] * torch.arange(context, context + n_question)[:, None]
        scores = rows.mean(dim=1).view(2, -1, context).mean(dim=1)  # [Hkv, context]
        best = scores.topk(n_kept, dim=-1).indices.sort(dim=-1).values
        heads = [(everything.keys[layer, h, best[h]], everything.values[layer, h, best[h]]) for h in range(2)]
        layers.append((torch.stack([k for k, _ in heads]), torch.stack([v for _, v in heads])))
    kept = KV(torch.stack([k for k, _ in layers]), torch.stack([v for _, v in layers]))
    return kept, everything.slots(context, context + n_question)


@pytest.mark.parametrize("family", FAMILIES)
def test_finch_reads_a_long_document_chunk_by_chunk(family: str) -> None:
    """Two chunks, against a plain loop over attention weights."""
    system = made("finch", family, window=512, kept_tokens=200, reserve_tokens=150)
    asked = tokenised_question(FIRST, system.prompt, system.decoder)
    question = asked.ids[: asked.own.stop]
    first = 512 - 200 - len(question)
    n = 2 * first - 30
    state = state_of(system, words(n - len(system.prefix_ids)))
    got, rest = system.working_cache(state, asked, Call(LONG))

    decoder = tiny_decoder(family, "eager")
    ids = torch.cat([system.prefix_ids, token_ids(decoder, words(n - len(system.prefix_ids)))])
    shape = (decoder.n_layers, 2, 0, decoder.head_dim)
    half = -(-200 * first // n)
    past = KV(torch.empty(shape), torch.empty(shape))
    past, _ = kept_by_attention(decoder, past, ids[:first], question, half, first)
    past, own = kept_by_attention(decoder, past, ids[first:], question, 200, half + n - first)
    expected = KV.cat([past, own])
    assert got.get_seq_length() == 200 + len(question) and torch.equal(rest, asked.ids[len(question) :])
    torch.testing.assert_close(slots(got).values, expected.values, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(slots(got).keys, decoder.rope.rotate(expected.keys), atol=1e-3, rtol=1e-3)


def test_finch_reads_the_middle_of_a_long_document() -> None:
    """Nothing is left out: a word in the middle of what the window cannot hold reaches the answer's cache."""
    caches = []
    for middle in ("drum", "lamp"):
        system = made("finch", window=512, kept_tokens=200)
        state = state_of(system, f"{words(1500)} {middle * 40} {words(1500, 1)}")
        assert not state.left_out
        asked = tokenised_question(FIRST, system.prompt, system.decoder)
        caches.append(slots(system.working_cache(state, asked, Call(LONG))[0]))
    assert not torch.allclose(caches[0].values, caches[1].values, atol=1e-3)


def test_finch_stops_between_the_chunks_when_nobody_waits() -> None:
    system = made("finch", window=512, kept_tokens=200)
    state, checks = state_of(system, words(3000)), []

    def check() -> None:
        checks.append(1)
        if len(checks) == 3:
            raise RuntimeError("lost interest")

    asked = tokenised_question(FIRST, system.prompt, system.decoder)
    with pytest.raises(RuntimeError, match="lost interest"):
        system.working_cache(state, asked, Call(LONG, check=check))


def test_a_question_beside_a_long_document_must_fit_what_finch_keeps() -> None:
    system = made("finch", window=512, kept_tokens=384)
    system.add(words(3000))
    with pytest.raises(CapacityError, match=r"answer \(100\) need more than the 128 places"):
        system.ask(FIRST, settings=GenerationSettings(max_new_tokens=100))


@pytest.mark.parametrize("name", ["snapkv", "finch", "streaming-llm"])
def test_a_budget_that_holds_everything_is_full_context(name: str) -> None:
    system, full = made(name, kept_tokens=700), made("full")
    for each in (system, full):
        each.add(TEXT)
    assert system.ask(FIRST, settings=LONG).text == full.ask(FIRST, settings=LONG).text


@pytest.mark.parametrize("name", ["snapkv", "finch", "streaming-llm"])
def test_in_bfloat16_a_press_keeps_what_it_keeps_in_float32(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The type that results are measured in; the weights are rounded to it in both, so arithmetic alone differs."""
    kvpress, chosen = load_kvpress(), list[Tensor]()
    press = {"snapkv": kvpress.SnapKVPress, "finch": kvpress.FinchPress, "streaming-llm": kvpress.StreamingLLMPress}
    scored = press[name].score

    def score(self: Any, module: Any, hidden: Any, keys: Tensor, *rest: Any) -> Tensor:
        scores: Tensor = scored(self, module, hidden, keys, *rest)
        best = scores[0].topk(int(keys.shape[2] * (1 - self.compression_ratio)), dim=-1).indices
        chosen.append(best if name == "snapkv" else best.sort(dim=-1).values)  # in the order of the cache
        return scores

    monkeypatch.setattr(press[name], "score", score)
    rounded = copy.deepcopy(tiny_decoder().model).to(torch.bfloat16)
    found: list[list[dict[int, Tensor]]] = []
    for dtype in (torch.bfloat16, torch.float32):
        chosen.clear()
        decoder = Decoder(model=copy.deepcopy(rounded).to(dtype), tokenizer=byte_tokenizer(), name="tiny")
        system: Any = make_system(name, Setting(decoder=decoder), **RUNNING[name])
        asked = tokenised_question(FIRST, system.prompt, decoder)
        kept = slots(system.working_cache(state_of(system), asked, Call(LONG))[0])
        keys = kept.keys.float() if name == "snapkv" else tiny_decoder().rope.unrotate(kept.keys.float())
        rows = torch.cat([keys, kept.values.float()], dim=-1).flatten(0, 1)  # [L * Hkv, kept, 2 D]
        tokens = torch.stack(chosen).flatten(0, 1).tolist()
        found.append([dict(zip(head, each, strict=True)) for head, each in zip(tokens, rows, strict=True)])
    for low, high in zip(*found, strict=True):
        common = sorted(set(low) & set(high))
        assert len(common) >= 0.9 * len(high), "slots that score nearly alike may change places"
        got, expected = (torch.stack([each[token] for token in common]) for each in (low, high))
        assert (got - expected).norm() / expected.norm() < 0.03


@pytest.mark.parametrize("name", ["snapkv", "finch", "streaming-llm"])
def test_partial_rotations_are_refused(name: str) -> None:
    with pytest.raises(UnsupportedModelError, match="rotates 4 of 8 dimensions"):
        make_system(name, Setting(decoder=tiny_decoder("phi3-partial")))


def test_a_family_that_the_library_does_not_know_is_refused() -> None:
    from transformers import AutoModelForCausalLM, GlmConfig

    torch.manual_seed(0)
    config = GlmConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=300,
        pad_token_id=0,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    decoder = copy.copy(tiny_decoder())
    decoder.model = model
    with pytest.raises(UnsupportedModelError, match="not written for glm"):
        make_system("snapkv", Setting(decoder=decoder))


def test_hooks_are_gone_after_a_failure() -> None:
    decoder, press = tiny_decoder(), load_kvpress().KnormPress(compression_ratio=0.5)
    with pytest.raises(RuntimeError, match="inside"), pressing(decoder, press):
        raise RuntimeError("inside")
    assert not any(a._forward_hooks or a._forward_pre_hooks or hasattr(a, "rotary_emb") for a in decoder.attentions)


@pytest.mark.parametrize("n_tokens", [1, 5, 36, 37, 38, 74, 80, 1000])
@pytest.mark.parametrize("last", [1, 17])
def test_strides_cover_everything_once(n_tokens: int, last: int) -> None:
    parts = list(strides(n_tokens, stride=37, last=last))
    assert [i for start, stop in parts for i in range(start, stop)] == list(range(n_tokens))
    assert all(stop - start <= 37 + last - 1 for start, stop in parts)
    assert parts[-1][1] - parts[-1][0] >= min(last, n_tokens)
