"""Learned L1 as a setting names it, for every system that takes an adapter."""

from acre_rag.baselines.base import Setting
from acre_rag.errors import AdapterError, UnavailableError
from acre_rag.proxies import LearnedProxy
from acre_rag.proxies.adapter import SHIPPED, load_learned
from acre_rag.proxies.start import untrained

UNTRAINED = "untrained"
"""As an adapter: the L1 that training begins with, before its first step."""


def learned_proxy(setting: Setting, adapter: str | None = None) -> LearnedProxy:
    """Entries of an adapter, in the model's precision.

    Args:
        setting: model and adapter.
        adapter: which, or "untrained"; `setting.adapter` by default, and the shipped one when that is not named.

    Raises:
        UnavailableError: no adapter was named and none is shipped for this model.
        AdapterError: the one named is damaged, or belongs to another model.
    """
    named = adapter or setting.adapter
    if named == UNTRAINED:
        return LearnedProxy(untrained(setting.decoder, rank=1).to(setting.decoder.dtype))
    try:
        parameters = load_learned(named or SHIPPED, setting.decoder)
    except AdapterError as error:
        if named:
            raise
        raise UnavailableError(
            f"Learned L1 needs an adapter for this model: name one with --adapter. ({error})"
        ) from error
    return LearnedProxy(parameters.to(setting.decoder.dtype))
