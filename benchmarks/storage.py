"""A restart loses nothing: seconds from opening a store to the first answer, against building again; bytes per token.

The document is read by one process and answered by another that starts afresh.
"""

import argparse
import gzip
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

from acre_rag import ACRE, ACREConfig, GenerationSettings
from acre_rag.store import Store
from benchmarks.record import write

QUESTION = "What is the name of the ship?"
SETTINGS = GenerationSettings(max_new_tokens=1)


def main() -> None:
    """Run and write benchmarks/results/storage.jsonl."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--book", type=Path, required=True, help="a long text, .txt or .txt.gz")
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--window", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--reopen", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.reopen:
        print(json.dumps(_reopen(options.reopen, options.window)))
        return
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        built = _build(store, options)
        rows = [_in_new_process(store, options.window) for _ in range(options.repeats)]
    rows.sort(key=lambda row: row["first_answer_s"])
    middle = rows[len(rows) // 2]
    ratio = (built["construct_s"] + middle["answer_s"]) / (middle["open_s"] + middle["answer_s"])
    summary = {**built, "reopened": middle, "ratio_without_loading_the_model": round(ratio, 1)}
    print(write("storage", summary, rows))
    print(summary)


def _build(store: Path, options: argparse.Namespace) -> dict[str, Any]:
    acre = ACRE.from_pretrained(config=ACREConfig(window=options.window), store=store)
    raw = gzip.decompress(options.book.read_bytes()) if options.book.suffix == ".gz" else options.book.read_bytes()
    text = raw.decode("utf-8")
    offsets = acre.decoder.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    start = perf_counter()
    document = acre.add(text[: offsets[min(options.tokens, len(offsets)) - 1][1]], id="book")
    total_s = perf_counter() - start
    cache, decoder, n = document.cache, acre.decoder, document.n_tokens
    [entry] = Store(store).entries()
    exact = decoder.kv_bytes_per_token
    heads = len(acre.heads.key_heads(decoder)) if acre.heads else 0
    per_head = decoder.head_dim * decoder.dtype.itemsize
    return {
        "document_tokens": n,
        "interval": cache.interval,
        "construct_s": round(document.construct_s, 2),
        "save_s": round(total_s - document.construct_s, 2),
        "exact_kv_bytes_per_token": exact,
        "l2_bytes_per_token": round(cache.l2.n_bytes / n, 1),
        "device_bytes_per_token": round(cache.device_bytes / n, 1),
        "device_bytes_per_token_by_shape": round(
            exact / cache.interval + heads * per_head + 4 * len(acre.heads.heads), 1
        ),
        "disk_bytes_per_token": round(entry.manifest.n_bytes / n, 1),
        "text_bytes_per_token": round(len(document.text.encode()) / n, 2),
    }


def _in_new_process(store: Path, window: int) -> dict[str, Any]:
    command = [
        sys.executable,
        "-m",
        "benchmarks.storage",
        "--book",
        "-",
        "--window",
        str(window),
        "--reopen",
        str(store),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    row: dict[str, Any] = json.loads(done.stdout)
    print(row, flush=True)
    return row


def _reopen(store: Path, window: int) -> dict[str, Any]:
    start = perf_counter()
    plain = ACRE.from_pretrained(config=ACREConfig(window=window))
    loaded = perf_counter()
    acre = ACRE(plain.decoder, config=replace(plain.config), store=store)
    document = acre.documents["book"]
    opened = perf_counter()
    answer = acre.ask(QUESTION, document, settings=SETTINGS)
    ended = perf_counter()
    again = acre.ask("Who is the captain?", document, settings=SETTINGS)
    return {
        "load_model_s": round(loaded - start, 2),
        "open_s": round(opened - loaded, 2),
        "answer_s": round(ended - opened, 2),
        "first_answer_s": round(ended - start, 2),
        "next_answer_s": round(again.timings.first_token_s, 2),
        "refilled_tokens": answer.usage.refilled_tokens,
        "host_bytes": acre.statistics.host_bytes,
        "device_bytes": acre.statistics.device_bytes,
    }


if __name__ == "__main__":
    main()
