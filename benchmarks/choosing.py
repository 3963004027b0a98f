"""Ideas of how passages could be chosen: each turns one question about one document into scores or an order.

What the product does is among them (`consensus`, `hybrid`); `selection_ideas.py` measures them all.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from acre_rag import ACRE, Document
from acre_rag.blocks import Run
from acre_rag.cache import KV
from acre_rag.passages import split_passages
from acre_rag.question import global_view, question_queries
from acre_rag.refill import refill
from acre_rag.retrieve import bm25_scores
from acre_rag.scores import pooled_scores
from acre_rag.units import z_scores

Array = NDArray[np.float64]
BLOCK = 16
SMOOTH = 64


@dataclass(eq=False)
class Case:
    """One question about one document that was read: its attention, and stretches of the document to choose from."""

    acre: ACRE
    document: Document
    question: str
    passage_tokens: int = 450

    @cached_property
    def queries(self) -> Tensor:
        """`[L, H, T, D]` over the L1 entries."""
        asked = self.acre.question(self.question)
        return question_queries(self.acre.decoder, global_view([self.document.cache]), asked.ids, own=asked.own)

    @cached_property
    def again(self) -> Tensor:
        """The same, read once more behind the passages that the first round chose."""
        cache, rope = self.document.cache, self.acre.decoder.rope
        chosen = self.acre.select(self.question, self.document).blocks
        slots = refill([cache], chosen, rope=rope)
        asked = self.acre.question(self.question)
        view = KV(rope.unrotate(slots.keys), slots.values)
        return question_queries(self.acre.decoder, view, asked.ids, own=asked.own)

    def logits(self, queries: Tensor, keys: Tensor) -> Tensor:
        """`[n, T, K]` of the retrieval heads; `keys`: `[G, K, D]`."""
        decoder = self.acre.decoder
        assert self.acre.heads is not None
        rows = self.acre.heads.rows(decoder)
        return (
            torch.stack([queries[h.layer, h.head].float() @ keys[row].float().T for h, row in rows]) * decoder.scaling
        )

    @cached_property
    def exact(self) -> Tensor:
        """`[n, T, N]` over the heads' full keys."""
        return self.logits(self.queries, self.document.cache.head_keys)

    @cached_property
    def mass(self) -> Array:
        """`[n, N]`, mean attention of the question's tokens."""
        return _array(self.exact.softmax(-1).mean(1))

    @cached_property
    def prior(self) -> Array:
        """`[n, N]` of content-free questions."""
        prior = self.document.cache.prior
        assert prior is not None
        return _array(prior.scores)

    @cached_property
    def passages(self) -> list[Run]:
        """Tokens of each passage."""
        document = self.document
        found = split_passages(
            document.text, document.offsets, interval=document.interval, passage_tokens=self.passage_tokens
        )
        n = document.cache.n_blocks * document.interval
        return [Run(p.tokens.start, min(p.tokens.stop, n)) for p in found if p.tokens.start < n]

    @cached_property
    def bm25(self) -> Array:
        """`[P]`."""
        document = self.document
        texts = [document.text[document.offsets[r.start][0] : document.offsets[r.stop - 1][1]] for r in self.passages]
        return bm25_scores(self.question, texts)

    def sums(self, tokens: Array) -> Array:
        """`[n, N]` to `[n, P]`."""
        cumulative = np.concatenate([np.zeros((len(tokens), 1)), tokens.cumsum(1)], axis=1)
        return np.stack([cumulative[:, r.stop] - cumulative[:, r.start] for r in self.passages], axis=1)

    def agreement(self, tokens: Array) -> Array:
        """`[P]`: mean over heads of each passage's standard score."""
        return np.mean([z_scores(row) for row in self.sums(tokens)], axis=0)


def _array(x: Tensor) -> Array:
    return x.double().cpu().numpy()


def consensus(case: Case) -> Array:
    """What the product does."""
    return case.agreement(case.mass - case.prior)


def without_prior(case: Case) -> Array:
    """The prior left in."""
    return case.agreement(case.mass)


def sum_over_heads(case: Case) -> Array:
    """Masses added up instead of standard scores: a loud head outvotes the others."""
    return case.sums(case.mass - case.prior).sum(0)


def late_interaction(case: Case) -> Array:
    """Each question token's best key in a passage, as ColBERT scores; standard scores over heads."""
    best = np.stack([_array(case.exact[..., r.start : r.stop].amax(-1)) for r in case.passages], axis=-1)  # [n, T, P]
    return np.mean([z_scores(head.mean(0)) for head in best], axis=0)


def rare_words(case: Case) -> Array:
    """Question tokens weighted by how rare they are in the document."""
    tokenizer = case.acre.decoder.tokenizer
    counts = Counter(tokenizer(case.document.text, add_special_tokens=False)["input_ids"])
    asked = case.acre.question(case.question)
    weight = np.array([1 / np.log2(2 + counts[int(token)]) for token in asked.ids[asked.own]])
    mass = _array(case.exact.softmax(-1))
    return case.agreement(np.einsum("ntk,t->nk", mass, weight / weight.sum()) - case.prior)


def second_round(case: Case) -> Array:
    """The question read again behind what the first round refilled; both rounds added."""
    mass = _array(case.logits(case.again, case.document.cache.head_keys).softmax(-1).mean(1))
    return consensus(case) + case.agreement(mass - case.prior)


def hybrid(case: Case) -> Array:
    """What the product's hybrid does: standard scores of both, added."""
    return z_scores(consensus(case)) + z_scores(case.bm25)


def hybrid_text_twice(case: Case) -> Array:
    """BM25 with double weight."""
    return z_scores(consensus(case)) + 2 * z_scores(case.bm25)


def hybrid_heads_twice(case: Case) -> Array:
    """The heads with double weight."""
    return 2 * z_scores(consensus(case)) + z_scores(case.bm25)


def hybrid_ranks(case: Case) -> Array:
    """Reciprocal rank fusion (constant 60, as published)."""
    ranks = [np.argsort(np.argsort(-scores, kind="stable")) for scores in (consensus(case), case.bm25)]
    return sum(1 / (60 + rank) for rank in ranks)


def hybrid_turns(case: Case) -> Array:
    """The best of each in turn."""
    ranks = [np.argsort(np.argsort(-scores, kind="stable")) for scores in (consensus(case), case.bm25)]
    return -np.minimum(2 * ranks[0], 2 * ranks[1] + 1)


def hybrid_second_round(case: Case) -> Array:
    """Two rounds of attention and BM25."""
    return z_scores(second_round(case)) + z_scores(case.bm25)


def pooled(case: Case, size: int, how: str) -> Array:
    """Heads' keys pooled over `size` tokens before they are scored; no prior (it was computed on full keys)."""
    keys = case.document.cache.head_keys.float()
    blocks = keys.unflatten(1, (-1, size))  # [G, M, size, D]
    if how == "mean":
        logits = case.logits(case.queries, blocks.mean(2))
    elif how == "longest":
        chosen = blocks.norm(dim=-1).argmax(-1)[..., None, None].expand(-1, -1, 1, blocks.shape[-1])
        logits = case.logits(case.queries, blocks.gather(2, chosen)[:, :, 0])
    else:  # an upper bound of the block's best token, from the least and greatest value of each channel
        low, high = blocks.amin(2), blocks.amax(2)
        positive, negative = case.queries.clamp_min(0), case.queries.clamp_max(0)
        logits = case.logits(positive, high) + case.logits(negative, low)
    mass = _array(logits.softmax(-1).mean(1)) / size
    return case.agreement(mass.repeat(size, axis=1))


def heads_in_turns(case: Case) -> Array:
    """Each head takes its own best passage in turn: nobody is outvoted."""
    per_head = [z_scores(row) for row in case.sums(case.mass - case.prior)]
    ranks = np.stack([np.argsort(np.argsort(-row, kind="stable")) for row in per_head])
    return -np.min(ranks * len(ranks) + np.arange(len(ranks))[:, None], axis=0)


def heads_over_l1(case: Case) -> Array:
    """The retrieval heads read the L1 entries instead of their full keys; no prior."""
    cache, heads = case.document.cache, case.acre.heads
    assert heads is not None
    keys = torch.stack([cache.l1.keys[layer, head] for layer, head in heads.key_heads(case.acre.decoder)])
    mass = _array(case.logits(case.queries, keys).softmax(-1).mean(1)) / cache.interval
    return case.agreement(mass.repeat(cache.interval, axis=1))


def all_heads_over_l1(case: Case) -> Array:
    """Eq. 15 with one choice for all layers."""
    cache = case.document.cache
    mass = _array(pooled_scores(case.queries, cache.l1.keys, scaling=case.acre.decoder.scaling).sum(0)[None])
    return case.agreement((mass / cache.interval).repeat(cache.interval, axis=1))


def grown(case: Case) -> list[Run]:
    """Windows of a passage's length around the strongest places, wherever these stand."""
    per_head = case.mass - case.prior
    kernel = np.ones(SMOOTH)
    local = np.mean([z_scores(np.convolve(row, kernel, "same")) for row in per_head], axis=0)
    half, runs = case.passage_tokens // 2, []
    for _ in range(4):
        centre = int(local.argmax())
        start, stop = max(0, centre - half), min(len(local), centre + half)
        runs.append(Run(start, stop))
        local[start:stop] = -np.inf
    return runs


def single_blocks(case: Case) -> list[Run]:
    """Blocks of 16 tokens, each for itself."""
    per_head = case.mass - case.prior
    blocks = per_head.reshape(len(per_head), -1, BLOCK).sum(2)
    scores = np.mean([z_scores(row) for row in blocks], axis=0)
    return [Run(int(b) * BLOCK, (int(b) + 1) * BLOCK) for b in np.argsort(-scores)]


PASSAGE_IDEAS: dict[str, Callable[[Case], Array]] = {
    "bm25": lambda case: case.bm25,
    "consensus": consensus,
    "consensus, prior left in": without_prior,
    "consensus, masses added": sum_over_heads,
    "late interaction": late_interaction,
    "rare question tokens count more": rare_words,
    "two rounds": second_round,
    "each head its own, in turns": heads_in_turns,
    "retrieval heads over L1 entries": heads_over_l1,
    "all heads over L1 entries": all_heads_over_l1,
    "all heads over L1 entries, with BM25": lambda case: z_scores(all_heads_over_l1(case)) + z_scores(case.bm25),
    "keys pooled by 4, mean": lambda case: pooled(case, 4, "mean"),
    "keys pooled by 16, mean": lambda case: pooled(case, BLOCK, "mean"),
    "keys pooled by 16, longest key": lambda case: pooled(case, BLOCK, "longest"),
    "keys pooled by 16, least and greatest": lambda case: pooled(case, BLOCK, "bounds"),
    "hybrid": hybrid,
    "hybrid, BM25 twice": hybrid_text_twice,
    "hybrid, heads twice": hybrid_heads_twice,
    "hybrid, reciprocal ranks": hybrid_ranks,
    "hybrid, in turns": hybrid_turns,
    "hybrid, two rounds": hybrid_second_round,
}
