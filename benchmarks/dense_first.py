"""Should the first layers attend to the whole document? Their attention is spread, so a choice of passages costs them most.

The first `k` layers keep every document token, exact; the others see what was refilled, as always. Measured on documents
within the window (there the exact layer is full attention's own cache) and longer than what is refilled: whether the question, read so, finds the right
passage, and the F1 of the answers. `k = 0` is the method as it is; all layers dense is full attention.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, DynamicCache

from acre_rag import ACRE, ACREConfig, Document
from acre_rag.cache import KV
from acre_rag.evaluation.item import EvalItem
from acre_rag.evaluation.metrics import qa_f1
from acre_rag.generate import GenerationSettings, decode_on
from acre_rag.heads import load_heads
from acre_rag.models import load_decoder
from acre_rag.prompts import SHORT_ANSWER
from acre_rag.question import global_view
from acre_rag.refill import refill
from benchmarks import asked
from benchmarks.choosing import Case, consensus
from benchmarks.record import write
from benchmarks.selection_ideas import covered, gold_tokens, mean, ordered, paired

SETTINGS = GenerationSettings(max_new_tokens=32, stop=("\n",))
LENGTHS_APART = "lengths_apart"


def lengths_apart(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: None, *, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    """Causal attention `[B, H, T, D]` over a cache whose layers differ in length: each makes its own mask."""
    own = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril(key.shape[2] - query.shape[2])
    output = scaled_dot_product_attention(query, key, value, attn_mask=own, scale=scaling, enable_gqa=True)
    return output.transpose(1, 2).contiguous(), None


def dense_first(acre: ACRE, whole: KV, short: KV, dense: int) -> DynamicCache:
    """A cache whose first `dense` layers hold `whole` and whose others hold `short`.

    Args:
        acre: the engine.
        whole: un-rotated slots of the document.
        short: un-rotated slots of what was refilled; they end where the dense layers' slots end.
        dense: `k`.
    """
    rope, cache = acre.decoder.rope, DynamicCache()
    end = len(whole if dense else short)
    for layer in range(acre.decoder.n_layers):
        slots = whole if layer < dense else short
        cache.update(rope.rotate(slots.keys[layer][None], end - len(slots)), slots.values[layer][None], layer)
    return cache


class DenseCase(Case):
    """A question that the first layers read over the whole document."""

    dense: int = 0

    @property
    def queries(self) -> Tensor:  # type: ignore[override]  # the parent's is a cached property
        """`[L, H, T, D]`."""
        asked = self.acre.question(self.question)
        cache = dense_first(self.acre, _whole(self.acre, self.document), global_view([self.document.cache]), self.dense)
        with torch.inference_mode(), self.acre.decoder.capture_queries() as captured:
            self.acre.decoder.base(input_ids=asked.ids[None], past_key_values=cache, use_cache=True)
        return torch.stack([layer[0, asked.own] for layer in captured]).transpose(1, 2)


def _whole(acre: ACRE, document: Document) -> KV:
    """Un-rotated slots of the whole document, without L1 entries."""
    return _unrotated(acre, refill([document.cache], [_all(document)], rope=acre.decoder.rope, l1_context=False))


def _all(document: Document) -> np.ndarray:
    return np.arange(document.n_blocks)


def _unrotated(acre: ACRE, slots: KV) -> KV:
    return KV(acre.decoder.rope.unrotate(slots.keys), slots.values)


def answered(acre: ACRE, document: Document, question: str, dense: int) -> str:
    """The answer on the passages that the product chooses, the first layers on everything."""
    slots = refill([document.cache], acre.select(question, document).blocks, rope=acre.decoder.rope)
    whole = _whole(acre, document)
    cache = dense_first(acre, whole, _unrotated(acre, slots), dense)
    ids = acre.question(question).ids[None]
    mask = torch.ones(1, len(whole if dense else slots) + ids.shape[1], dtype=torch.long)
    return decode_on(acre.decoder, cache, ids, mask, SETTINGS)[0].text


def measured(acre: ACRE, document: Document, item: EvalItem, layers: Sequence[int], tokens: int) -> dict[str, Any]:
    """One question with each number of dense layers."""
    gold = gold_tokens(document, item.answers, item.facts)
    row: dict[str, Any] = {"found": {}, "f1": {}, "answers": {}}
    for dense in layers:
        case = DenseCase(acre, document, item.question)
        case.dense = dense
        if gold:
            row["found"][dense] = covered(ordered(case.passages, consensus(case)), gold, tokens)
        row["answers"][dense] = answered(acre, document, item.question, dense)
        row["f1"][dense] = qa_f1(row["answers"][dense], item.answers)
    return row


def summary(rows: Sequence[dict[str, Any]], layers: Sequence[int]) -> dict[str, Any]:
    """Means, and what each number of dense layers changes against none, with standard errors."""
    result: dict[str, Any] = {"questions": len(rows)}
    for figure in ("found", "f1"):
        mine = [row[figure] for row in rows if row[figure]]
        result[f"questions_{figure}"] = len(mine)
        result[figure] = {dense: mean([row[dense] for row in mine]) for dense in layers}
        result[f"difference_{figure}"] = {
            dense: paired([row[dense] - row[layers[0]] for row in mine]) for dense in layers[1:]
        }
    return result


def main() -> None:
    """Run and write benchmarks/results/dense_first-NAME.jsonl."""
    parser = asked.parser(__doc__, sets="squad_article,covidqa", questions=30, documents=3)
    parser.add_argument("--layers", type=int, nargs="+", default=[0, 1, 2, 4], help="numbers of dense layers")
    parser.add_argument("--tokens", type=int, default=900, help="refilled tokens within which an answer is found")
    options = parser.parse_args()
    decoder = load_decoder(options.model)
    AttentionInterface.register(LENGTHS_APART, lengths_apart)
    heads = load_heads(options.heads) if options.heads else None
    acre = ACRE(decoder, heads=heads, config=ACREConfig(window=options.window), template=SHORT_ANSWER)
    layers = [*options.layers, decoder.n_layers]
    rows: list[dict[str, Any]] = []
    for name in options.sets.split(","):
        for document_id, mine in asked.by_document(name, options):
            decoder.model.set_attn_implementation("sdpa")
            document = acre.add(mine[0].document, id=document_id)
            decoder.model.set_attn_implementation(LENGTHS_APART)
            worth = 2 * options.tokens <= document.n_tokens <= acre.window - 512  # a choice to make, and all of it fits
            for item in mine if worth else ():
                rows.append({"dataset": name, "id": item.id} | measured(acre, document, item, layers, options.tokens))
            acre.remove(document)
        if not rows:
            print(f"{name}: none of its documents is longer than {2 * options.tokens:,} tokens and within the window.")
            continue
        write(f"dense_first-{options.name}", summary(rows, layers), rows)
        print(name, json.dumps(summary(rows, layers)), flush=True)


if __name__ == "__main__":
    main()
