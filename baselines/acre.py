"""ACRE itself in its forms, made from the same `Setting` as every other system."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from acre_rag.baselines.base import Setting
from acre_rag.baselines.learned import learned_proxy
from acre_rag.baselines.system import System
from acre_rag.config import ACREConfig
from acre_rag.decoder import Decoder
from acre_rag.engine import ACRE
from acre_rag.errors import CalibrationError, ConfigError
from acre_rag.heads import RetrievalHeads, load_heads, shipped_heads

CHOICE = "consensus"
"""How a form chooses that does not say otherwise, as its title has it, also where the engine would prefer BM25."""

HEADS = ("calibrated", "mass", "none")
"""Whose attention chooses: the retrieval heads as calibrated (all alike), the same heads weighted by the attention that
they put on the right passage when they were calibrated, or all heads over the L1 entries."""


def make_acre(
    setting: Setting,
    *,
    learned: bool = False,
    adapter: str | None = None,
    heads: str = "calibrated",
    **options: Any,
) -> ACRE:
    """An engine.

    Args:
        setting: model, template, window, adapter, heads.
        learned: take the L1 of an adapter instead of pooled L1.
        adapter: which, or "untrained"; `setting.adapter` by default, and the shipped one when that is not named.
        heads: one of `HEADS`.
        options: fields of `ACREConfig`.

    Raises:
        ConfigError: an option is out of range, or an adapter was named for pooled L1.
        UnavailableError: learned L1 was asked for, no adapter was named and none is shipped for this model.
    """
    if adapter and not learned:
        raise ConfigError(f"adapter={adapter!r} means nothing to pooled L1: leave it out, or ask for learned L1.")
    proxy = learned_proxy(setting, adapter) if learned else None
    return ACRE(
        setting.decoder,
        proxy=proxy,
        heads=_weighted(load_heads(Path(setting.heads)) if setting.heads else None, heads, setting.decoder),
        config=ACREConfig(window=setting.most_tokens, **{"select": CHOICE, **options}),
        template=setting.template,
    )


def _weighted(heads: RetrievalHeads | None, wanted: str, decoder: Decoder) -> RetrievalHeads | None:
    if wanted not in HEADS:
        raise ConfigError(f"heads={wanted!r} is unknown: choose one of {', '.join(HEADS)}.")
    known = heads or shipped_heads(decoder)
    if wanted == "calibrated" or known is None:
        return known
    masses: Sequence[float] = known.facts.get("mass_on_right_passage", ()) if wanted == "mass" else ()
    if wanted == "mass" and len(masses) != len(known.heads):
        raise CalibrationError("This file of heads does not say what each put on the right passage: calibrate anew.")
    weighted = zip(known.heads, masses, strict=False)
    return replace(known, heads=tuple(replace(head, weight=float(mass)) for head, mass in weighted))


def _form(name: str, title: str, about: str, **options: Any) -> System:
    return System(name, title, "acre", "acre_rag.baselines.acre:make_acre", about, tuple(options.items()))


ACRE_SYSTEMS = (
    _form("acre", "ACRE (consensus)", "pooled L1, passages chosen by the model's retrieval heads"),
    _form("acre-hybrid", "ACRE (hybrid)", "the retrieval heads' choice and BM25's together", select="hybrid"),
    _form("acre-retriever", "ACRE (BM25 chooses)", "BM25 chooses what is refilled", select="retriever"),
    _form("acre-paper", "ACRE (Eq. 15-17)", "the paper's choice on pooled L1", select="paper", granularity="blocks"),
    _form("acre-l1", "ACRE (L1 only)", "no refilling: the compact layer alone", budget=0),
    _form("acre-refill", "ACRE (refill only)", "refilled passages, no L1 entries around them", l1_context=False),
    _form("acre-recompute", "ACRE (read again)", "refilled passages are read anew where they stand", recompute=True),
    _form(
        "acre-recompute-alone",
        "ACRE (read again, alone)",
        "chosen passages are read anew, no L1 entries around them",
        recompute=True,
        l1_context=False,
    ),
    _form("acre-learned", "ACRE (learned L1)", "learned L1 of an adapter, consensus", learned=True),
    _form(
        "acre-learned-hybrid",
        "ACRE (learned L1, hybrid)",
        "learned L1 of an adapter, the retrieval heads' choice and BM25's together",
        learned=True,
        select="hybrid",
    ),
    _form(
        "acre-learned-paper",
        "ACRE (learned L1, Eq. 15-17)",
        "the paper's method with a trained adapter",
        learned=True,
        select="paper",
        granularity="blocks",
    ),
)
