"""Is it fast? Second question against a full read, and reading in strides against a full read; ratios in one run.

Weights do not matter for speed, so documents longer than the model's trained window are read all the same by the stock
model (its answers would be nonsense, its seconds are not).
"""

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
from transformers import DynamicCache

from acre_rag import ACRE, ACREConfig, GenerationSettings
from acre_rag.construct import ReadingPlan, construct
from acre_rag.decoder import Decoder
from acre_rag.demo import book
from acre_rag.models import load_decoder
from acre_rag.proxies import PooledProxy
from acre_rag.transfer import clock
from benchmarks.record import write

QUESTION = "What did Alice find on the three-legged table made of solid glass?"
ONE_TOKEN = GenerationSettings(max_new_tokens=1)


def main() -> None:
    """Run and write benchmarks/results/speed.jsonl."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--construct-repeats", type=int, default=3)
    parser.add_argument("--window", type=int, default=4096)
    parser.add_argument("--construct", type=int, nargs="*", default=[16384, 32768], help="document lengths, tokens")
    parser.add_argument("--name", default="speed")
    options = parser.parse_args()
    decoder = load_decoder(options.model, dtype=options.dtype)
    text = book()
    rows: list[dict[str, Any]] = []
    summary: dict[str, Any] = {"second_question": second_question(decoder, text, options.repeats, rows)}
    for n_tokens in options.construct:
        key = f"construct_{n_tokens}"
        summary[key] = reading(decoder, text, n_tokens, options.window, options.construct_repeats, rows)
        print(key, summary[key], flush=True)
    print(summary["second_question"])
    print(write(options.name, summary, rows))


def second_question(decoder: Decoder, text: str, repeats: int, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Time to first token on a document of 8K tokens: the stock model reading it, and a warm question."""
    ids = decoder.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    cut = text[: ids["offset_mapping"][7900][1]]
    acre = ACRE(decoder, config=ACREConfig())
    document = acre.add(cut)
    acre.ask(QUESTION, document, settings=ONE_TOKEN)
    stock_ids = torch.cat([acre.prefix_ids, _ids(decoder, cut), acre.question(QUESTION).ids])
    for repeat in range(repeats):
        stock_s = _seconds(lambda: _first_token(decoder, stock_ids), decoder.device)
        answer = acre.ask("Who is Dinah?", document, settings=ONE_TOKEN)
        rows.append(
            {"what": "second_question", "repeat": repeat, "stock_s": stock_s, "acre_s": answer.timings.first_token_s}
        )
        print(rows[-1], flush=True)
    return {"document_tokens": document.n_tokens, "construct_s": document.construct_s} | _ratio(rows, "second_question")


def reading(
    decoder: Decoder, text: str, n_tokens: int, window: int, repeats: int, rows: list[dict[str, Any]]
) -> dict[str, Any]:
    """Seconds to read `n_tokens`: the stock model in one pass, and construction through a window."""
    ids = _ids(decoder, text).repeat(-(-n_tokens // 30_000))[:n_tokens]
    interval = next(i for i in (16, 32, 64, 128) if n_tokens // i <= window // 2)
    plan = ReadingPlan(window=window, interval=interval, stride=window // 4)
    for repeat in range(repeats):
        acre_s = _seconds(
            lambda: construct(decoder, PooledProxy(), prefix_ids=ids[:30], token_ids=ids, plan=plan), decoder.device
        )
        stock_s = _seconds(lambda: _first_token(decoder, ids), decoder.device)
        rows.append({"what": f"construct_{n_tokens}", "repeat": repeat, "stock_s": stock_s, "acre_s": acre_s})
        print(rows[-1], flush=True)
    counted = _operations(decoder, n_tokens, n_tokens) / _operations(decoder, n_tokens, window)
    return {"window": window, "interval": interval, "ratio_by_count_of_operations": round(counted, 2)} | _ratio(
        rows, f"construct_{n_tokens}"
    )


def _operations(decoder: Decoder, n_tokens: int, window: int) -> float:
    """Floating-point operations of reading: linear layers, and attention over a causal prefix capped at the window.

    A causal stock read computes half of its square of scores; a stride through a full window computes all of its keys.
    """
    linear = 2 * sum(p.numel() for n, p in decoder.base.named_parameters() if "embed" not in n)
    per_key = 4 * decoder.n_layers * decoder.n_heads * decoder.head_dim
    full = min(n_tokens, window)
    keys = full * full / 2 + (n_tokens - full) * window
    return n_tokens * linear + keys * per_key


def _first_token(decoder: Decoder, ids: torch.Tensor) -> None:
    with torch.inference_mode():
        decoder.model(input_ids=ids[None], past_key_values=DynamicCache(), use_cache=True, logits_to_keep=1)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    start = clock(device)
    work()
    return clock(device) - start


def _ratio(rows: list[dict[str, Any]], what: str) -> dict[str, Any]:
    mine = [row for row in rows if row["what"] == what]
    ratios = [row["stock_s"] / row["acre_s"] for row in mine]
    return {
        "stock_s": round(statistics.median(row["stock_s"] for row in mine), 2),
        "acre_s": round(statistics.median(row["acre_s"] for row in mine), 3),
        "median_ratio": round(statistics.median(ratios), 2),
        "ratios": [round(ratio, 2) for ratio in ratios],
    }


def _ids(decoder: Decoder, text: str) -> torch.Tensor:
    return torch.tensor(decoder.tokenizer(text, add_special_tokens=False)["input_ids"], device=decoder.device)


if __name__ == "__main__":
    main()
