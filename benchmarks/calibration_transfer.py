"""How many heads, how much data, and does a calibration carry over to questions of another kind?

Every source's questions are measured once (`head_masses`); all choices of heads are made from those. Heads calibrated
on one source are tested on every other; on the own source, one half of the documents calibrates for the other half.
The figure is recall of the right passage among the first two. Standard errors are over test questions, paired.
"""

import argparse
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from acre_rag.heads import shipped_heads
from acre_rag.models import load_decoder
from acre_rag.training.calibration import choose_heads, head_gains
from acre_rag.training.data.located import LocatedDocument, LocatedQuestion, compose, needles
from acre_rag.training.data.source import load_pairs
from acre_rag.training.masses import Measured, found, head_masses
from benchmarks.record import write
from benchmarks.squad import answer_places, load

COLLECTIONS = ("xquad_en", "fairytaleqa", "hotpotqa", "nq_open")
HEADS = (1, 2, 4, 6, 8, 12)
QUESTIONS = (20, 60, 120)
K, USUAL_HEADS, DRAWS = 2, 6, 5
Hits = dict[tuple[str, str, int, int], np.ndarray]  # train, test, heads, questions -> share found, by test question


def main() -> None:
    """Run and write benchmarks/results/calibration_transfer.jsonl."""
    options = _options()
    decoder = load_decoder(options.model, dtype="float32")
    measured: dict[str, list[list[Measured]]] = {}
    for name, documents in _sources(options):
        started = time.perf_counter()
        measured[name] = [head_masses(decoder, document) for document in documents]
        n_questions = sum(map(len, measured[name]))
        print(f"{name}: {len(documents)} documents, {n_questions} questions, {time.perf_counter() - started:.0f} s")
    trains = [name for name in measured if name != "squad_article"]
    hits = {key: row for train in trains for key, row in _tested(train, measured, options.seed)}
    hits |= dict(_mixed(trains, measured, options.seed))
    rule = {name: len(choose_heads(_flat(measured[name]), decoder, USUAL_HEADS)[0]) for name in trains}
    facts = {
        "model": options.model,
        "measured_questions": {name: sum(map(len, each)) for name, each in measured.items()},
        "documents": {name: len(each) for name, each in measured.items()},
        "chance": {name: round(_chance(_flat(each)), 3) for name, each in measured.items()},
        "heads_kept_by_the_rule": rule,
    }
    if shipped := shipped_heads(decoder):
        rows = [head.layer * decoder.n_heads + head.head for head in shipped.heads]
        facts["shipped_heads"] = {n: round(float(_hits(rows, _flat(each)).mean()), 3) for n, each in measured.items()}
    write("calibration_transfer", facts | _summary(hits), _rows(hits))
    print(facts | _summary(hits))


def _sources(options: argparse.Namespace) -> Iterator[tuple[str, list[LocatedDocument]]]:
    """Documents of each collection, of about the same length; twice as many where one has few questions."""
    pairs = load_pairs(options.data / "qa_train" / "qa_train.jsonl.gz")
    wanted = options.documents * options.questions
    for name in COLLECTIONS:
        own = [pair for pair in pairs if pair.source == name]
        most = options.documents * (2 if name == "hotpotqa" else 1)
        yield name, compose(own, n_questions=wanted, seed=options.seed, n_documents=most, document_chars=options.chars)
    books = needles(n_questions=wanted, seed=options.seed)[: 2 * options.documents]
    yield "needles", [_cut(document, options.chars) for document in books]
    yield "squad_article", _articles(options)


def _articles(options: argparse.Namespace) -> list[LocatedDocument]:
    items, texts = load(options.data / "longqa_dev")
    documents = []
    for doc_id, text in list(texts.items())[: options.documents]:
        places = [(item["question"], answer_places(text, item)) for item in items if item["doc_id"] == doc_id]
        located = [LocatedQuestion(question, *spans[0]) for question, spans in places if spans]
        short = _cut(LocatedDocument(text, tuple(located)), options.chars)
        chosen = random.Random(options.seed).sample(short.questions, min(options.questions, len(short.questions)))
        documents.append(LocatedDocument(short.text, tuple(chosen)))
    return documents


def _cut(document: LocatedDocument, n_chars: int) -> LocatedDocument:
    """The beginning of a document, to the end of a paragraph, and the questions answered there."""
    end = document.text.find("\n", n_chars)
    text = document.text[: end if end >= 0 else None]
    return LocatedDocument(text, tuple(q for q in document.questions if q.stop <= len(text)))


def _tested(train: str, measured: dict[str, list[list[Measured]]], seed: int) -> Iterator[tuple[tuple, np.ndarray]]:
    """Heads of one source on every source: on the own one, of the other half of the documents."""
    own = measured[train]
    for test, documents in measured.items():
        if test != train:
            yield from _sized(train, test, _flat(own), _flat(documents), seed)
    halves = _flat(own[::2]), _flat(own[1::2])
    for n_heads in HEADS:
        heads = [_best(half, n_heads) for half in halves]
        parts = [_hits(heads[1 - number % 2], document) for number, document in enumerate(own)]
        yield (train, train, n_heads, len(_flat(own)) // 2), np.concatenate(parts)


def _mixed(
    trains: Sequence[str], measured: dict[str, list[list[Measured]]], seed: int
) -> Iterator[tuple[tuple, np.ndarray]]:
    """Heads of all the other sources together."""
    for test in measured:
        others = [each for name in trains if name != test for each in _flat(measured[name])]
        yield from _sized("all others", test, others, _flat(measured[test]), seed)


def _sized(
    train: str, test: str, pool: Sequence[Measured], tested: Sequence[Measured], seed: int
) -> Iterator[tuple[tuple, np.ndarray]]:
    """Several draws of each number of questions, and the whole pool; hits are averaged over the draws."""
    for n_questions in [n for n in QUESTIONS if n < len(pool)] + [len(pool)]:
        draws = DRAWS if n_questions < len(pool) else 1
        samples = [random.Random(f"{seed} {draw}").sample(list(pool), n_questions) for draw in range(draws)]
        for n_heads in HEADS:
            shares = [_hits(_best(sample, n_heads), tested) for sample in samples]
            yield (train, test, n_heads, n_questions), np.mean(shares, axis=0)


def _best(measured: Sequence[Measured], n_heads: int) -> list[int]:
    return np.argsort(-head_gains(measured))[:n_heads].tolist()


def _hits(heads: Sequence[int], measured: Sequence[Measured]) -> np.ndarray:
    return np.array([found(each, heads, K) for each in measured], dtype=float)


def _summary(hits: Hits) -> dict[str, Any]:
    """Matrix of transfer, and the curves over heads and questions with paired differences."""
    whole = {key[:2]: max(k[3] for k in hits if k[:2] == key[:2]) for key in hits}
    matrix = {pair: hits[(*pair, USUAL_HEADS, n)] for pair, n in whole.items()}
    foreign = [pair for pair in matrix if pair[0] not in (pair[1], "all others")]
    mixed = [pair for pair in matrix if pair[0] == "all others"]
    summary: dict[str, Any] = {
        "recall_at_2": _by_train({pair: round(float(row.mean()), 3) for pair, row in matrix.items()}),
        "against_own_calibration": _by_train(
            {(a, b): _paired(row, matrix[(b, b)]) for (a, b), row in matrix.items() if a != b and (b, b) in matrix}
        ),
    }
    for name, pairs in (("of_one_other", foreign), ("of_all_others", mixed)):
        summary[f"heads_{name}"] = {n: _curve(hits, pairs, lambda p, n=n: (*p, n, whole[p]), whole) for n in HEADS}
        summary[f"questions_{name}"] = {
            n: _curve(hits, pairs, lambda p, n=n: (*p, USUAL_HEADS, n), whole) for n in QUESTIONS
        }
    return summary


def _curve(
    hits: Hits, pairs: Sequence[tuple[str, str]], choice: Callable[..., Any], whole: dict[tuple[str, str], int]
) -> dict[str, float]:
    """Mean recall of one choice, and its difference from the usual heads and all questions, on the same test questions.

    A test question counts once: its hits are averaged over the sources that heads came from.
    """
    kept = [pair for pair in pairs if choice(pair) in hits]
    if not kept:
        return {}  # no source has so many questions
    tests = sorted({test for _, test in kept})
    ours, usual = (
        np.concatenate([np.mean([hits[key(p)] for p in kept if p[1] == test], axis=0) for test in tests])
        for key in (choice, lambda p: (*p, USUAL_HEADS, whole[p]))
    )
    return {"recall_at_2": round(float(ours.mean()), 3)} | _paired(ours, usual)


def _paired(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    differences = ours - theirs
    error = float(differences.std(ddof=1) / len(differences) ** 0.5)
    return {"difference": round(float(differences.mean()), 3), "standard_error": round(error, 3)}


def _by_train(values: dict[tuple[str, str], Any]) -> dict[str, dict[str, Any]]:
    table: dict[str, dict[str, Any]] = {}
    for (train, test), value in values.items():
        table.setdefault(train, {})[test] = value
    return table


def _rows(hits: Hits) -> Iterator[dict[str, Any]]:
    for (train, test, n_heads, n_questions), row in hits.items():
        figure = round(float(row.mean()), 4)
        yield {"train": train, "test": test, "heads": n_heads, "questions": n_questions, "recall_at_2": figure}


def _flat(documents: Sequence[list[Measured]]) -> list[Measured]:
    return [each for document in documents for each in document]


def _chance(measured: Sequence[Measured]) -> float:
    """Probability that two passages drawn at random hold a right one."""
    missed = [
        max(0, n - g) / n * max(0, n - g - 1) / max(1, n - 1)
        for n, g in ((mass.shape[1], len(gold)) for mass, gold in measured)
    ]
    return 1 - float(np.mean(missed))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with qa_train/ and longqa_dev/")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--documents", type=int, default=6, help="per source")
    parser.add_argument("--questions", type=int, default=20, help="per document, where it has so many")
    parser.add_argument("--chars", type=int, default=12_000, help="of a document")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
