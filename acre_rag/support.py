"""Say whether a model's attention can be split into two layers of cache, and why not; loads nothing."""

from typing import Any, Literal

from torch import nn

from acre_rag.errors import UnsupportedModelError


def check_supported(model: Any) -> None:
    """Refuse, with the reason, what the method does not cover.

    Raises:
        UnsupportedModelError: encoder-decoder, sliding-window, hybrid or unknown attention; weights on several devices.
    """
    config = model.config
    family = getattr(config, "model_type", type(model).__name__)
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(f"{family} is an encoder-decoder; ACRE needs a decoder-only model.")
    kinds = set(getattr(config, "layer_types", None) or []) - {"full_attention"}
    if kinds:
        raise UnsupportedModelError(
            f"{family} has layers of kind {', '.join(sorted(kinds))}; ACRE needs full attention in every layer. "
            "Choose a model with full attention (Llama, Qwen2/2.5, Qwen3, Mistral without sliding window, Phi-3)."
        )
    unrotated = [layer for layer, rotates in enumerate(getattr(config, "no_rope_layers", None) or []) if not rotates]
    if unrotated:
        raise UnsupportedModelError(
            f"{family} rotates nothing in layers {', '.join(map(str, unrotated))} (no_rope_layers in its config.json); "
            "ACRE needs a rotary embedding in every layer."
        )
    sliding = getattr(config, "sliding_window", None)
    if sliding and getattr(config, "use_sliding_window", True):
        raise UnsupportedModelError(
            f"{family} attends to a sliding window of {sliding:,} tokens; ACRE needs full attention. "
            "Use a version of the model without sliding window, or set sliding_window=null in its config.json."
        )
    layers = getattr(getattr(model, "model", None), "layers", None)
    if layers is None or not hasattr(model.model, "rotary_emb"):
        raise UnsupportedModelError(
            f"{family} is not built as decoder layers with a rotary embedding (model.layers, model.rotary_emb)."
        )
    for index, layer in enumerate(layers):
        attention = getattr(layer, "self_attn", None)
        if attention is None or not (hasattr(attention, "qkv_proj") or _has_split_projections(attention)):
            raise UnsupportedModelError(
                f"{family}: layer {index} has no q_proj, k_proj and v_proj (nor a fused qkv_proj) in self_attn."
            )
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        raise UnsupportedModelError(
            f"{family} uses RoPE scaling 'longrope', whose frequencies change with the length read so far. "
            "Supported: default, linear, dynamic, llama3, yarn."
        )
    devices = sorted({str(weight.device) for weight in model.parameters()})
    if len(devices) > 1:
        raise UnsupportedModelError(
            f"The weights of {family} are on {', '.join(devices)}; ACRE needs them on one device. Load the model "
            "without device_map (or with device_map={'': 0}); if no device can hold it, use a smaller model or type."
        )


def _has_split_projections(attention: nn.Module) -> bool:
    return all(hasattr(attention, f"{kind}_proj") for kind in "qkv")


def last_module(attention: nn.Module, kind: Literal["q", "k"]) -> tuple[str, nn.Module]:
    """Name and module whose output is the query ("q") or the key ("k") just before rotation."""
    for name in (f"{kind}_layernorm", f"{kind}_norm", f"{kind}_proj", "qkv_proj"):
        if isinstance(module := getattr(attention, name, None), nn.Module):
            return name, module
    raise UnsupportedModelError("self_attn has no query or key projection")  # check_supported ran before
