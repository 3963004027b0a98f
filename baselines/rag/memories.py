"""Which memory a name means, and what it needs. Forms none."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from acre_rag.baselines.base import Setting
from acre_rag.baselines.learned import learned_proxy
from acre_rag.baselines.options import check_options, option_names
from acre_rag.baselines.rag.embedders import cached_folder
from acre_rag.baselines.rag.memory import ACREMemory, FullMemory, GistMemory, Memory
from acre_rag.baselines.rag.recall import RECALL_TOKENS
from acre_rag.errors import ConfigError, UnavailableError
from acre_rag.proxies import LearnedProxy
from acre_rag.proxies.adapter import load_learned

MemoryKind = Literal["gists", "full", "acre", "learned", "released"]

RELEASED = "TommyChien/memorag-qwen2-7b-inst"


def make_memory(setting: Setting, kind: MemoryKind, **options: Any) -> Memory[Any]:
    """A memory by name.

    Args:
        setting: model and window; the adapter for "learned" and "released".
        kind: "gists" (sums of stretches, as MemoRAG-Lite), "full" (the model's cache of the document, its middle left
            out beyond the window), "acre" (the compact layer of an ACRE cache, untrained), "learned" (the
            same with the setting's adapter, or the shipped one), "released" (MemoRAG's trained memory).
        options: of `GistMemory`; the others take `recall_tokens`.

    Raises:
        ConfigError: no such memory, or it has no such option.
        UnavailableError: "learned" without an adapter, "released" without CUDA or weights.
    """
    if kind not in get_args(MemoryKind):
        raise ConfigError(f"memory={kind!r} is unknown: choose one of {', '.join(get_args(MemoryKind))}.")
    makers: dict[MemoryKind, Callable[..., Memory[Any]]] = {
        "gists": GistMemory,
        "full": FullMemory,
        "acre": ACREMemory,
        "learned": _learned,
        "released": _released,
    }
    check_options(f"memory={kind!r}", options, option_names(makers[kind]))
    return makers[kind](setting, **options)


def _learned(setting: Setting, *, recall_tokens: int = RECALL_TOKENS) -> ACREMemory:
    """The compact layer of an adapter of `acre train`."""
    return ACREMemory(setting, learned_proxy(setting), recall_tokens=recall_tokens)


def _released(setting: Setting, *, recall_tokens: int = RECALL_TOKENS) -> ACREMemory:
    """The released memory model: trained projections for compact entries on a frozen model, which is learned L1."""
    if not torch.cuda.is_available():
        raise UnavailableError(
            f"memory='released' runs MemoRAG's 7B memory model ({RELEASED}), which needs CUDA; this machine has none. "
            "Use memory='gists' or 'full'."
        )
    folder = Path(setting.adapter) if setting.adapter else cached_folder(RELEASED)
    if folder is None:
        raise UnavailableError(
            f"memory='released' needs the weights of {RELEASED}, which are not on this machine. Fetch them "
            f"(hf download {RELEASED}) or name a folder with --adapter, or use memory='gists' or 'full'."
        )
    return released_memory(setting, folder, recall_tokens=recall_tokens)


def released_memory(setting: Setting, weights: Path, *, recall_tokens: int = RECALL_TOKENS) -> ACREMemory:
    """The compact layer as a checkpoint in that layout forms it, at ACRE's interval (the repository: 4 tokens).

    Raises:
        AdapterError: the weights are damaged, or belong to another model than the setting's.
    """
    proxy = LearnedProxy(load_learned(weights, setting.decoder).to(setting.decoder.dtype))
    return ACREMemory(setting, proxy, recall_tokens=recall_tokens)
