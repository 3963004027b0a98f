"""Learned L1 from checkpoints in the authors' layout; knows their keys, nothing of our own adapter format.

That layout adds to a base model `model.acre_embed_tokens.weight` `[1, hidden]` and
`model.layers.{i}.self_attn.acre_{q,k,v}_proj.{weight,bias}`; older files (Activation Beacon, on which the
authors build) say `beacon_` for `acre_`. Our names, "layers.{i}.{q,k,v}.weight", are those of `L1Parameters`.
"""

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from acre_rag.decoder import Decoder
from acre_rag.errors import AdapterError
from acre_rag.proxies.learned import KINDS, L1Parameters, L1Projection

_KEY = re.compile(
    r"(?:model\.)?(?:(?:acre|beacon)_embed_tokens\.weight"
    r"|layers\.(\d+)\.self_attn\.(?:acre|beacon)_([qkv])_proj\.(weight|bias))"
)
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLED = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}


def load_checkpoint(path: Path, decoder: Decoder) -> L1Parameters:
    """Full-rank L1 parameters from a checkpoint in the authors' layout.

    The base weights of a whole-model checkpoint are compared with the loaded model's. An adapter-only file of
    another model with the same shapes cannot be told apart: it holds nothing to compare.

    Args:
        path: a `.safetensors` file, or a folder with `model.safetensors` or its index and shards.
        decoder: the base model.

    Raises:
        AdapterError: missing, pickled or damaged files, missing or left-over keys, or another base model.
    """
    base = decoder.model.state_dict()
    tensors: dict[str, Tensor] = {}
    for file in _files(path):
        with open_safetensors(file) as opened:
            for key in opened.keys():  # noqa: SIM118 (not a mapping)
                own_name = _own_name(key)
                base_name = key if key in base else f"model.{key}"
                if own_name and own_name not in tensors:
                    tensors[own_name] = opened.get_tensor(key)
                elif base_name in base:
                    _check_base(file, key, opened.get_tensor(key), base[base_name], decoder)
                else:
                    tensors[repr(key)] = torch.empty(0)  # left over; quoted, so it is no name of ours
    if (table := tensors.get("embedding")) is not None and table.ndim == 2 and len(table) == 1:
        tensors["embedding"] = table[0]
    biased = [kind for kind in KINDS if any(name.endswith(f".{kind}.bias") for name in tensors)]
    return parameters_from(tensors, decoder, rank=0, biased=biased, path=path, shown=_authors_name)


def parameters_from(
    tensors: Mapping[str, Tensor],
    decoder: Decoder,
    *,
    rank: int,
    biased: Collection[str],
    path: Path,
    shown: Callable[[str], str] = str,
) -> L1Parameters:
    """L1 parameters in float32 on the model's device, from tensors under our names.

    Args:
        tensors: exactly those of `L1Parameters(decoder, rank=rank).state_dict()`.
        decoder: the base model.
        rank: 0 for full rank.
        biased: which of "q", "k", "v" have a bias of their own; the file decides, not the base model.
        path: where the tensors come from, for messages.
        shown: our name of a tensor to its name in the file, for messages.

    Raises:
        AdapterError: left-over or missing tensors, wrong shapes or types, NaN or infinity.
    """
    parameters = L1Parameters(decoder, rank=rank)
    if not rank:
        _set_biases(parameters, biased)
    expected = parameters.state_dict()
    if left_over := sorted(tensors.keys() - expected.keys()):
        raise AdapterError(
            f"{path} holds {len(left_over)} tensors without a place in {decoder.name!r} or its learned L1: "
            f"{_some(left_over)}. It is for another model, or has parts that ACRE has not. "
            f"Give a file made for {decoder.architecture}."
        )
    if missing := [shown(name) for name in expected if name not in tensors]:
        raise AdapterError(
            f"{path} lacks {len(missing)} of {len(expected)} tensors of learned L1: {_some(missing)}. Give "
            "an adapter of `acre train`, or a checkpoint with the L1 embedding and all q, k, v projections."
        )
    for name, tensor in tensors.items():
        shape, needed = list(tensor.shape), list(expected[name].shape)
        if shape != needed or not tensor.is_floating_point():
            raise AdapterError(
                f"{path}: {shown(name)} has shape {shape} ({tensor.dtype}), but {decoder.name!r} needs "
                f"{needed} of a floating type. Give a file made for {decoder.architecture}."
            )
    if bad := not_finite(tensors):
        raise AdapterError(
            f"{path} holds NaN or infinity in {_some([shown(name) for name in bad])}: it is damaged, or was "
            "saved after its training had diverged. Use another copy, or an earlier one."
        )
    parameters.load_state_dict(dict(tensors))
    return parameters


@contextmanager
def open_safetensors(path: Path) -> Iterator[Any]:
    """An open safetensors file. Pickle files can run code when they are loaded, so they are never opened.

    Raises:
        AdapterError: missing, pickled, not safetensors, or cut short.
    """
    if not path.is_file():
        raise AdapterError(f"Adapter file not found: {path}. Check the path, or copy the missing file there.")
    if path.suffix.lower() in _PICKLED:
        raise AdapterError(
            f"{path} is a pickle file, which can run code when it is loaded. If you trust it, convert it to "
            'safetensors once: python -c "import torch, safetensors.torch as s; s.save_file({k: v.clone() '
            f"for k, v in torch.load('{path}', weights_only=True).items()}}, '{path.stem}.safetensors')\""
        )
    try:
        with safe_open(path, framework="pt") as opened:
            yield opened
    except (SafetensorError, OSError) as error:
        raise AdapterError(
            f"{path} cannot be read as safetensors: it is another kind of file, or was cut short ({error}). "
            "Copy or download it again, or train anew."
        ) from error


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold NaN or infinity (in float32)."""
    return [name for name, tensor in tensors.items() if not torch.isfinite(tensor.float()).all()]


def _files(path: Path) -> list[Path]:
    """The safetensors files of a checkpoint."""
    if not path.is_dir():
        return [path]
    if (path / _SINGLE).is_file():
        return [path / _SINGLE]
    index = path / _INDEX
    if not index.is_file():
        raise AdapterError(
            f"{path} has neither {_SINGLE} nor {_INDEX}. Give the adapter file itself, or a folder with a "
            "checkpoint saved as safetensors; convert .bin files to safetensors first."
        )
    try:
        return [path / shard for shard in sorted(set(json.loads(index.read_bytes())["weight_map"].values()))]
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise AdapterError(f"{index} is not an index of shards ({error!r}). Download it again.") from error


def _own_name(key: str) -> str | None:
    """Our name of an L1 key of the authors' layout; `None` for any other key."""
    if not (match := _KEY.fullmatch(key)):
        return None
    layer, kind, leaf = match.groups()
    return f"layers.{int(layer)}.{kind}.{leaf}" if layer else "embedding"


def _authors_name(name: str) -> str:
    """Inverse of `_own_name`, in today's spelling."""
    if name == "embedding":
        return "model.acre_embed_tokens.weight"
    layer, kind, leaf = name.split(".")[1:]
    return f"model.layers.{layer}.self_attn.acre_{kind}_proj.{leaf}"


def _check_base(path: Path, key: str, found: Tensor, own: Tensor, decoder: Decoder) -> None:
    """Refuse a base weight that is not the loaded model's, in bfloat16 after the rounding that both took."""
    rounded = found.to(own.device, own.dtype).bfloat16()
    if not torch.equal(rounded, own.to(found.dtype).bfloat16()):  # false for other shapes, too
        raise AdapterError(
            f"{path} belongs to another base model: its {key} {list(found.shape)} differs from that of "
            f"{decoder.name!r} {list(own.shape)}. Load the model that it was made for, or give another file."
        )


def _set_biases(parameters: L1Parameters, biased: Collection[str]) -> None:
    """Full-rank projections with a bias where the file has one."""
    for layer in parameters.layers:
        for kind, projection in cast(dict[str, L1Projection], layer).items():
            zeros = projection.weight.new_zeros(len(projection.weight))
            projection.bias = nn.Parameter(zeros) if kind in biased else None


def _some(names: list[str]) -> str:
    return ", ".join([*names[:4], *([f"and {len(names) - 4} more"] if names[4:] else [])])
