"""Copies between device and host: what arrives is what was sent, also when both run at once."""

import pytest
import torch

from acre_rag.transfer import HostWriter, release_unused, settle, to_device

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
    picked = to_device(host[[7, 0, 7, 11]], target)
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


@pytest.mark.parametrize(("device", "released"), [("cpu", []), ("cuda", ["device", "pinned"])])
def test_unused_memory_is_given_back_device_and_pinned(
    device: str, released: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: seen.append("device"))
    monkeypatch.setattr("torch.accelerator.empty_host_cache", lambda: seen.append("pinned"), raising=False)
    release_unused(torch.device(device))
    assert seen == released


@pytest.mark.gpu
@needs_gpu
def test_pinned_memory_is_given_back() -> None:
    device = torch.device("cuda")
    writer = HostWriter((256, 1024, 256), torch.float32, device)
    del writer
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
    config = ACREConfig(window=512, interval=8, stride=64, passage_tokens=32)
    texts = []
    for decoder in (tiny, on_gpu):
        acre = ACRE(decoder, config=config)
        document = acre.add("The lamp is in room nine. The kite is in room two. " * 12)
        assert document.cache.l2.parts["blocks"].tensor.device.type == "cpu"
        assert document.cache.l1.keys.device == decoder.device
        texts.append(acre.ask("Where is the lamp?", settings=GenerationSettings(max_new_tokens=8)).text)
    assert texts[0] == texts[1]
