"""Files of learned L1, one safetensors file per adapter; knows names and bytes, nothing of training.

A file in our format says what it was trained on, so that it cannot be used with another model by mistake. Any
other file is read as a checkpoint in the authors' layout (checkpoint.py).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, cast

from safetensors.torch import save
from torch import nn

from acre_rag.decoder import Decoder
from acre_rag.errors import AdapterError
from acre_rag.proxies.checkpoint import load_checkpoint, not_finite, open_safetensors, parameters_from
from acre_rag.proxies.learned import KINDS, L1Parameters, L1Projection
from acre_rag.replace import replace_file

_FAMILY = "acre-rag-adapter/"
_FORMAT = f"{_FAMILY}1"

SHIPPED = "shipped"
"""Names the adapter that the package holds for a model."""


@dataclass(frozen=True, kw_only=True)
class AdapterInfo:
    """What an adapter file says of itself.

    Attributes:
        base_digest: `Decoder.digest` of the model that it was trained on.
        architecture: that model's family and shape.
        intervals: smallest and largest interval `l` of its training.
        rank: 0 for full-rank projections (the paper).
        biases: which of "q", "k", "v" have a bias of their own, as in "qkv".
        facts: what training recorded: losses, data, steps.
    """

    base_digest: str
    architecture: str
    intervals: tuple[int, int]
    rank: int
    biases: str
    facts: Mapping[str, Any]


def save_adapter(
    parameters: L1Parameters,
    path: Path,
    *,
    decoder: Decoder,
    intervals: tuple[int, int],
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write one adapter file; an interrupted save leaves the old file as it was.

    Its tensors: "embedding" and "layers.{i}.{q,k,v}.weight" and ".bias", or ".down" and ".up" for low rank.

    Args:
        parameters: what training made.
        path: the file; its folder is made if need be.
        decoder: the base model.
        intervals: smallest and largest interval `l` of the training.
        facts: anything JSON can say, for people.

    Raises:
        AdapterError: NaN or infinity in the parameters, or the file cannot be written.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in parameters.state_dict().items()}
    if bad := not_finite(tensors):
        raise AdapterError(
            f"Not saved: {len(bad)} tensors hold NaN or infinity, {bad[0]} first, so training has diverged. "
            f"Lower the learning rate, or go on from an earlier adapter; {path} is as it was."
        )
    metadata = {
        "format": _FORMAT,
        "base_digest": decoder.digest,
        "architecture": decoder.architecture,
        "interval_min": str(intervals[0]),
        "interval_max": str(intervals[1]),
        "rank": str(parameters.rank),
        "biases": _biases(parameters),
        "facts": json.dumps(dict(facts or {})),
    }
    try:
        replace_file(path, save(tensors, metadata))
    except OSError as error:
        raise AdapterError(
            f"The adapter cannot be written to {path} ({error}). Check its folder's space and permissions."
        ) from error


def load_learned(name: str | Path, decoder: Decoder) -> L1Parameters:
    """Learned L1 from an adapter of ours, or from a checkpoint in the authors' layout.

    Args:
        name: the adapter file; a checkpoint may also be a folder; "shipped" for the package's own of this model.
        decoder: the base model, the same that the adapter was trained on.

    Returns:
        Parameters in float32 on the model's device.

    Raises:
        AdapterError: missing, damaged, of an unknown version, incomplete, or for another model.
    """
    path = shipped_adapter(decoder) if str(name) == SHIPPED else Path(name)
    info = adapter_info(path)
    if info is None:
        return load_checkpoint(path, decoder)
    if info.architecture != decoder.architecture:
        raise AdapterError(
            f"{path} was trained on {info.architecture}, but {decoder.name!r} is {decoder.architecture}. "
            "Load the model that the adapter was trained on, or give an adapter of this one."
        )
    if info.base_digest != decoder.digest:
        raise AdapterError(
            f"{path} was trained on weights {info.base_digest[:12]}, but {decoder.name!r} has weights "
            f"{decoder.digest[:12]} of the same shape: another fine-tune, or another quantisation. "
            "Load the very model that the adapter was trained on, or train an adapter for this one."
        )
    with open_safetensors(path) as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a mapping)
    parameters = parameters_from(tensors, decoder, rank=info.rank, biased=info.biases, path=path)
    parameters.intervals = info.intervals
    return parameters


def shipped_adapter(decoder: Decoder) -> Path:
    """The file that the package holds for this model.

    Raises:
        AdapterError: it holds none for these weights; names the models that it has some for.
    """
    folder = Path(str(resources.files("acre_rag"))) / "data" / "adapters"
    held = {path: adapter_info(path) for path in sorted(folder.glob("*.safetensors"))}
    for path, info in held.items():
        if info and info.base_digest == decoder.digest:
            return path
    raise AdapterError(
        f"The package ships no adapter for {decoder.name!r}; it has: {', '.join(p.stem for p in held) or 'none'}. "
        "Train one: acre train stage1, or leave the adapter out to use pooled L1."
    )


def adapter_info(path: Path) -> AdapterInfo | None:
    """What an adapter says of itself, tensors unread; `None` for a file or folder that is not in our format.

    Raises:
        AdapterError: missing, damaged, or of an unknown version of our format.
    """
    if path.is_dir():
        return None
    with open_safetensors(path) as opened:
        metadata: dict[str, str] = opened.metadata() or {}
    version = metadata.get("format", "")
    if not version.startswith(_FAMILY):
        return None
    if version != _FORMAT:
        raise AdapterError(
            f"{path} has format {version!r}; this version of acre-rag reads {_FORMAT!r}. "
            "Upgrade it (pip install -U acre-rag), or train the adapter anew."
        )
    try:
        return AdapterInfo(
            base_digest=metadata["base_digest"],
            architecture=metadata["architecture"],
            intervals=(int(metadata["interval_min"]), int(metadata["interval_max"])),
            rank=int(metadata["rank"]),
            biases=metadata["biases"],
            facts=json.loads(metadata["facts"]),
        )
    except (KeyError, ValueError) as error:
        raise AdapterError(
            f"{path} has damaged metadata ({error!r}). Copy it again, or train the adapter anew."
        ) from error


def _biases(parameters: L1Parameters) -> str:
    """Kinds whose projections have a bias: the same in every layer."""
    first = cast(nn.ModuleDict, parameters.layers[0])
    return "".join(kind for kind in KINDS if not parameters.rank and cast(L1Projection, first[kind]).bias is not None)
