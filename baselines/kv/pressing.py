"""One kvpress method on our models: what it needs of the library, and a model that is left as it was found.

Library: kvpress (Apache-2.0, github.com/NVIDIA/kvpress). Knows no document and no budget.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from acre_rag.baselines.kv.prefill import copied, forward
from acre_rag.decoder import Decoder
from acre_rag.errors import MissingExtraError, UnsupportedModelError
from acre_rag.rope import Rope


def load_kvpress() -> Any:
    """The library.

    Importing it wraps every attention function of transformers, for presses that mask single heads. None of ours does,
    and other systems of a comparison must run on the stock functions: they are put back.

    Raises:
        MissingExtraError: it is not installed.
    """
    before = dict(ALL_ATTENTION_FUNCTIONS.items())
    try:
        import kvpress  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingExtraError("kvpress", "baselines", "StreamingLLM, SnapKV and FINCH") from error
    for name, function in before.items():
        if ALL_ATTENTION_FUNCTIONS[name] is not function:
            del ALL_ATTENTION_FUNCTIONS[name]  # the wrapper was laid over the registered function
            if ALL_ATTENTION_FUNCTIONS.get(name) is not function:
                ALL_ATTENTION_FUNCTIONS[name] = function
    return kvpress


def kvpress_version() -> str:
    """Name and version of the library, for a row of results."""
    return f"kvpress {version('kvpress')}"


def check_press_fits(decoder: Decoder) -> None:
    """Refuse models that kvpress computes wrongly or was not written for.

    Raises:
        UnsupportedModelError: unknown family, or a rotation of a part of each head only.
    """
    kvpress = load_kvpress()
    families = [kind for kind in kvpress.SUPPORTED_MODELS if "Conditional" not in kind.__name__]
    if not isinstance(decoder.model, tuple(families)):
        names = ", ".join(kind.__name__.removesuffix("ForCausalLM") for kind in families)
        raise UnsupportedModelError(
            f"kvpress was not written for {decoder.model.config.model_type}. It knows: {names}. "
            "Use a model of one of these families, or another system."
        )
    n_rotated = 2 * len(decoder.base.rotary_emb.inv_freq)
    if n_rotated != decoder.head_dim:
        raise UnsupportedModelError(
            f"{decoder.name} rotates {n_rotated} of {decoder.head_dim} dimensions of each head; kvpress rotates all of "
            "them. Use a model that rotates whole heads, or another system."
        )


@contextmanager
def pressing(decoder: Decoder, press: Any) -> Iterator[None]:
    """Inside the block, `press` compresses each layer's cache at the end of every forward pass.

    Presses ask for `cache_position` to see whether this is the first pass over a prompt; transformers 5.4 and later do
    not pass it on. Ours says "first pass" always: the block holds only passes that are to be compressed, also when
    earlier strides stand before them in the cache.
    """
    attentions = decoder.attentions
    handles = [each.register_forward_pre_hook(_as_first_pass, with_kwargs=True) for each in attentions]
    had_rotary = [hasattr(each, "rotary_emb") for each in attentions]
    try:
        # The general entry: FinchPress's own would look for a delimiter token, added to vocabulary and embeddings.
        with load_kvpress().BasePress.__call__(press, decoder.model):
            yield
    finally:
        for handle in handles:
            handle.remove()
        for attention, had in zip(attentions, had_rotary, strict=True):
            if not had and hasattr(attention, "rotary_emb"):
                del attention.rotary_emb  # kvpress puts it there and leaves it


def pressed_by(press: Any, decoder: Decoder, cache: Cache, ids: Tensor, *, keep: int) -> Cache:
    """A copy of a cache that read `ids [T]` and kept `keep` slots of each head, those of `ids` among the candidates."""
    press.compression_ratio = ratio_that_keeps(keep, of=int(cache.get_seq_length()) + len(ids))
    own = copied(cache)
    with pressing(decoder, press):
        forward(decoder, ids, own)
    return own


def _as_first_pass(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    n_tokens = kwargs["hidden_states"].shape[1]
    return args, kwargs | {"cache_position": torch.arange(n_tokens, device=kwargs["hidden_states"].device)}


def ratio_that_keeps(n_kept: int, *, of: int) -> float:
    """The `compression_ratio` with which a press keeps exactly `n_kept` of `of` slots."""
    return 1 - (n_kept + 0.5) / of if n_kept < of else 0.0


def moved_back(cache: Cache, rope: Rope, distance: int) -> None:
    """Rotate all keys back by `distance` positions, in place of the cache's tensors.

    The attention between keys and what follows them depends on differences of positions only. So after `distance` of
    `N` slots were dropped, moving the kept ones back makes the cache an ordinary prefix: what follows goes on at
    position `N - distance`, as the model itself counts, instead of at `N`.
    """
    if not distance:
        return
    layers: list[Any] = cache.layers
    for layer in layers:
        layer.keys = _moved_back(layer.keys, rope, distance)


def _moved_back(keys: Tensor, rope: Rope, distance: int) -> Tensor:
    """`[..., T, D]`; a scaled rotation (yarn) loses its factor when it is undone, and gets it back at position 0."""
    return rope.rotate(rope.unrotate(keys[..., None, :], distance)).squeeze(-2)
