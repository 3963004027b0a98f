"""How much of a document itself a memory carries: its last stride behind its own past, behind another's, and alone.

python -m benchmarks.memory_content --data BOOKS --adapter stage1=shipped stage2=adapter.safetensors --name smollm2

A stride gains from any text before it, and from its own L1 tokens with nothing before it, so "loss falls" says little of
memory. What is the document's own is the difference between the two pasts, for each memory as a share of full attention's; with paired standard errors over
documents. Books are those that training held out.
"""

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from acre_rag.decoder import Decoder
from acre_rag.errors import ConfigError
from acre_rag.models import load_decoder
from acre_rag.proxies.adapter import load_learned
from acre_rag.training.held_out_loss import (
    after_another,
    alone,
    everything,
    last_stride,
    learned_loss,
    nothing,
    pooled,
    remembered_loss,
)
from acre_rag.training.lesson import Draw, Lesson, Teacher
from acre_rag.training.settings import TrainingSettings
from acre_rag.training.texts import Excerpts, digest_of, split_texts
from benchmarks.record import write
from benchmarks.stage1_loss import parser_of


def main() -> None:
    """Measure and write."""
    args = _arguments()
    decoder = load_decoder(args.model, device=args.device, dtype=args.dtype)
    _, held_out = split_texts(args.data, held_out=args.held_out)
    settings = TrainingSettings(context=(args.tokens,), intervals=(args.interval,), stride=args.stride)
    excerpts, teacher = Excerpts(held_out, n_chars=6 * args.tokens, seed=args.seed), Teacher(decoder, settings)
    examples = [excerpts.excerpt(number) for number in range(args.documents)]
    lessons = [teacher.lesson(example, Draw(args.interval, args.tokens)) for example in examples]
    measures = _memories(decoder, dict(each.split("=", 1) for each in args.adapter))
    rows: list[dict[str, Any]] = []
    others = of_other_books([example.id for example in examples])
    for number, example in enumerate(examples):
        lesson, other = lessons[number], lessons[others[number]]
        pasts = {"own": last_stride(lesson), "other": after_another(lesson, other), "alone": alone(lesson)}
        behind = examples[others[number]].id
        row: dict[str, Any] = {"document": example.id, "behind": behind, "targets": len(pasts["own"].targets)}
        for name, measure in measures.items():
            row[name] = {past: round(measure(read), 4) for past, read in pasts.items()}
        rows.append(row)
        print(row, flush=True)
    summary = {
        "model": decoder.name,
        "stride": args.stride,
        "tokens": args.tokens,
        "interval": args.interval,
        "documents": len(rows),
        "data": digest_of(held_out),
        "memories": {name: _summary(rows, name) for name in measures},
    }
    print(write(f"memory_content-{args.name}", summary, rows))


def of_other_books(ids: Sequence[str]) -> list[int]:
    """For each excerpt ("BOOK:START") the number of the next one, in a circle, that is of another book.

    Raises:
        ConfigError: all are of one book: a past of the same book is no other document's.
    """
    books = [each.rpartition(":")[0] for each in ids]
    if len(set(books)) < 2:
        raise ConfigError(f"All {len(ids)} documents are of one book: hold out more, or measure more documents.")
    turns = range(1, len(ids))
    return [
        next(other for turn in turns if books[other := (number + turn) % len(ids)] != books[number])
        for number in range(len(ids))
    ]


def _memories(decoder: Decoder, adapters: Mapping[str, str]) -> dict[str, Callable[[Lesson], float]]:
    """What the last stride sees of those before it."""
    kept = {"full": everything, "none": nothing, "pooled": pooled}
    measures: dict[str, Callable[[Lesson], float]] = {
        name: partial(remembered_loss, decoder, memory) for name, memory in kept.items()
    }
    for name, adapter in adapters.items():
        measures[name] = partial(learned_loss, decoder, load_learned(adapter, decoder).to(decoder.dtype))
    return measures


def _summary(rows: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """Mean losses, the document's own part with standard error, and its share of full attention's."""
    gains = [row[name]["other"] - row[name]["own"] for row in rows]
    full = statistics.mean(row["full"]["other"] - row["full"]["own"] for row in rows)
    error = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else None
    return {
        "own": round(statistics.mean(row[name]["own"] for row in rows), 4),
        "other": round(statistics.mean(row[name]["other"] for row in rows), 4),
        "alone": round(statistics.mean(row[name]["alone"] for row in rows), 4),
        "content": round(statistics.mean(gains), 4),
        "standard_error": None if error is None else round(error, 4),
        "share_of_full": round(statistics.mean(gains) / full, 3),
    }


def _arguments() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("--adapter", nargs="*", default=["trained=shipped"], metavar="NAME=FILE")
    parser.add_argument("--interval", type=int, default=16)
    return parser.parse_args()


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
