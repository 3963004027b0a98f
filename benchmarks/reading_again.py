"""What does an answer lose when passages are refilled as they were kept, and not read again?

The same passages, chosen once for each question, are put before the question in several forms: as L2 kept them, or read again in
the place where they are refilled (over the prefix, the L1 entries before them and the passages before them); between the
L1 entries, behind them all, or alone. Read again alone is what text retrieval gives to the model, word for word.
"""

import json
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from acre_rag import ACRE, ACREConfig, Document
from acre_rag.cache import KV
from acre_rag.evaluation.item import EvalItem
from acre_rag.evaluation.metrics import qa_f1
from acre_rag.generate import GenerationSettings, decode
from acre_rag.heads import load_heads
from acre_rag.models import load_decoder
from acre_rag.prompts import SHORT_ANSWER
from acre_rag.recompute import recompute
from acre_rag.refill import refill
from benchmarks import asked
from benchmarks.record import write
from benchmarks.selection_ideas import paired

SETTINGS = GenerationSettings(max_new_tokens=32, stop=("\n",))
Place = Literal["nested", "behind", "alone"]
"""Of refilled blocks: each before its L1 entry (Eq. 18-19), behind all L1 entries, or without any."""
FORMS: dict[str, tuple[bool, Place]] = {
    f"{name}, {place}": (again, place)
    for again, name in ((False, "kept"), (True, "read again"))
    for place in get_args(Place)
}


def working_cache(acre: ACRE, document: Document, blocks: NDArray[np.int64], *, again: bool, place: Place) -> KV:
    """Rotated keys and values of one form.

    Args:
        acre: the engine.
        document: the document asked.
        blocks: `[k]`, ascending.
        again: whether the blocks are read anew.
        place: where they stand.
    """
    cache, nested = document.cache, place == "nested"
    if place == "behind":
        cache = replace(cache, prefix=KV.cat([cache.prefix, cache.l1]))
    if again:
        return recompute(acre.decoder, [cache], [document.token_ids], [blocks], l1_context=nested)
    return refill([cache], [blocks], rope=acre.decoder.rope, l1_context=nested)


def measured(acre: ACRE, document: Document, item: EvalItem) -> dict[str, Any]:
    """One question in every form."""
    blocks = acre.select(item.question, document).blocks[0]
    ids = acre.question(item.question).ids
    answers: dict[str, str] = {}
    for name, (again, place) in FORMS.items():
        slots = working_cache(acre, document, blocks, again=again, place=place)
        answers[name] = decode(acre.decoder, [slots], [ids], SETTINGS)[0].text
    return {"answers": answers, "f1": {name: qa_f1(answer, item.answers) for name, answer in answers.items()}}


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean F1 of each form for each data set, and differences to the first form with standard errors."""
    first = next(iter(FORMS))
    result: dict[str, Any] = {}
    for name in dict.fromkeys(row["dataset"] for row in rows):
        mine = [row["f1"] for row in rows if row["dataset"] == name]
        result[name] = {
            "questions": len(mine),
            "f1": {form: round(statistics.mean(f1[form] for f1 in mine), 1) for form in FORMS},
            "difference": {form: paired([f1[form] - f1[first] for f1 in mine]) for form in FORMS},
        }
    return result


def main() -> None:
    """Run and write benchmarks/results/reading_again-NAME.jsonl."""
    parser = asked.parser(__doc__, sets="squad_article,covidqa", questions=25, documents=2)
    parser.add_argument("--passages", type=int, default=2, help="passages refilled")
    parser.add_argument("--select", default="consensus", help="how they are chosen")
    options = parser.parse_args()
    config = ACREConfig(window=options.window, select=options.select, max_passages=options.passages)
    heads = load_heads(options.heads) if options.heads else None
    acre = ACRE(load_decoder(options.model), heads=heads, config=config, template=SHORT_ANSWER)
    rows: list[dict[str, Any]] = []
    for name in options.sets.split(","):
        for document_id, mine in asked.by_document(name, options):
            document = acre.add(mine[0].document, id=document_id)
            rows += [{"dataset": name, "id": item.id} | measured(acre, document, item) for item in mine]
            acre.remove(document)
            write(f"reading_again-{options.name}", summary(rows), rows)
        print(name, json.dumps(summary(rows)[name]), flush=True)


if __name__ == "__main__":
    main()
