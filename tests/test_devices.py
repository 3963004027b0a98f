"""A device works on its own: clocks wait for it, ids are made on it, and it is asked for nothing that it cannot do."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import byte_tokenizer, tiny_decoder
from evaluation_case import items, run
from transformers import AutoModelForCausalLM, DynamicCache

from acre_rag import demo, generate, models, transfer
from acre_rag.baselines.base import Baseline, Setting
from acre_rag.baselines.kv.two_rotations import merged_attention
from acre_rag.construct import ProgressCallback
from acre_rag.engine import ACRE
from acre_rag.errors import UnsupportedModelError
from acre_rag.evaluation.forms import Form
from acre_rag.generate import GenerationSettings
from acre_rag.support import check_supported

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks import speed, squad_article


class Silent(Baseline[None]):
    """Notes that it reads; is never asked."""

    def __init__(self, events: list[str]) -> None:
        super().__init__(Setting(decoder=tiny_decoder()))
        self._events = events

    def read(self, text: str, progress: ProgressCallback) -> None:
        self._events.append("work")

    def answer(self, question: str, documents: object, call: object) -> None:
        raise AssertionError


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happened, in order: "settle" whenever the device was waited for; tests add their work."""
    seen: list[str] = []
    monkeypatch.setattr(transfer, "settle", lambda device: seen.append("settle"))
    return seen


def noted(events: list[str], method: Callable[..., object]) -> Callable[..., object]:
    def run(*args: object, **options: object) -> object:
        events.append("work")
        return method(*args, **options)

    return run


def test_a_baseline_is_timed_between_two_moments_of_rest(events: list[str]) -> None:
    Silent(events).add("Some text.")
    assert events == ["settle", "work", "settle"]


def test_a_run_is_timed_between_moments_of_rest(
    events: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("add", "ask"):
        monkeypatch.setattr(ACRE, name, noted(events, getattr(ACRE, name)))
    run(tmp_path, items(documents=1, questions=2), forms=[Form(name="acre")])
    assert events == ["settle", "work", "settle"] * 3


def test_the_stock_model_is_timed_between_two_moments_of_rest(events: list[str]) -> None:
    handle = tiny_decoder().model.register_forward_pre_hook(lambda *_: events.append("work"))
    try:
        demo.stock_first_token(tiny_decoder(), "Some text.", "Who?")
    finally:
        handle.remove()
    assert events == ["settle", "work", "settle"]


def test_a_benchmark_is_timed_between_two_moments_of_rest(events: list[str]) -> None:
    assert speed._seconds(lambda: events.append("work"), torch.device("cpu")) > 0
    assert events == ["settle", "work", "settle"]


@pytest.mark.parametrize(("device", "own"), [("cpu", []), ("cuda:1", [torch.device("cuda:1")])])
def test_sampling_touches_the_random_numbers_of_the_models_device_alone(
    device: str, own: list[torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert generate._own_generators(torch.device(device)) == own
    forked: list[list[torch.device]] = []
    real = torch.random.fork_rng
    monkeypatch.setattr(
        "torch.random.fork_rng", lambda devices=None, **options: forked.append(devices) or real([], **options)
    )
    monkeypatch.setattr(generate, "_own_generators", lambda _device: own)
    decoder = tiny_decoder()
    ids = torch.arange(3, 9)[None]
    sampled = GenerationSettings(max_new_tokens=1, temperature=1.0, seed=1)
    generate.decode_on(decoder, DynamicCache(), ids, torch.ones_like(ids), sampled)
    assert forked == [own]


@pytest.mark.parametrize(("supported", "chosen"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_gpu_that_only_emulates_bfloat16_computes_in_float32(
    supported: bool, chosen: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(
        "torch.cuda.is_bf16_supported", lambda including_emulation=True: asked.append(including_emulation) or supported
    )
    assert models._dtype("auto", torch.device("cuda")) == chosen
    assert asked == [False]


def test_a_model_on_several_devices_is_refused_with_their_names() -> None:
    model = AutoModelForCausalLM.from_config(tiny_decoder().model.config)
    check_supported(model)
    model.lm_head.to("meta")
    with pytest.raises(UnsupportedModelError, match=r"on cpu, meta; .* device_map=\{'': 0\}"):
        check_supported(model)


def test_self_extend_asks_the_device_for_no_number() -> None:
    """A number read back from a GPU stops it; on "meta" there are none to read."""
    rotations = SimpleNamespace(neighbours=4, near=lambda x, _positions: x, far_query=lambda x, _positions: x)
    queries, keys, values = (torch.empty(1, heads, 9, 8, device="meta") for heads in (4, 2, 2))
    out = merged_attention(queries[:, :, 3:], keys, keys, values, rotations, scaling=1.0)
    assert out.shape == (1, 6, 4, 8)


def test_benchmarks_make_their_ids_where_the_model_is(monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = SimpleNamespace(tokenizer=byte_tokenizer(), device=torch.device("meta"), model_window=1024)
    assert speed._ids(elsewhere, "Some text.").device.type == "meta"
    read: list[torch.Tensor] = []

    def construct(*_: object, token_ids: torch.Tensor, **__: object) -> None:
        read.append(token_ids)
        raise InterruptedError

    monkeypatch.setattr(squad_article, "construct", construct)
    with pytest.raises(InterruptedError):
        squad_article._full_attention(SimpleNamespace(decoder=elsewhere, prefix_ids=None), "Some text." * 90)
    assert read[0].device.type == "meta" and len(read[0]) == 512
