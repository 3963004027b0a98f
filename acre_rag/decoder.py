"""A loaded decoder: its shapes, its rotation and its queries, the same for every supported family; loads nothing.

One generic mechanism serves every family: the inputs of the q, k and v projections and the model's own rotary module. A
probe compares the keys that the model really caches with what that mechanism predicts, so an unknown convention is
refused rather than answered wrongly.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn

from acre_rag.errors import UnsupportedModelError
from acre_rag.rope import Rope
from acre_rag.support import check_supported, last_query_module
from acre_rag.worker import Worker

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
