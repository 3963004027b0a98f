"""How else could passages be chosen? Every idea on the same questions, documents and number of refilled tokens.

An idea turns a question into an order of stretches of the document. They are taken in that order until `--tokens` tokens
are refilled; a question counts when a right answer stands wholly within them. Nothing is decoded. Answers are found
in the document by their words; questions whose answer stands nowhere, or in more than three places, are left out.
"""

import argparse
import json
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from acre_rag import ACRE, ACREConfig, Document
from acre_rag.blocks import Run, tokens_of_chars
from acre_rag.cache import KV
from acre_rag.evaluation.datasets import load_dataset
from acre_rag.evaluation.item import sample
from acre_rag.heads import load_heads
from acre_rag.models import load_decoder
from acre_rag.passages import split_passages
from acre_rag.prompts import SHORT_ANSWER
from acre_rag.question import global_view, question_queries
from acre_rag.refill import refill
from acre_rag.retrieve import bm25_scores
from acre_rag.units import z_scores
from benchmarks.record import write

Array = NDArray[np.float64]
_BLOCK = 16
_SMOOTH = 64
_MOST_PLACES = 3


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


PASSAGE_IDEAS: dict[str, Callable[[Case], Array]] = {
    "bm25": lambda case: case.bm25,
    "consensus": consensus,
    "consensus, prior left in": without_prior,
    "consensus, masses added": sum_over_heads,
    "late interaction": late_interaction,
    "rare question tokens count more": rare_words,
    "two rounds": second_round,
    "keys pooled by 4, mean": lambda case: pooled(case, 4, "mean"),
    "keys pooled by 16, mean": lambda case: pooled(case, _BLOCK, "mean"),
    "keys pooled by 16, longest key": lambda case: pooled(case, _BLOCK, "longest"),
    "keys pooled by 16, least and greatest": lambda case: pooled(case, _BLOCK, "bounds"),
    "hybrid": hybrid,
    "hybrid, BM25 twice": hybrid_text_twice,
    "hybrid, heads twice": hybrid_heads_twice,
    "hybrid, reciprocal ranks": hybrid_ranks,
    "hybrid, in turns": hybrid_turns,
    "hybrid, two rounds": hybrid_second_round,
}
LENGTHS = (112, 225, 300, 450, 900)


def covered(stretches: Sequence[Run], gold: Sequence[Run], budget: int) -> bool:
    """Whether a right answer stands wholly within the first `budget` tokens of the stretches, best first."""
    kept: set[int] = set()
    for run in stretches:
        new = [token for token in range(run.start, run.stop) if token not in kept]
        kept.update(new[: budget - len(kept)])
    return any(all(token in kept for token in range(run.start, run.stop)) for run in gold)


def ordered(passages: Sequence[Run], scores: Array) -> list[Run]:
    """Best first."""
    return [passages[i] for i in np.argsort(-scores, kind="stable")]


def grown(case: Case) -> list[Run]:
    """Windows of a passage's length around the strongest places, wherever these stand."""
    per_head = case.mass - case.prior
    kernel = np.ones(_SMOOTH)
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
    blocks = per_head.reshape(len(per_head), -1, _BLOCK).sum(2)
    scores = np.mean([z_scores(row) for row in blocks], axis=0)
    return [Run(int(b) * _BLOCK, (int(b) + 1) * _BLOCK) for b in np.argsort(-scores)]


def measure(acre: ACRE, document: Document, question: str, gold: Sequence[Run], budget: int) -> dict[str, bool]:
    """Each idea: found or not."""
    case = Case(acre, document, question)
    orders: dict[str, list[Run]] = {name: ordered(case.passages, idea(case)) for name, idea in PASSAGE_IDEAS.items()}
    orders["windows grown around the strongest places"] = grown(case)
    orders["single blocks"] = single_blocks(case)
    for length in LENGTHS:
        other = Case(acre, document, question, passage_tokens=length)
        other.__dict__ |= {name: getattr(case, name) for name in ("queries", "exact", "mass", "prior")}
        orders[f"consensus, passages of {length} tokens"] = ordered(other.passages, consensus(other))
        orders[f"hybrid, passages of {length} tokens"] = ordered(other.passages, hybrid(other))
    return {name: covered(order, gold, budget) for name, order in orders.items()}


def gold_tokens(document: Document, answers: Sequence[str], facts: Mapping[str, Any]) -> list[Run]:
    """Tokens of each place where an answer stands; none where it is ambiguous."""
    n = document.cache.n_blocks * document.interval
    text, places = document.text.lower(), set()
    spans = [tuple(facts["gold"])] if "gold" in facts else []
    for answer in answers if not spans else ():
        at = text.find(answer.lower()) if len(answer) > 2 else -1
        while at >= 0:
            places.add((at, at + len(answer)))
            at = text.find(answer.lower(), at + 1)
    found = sorted(places) if len(places) <= _MOST_PLACES else []
    runs = [tokens_of_chars(start, stop, document.offsets) for start, stop in [*spans, *found]]
    return [Run(first, last) for first, last in runs if last <= n]


def main() -> None:
    """Run and write benchmarks/results/selection_ideas-NAME.jsonl."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with the data sets")
    parser.add_argument("--sets", default="squad_article,covidqa,leval_nq,loogle")
    parser.add_argument("--questions", type=int, default=60, help="most questions of a data set")
    parser.add_argument("--documents", type=int, default=6, help="most documents of a data set")
    parser.add_argument("--tokens", type=int, default=900, help="refilled tokens")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--heads", type=Path)
    parser.add_argument("--name", default="smollm2-135m")
    parser.add_argument("--window", type=int)
    options = parser.parse_args()
    acre = ACRE(
        load_decoder(options.model),
        heads=load_heads(options.heads) if options.heads else None,
        config=ACREConfig(window=options.window, interval=_BLOCK),
        template=SHORT_ANSWER,
    )
    rows: list[dict[str, Any]] = []
    for name in options.sets.split(","):
        items = sample(
            load_dataset(name, path=options.data), limit=options.questions, documents=options.documents, seed=0
        )
        for document_id in dict.fromkeys(item.document_id for item in items):
            mine = [item for item in items if item.document_id == document_id]
            document = acre.add(mine[0].document, id=document_id)
            for item in mine:
                if gold := gold_tokens(document, item.answers, item.facts):
                    found = measure(acre, document, item.question, gold, options.tokens)
                    rows.append({"dataset": name, "id": item.id, "tokens": document.n_tokens, "found": found})
            acre.remove(document)
        write(f"selection_ideas-{options.name}", summary(rows) | {"refilled_tokens": options.tokens}, rows)
        print(name, json.dumps(summary(rows)["all"]), flush=True)


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Share of questions found by each idea, in each data set and in all, and the paired difference to consensus."""
    groups = {"all": rows} | {
        name: [r for r in rows if r["dataset"] == name] for name in dict.fromkeys(r["dataset"] for r in rows)
    }
    ideas = list(rows[0]["found"])
    result: dict[str, Any] = {
        group: {"questions": len(each)} | {idea: _mean([r["found"][idea] for r in each]) for idea in ideas}
        for group, each in groups.items()
    }
    result["difference_to_consensus"] = {idea: _paired([_gain(r["found"], idea) for r in rows]) for idea in ideas}
    return result


def _gain(found: Mapping[str, bool], idea: str) -> int:
    return int(found[idea]) - int(found["consensus"])


def _mean(values: Sequence[float]) -> float:
    return round(statistics.mean(values), 3)


def _paired(gains: Sequence[int]) -> dict[str, float]:
    error = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else 0.0
    return {"mean": _mean(gains), "standard_error": round(error, 3)}


if __name__ == "__main__":
    main()
