"""Copies between device and host: what arrives is what was sent, also when both run at once."""

import weakref
from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch

from acre_rag import transfer
from acre_rag.transfer import HostWriter, pinned, release_unused, settle, staging_for, to_device

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, needs_gpu])]


@pytest.mark.parametrize("device", DEVICES)
def test_rows_land_where_they_were_sent(device: str) -> None:
    target = torch.device(device)
    rows = torch.randn(12, 3, 4, device=target)
    writer = HostWriter((12, 3, 4), torch.float32, target)
    for start in range(0, 12, 3):
        writer.write(start, rows[start : start + 3])
    host = writer.wait()
    assert host.device.type == "cpu"
    assert torch.equal(host, rows.cpu())
    staging = staging_for(target)((4, 3, 4), torch.float32)
    assert staging.is_pinned() == (device == "cuda") and not host.is_pinned()
    picked = to_device(torch.index_select(host, 0, torch.tensor([7, 0, 7, 11]), out=staging), target)
    assert picked.device.type == device
    assert torch.equal(picked.cpu(), rows.cpu()[[7, 0, 7, 11]])


@pytest.mark.parametrize(("device", "waits"), [("cpu", 0), ("cuda", 1)])
def test_only_a_device_that_works_on_its_own_is_waited_for(
    device: str, waits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[torch.device] = []
    monkeypatch.setattr("torch.cuda.synchronize", waited.append)
    settle(torch.device(device))
    assert len(waited) == waits


@pytest.mark.parametrize("named", [True, False], ids=["with its public name", "as older torch has it"])
@pytest.mark.parametrize(("device", "released"), [("cpu", []), ("cuda", ["device", "pinned"])])
def test_unused_memory_is_given_back_device_and_pinned(
    device: str, released: list[str], named: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: seen.append("device"))
    monkeypatch.setattr("torch.accelerator.empty_host_cache", lambda: seen.append("pinned"), raising=False)
    if not named:
        monkeypatch.delattr("torch.accelerator.empty_host_cache")
        monkeypatch.setattr("torch._C._host_emptyCache", lambda: seen.append("pinned"))
    release_unused(torch.device(device))
    assert seen == released


class FakeStream:
    """A copy stream on the CPU: copies land at once, what is waited for is noted."""

    made: ClassVar[list["FakeStream"]] = []

    def __init__(self, _device: torch.device) -> None:
        self.made.append(self)
        self.waited: list[object] = []
        self.n_events = 0

    def wait_stream(self, stream: object) -> None:
        self.waited.append(stream)

    def record_event(self) -> SimpleNamespace:
        self.n_events += 1
        number = self.n_events
        return SimpleNamespace(synchronize=lambda: self.waited.append(number))


@pytest.fixture
def staged(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[weakref.ref[torch.Tensor]]]:
    """The path of a GPU's results with a stream that is none; the pinned tensors that were asked for."""
    asked: list[weakref.ref[torch.Tensor]] = []

    def pinned(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        tensor = torch.empty(shape, dtype=dtype)
        asked.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(transfer, "pinned", pinned)
    monkeypatch.setattr("torch.cuda.Stream", FakeStream)
    monkeypatch.setattr("torch.cuda.stream", nullcontext)
    monkeypatch.setattr("torch.cuda.current_stream", lambda _device: "compute")
    monkeypatch.setattr("torch.Tensor.record_stream", lambda _source, _stream: None)
    transfer._copy_stream.cache_clear()
    FakeStream.made.clear()
    yield asked
    transfer._copy_stream.cache_clear()


def test_results_pass_through_two_pinned_strides_into_ordinary_memory(staged: list[weakref.ref[torch.Tensor]]) -> None:
    rows = torch.randn(14, 3, 4)
    writer = HostWriter((14, 3, 4), torch.float32, torch.device("cuda"))
    for start in range(0, 14, 4):
        writer.write(start, rows[start : start + 4])
        assert sum(each() is not None for each in staged) == min(2, start // 4 + 1)
    assert torch.equal(writer.wait(), rows)
    assert [each() for each in staged] == [None] * 4
    [stream] = FakeStream.made
    # each copy waits for the compute before it, and is unloaded once it has landed
    assert stream.waited == ["compute", "compute", 1, "compute", 2, "compute", 3, 4]


def test_all_documents_share_one_copy_stream(staged: list[weakref.ref[torch.Tensor]]) -> None:
    for _ in range(3):
        HostWriter((2, 2), torch.float32, torch.device("cuda"))
    HostWriter((2, 2), torch.float32, torch.device("cpu"))
    assert len(FakeStream.made) == 1


def test_where_nothing_can_be_pinned_ordinary_memory_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    real, message = torch.empty, "CUDA error: out of memory"

    def empty(*shape: object, pin_memory: bool = False, **options: object) -> torch.Tensor:
        if pin_memory:
            raise RuntimeError(message)
        return real(*shape, **options)

    monkeypatch.setattr("torch.empty", empty)
    assert pinned((2, 3), torch.float16).shape == (2, 3)
    message = "CUDA error: an illegal memory access was encountered"
    with pytest.raises(RuntimeError, match="illegal"):
        pinned((2, 3), torch.float16)


@pytest.mark.gpu
@needs_gpu
def test_pinned_memory_is_given_back() -> None:
    device = torch.device("cuda")
    pinned((256, 1024, 256), torch.float32)
    held = torch.cuda.host_memory_stats()["allocated_bytes.current"]
    release_unused(device)
    assert torch.cuda.host_memory_stats()["allocated_bytes.current"] <= held - 256 * 1024 * 256 * 4


@pytest.mark.gpu
@needs_gpu
def test_sources_may_be_reused_at_once() -> None:
    """The race this guards against: later compute overwrites a buffer that a copy still reads."""
    device = torch.device("cuda")
    size = (64, 1024, 256)
    writer = HostWriter(size, torch.float32, device)
    for start in range(0, 64, 8):
        source = torch.full((8, *size[1:]), float(start), device=device)
        writer.write(start, source)
        del source
        torch.empty(8, *size[1:], device=device).fill_(float("nan"))  # poison what the allocator hands out next
    host = writer.wait()
    for start in range(0, 64, 8):
        assert torch.equal(host[start : start + 8], torch.full((8, *size[1:]), float(start)))


@pytest.mark.gpu
@needs_gpu
def test_a_document_on_the_gpu_answers_as_on_the_cpu() -> None:
    from conftest import tiny_decoder
    from transformers import AutoModelForCausalLM

    from acre_rag import ACRE, ACREConfig, GenerationSettings
    from acre_rag.decoder import Decoder

    tiny = tiny_decoder()
    moved = AutoModelForCausalLM.from_config(tiny.model.config).eval()
    moved.load_state_dict(tiny.model.state_dict())
    on_gpu = Decoder(model=moved.to("cuda"), tokenizer=tiny.tokenizer, name="tiny")
    config = ACREConfig(window=512, interval=8, stride=64, passage_tokens=32, select="consensus")
    texts = []
    for decoder in (tiny, on_gpu):
        acre = ACRE(decoder, config=config)
        document = acre.add("The lamp is in room nine. The kite is in room two. " * 12)
        assert document.cache.l2.parts["blocks"].tensor.device.type == "cpu"
        assert document.cache.l1.keys.device == decoder.device
        texts.append(acre.ask("Where is the lamp?", settings=GenerationSettings(max_new_tokens=8)).text)
    assert texts[0] == texts[1]
