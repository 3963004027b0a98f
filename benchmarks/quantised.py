"""What an exact layer in 8 or 4 bits costs: bytes, seconds to refill, and answers, against 16 bits on the same caches."""

import argparse
import random
import statistics
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from acre_rag import ACRE, ACREConfig, Document, GenerationSettings
from acre_rag.asking import Prepared
from acre_rag.construct import to_transformers
from acre_rag.evaluation.metrics import qa_f1
from acre_rag.prompts import SHORT_ANSWER
from acre_rag.quantise import codec_of, with_codec
from benchmarks.record import write
from benchmarks.squad import load

SETTINGS = GenerationSettings(max_new_tokens=32, stop=("\n",))
BITS = (16, 8, 4)


def main() -> None:
    """Run and write benchmarks/results/quantised-NAME.jsonl."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with squad_article.jsonl.gz and .docs.jsonl.gz"
    )
    parser.add_argument("--store", type=Path, help="where the read documents are kept between runs")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--name", default="smollm2-135m")
    parser.add_argument("--articles", type=int, default=8)
    parser.add_argument("--questions", type=int, default=8, help="per document")
    options = parser.parse_args()
    items, texts = load(options.data)
    acre = ACRE.from_pretrained(options.model, config=ACREConfig(), template=SHORT_ANSWER, store=options.store)
    rows: list[dict[str, Any]] = []
    for id_, text in list(texts.items())[: options.articles]:
        document = acre.add(text, id=id_)
        mine = [item for item in items if item["doc_id"] == id_]
        with acre.holding([document]):
            exact = document.cache
            caches = {bits: with_codec(exact, codec_of(bits)) for bits in BITS}
            for item in random.Random(0).sample(mine, options.questions):
                rows.append(_row(acre, document, caches, item))
            document.holder.cache = exact
        print(id_, _summary(rows), flush=True)
    print(write(f"quantised-{options.name}", {"model": options.name, **_summary(rows)}, rows))


def _row(acre: ACRE, document: Document, caches: dict[int, Any], item: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {"id": item["id"], "answers": {}, "f1": {}, "refill_s": {}, "divergence": {}, "l2_bytes": {}}
    expected = None
    for bits, cache in caches.items():
        document.holder.cache = cache
        answer = acre.ask(item["question"], document, settings=SETTINGS)
        first = _first_token(acre, acre.prepare(item["question"], document))
        expected = first if expected is None else expected
        row["answers"][bits] = answer.text
        row["f1"][bits] = qa_f1(answer.text, item["answers"])
        row["refill_s"][bits] = answer.timings.refill_s
        row["divergence"][bits] = float(functional.kl_div(first, expected, reduction="sum", log_target=True))
        row["l2_bytes"][bits] = cache.l2.n_bytes / document.n_tokens
    return row


def _first_token(acre: ACRE, prepared: Prepared) -> torch.Tensor:
    """Log-probabilities of the answer's first token."""
    with torch.inference_mode():
        logits = acre.decoder.model(
            input_ids=prepared.ids[None], past_key_values=to_transformers(prepared.slots), logits_to_keep=1
        ).logits[0, -1]
    return logits.float().log_softmax(-1)


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    def mean(what: str, bits: int) -> float:
        return statistics.mean(row[what][bits] for row in rows)

    return {
        "questions": len(rows),
        **{
            str(bits): {
                "l2_bytes_per_token": round(mean("l2_bytes", bits)),
                "f1": round(mean("f1", bits), 1),
                "same_answer": round(statistics.mean(r["answers"][bits] == r["answers"][16] for r in rows), 3),
                "divergence_nats": round(mean("divergence", bits), 4),
                "refill_s": round(statistics.median(row["refill_s"][bits] for row in rows), 4),
            }
            for bits in BITS
        },
    }


if __name__ == "__main__":
    main()
