"""What every KV system must do, on tiny models: same answer twice, stream = ask, long and short documents, refusals."""

import asyncio
import copy
import random
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import tiny_decoder
from safetensors.torch import save_file
from test_adapter import authors_layout, perturbed
from transformers import DynamicCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from acre_rag.baselines.base import Setting
from acre_rag.baselines.kv.base import KVBaseline
from acre_rag.baselines.kv.minference import _patch
from acre_rag.baselines.kv.offload import WaitingCache
from acre_rag.baselines.prompted import token_ids
from acre_rag.baselines.registry import SYSTEMS, make_system
from acre_rag.decoder import Decoder
from acre_rag.engine import ACRE
from acre_rag.errors import CapacityError, ConfigError, DocumentError, MissingExtraError, UnavailableError
from acre_rag.generate import GenerationSettings

FAMILIES = ["llama", "qwen2", "qwen3", "phi3"]
RUNNING = {
    "full": {},
    "streaming-llm": {"kept_tokens": 100},
    "snapkv": {"kept_tokens": 100, "observed_tokens": 16},
    "finch": {"kept_tokens": 200},
    "kivi": {"group": 8, "residual": 16},
    "self-extend": {"neighbours": 64, "group": 4},
    "offload": {},
}
SHORT = GenerationSettings(max_new_tokens=6)
FIRST, SECOND = "Where is the drum?", "Who has the key to the old mill?"


def words(n_chars: int, seed: int = 0) -> str:
    """Text of exactly `n_chars` characters (and tokens of the tiny models)."""
    chosen = random.Random(seed).choices(["the", "drum", "river", "key", "mill", "owl", "a", "of", "stone"], k=n_chars)
    return " ".join(chosen)[:n_chars]


def made(name: str, family: str = "llama", *, window: int | None = None, **options: Any) -> KVBaseline:
    system = make_system(name, Setting(decoder=tiny_decoder(family), window=window), **RUNNING[name] | options)
    assert isinstance(system, KVBaseline)
    return system


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", RUNNING)
def test_an_answer_changes_nothing_and_a_stream_says_the_same(name: str, family: str) -> None:
    system = made(name, family)
    system.add(words(400))
    first = system.ask(FIRST, settings=SHORT)
    system.ask(SECOND, settings=SHORT)
    again = system.ask(FIRST, settings=SHORT)
    assert again.text == first.text and again.usage == first.usage
    *pieces, whole = system.stream(FIRST, settings=SHORT)
    assert "".join(pieces).strip() == whole.text == first.text
    assert asyncio.run(system.aask(FIRST, settings=SHORT)).text == first.text
    assert first.usage.generated_tokens and first.sources == () and first.scope == "document"


@pytest.mark.parametrize("name", RUNNING)
def test_answers_depend_on_document_and_question(name: str) -> None:
    system = made(name)
    for seed in range(8):
        system.add(words(300, seed), str(seed))
    long = GenerationSettings(max_new_tokens=24)
    first, second = ([system.ask(q, str(seed), settings=long).text for seed in range(8)] for q in (FIRST, SECOND))
    assert len(set(first)) > 2 and len(set(second)) > 2, "documents; a tiny random model soon repeats itself"
    assert sum(one != other for one, other in zip(first, second, strict=True)) > 2, "questions"


@pytest.mark.parametrize("name", RUNNING)
def test_a_model_is_left_as_it_was_found(name: str) -> None:
    decoder = tiny_decoder()
    functions = dict(ALL_ATTENTION_FUNCTIONS.items())
    before = (
        set(decoder.model.state_dict()),
        decoder.model.config._attn_implementation,
        dict(decoder.model.named_modules()),
    )
    system = made(name)
    system.add(words(400))
    system.ask(FIRST, settings=SHORT)
    [held] = system.documents.values()
    with pytest.raises(RuntimeError, match="lost interest"), system.attending(held.state):
        raise RuntimeError("lost interest")
    after = (
        set(decoder.model.state_dict()),
        decoder.model.config._attn_implementation,
        dict(decoder.model.named_modules()),
    )
    assert before == after
    assert dict(ALL_ATTENTION_FUNCTIONS.items()) == functions
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in decoder.model.modules())


@pytest.mark.parametrize("name", RUNNING)
def test_a_failing_read_leaves_no_hook(name: str) -> None:
    def stop(_done: int, _total: int) -> None:
        raise RuntimeError("lost interest")

    system = made(name)
    with pytest.raises(RuntimeError, match="lost interest"):
        system.add(words(400), progress=stop)
    decoder = system.decoder
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in decoder.model.modules())
    assert decoder.model.config._attn_implementation == "sdpa"
    assert not system.documents


@pytest.mark.parametrize("name", RUNNING)
def test_documents_as_short_as_they_come(name: str) -> None:
    system = made(name)
    system.add("a")
    answer = system.ask(FIRST, settings=SHORT)
    assert answer.usage.generated_tokens and not any("did not fit" in note for note in answer.notes)
    with pytest.raises(DocumentError, match="empty"):
        system.add("  ")
    with pytest.raises(ConfigError, match="question is empty"):
        system.ask(" ")


@pytest.mark.parametrize("name", RUNNING)
def test_documents_longer_than_the_window(name: str) -> None:
    system = made(name, window=512)
    system.add(words(3000))
    answer = system.ask(FIRST, settings=SHORT)
    left_out = [note for note in answer.notes if "did not fit window=512" in note]
    prefix = len(system.prefix_ids)
    asked = len(token_ids(system.decoder, system.prompt.ask(FIRST)[0]))
    if name == "streaming-llm":
        assert not left_out and answer.usage.cached_tokens == 100
    elif name == "finch":
        assert not left_out and "3,000 tokens were read in chunks for this question" in answer.notes
        assert answer.usage.cached_tokens == 200
    elif name == "self-extend":
        read = 64 + (512 * 2 // 3 - 64) * 4 - 128
        assert answer.usage.cached_tokens == read and f"{3000 - read + prefix:,} of 3,000" in left_out[0]
    else:
        read = 512 - 128
        assert f"{3000 - read + prefix:,} of 3,000" in left_out[0]
        assert answer.usage.cached_tokens == (100 if name == "snapkv" else read)
    assert answer.usage.prompt_tokens == asked


@pytest.mark.parametrize("name", [name for name in RUNNING if name != "streaming-llm"])  # strides are its method
def test_reading_in_strides_equals_reading_at_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    long = GenerationSettings(max_new_tokens=24)
    at_once = made(name)
    at_once.add(words(400))
    expected = at_once.ask(FIRST, settings=long)
    monkeypatch.setattr("acre_rag.baselines.kv.prefill.strides.__kwdefaults__", {"stride": 37, "last": 1})
    monkeypatch.setattr("acre_rag.baselines.kv.prefill.prefill.__kwdefaults__", {"cache": None, "stride": 37})
    seen: list[tuple[int, int]] = []
    system = made(name)
    system.add(words(400), progress=lambda done, total: seen.append((done, total)))
    assert len(seen) > 8 and seen[-1][0] == seen[-1][1]
    assert system.ask(FIRST, settings=long).text == expected.text


@pytest.mark.parametrize("name", RUNNING)
def test_several_documents_are_joined_in_order(name: str) -> None:
    system = made(name)
    system.add(words(150, 1), "a")
    system.add(words(150, 2), "b")
    joined = made(name)
    joined.add(words(150, 2) + "\n\n" + words(150, 1))
    answer = system.ask(FIRST, ["b", "a"], settings=SHORT)
    assert answer.text == joined.ask(FIRST, settings=SHORT).text
    assert "2 documents were joined and read anew for this question" in answer.notes
    system.remove("a")
    assert list(system.documents) == ["b"]


@pytest.mark.parametrize("name", [name for name in RUNNING if name not in ("streaming-llm", "snapkv", "finch")])
def test_a_question_that_does_not_fit_is_refused_with_numbers(name: str) -> None:
    system = made(name, window=512, reserve_tokens=150)
    system.add(words(3000))
    with pytest.raises(CapacityError, match=r"answer \(100\) need more than the .* places .* reserve_tokens="):
        system.ask(FIRST, settings=GenerationSettings(max_new_tokens=100))


def test_full_context_equals_the_stock_model_on_the_whole_prompt() -> None:
    system = made("full")
    system.add(words(400))
    answer = system.ask(FIRST, settings=SHORT)
    decoder = system.decoder
    ids = token_ids(decoder, system.prompt.prefix + words(400) + system.prompt.ask(FIRST)[0])
    whole = decoder.model.generate(
        ids[None], max_new_tokens=6, do_sample=False, attention_mask=torch.ones_like(ids[None])
    )
    assert answer.text == decoder.tokenizer.decode(whole[0, len(ids) :], skip_special_tokens=True).strip()


def test_a_layer_is_fetched_only_after_what_the_model_was_asked_before(monkeypatch: pytest.MonkeyPatch) -> None:
    cache, events = WaitingCache(), []
    cache.prefetch_stream = SimpleNamespace(wait_stream=lambda stream: events.append(f"wait for {stream}"))
    monkeypatch.setattr("torch.cuda.current_stream", lambda: "the model")
    monkeypatch.setattr(DynamicCache, "prefetch", lambda _self, layer, *_: events.append(f"fetch {layer}"))
    cache.prefetch(1, True)
    assert events == ["wait for the model", "fetch 1"]


def test_offloading_says_when_there_is_nothing_to_offload() -> None:
    system, full = made("offload"), made("full")
    for each in (system, full):
        each.add(words(400))
    answer = system.ask(FIRST, settings=SHORT)
    assert answer.text == full.ask(FIRST, settings=SHORT).text
    assert "nothing was offloaded" in answer.notes[-1] and "nothing was offloaded" in system.facts["offload"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_offloading_keeps_the_cache_in_host_memory_and_answers_as_full_context() -> None:
    tiny = tiny_decoder()
    decoder = Decoder(model=copy.deepcopy(tiny.model).to("cuda"), tokenizer=tiny.tokenizer, name="tiny-cuda")
    texts = []
    for name in ("offload", "full"):
        system = make_system(name, Setting(decoder=decoder))
        state = system.add(words(400)).state
        texts.append([system.ask(question, settings=SHORT).text for question in (FIRST, SECOND, FIRST)])
        if name == "offload":
            assert {layer.keys.device.type for layer in state.cache.layers[1:]} == {"cpu"}
    assert texts[0] == texts[1]


def test_minference_refuses_without_cuda() -> None:
    with pytest.raises(UnavailableError, match=r"CUDA devices only.*on the CPU"):
        make_system("minference", Setting(decoder=tiny_decoder()))


@pytest.mark.parametrize("module", [None, SimpleNamespace()], ids=["not installed", "of other releases"])
def test_minference_refuses_where_its_library_cannot_be_imported(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "minference", module)
    setting = Setting(decoder=tiny_decoder())
    monkeypatch.setattr(Decoder, "device", torch.device("cuda"))
    with pytest.raises(UnavailableError, match=r"'minference', which cannot be imported \(.*Error: .*Use 'full'"):
        _patch(setting)


def test_beacon_refuses_without_an_adapter() -> None:
    with pytest.raises(UnavailableError, match="adapter"):
        make_system("beacon", Setting(decoder=tiny_decoder()))


def test_beacon_answers_from_a_checkpoint_of_beacons_without_refilling(tmp_path: Path) -> None:
    decoder = tiny_decoder("qwen2")
    tensors = authors_layout(perturbed(decoder), "beacon")
    save_file(tensors, tmp_path / "model.safetensors")
    setting = Setting(decoder=decoder, adapter=str(tmp_path))
    beacon = make_system("beacon-checkpoint", setting)
    beacon.add(words(600))
    answer = beacon.ask(FIRST, settings=SHORT)
    assert answer.usage.generated_tokens and answer.usage.refilled_tokens == 0 and not answer.sources
    plain = make_system("acre-l1", Setting(decoder=decoder))
    plain.add(words(600))
    assert answer.usage.cached_tokens == plain.ask(FIRST, settings=SHORT).usage.cached_tokens
    with pytest.raises(UnavailableError, match="is a checkpoint of beacons: ask for the system beacon-checkpoint"):
        make_system("beacon", setting)


@pytest.mark.parametrize("mark", ["acre", "nothing"])
def test_nobody_takes_an_adapter_for_activation_beacon(mark: str, tmp_path: Path) -> None:
    """Without a checkpoint of beacons the row is called a form; the row of the checkpoint refuses everything else."""
    decoder, path = tiny_decoder("qwen2"), tmp_path / "model.safetensors"
    if mark == "acre":
        save_file(authors_layout(perturbed(decoder), "acre"), path)
    setting = Setting(decoder=decoder, adapter=str(path) if mark == "acre" else None)
    with pytest.raises(UnavailableError, match=r"tensors of Activation Beacon.*(holds none|no adapter was named)"):
        make_system("beacon-checkpoint", setting)
    if mark == "acre":
        form = make_system("beacon", setting)
        assert isinstance(form, ACRE) and form.config.budget == 0
    assert SYSTEMS["beacon"].title == "Activation Beacon's form (ACRE adapter)"
    assert SYSTEMS["beacon-checkpoint"].title == "Activation Beacon (checkpoint)"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("full", {"reserve_tokens": 0}, "reserve_tokens=0"),
        ("full", {"reserve_tokens": 1024}, "reserve_tokens=1,024"),
        ("streaming-llm", {"kept_tokens": 4}, "kept_tokens=4 must be more than the 4 slots"),
        ("streaming-llm", {"n_sink": -1}, "n_sink=-1"),
        ("snapkv", {"kept_tokens": 16}, "kept_tokens=16 must be more than the 16"),
        ("finch", {"kept_tokens": 1000}, "kept_tokens=1,000 .* at most the 768"),
        ("kivi", {"bits": 3}, "bits=3"),
        ("kivi", {"group": 32, "residual": 48}, "residual=48"),
        ("self-extend", {"neighbours": 600}, "neighbours=600"),
        ("self-extend", {"group": 0}, "group=0"),
    ],
)
def test_options_out_of_range_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made(name, **options)


def test_every_system_has_facts_and_its_place_in_the_table() -> None:
    for name in RUNNING:
        assert SYSTEMS[name].family == "kv"
        facts = made(name).facts
        assert facts["window"] == "1024" and all(isinstance(value, str) for value in facts.values())
    budget = make_system("snapkv", Setting(decoder=tiny_decoder()))
    assert isinstance(budget, KVBaseline) and budget.facts["kept_tokens"] == "512"


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "kvpress", None)
    with pytest.raises(MissingExtraError, match=r"acre-rag\[baselines\]"):
        made("snapkv")
