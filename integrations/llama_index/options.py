"""LlamaIndex's per-call options of a model as the engine's generation settings; decodes nothing."""

from collections.abc import Mapping, Sequence
from typing import Any

from acre_rag import GenerationSettings
from acre_rag.errors import ConfigError

CALL_OPTIONS = ("max_tokens", "temperature", "top_p", "top_k", "stop", "seed", "timeout")


def settings_of(defaults: Mapping[str, Any], call: Mapping[str, Any]) -> tuple[GenerationSettings, float | None]:
    """Settings and seconds of one call.

    Args:
        defaults: value of every option in `CALL_OPTIONS`.
        call: what the caller passed; an option that is `None` counts as not passed.

    Raises:
        ConfigError: unknown, or out of range.
    """
    if unknown := call.keys() - set(CALL_OPTIONS):
        raise ConfigError(f"Unknown option {sorted(unknown)[0]!r} of a call; there are: {', '.join(CALL_OPTIONS)}.")
    chosen = {**defaults, **{name: value for name, value in call.items() if value is not None}}
    settings = GenerationSettings(
        max_new_tokens=chosen["max_tokens"],
        temperature=chosen["temperature"],
        top_p=chosen["top_p"],
        top_k=chosen["top_k"],
        stop=_strings(chosen["stop"]),
        seed=chosen["seed"],
    )
    return settings, chosen["timeout"]


def _strings(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    return () if stop is None else (stop,) if isinstance(stop, str) else tuple(stop)
