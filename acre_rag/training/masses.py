"""How much attention every head puts on every passage of a document, cut in several sizes. Chooses no heads.

A document and its questions are read once: passages of another size, or a prior of other questions, are other sums of
the same attention.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from acre_rag.config import ACREConfig
from acre_rag.decoder import Decoder
from acre_rag.engine import ACRE
from acre_rag.passages import Passage, split_passages
from acre_rag.prompts import SHORT_ANSWER, WHOLE_DOCUMENT_QUESTIONS
from acre_rag.proxies import Proxy
from acre_rag.question import global_view
from acre_rag.training.data.located import LocatedDocument
from acre_rag.units import Scores, z_scores

Mass = NDArray[np.float32]
Measured = tuple[Mass, list[int]]
"""Of one question: mass of each head on each passage, `[L * H, P]`, and the numbers of the right passages."""

PASSAGE_TOKENS = ACREConfig().passage_tokens
SIZES = (225, 300, PASSAGE_TOKENS, 900)
"""Passage sizes that are measured, in tokens; the engine's own among them."""

_WINDOW = 4096


@dataclass(frozen=True)
class Attended:
    """One question about a document that was read; every mapping is by passage size in tokens.

    Attributes:
        masses: attention share of each passage for every head, `[L * H, P]`.
        priors: the same of each content-free question, `[q, L * H, P]`.
        gold: numbers of the passages that hold the answer.
        refilled: tokens that each passage refills, its blocks' being whole, `[P]`.
    """

    masses: Mapping[int, Mass]
    priors: Mapping[int, Mass]
    gold: Mapping[int, list[int]]
    refilled: Mapping[int, NDArray[np.int64]]

    def measured(self, *, passage_tokens: int = PASSAGE_TOKENS, prior_step: int | None = 1) -> Measured:
        """The masses beyond the prior, and the right passages.

        Args:
            passage_tokens: one of `SIZES`.
            prior_step: the prior is the mean of every so many-th content-free question; `None` for no prior.
        """
        mass = self.masses[passage_tokens]
        if prior_step:
            mass = mass - self.priors[passage_tokens][::prior_step].mean(axis=0)
        return mass, self.gold[passage_tokens]


def head_masses(decoder: Decoder, located: LocatedDocument) -> list[Measured]:
    """For each question: attention share beyond the prior `[L * H, P]`, and the passages that hold the answer."""
    return [each.measured() for each in attended(decoder, located)]


def attended(decoder: Decoder, located: LocatedDocument, *, proxy: Proxy | None = None) -> list[Attended]:
    """Read a document and all its questions.

    Args:
        decoder: the model.
        located: the document, and questions whose answers' places are known.
        proxy: what an L1 entry is; pooled by default. Questions are read over L1 entries.
    """
    window = min(_WINDOW, decoder.model_window)
    acre = ACRE(decoder, proxy=proxy, config=ACREConfig(window=window), heads=None, template=SHORT_ANSWER)
    document = acre.add(located.text)
    blocks = document.cache.l2.take(torch.arange(document.n_blocks))
    keys = blocks[:, :, 0].permute(1, 2, 0, 3, 4).flatten(2, 3)  # [L, Hkv, M * l, D]
    view = global_view([document.cache])
    cuts = {
        size: split_passages(document.text, document.offsets, interval=document.interval, passage_tokens=size)
        for size in SIZES
    }

    def masses(question: str) -> dict[int, Mass]:
        return _masses(decoder, acre.question_queries(question, view), keys, cuts)

    of_prior = [masses(question) for question in WHOLE_DOCUMENT_QUESTIONS]
    priors = {size: np.stack([each[size] for each in of_prior]) for size in SIZES}
    refilled = {size: np.array([len(passage.blocks) for passage in cuts[size]]) * document.interval for size in SIZES}
    return [
        Attended(masses(item.question), priors, {s: _holding(cuts[s], item.start, item.stop) for s in SIZES}, refilled)
        for item in located.questions
    ]


def agreement(mass: Mass, heads: Sequence[int]) -> Scores:
    """Mean of some heads' standard scores, as selection takes it, `[P]`; heads are numbers of rows of the masses."""
    mean: Scores = np.mean([z_scores(mass[head].astype(np.float64)) for head in heads], axis=0)
    return mean


def found(measured: Measured, heads: Sequence[int], k: int) -> bool:
    """Whether a right passage is among the first `k` by the agreement of some heads."""
    mass, gold = measured
    return bool(set(np.argsort(-agreement(mass, heads))[:k]) & set(gold))


def _holding(passages: tuple[Passage, ...], start: int, stop: int) -> list[int]:
    return [i for i, passage in enumerate(passages) if passage.start < stop and start < passage.stop]


def _masses(
    decoder: Decoder, queries: Tensor, keys: Tensor, cuts: Mapping[int, tuple[Passage, ...]]
) -> dict[int, Mass]:
    """Attention share of each passage for every head, `[L * H, P]` by passage size.

    Args:
        decoder: the model.
        queries: `[L, H, T, D]`, un-rotated.
        keys: `[L, Hkv, N, D]`, un-rotated.
        cuts: the document's passages by size.
    """
    n_scored = keys.shape[2]
    passages = [passage for each in cuts.values() for passage in each]
    cover = torch.zeros(n_scored, len(passages), device=keys.device)
    for i, passage in enumerate(passages):
        cover[passage.tokens.start : min(passage.tokens.stop, n_scored), i] = 1
    shares = []
    for layer_queries, layer_keys in zip(queries, keys.to(queries.device), strict=True):
        grouped = layer_queries.unflatten(0, (decoder.n_kv_heads, -1)).float() * decoder.scaling  # [Hkv, g, T, D]
        logits = grouped.flatten(1, 2) @ layer_keys.float().transpose(1, 2)  # [Hkv, g * T, N]
        share = (logits.softmax(dim=-1) @ cover.to(logits.device)).unflatten(1, grouped.shape[1:3]).mean(dim=2)
        shares.append(share.flatten(0, 1))  # [H, P]
    by_size = torch.cat(shares).cpu().split([len(each) for each in cuts.values()], dim=1)
    return {size: share.numpy() for size, share in zip(cuts, by_size, strict=True)}
