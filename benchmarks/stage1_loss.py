"""Stage 1: loss on later strides of held-out books, for full attention, no memory, pooled, untrained and trained L1.

python -m benchmarks.stage1_loss --data BOOKS --adapter adapter.safetensors --name smollm2

The same strides and the same targets for every memory; differences to "no memory" with paired standard errors over
documents. Books are those that training held out.
"""

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from acre_rag.decoder import Decoder
from acre_rag.models import load_decoder
from acre_rag.proxies.adapter import load_learned
from acre_rag.proxies.start import untrained
from acre_rag.training.held_out_loss import everything, learned_loss, nothing, pooled, remembered_loss
from acre_rag.training.lesson import Draw, Lesson, Teacher
from acre_rag.training.settings import TrainingSettings
from acre_rag.training.texts import Excerpts, digest_of, split_texts
from benchmarks.record import write


def main() -> None:
    """Measure and write."""
    args = _arguments()
    decoder = load_decoder(args.model, device=args.device, dtype=args.dtype)
    _, held_out = split_texts(args.data, held_out=args.held_out)
    settings = TrainingSettings(context=(args.tokens,), intervals=tuple(args.interval), stride=args.stride)
    excerpts, teacher = Excerpts(held_out, n_chars=6 * args.tokens, seed=args.seed), Teacher(decoder, settings)
    rows: list[dict[str, Any]] = []
    for interval in args.interval:
        for number in range(args.documents):
            example = excerpts.excerpt(number)
            lesson = teacher.lesson(example, Draw(interval, args.tokens))
            row = {"interval": interval, "document": example.id, "targets": len(lesson.targets)}
            row |= {name: round(measure(lesson), 4) for name, measure in _memories(decoder, args.adapter).items()}
            rows.append(row)
            print(row, flush=True)
        summary = {
            "model": decoder.name,
            "adapter": args.adapter.name if args.adapter else None,
            "stride": args.stride,
            "tokens": args.tokens,
            "data": digest_of(held_out),
            "intervals": {
                str(interval): _summary([r for r in rows if r["interval"] == interval])
                for interval in dict.fromkeys(r["interval"] for r in rows)
            },
        }
        print(write(f"stage1_loss-{args.name}", summary, rows))


def _memories(decoder: Decoder, adapter: Path | None) -> dict[str, Callable[[Lesson], float]]:
    """What a stride sees of the strides before it."""
    start = untrained(decoder, rank=1)
    memories: dict[str, Callable[[Lesson], float]] = {
        "full": lambda lesson: remembered_loss(decoder, everything, lesson),
        "none": lambda lesson: remembered_loss(decoder, nothing, lesson),
        "pooled": lambda lesson: remembered_loss(decoder, pooled, lesson),
        "untrained": lambda lesson: learned_loss(decoder, start, lesson),
    }
    if adapter:
        trained = load_learned(adapter, decoder)
        memories["trained"] = lambda lesson: learned_loss(decoder, trained, lesson)
    return memories


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over documents, and for each memory its difference to none, with standard error, and the gap closed."""
    result: dict[str, Any] = {}
    names = [name for name in ("full", "none", "pooled", "untrained", "trained") if name in rows[0]]
    gap = statistics.mean(row["none"] - row["full"] for row in rows)
    for name in names:
        differences = [row[name] - row["none"] for row in rows]
        error = statistics.stdev(differences) / len(rows) ** 0.5 if len(rows) > 1 else None
        result[name] = {
            "loss": round(statistics.mean(row[name] for row in rows), 4),
            "minus_none": round(statistics.mean(differences), 4),
            "standard_error": None if error is None else round(error, 4),
            "gap_closed": round(-statistics.mean(differences) / gap, 3),
        }
    return result


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """What every measurement on held-out books asks for."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of texts that training was given")
    parser.add_argument("--name", default="smollm2")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--documents", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--stride", type=int, default=512)
    parser.add_argument("--held-out", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    return parser


def _arguments() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--interval", type=int, nargs="+", default=[8, 16, 32, 64])
    return parser.parse_args()


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
