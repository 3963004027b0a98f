"""Several documents in one question: must scores be normalised between documents, and does the first pass find the right one?

All squad_article documents at once. Three ways to compare passages of different documents: one softmax over all of them
(what the engine does), a softmax for each document, and a softmax for each with standard scores within each; and two views
behind which the question is read: all L1 entries, or the prompt alone. Then the first pass, which chooses documents when their L1 entries do not all fit: place of the right document.
"""

import argparse
import random
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from acre_rag import ACRE, ACREConfig, Document
from acre_rag.prompts import SHORT_ANSWER
from acre_rag.question import global_view, question_queries
from acre_rag.retrieve import bm25_retriever
from acre_rag.select import without_prior
from acre_rag.units import Scores, span_scores, split_units, z_scores
from benchmarks.record import write
from benchmarks.squad import gold_passages, load


def main() -> None:
    """Run and write benchmarks/results/many_documents.jsonl."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with squad_article.jsonl.gz and .docs.jsonl.gz"
    )
    parser.add_argument("--store", type=Path, required=True, help="where the read documents are kept between runs")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--questions", type=int, default=20, help="per document")
    options = parser.parse_args()
    items, texts = load(options.data)
    acre = ACRE.from_pretrained(options.model, config=ACREConfig(), template=SHORT_ANSWER, store=options.store)
    documents = [acre.add(text, id=id_) for id_, text in texts.items()]
    rows: list[dict[str, Any]] = []
    with acre.holding(documents):
        for number, document in enumerate(documents):
            mine = [item for item in items if item["doc_id"] == document.id]
            for item in random.Random(0).sample(mine, options.questions):
                if gold := gold_passages(document, item):
                    rows.append({"id": item["id"], **_ranks(acre, documents, number, item["question"], gold)})
            print(document.id, _summary(rows), flush=True)
    print(write("many_documents", {"model": options.model, **_summary(rows)}, rows))


def _ranks(acre: ACRE, documents: Sequence[Document], number: int, question: str, gold: set[int]) -> dict[str, int]:
    """Place of the best right passage by each way of comparing, and of the right document in the first pass."""
    units = split_units(documents, "passages")
    right = [i for i, unit in enumerate(units) if unit.document == number and _passage(documents, unit) in gold]
    ranked = _scores(acre, documents, question, units)
    ranks = {f"rank_{name}": int((scores > scores[right].max()).sum()) for name, scores in ranked.items()}
    order = acre._selector.by_promise(acre.question(question), documents)
    return ranks | {"document_rank": order.index(number)}


def _scores(acre: ACRE, documents: Sequence[Document], question: str, units: Sequence[Any]) -> dict[str, Scores]:
    asked = acre.question(question)
    bm25 = span_scores(bm25_retriever(question, documents), units, documents)
    views = {
        "": question_queries(acre.decoder, global_view([d.cache for d in documents]), asked.ids, own=asked.own),
        "_prompt": question_queries(acre.decoder, documents[0].cache.prefix, asked.ids, own=asked.own),
    }
    ranked = {"bm25": bm25}
    for view, queries in views.items():
        ways = _ways(acre, documents, queries, units)
        ranked |= {f"{name}{view}": scores for name, scores in ways.items()}
        ranked |= {f"hybrid_{name}{view}": z_scores(scores) + z_scores(bm25) for name, scores in ways.items()}
    return ranked


def _ways(acre: ACRE, documents: Sequence[Document], queries: Tensor, units: Sequence[Any]) -> dict[str, Scores]:
    selector = acre._selector
    shared = without_prior(selector._raw_scores(documents, queries), documents)
    apart = [without_prior(selector._raw_scores([d], queries), [d])[0] for d in documents]
    within = np.concatenate(
        [selector._agreement([a], split_units([d], "passages")) for a, d in zip(apart, documents, strict=True)]
    )
    return {"shared": selector._agreement(shared, units), "apart": selector._agreement(apart, units), "within": within}


def _passage(documents: Sequence[Document], unit: Any) -> int:
    return next(i for i, p in enumerate(documents[unit.document].passages) if p.start == unit.start)


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    names = [name.removeprefix("rank_") for name in rows[0] if name.startswith("rank_")]
    summary: dict[str, Any] = {"questions": len(rows)}
    for k in (2, 4):
        summary[f"recall_at_{k}"] = {n: round(statistics.mean(r[f"rank_{n}"] < k for r in rows), 3) for n in names}
    for k in (1, 2, 4):
        summary[f"right_document_at_{k}"] = round(statistics.mean(row["document_rank"] < k for row in rows), 3)
    return summary


if __name__ == "__main__":
    main()
