"""The state of an unfinished run in one safetensors file; knows names and bytes, not what is trained.

Everything drawn in a run depends on the number of the step alone, so parameters, the optimiser's moments and that
number are the whole state. The file is replaced in one step: a kill leaves the last one or the one before.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from acre_rag.errors import AdapterError
from acre_rag.proxies.checkpoint import open_safetensors
from acre_rag.replace import replace_file

_FORMAT = "acre-rag-training/1"
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Progress:
    """How far a run has come.

    Attributes:
        step: optimiser steps done.
        seconds: time spent on them, over all its processes' lives.
        curve: one record a step.
    """

    step: int
    seconds: float
    curve: tuple[Mapping[str, Any], ...]

    @property
    def n_skipped(self) -> int:
        """Examples that were passed over, over all steps."""
        return sum(record.get("skipped", 0) for record in self.curve)


def save_checkpoint(
    path: Path, *, parameters: nn.Module, optimizer: torch.optim.Optimizer, run: Mapping[str, Any], progress: Progress
) -> None:
    """Write the state; the old file stays until the new one is whole on disk.

    Args:
        path: the file.
        parameters: what is trained.
        optimizer: AdamW over its trainable parameters.
        run: what must be the same to go on: settings and data.
        progress: how far it has come.
    """
    tensors = {f"parameters.{name}": value.detach() for name, value in parameters.state_dict().items()}
    for name, weight in parameters.named_parameters():
        for moment in _MOMENTS if weight in optimizer.state else ():
            tensors[f"optimizer.{name}.{moment}"] = optimizer.state[weight][moment]
    metadata = {
        "format": _FORMAT,
        "run": json.dumps(dict(run), sort_keys=True),
        "progress": json.dumps([progress.step, progress.seconds, [dict(record) for record in progress.curve]]),
    }
    replace_file(path, save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, metadata))


def load_checkpoint(
    path: Path, *, parameters: nn.Module, optimizer: torch.optim.Optimizer, run: Mapping[str, Any]
) -> Progress:
    """Put the state back; the beginning if there is no file.

    Raises:
        AdapterError: damaged, or of another run; names what differs.
    """
    if not path.is_file():
        return Progress(0, 0.0, ())
    with open_safetensors(path) as opened:
        metadata: dict[str, str] = opened.metadata() or {}
        tensors: dict[str, Tensor] = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    if metadata.get("format") != _FORMAT:
        raise AdapterError(f"{path} is no checkpoint of {_FORMAT!r}. Move it away, or choose another --out.")
    _check_same(path, json.loads(metadata["run"]), dict(run))
    own = {name.removeprefix("parameters."): t for name, t in tensors.items() if name.startswith("parameters.")}
    parameters.load_state_dict(own)
    for name, weight in parameters.named_parameters():
        moments = {m: tensors.get(f"optimizer.{name}.{m}") for m in _MOMENTS}
        if all(moment is not None for moment in moments.values()):
            step = moments.pop("step")
            optimizer.state[weight] = {"step": step} | {m: t.to(weight) for m, t in moments.items() if t is not None}
    step, seconds, curve = json.loads(metadata["progress"])
    return Progress(step, seconds, tuple(curve))


def _check_same(path: Path, was: dict[str, Any], now: dict[str, Any]) -> None:
    differing = [name for name in sorted(was | now) if was.get(name) != now.get(name)]
    if differing:
        told = ", ".join(f"{name}: {was.get(name)!r} then, {now.get(name)!r} now" for name in differing[:4])
        raise AdapterError(
            f"{path} is the checkpoint of another run ({told}). Use the same options to go on, or another --out."
        )
