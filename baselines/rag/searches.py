"""Makes the search that a system asks for by name. Knows no system."""

from typing import Any, get_args

from acre_rag.baselines.base import Setting
from acre_rag.baselines.rag.bge_m3 import BGEM3
from acre_rag.baselines.rag.dense import DenseSearch
from acre_rag.baselines.rag.embedders import load_embedder
from acre_rag.baselines.rag.fused import FusedSearch, Fusion
from acre_rag.baselines.rag.search import Search
from acre_rag.errors import ConfigError, UnavailableError


def dense_search(setting: Setting, fusion: Fusion = "dense") -> Search[Any]:
    """Search by the setting's embedding model, on the device of its language model.

    Args:
        setting: names the embedding model.
        fusion: "dense", or BGE-M3's "dense+sparse" or "all" (with ColBERT).

    Raises:
        ConfigError: no such fusion.
        UnavailableError: the model is not on this machine, or is not BGE-M3 where a fusion needs it.
        MissingExtraError: a package is not installed.
    """
    if fusion not in get_args(Fusion):
        raise ConfigError(f"fusion={fusion!r} is unknown: choose one of {', '.join(get_args(Fusion))}.")
    embedder = load_embedder(setting.embedder, str(setting.decoder.device))
    if fusion == "dense":
        return DenseSearch(embedder)
    if not isinstance(embedder, BGEM3):
        raise UnavailableError(
            f"fusion={fusion!r} adds BGE-M3's own scores, but the embedding model is {embedder.about}. "
            "Fetch it (hf download BAAI/bge-m3), or use fusion='dense'."
        )
    return FusedSearch(embedder, fusion)
