"""Does it find things, and are the answers any good? Whole Wikipedia articles with SQuAD questions.

Recall of the passage that holds the answer among the first 2 and 4, for chance, BM25, the paper's pooled scores,
consensus and hybrid; and token F1 of full attention, text RAG with the same passages, and refilling with and without
L1 entries. Heads must be calibrated on other data.
"""

import argparse
import json
import random
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from acre_rag import ACRE, ACREConfig, Document, GenerationSettings
from acre_rag.cache import KV
from acre_rag.construct import ReadingPlan, construct
from acre_rag.evaluation.metrics import qa_f1
from acre_rag.generate import decode
from acre_rag.heads import load_heads
from acre_rag.models import load_decoder
from acre_rag.prompts import SHORT_ANSWER
from acre_rag.proxies import PooledProxy
from acre_rag.refill import refill
from acre_rag.retrieve import bm25_scores
from benchmarks.record import write
from benchmarks.squad import answer_places, gold_passages, load

SETTINGS = GenerationSettings(max_new_tokens=32, stop=("\n",))
RANKINGS = ("bm25", "paper", "consensus", "hybrid")


def main() -> None:
    """Run and write benchmarks/results/squad_article-NAME.jsonl."""
    options = _options()
    items, texts = load(options.data)
    decoder = load_decoder(options.model, dtype=options.dtype)
    heads = load_heads(options.heads) if options.heads else None
    config = ACREConfig(window=options.window, max_passages=2)
    acre = ACRE(decoder, config=config, heads=heads, template=SHORT_ANSWER)
    if acre.heads is None:
        raise SystemExit(
            "This model has no retrieval heads: acre calibrate --model MODEL --out FILE, then --heads FILE"
        )
    rows: list[dict[str, Any]] = []
    for doc_id, text in list(texts.items())[: options.articles]:
        document = acre.add(text, id=doc_id)
        full = _whole(acre, document) if options.answers else None
        questions = [item for item in items if item["doc_id"] == doc_id]
        random.Random(options.seed).shuffle(questions)
        for number, item in enumerate(questions[: options.questions]):
            row = _recall_row(acre, document, item)
            if full and number < options.answers:
                row |= _answers(acre, document, item["question"], item["answers"], full)
            rows.append(row)
        acre.remove(doc_id)
        write(f"squad_article-{options.name}", _summary(rows) | {"heads": dict(acre.heads.facts)}, rows)
        print(doc_id, document.n_tokens, f"{document.construct_s:.1f} s", json.dumps(_summary(rows)), flush=True)


def _recall_row(acre: ACRE, document: Document, item: dict[str, Any]) -> dict[str, Any]:
    """Rank of the best right passage for each way of ranking, and whether the sources hold the answer."""
    places = answer_places(document.text, item)
    gold = gold_passages(document, item)
    row: dict[str, Any] = {
        "id": item["id"],
        "doc_id": item["doc_id"],
        "passages": len(document.passages),
        "gold": len(gold),
    }
    for name in RANKINGS:
        scores = _scores(acre, document, item["question"], name)
        order = np.argsort(-scores, kind="stable").tolist()
        row[f"rank_{name}"] = min(order.index(i) for i in gold) if gold else None
    sources = acre.sources(acre.select(item["question"], document), [document])
    row["source_holds_answer"] = any(s.start <= a and b <= s.end for s in sources for a, b in places)
    return row


def _scores(acre: ACRE, document: Document, question: str, ranking: str) -> np.ndarray:
    """Score of every passage."""
    if ranking == "bm25":
        return bm25_scores(question, [document.text[p.start : p.stop] for p in document.passages])
    engine = acre.using(select=ranking, max_passages=len(document.passages))
    return np.array([score for _, score in engine.select(question, document).unit_scores])


def _answers(
    acre: ACRE, document: Document, question: str, references: Sequence[str], full: Callable[[str], str]
) -> dict[str, Any]:
    """Answer and F1 of every system; the three below differ only in how the same two passages reach the model."""
    chosen = {
        name: acre.using(select=select)
        for name, select in (("consensus", "consensus"), ("bm25", "retriever"), ("hybrid", "hybrid"))
    }
    given: dict[str, str] = {"full": full(question)}
    for name, engine in chosen.items():
        answer = engine.ask(question, document, settings=SETTINGS)
        given[f"refill_{name}"] = answer.text
        if name != "hybrid":
            given[f"rag_{name}"] = _text_rag(
                acre, [s.text for s in sorted(answer.sources, key=lambda s: s.start)], question
            )
    given["refill_consensus_without_l1"] = acre.using(l1_context=False).ask(question, document, settings=SETTINGS).text
    given["l1_only"] = acre.using(budget=0).ask(question, document, settings=SETTINGS).text
    return {"answers": given, "f1": {name: qa_f1(text, references) for name, text in given.items()}}


def _text_rag(acre: ACRE, passages: Sequence[str], question: str) -> str:
    """The passages as text, read anew by the stock model."""
    return _full_attention(acre, "\n\n".join(passages) or " ")(question)


def _whole(acre: ACRE, document: Document) -> Callable[[str], str]:
    """Full attention; what was read within the window is exact already (tests/test_exactness.py), so it is reused."""
    if document.n_tokens + 512 > acre.window:
        return _full_attention(acre, document.text)
    cache = document.cache
    slots = refill([cache], [np.arange(cache.n_blocks)], rope=acre.decoder.rope, l1_context=False)
    return _decoded(acre, slots)


def _decoded(acre: ACRE, slots: KV) -> Callable[[str], str]:
    return lambda question: decode(acre.decoder, [slots], [acre.question(question).ids], SETTINGS)[0].text


def _full_attention(acre: ACRE, text: str) -> Callable[[str], str]:
    """The stock model on the whole text (its middle left out where the model's window is too short)."""
    decoder = acre.decoder
    ids = torch.tensor(decoder.tokenizer(text, add_special_tokens=False)["input_ids"], device=decoder.device)
    room = decoder.model_window - 512
    if len(ids) > room:
        ids = torch.cat([ids[: room // 2], ids[-(room - room // 2) :]])
    plan = ReadingPlan(window=decoder.model_window, interval=16, stride=2048)
    cache = construct(decoder, PooledProxy(), prefix_ids=acre.prefix_ids, token_ids=ids, plan=plan)
    return _decoded(acre, refill([cache], [np.arange(cache.n_blocks)], rope=decoder.rope, l1_context=False))


def _summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    located = [row for row in rows if row["gold"]]
    summary: dict[str, Any] = {"questions": len(located)}
    for k in (2, 4):
        found = {name: statistics.mean(row[f"rank_{name}"] < k for row in located) for name in RANKINGS}
        found = {"chance": statistics.mean(_chance(row["passages"], row["gold"], k) for row in located), **found}
        summary[f"recall_at_{k}"] = {name: round(value, 3) for name, value in found.items()}
    summary["sources_hold_answer"] = round(statistics.mean(row["source_holds_answer"] for row in located), 3)
    answered = [row["f1"] for row in rows if "f1" in row]
    if answered:
        summary["answered"] = len(answered)
        summary["f1"] = {name: round(statistics.mean(row[name] for row in answered), 1) for name in answered[0]}
    return summary


def _chance(n_passages: int, n_gold: int, k: int) -> float:
    missed = 1.0
    for i in range(min(k, n_passages)):
        missed *= max(0, n_passages - n_gold - i) / (n_passages - i)
    return 1 - missed


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with squad_article.jsonl.gz and .docs.jsonl.gz"
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--heads", type=Path)
    parser.add_argument("--name", default="smollm2-135m", help="name of the result file")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--window", type=int)
    parser.add_argument("--articles", type=int, default=8)
    parser.add_argument("--questions", type=int, default=25, help="questions per article for recall")
    parser.add_argument("--answers", type=int, default=10, help="of these, how many are also answered")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
