"""How else could passages be chosen? Every idea on the same questions, documents and number of refilled tokens.

An idea turns a question into an order of stretches of the document. They are taken in that order until `--tokens` tokens
are refilled; a question counts when a right answer stands wholly within them. Nothing is decoded. Answers are found
in the document by their words; questions whose answer stands nowhere, or in more than three places, are left out.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from acre_rag import ACRE, ACREConfig, Document
from acre_rag.blocks import Run, tokens_of_chars
from acre_rag.heads import load_heads
from acre_rag.models import load_decoder
from acre_rag.prompts import SHORT_ANSWER
from acre_rag.proxies import LearnedProxy
from acre_rag.proxies.adapter import load_learned
from benchmarks import asked
from benchmarks.choosing import BLOCK, PASSAGE_IDEAS, Array, Case, consensus, grown, hybrid, single_blocks
from benchmarks.record import write

_MOST_PLACES = 3
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


def mass_taken(acre: ACRE, document: Document, question: str, gold: Sequence[Run]) -> dict[str, Any]:
    """What a budget by score mass would see, passage after passage of the consensus order.

    Returns:
        share: of all attention above the prior, what lies in the passages so far; tokens: theirs; needed: the number of
        passages that first hold a right answer wholly, 0 if no number does.
    """
    case = Case(acre, document, question)
    order = np.argsort(-consensus(case), kind="stable")
    above = np.maximum(case.sums(case.mass - case.prior).mean(0), 0.0)
    runs = [case.passages[i] for i in order]
    reached = [n for n in range(1, len(runs) + 1) if covered(runs[:n], gold, document.n_tokens)]
    return {
        "share": [round(float(x), 4) for x in (above[order].cumsum() / max(above.sum(), 1e-9))],
        "tokens": [int(x) for x in np.cumsum([run.stop - run.start for run in runs])],
        "needed": reached[0] if reached else 0,
    }


def by_mass(rows: Sequence[dict[str, Any]], tokens: int) -> dict[str, float]:
    """Passages until their share of the mass reaches one threshold, the same for all questions.

    The threshold is the one that refills `tokens` tokens on average, so that a fixed number can be compared with it.
    """

    def taken(row: dict[str, Any], threshold: float) -> int:
        return min(1 + sum(share < threshold for share in row["mass"]["share"]), len(row["mass"]["share"]))

    def spent(threshold: float) -> float:
        return statistics.mean(row["mass"]["tokens"][taken(row, threshold) - 1] for row in rows)

    threshold = max((t / 200 for t in range(201) if spent(t / 200) <= tokens), default=0.0)
    found = [1 <= row["mass"]["needed"] <= taken(row, threshold) for row in rows]
    gains = [int(hit) - int(row["found"]["consensus"]) for hit, row in zip(found, rows, strict=True)]
    return {
        "threshold": threshold,
        "mean_tokens": round(spent(threshold)),
        "most_tokens": max(row["mass"]["tokens"][taken(row, threshold) - 1] for row in rows),
        "found": mean(found),
        **{f"difference_{name}": value for name, value in paired(gains).items()},
    }


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
    parser = asked.parser(__doc__, sets="squad_article,covidqa,leval_nq,loogle", questions=60, documents=6)
    parser.add_argument("--tokens", type=int, default=900, help="refilled tokens")
    parser.add_argument("--adapter", help="learned L1: a file, or 'shipped'; pooled L1 by default")
    options = parser.parse_args()
    decoder = load_decoder(options.model)
    acre = ACRE(
        decoder,
        proxy=LearnedProxy(load_learned(options.adapter, decoder).to(decoder.dtype)) if options.adapter else None,
        heads=load_heads(options.heads) if options.heads else None,
        config=ACREConfig(window=options.window, interval=BLOCK),
        template=SHORT_ANSWER,
    )
    rows: list[dict[str, Any]] = []
    for name in options.sets.split(","):
        for document_id, mine in asked.by_document(name, options):
            document = acre.add(mine[0].document, id=document_id)
            for item in mine:
                if gold := gold_tokens(document, item.answers, item.facts):
                    found = measure(acre, document, item.question, gold, options.tokens)
                    mass = mass_taken(acre, document, item.question, gold)
                    rows.append(
                        {"dataset": name, "id": item.id, "tokens": document.n_tokens, "found": found, "mass": mass}
                    )
            acre.remove(document)
        about = {"refilled_tokens": options.tokens, "l1": options.adapter and Path(options.adapter).stem}
        by = {"budget_by_mass": by_mass(rows, options.tokens)}
        write(f"selection_ideas-{options.name}", summary(rows) | by | about, rows)
        print(name, json.dumps(summary(rows)["all"]), flush=True)


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Share of questions found by each idea, in each data set and in all, and the paired difference to consensus."""
    groups = {"all": rows} | {
        name: [r for r in rows if r["dataset"] == name] for name in dict.fromkeys(r["dataset"] for r in rows)
    }
    ideas = list(rows[0]["found"])
    result: dict[str, Any] = {
        group: {"questions": len(each)} | {idea: mean([r["found"][idea] for r in each]) for idea in ideas}
        for group, each in groups.items()
    }
    result["difference_to_consensus"] = {idea: paired([_gain(r["found"], idea) for r in rows]) for idea in ideas}
    return result


def _gain(found: Mapping[str, bool], idea: str) -> int:
    return int(found[idea]) - int(found["consensus"])


def mean(values: Sequence[float]) -> float:
    """Rounded as the results file shows it."""
    return round(statistics.mean(values), 3)


def paired(gains: Sequence[float]) -> dict[str, float]:
    """Mean of paired differences, and its standard error."""
    error = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else 0.0
    return {"mean": mean(gains), "standard_error": round(error, 3)}


if __name__ == "__main__":
    main()
