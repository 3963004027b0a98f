"""One training run from settings to an adapter file and its record; the parts are made elsewhere."""

import hashlib
import json
import platform
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import Accelerator  # type: ignore[import-untyped]

from acre_rag.decoder import Decoder
from acre_rag.errors import ConfigError
from acre_rag.models import load_decoder
from acre_rag.proxies.adapter import SHIPPED, load_learned, save_adapter, shipped_adapter
from acre_rag.proxies.learned import L1Parameters
from acre_rag.proxies.start import untrained
from acre_rag.training.reader import NestedReader
from acre_rag.training.settings import TrainingSettings
from acre_rag.training.sft import PlainReader
from acre_rag.training.stream import Shards
from acre_rag.training.texts import Excerpts, digest_of, split_texts
from acre_rag.training.trainer import Examples, Record, Trainer

ADAPTER, MERGED, RECORD, MANIFEST = "adapter.safetensors", "model", "training.json", "manifest.json"
_CHARS_PER_TOKEN = 6  # more than ordinary prose has


@dataclass(frozen=True)
class Trained:
    """What a run leaves.

    Attributes:
        adapter: for `ACRE.from_pretrained(adapter=...)`; after "sft" the folder of a whole model, for `model=`.
        record: settings, data, curve, seconds, machine.
        steps: optimiser steps done.
        loss: mean of the last tenth of them.
    """

    adapter: Path
    record: Path
    steps: int
    loss: float


def run_training(
    settings: TrainingSettings,
    *,
    data: Path,
    out: Path,
    start: Path | None = None,
    device: str = "auto",
    trackers: tuple[str, ...] = (),
    on_step: Callable[[Record], None] = lambda record: None,
) -> Trained:
    """Train, or go on with what was interrupted; every process of a launch calls this.

    Args:
        settings: of the run.
        data: folder of texts (`.txt`, `.txt.gz`), or of shards made by `acre data build`.
        out: folder for checkpoint, adapter and record.
        start: adapter to begin with (stage 2 begins with that of stage 1); untrained copies by default.
        device: "auto", "cpu", or any torch device that this launch gives its processes.
        trackers: of Accelerate: "tensorboard", "wandb", ...
        on_step: called with each step's record on the main process.

    Raises:
        ConfigError, DocumentError, ModelError, AdapterError: each says what to do.
    """
    accelerator = _accelerator(device, trackers, out)
    decoder = load_decoder(settings.model, device=str(accelerator.device), dtype=settings.dtype)
    base = {"architecture": decoder.architecture, "digest": decoder.digest}  # before anything is changed in place
    reader = _reader(decoder, settings, start)
    settings = replace(settings, rank=reader.rank)  # the real one is recorded, whoever named it
    examples, facts = _examples(data, settings)
    out.mkdir(parents=True, exist_ok=True)
    if trackers:
        accelerator.init_trackers(out.name, config={k: str(v) for k, v in settings.to_dict().items()})

    def report(record: Record) -> None:
        accelerator.log({k: v for k, v in record.items() if k != "step"}, step=int(record["step"]))
        on_step(record)

    trainer = Trainer(
        reader,
        settings,
        examples,
        accelerator=accelerator,
        out=out,
        data_digest=facts["digest"],
        base_digest=base["digest"],
        start_digest=_start_digest(start, decoder),
        on_step=report,
    )
    progress = trainer.train()
    last = progress.curve[-max(1, len(progress.curve) // 10) :]
    made = out / (MERGED if isinstance(reader, PlainReader) else ADAPTER)
    trained = Trained(made, out / RECORD, progress.step, sum(r["loss"] for r in last) / len(last))
    record = _record(settings, decoder, facts, start) | {
        "base": base,
        "steps": progress.step,
        "seconds": round(progress.seconds, 1),
        "processes": accelerator.num_processes,
        "final_loss": trained.loss,
    }
    if accelerator.is_main_process:
        _save(reader, made, settings, record)
        trained.record.write_text(json.dumps(record | {"curve": progress.curve}, indent=1), encoding="utf-8")
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return trained


def _accelerator(device: str, trackers: tuple[str, ...], out: Path) -> Accelerator:
    """Processes and devices of this launch; the environment may choose neither another device nor another precision.

    Raises:
        ConfigError: no such device, or not the one that the launch gives this process.
    """
    if device != "auto":
        _check_usable(device)
    accelerator = Accelerator(
        cpu=device == "cpu", mixed_precision="no", log_with=list(trackers) or None, project_dir=out
    )
    if device != "auto":
        _check_same(torch.device(device), accelerator.device)
    return accelerator


def _check_usable(device: str) -> None:
    try:
        torch.empty(1, device=torch.device(device))
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device={device!r} cannot be used on this machine ({str(error).splitlines()[0]}). Use device='cpu'."
        ) from error


def _check_same(wanted: torch.device, given: torch.device) -> None:
    """A device without a number is any of its kind."""
    if wanted.type != given.type or wanted.index not in (None, given.index or 0):
        raise ConfigError(
            f"device='{wanted}' is not where this launch trains, which is '{given}'. Use device='auto', and choose "
            "among GPUs by CUDA_VISIBLE_DEVICES or the launcher's own options."
        )


def _reader(decoder: Decoder, settings: TrainingSettings, start: Path | None) -> NestedReader | PlainReader:
    if settings.stage == "sft":
        return PlainReader(decoder, rank=settings.new_rank, seed=settings.seed, checkpointing=settings.checkpointing)
    l1 = _started(start, decoder, settings.rank) if start else begin(decoder, settings)
    return NestedReader(decoder, l1, reading=settings.reading, checkpointing=settings.checkpointing)


def begin(decoder: Decoder, settings: TrainingSettings) -> L1Parameters:
    """Untrained L1 as the settings want it."""
    return untrained(decoder, rank=settings.new_rank, start_text=settings.start_text, seed=settings.seed)


def _started(start: Path, decoder: Decoder, rank: int | None) -> L1Parameters:
    """What an earlier training left.

    Raises:
        AdapterError: it cannot be loaded.
        ConfigError: the settings name another rank.
    """
    l1 = load_learned(start, decoder)
    if rank not in (None, l1.rank):
        raise ConfigError(
            f"rank={rank}, but training begins with {start.name}, whose rank is {l1.rank}. Use rank={l1.rank}, leave "
            "it out, or begin without an adapter."
        )
    return l1


def _save(reader: NestedReader | PlainReader, path: Path, settings: TrainingSettings, record: dict[str, Any]) -> None:
    if isinstance(reader, PlainReader):
        reader.save_merged(path)
        return
    intervals = min(settings.intervals), max(settings.intervals)
    save_adapter(reader.l1, path, decoder=reader.decoder, intervals=intervals, facts=record)


def _start_digest(start: Path | None, decoder: Decoder) -> str:
    """Identifies the adapter that training begins with, a file or a checkpoint's folder; "" for none."""
    if start is None:
        return ""
    path = shipped_adapter(decoder) if str(start) == SHIPPED else start
    return digest_of(sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path])


def _examples(data: Path, settings: TrainingSettings) -> tuple[Examples, dict[str, Any]]:
    """What a folder holds, and what identifies it."""
    manifest = data / MANIFEST
    if manifest.is_file():
        return Shards(data, seed=settings.seed), {
            "kind": "shards",
            "digest": hashlib.sha256(manifest.read_bytes()).hexdigest(),
        }
    least = settings.least_tokens * _CHARS_PER_TOKEN
    trained, held_out = split_texts(data, held_out=settings.held_out, least_chars=least)
    longest = max(settings.context) * _CHARS_PER_TOKEN
    facts = {"kind": "texts", "digest": digest_of(trained), "files": len(trained), "held_out": _names(held_out)}
    return Excerpts(trained, n_chars=longest, seed=settings.seed), facts


def _names(files: list[Path]) -> list[str]:
    return [path.name for path in files]


def _record(settings: TrainingSettings, decoder: Decoder, facts: dict[str, Any], start: Path | None) -> dict[str, Any]:
    return {
        "settings": settings.to_dict(),
        "data": facts,
        "start": start.name if start else None,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {decoder.device}",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
