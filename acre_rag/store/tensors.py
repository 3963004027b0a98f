"""A document's small tensors to bytes and back: places (offsets, passages) and the compact cache. Knows no files."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from acre_rag.blocks import Run
from acre_rag.cache import KV, BiLayerCache, Prior
from acre_rag.document import Document
from acre_rag.l2 import L2
from acre_rag.passages import Passage


def places(document: Document) -> dict[str, Tensor]:
    """The tokens `[N]`, and where they `[N, 2]` and passages `[P, 6]` stand in the text."""
    rows = [(p.start, p.stop, p.tokens.start, p.tokens.stop, p.blocks.start, p.blocks.stop) for p in document.passages]
    return {
        "token_ids": torch.from_numpy(np.ascontiguousarray(document.token_ids)),
        "offsets": torch.from_numpy(np.ascontiguousarray(document.offsets)),
        "passages": torch.tensor(rows, dtype=torch.int64).reshape(-1, 6),
    }


def passages_of(tensors: Mapping[str, Tensor]) -> tuple[Passage, ...]:
    """The passages back."""
    return tuple(
        Passage(start, stop, Run(first, last), Run(low, high))
        for start, stop, first, last, low, high in tensors["passages"].tolist()
    )


def compact(cache: BiLayerCache) -> dict[str, Tensor]:
    """Everything but L2."""
    tensors = {"head_keys": cache.head_keys}
    for name in ("prefix", "l1", "tail"):
        part: KV = getattr(cache, name)
        tensors |= {f"{name}.keys": part.keys, f"{name}.values": part.values}
    if cache.prior:
        tensors |= {"prior.scores": cache.prior.scores, "prior.shares": torch.from_numpy(cache.prior.shares)}
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def compact_cache(tensors: Mapping[str, Tensor], *, interval: int, n_tokens: int, l2: L2) -> BiLayerCache:
    """A cache from its compact part and an L2."""
    prior = None
    if "prior.scores" in tensors:
        prior = Prior(tensors["prior.scores"], tensors["prior.shares"].numpy())
    return BiLayerCache(
        interval=interval,
        n_tokens=n_tokens,
        prefix=_kv(tensors, "prefix"),
        l1=_kv(tensors, "l1"),
        l2=l2,
        tail=_kv(tensors, "tail"),
        head_keys=tensors["head_keys"],
        prior=prior,
    )


def _kv(tensors: Mapping[str, Tensor], name: str) -> KV:
    return KV(tensors[f"{name}.keys"], tensors[f"{name}.values"])
