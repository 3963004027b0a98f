"""Reading far beyond the window: a 200K-token book through an 8K model, memory sampled, needles at ten depths."""

import argparse
import gzip
from pathlib import Path
from typing import Any

import psutil

from acre_rag import ACRE, ACREConfig, GenerationSettings
from acre_rag.prompts import SHORT_ANSWER
from benchmarks.record import write

NEEDLES = (
    (
        "The night watchman of Lindau wears a violet scarf.",
        "What colour is the scarf that the night watchman of Lindau wears?",
        "violet",
    ),
    ("The ferry to Ushuaia sails on Thursdays.", "On which day does the ferry to Ushuaia sail?", "Thursday"),
    (
        "The lost umbrella lies in locker 7491 at the station of Matera.",
        "In which locker at the station of Matera does the lost umbrella lie?",
        "7491",
    ),
    (
        "The museum in Narvik shows a stuffed walrus.",
        "Which stuffed animal does the museum in Narvik show?",
        "walrus",
    ),
    (
        "The regatta at Kotor was won by the ship Perseverance.",
        "Which ship won the regatta at Kotor?",
        "Perseverance",
    ),
    ("The mayor of Varese was born in Montevideo.", "Where was the mayor of Varese born?", "Montevideo"),
    ("The clock of Zamora was repaired by Celeste Amador.", "Who repaired the clock of Zamora?", "Celeste"),
    ("The choir of Llanes sings in Portuguese.", "In which language does the choir of Llanes sing?", "Portuguese"),
    ("The statue in Pirano was carved from basalt.", "What was the statue in Pirano carved from?", "basalt"),
    ("The orchard near Sibiu grows quinces.", "Which fruit does the orchard near Sibiu grow?", "quince"),
)
"""Sentence, question, answer. None has a word of those that retrieval heads are calibrated on (training/data/located.py),
beside those that hold every sentence together."""


def main() -> None:
    """Run and write benchmarks/results/NAME.jsonl."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--book", type=Path, required=True, help="a long text, .txt or .txt.gz")
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--window", type=int)
    parser.add_argument("--select", nargs="*", default=["consensus", "hybrid"])
    parser.add_argument("--name", default="beyond_window")
    options = parser.parse_args()
    acre = ACRE.from_pretrained(options.model, config=ACREConfig(window=options.window), template=SHORT_ANSWER)
    text = _with_needles(acre, options.book, options.tokens)
    process = psutil.Process()
    memory: list[dict[str, Any]] = []

    def sample(done: int, total: int) -> None:
        memory.append({"tokens": done, "resident_bytes": process.memory_info().rss})
        if len(memory) % 10 == 0:
            print(memory[-1], flush=True)

    document = acre.add(text, id=options.book.name, progress=sample)
    cache = document.cache
    rows: list[dict[str, Any]] = []
    for select in options.select:
        engine = acre.using(select=select)
        for depth, (sentence, question, expected) in enumerate(NEEDLES):
            answer = engine.ask(question, document, settings=GenerationSettings(max_new_tokens=24))
            rows.append(
                {
                    "select": select,
                    "depth_percent": 5 + 10 * depth,
                    "question": question,
                    "expected": expected,
                    "answer": answer.text,
                    "right": expected.lower() in answer.text.lower(),
                    "source_holds_needle": any(sentence in source.text for source in answer.sources),
                    "first_token_s": answer.timings.first_token_s,
                }
            )
            print(rows[-1], flush=True)
    summary = {
        "model": options.model,
        "model_window": acre.decoder.model_window,
        "window": acre.window,
        "document_tokens": document.n_tokens,
        "interval": cache.interval,
        "l1_entries": cache.n_blocks,
        "construct_s": round(document.construct_s, 1),
        "l2_bytes": cache.host_bytes,
        "device_bytes": cache.device_bytes,
        **_flatness(memory, cache.host_bytes / document.n_tokens),
        "right": {s: sum(r["right"] for r in rows if r["select"] == s) for s in options.select},
        "source_holds_needle": {
            s: sum(r["source_holds_needle"] for r in rows if r["select"] == s) for s in options.select
        },
        "needles": len(NEEDLES),
    }
    print(summary)
    print(write(options.name, summary, [*rows, *memory]))


def _flatness(memory: list[dict[str, Any]], l2_bytes_per_token: float) -> dict[str, Any]:
    """Resident memory beyond L2 (pages of L2 become resident as they are written), at 20 %, 60 % and 100 %."""
    beyond = [m["resident_bytes"] - m["tokens"] * l2_bytes_per_token for m in memory]
    return {f"working_mib_at_{p}_percent": round(beyond[(len(beyond) - 1) * p // 100] / 2**20) for p in (20, 60, 100)}


def _with_needles(acre: ACRE, path: Path, n_tokens: int) -> str:
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    text = raw.decode("utf-8")
    offsets = acre.decoder.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    text = text[: offsets[min(n_tokens, len(offsets)) - 1][1]]
    for depth, (sentence, _, _) in reversed(list(enumerate(NEEDLES))):
        place = text.index(". ", int(len(text) * (5 + 10 * depth) / 100)) + 2
        text = text[:place] + sentence + " " + text[place:]
    return text


if __name__ == "__main__":
    main()
