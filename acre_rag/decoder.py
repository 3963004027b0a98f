"""A loaded decoder: its shapes, its rotation and its queries, the same for every supported family; loads nothing.

One generic mechanism serves every family: the inputs of the q, k and v projections and the model's own rotary module. A
probe compares the keys that the model really caches, in every layer, with what that mechanism predicts, so an unknown
convention is refused rather than answered wrongly.
"""

import copy
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from acre_rag.errors import UnsupportedModelError
from acre_rag.rope import Rope
from acre_rag.support import check_supported, last_module
from acre_rag.worker import Worker

_WINDOW_CAP = 32_768  # the paper's W
_PROBE_TOKENS = 6

Kind = Literal["q", "k"]


@dataclass(eq=False)
class Decoder:
    """A supported decoder with its tokenizer.

    Attributes:
        model: the stock transformers causal language model, in evaluation mode.
        tokenizer: its tokenizer (a fast one: character offsets are needed).
        name: what the user called it.
        rope: rotation of its keys.
        worker: the one thread that runs the model.
    """

    model: Any
    tokenizer: Any
    name: str
    rope: Rope = field(init=False)
    worker: Worker = field(default_factory=Worker, repr=False)

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

    @cached_property
    def literal_tokenizer(self) -> Any:
        """The tokenizer for what users bring: control tokens in it are words, and cannot end the user's turn.

        A copy of its own, because transformers keeps that switch on the tokenizer, which other threads use. Text
        without control tokens becomes the same ids.
        """
        literal = copy.deepcopy(self.tokenizer)
        literal.split_special_tokens = True
        return literal

    @contextmanager
    def capture_queries(self) -> Iterator[list[Tensor]]:
        """Collect the un-rotated queries `[B, T, H, D]` of each layer during forward passes inside the block."""
        with self._capture("q") as captured:
            yield captured

    @contextmanager
    def _capture(self, kind: Kind) -> Iterator[list[Tensor]]:
        captured: list[Tensor] = []

        def keep_output_of(name: str) -> Callable[..., None]:
            return lambda _module, _inputs, output: captured.append(self._by_head(output, kind, name))

        named = [last_module(attention, kind) for attention in self.attentions]
        handles = [module.register_forward_hook(keep_output_of(name)) for name, module in named]
        try:
            yield captured
        finally:
            for handle in handles:
                handle.remove()

    def _by_head(self, output: Tensor, kind: Kind, name: str) -> Tensor:
        """Output of `support.last_module` as `[B, T, H, D]` (queries) or `[B, T, Hkv, D]` (keys)."""
        if name.endswith("_layernorm"):  # StableLM and Phi have brought the heads forward before it
            return output.transpose(1, 2)
        first = self.n_heads if (kind, name) == ("k", "qkv_proj") else 0
        n_wanted = self.n_heads if kind == "q" else self.n_kv_heads
        heads: Tensor = output.flatten(2).unflatten(2, (-1, self.head_dim))
        return heads[:, :, first : first + n_wanted]


def _probe(decoder: Decoder) -> None:
    """Compare what every layer caches for a few tokens, un-rotated, with its key before rotation.

    They differ for interleaved rotations, for layers that do not rotate, for norms after rotation or of unknown name
    (queries have the same), and for position added elsewhere.
    """
    from transformers import DynamicCache

    cache: Any = DynamicCache()
    ids = torch.arange(_PROBE_TOKENS, device=decoder.device)[None] % decoder.model.config.vocab_size
    with torch.inference_mode(), decoder._capture("k") as keys:
        decoder.base(input_ids=ids, past_key_values=cache, use_cache=True)
    tolerance = 1e-3 if decoder.dtype == torch.float32 else 5e-2
    apart = torch.inf
    if len(keys) == len(cache.layers) == decoder.n_layers:
        unrotated = [decoder.rope.unrotate(layer.keys) for layer in cache.layers]  # [1, Hkv, T, D]
        apart = max(_apart(a, b.transpose(1, 2)) for a, b in zip(unrotated, keys, strict=True))
    if not apart <= tolerance:
        raise UnsupportedModelError(
            f"{decoder.model.config.model_type}: the keys that this model caches are not a rotation of its key "
            f"projection as ACRE knows it (relative difference {apart:.2g}); its answers would be wrong."
        )


def _apart(x: Tensor, y: Tensor) -> float:
    if x.shape != y.shape:
        return torch.inf
    return float((x.float() - y.float()).norm() / y.float().norm().clamp_min(1e-12))
