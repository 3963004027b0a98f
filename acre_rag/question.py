"""One forward pass of the question over the compact global view (prefix, L1, tails): gives its queries, no choice."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from acre_rag.cache import KV, BiLayerCache
from acre_rag.construct import to_transformers
from acre_rag.decoder import Decoder


@dataclass(frozen=True)
class Question:
    """A question in the model's tokens.

    Attributes:
        text: the user's words.
        ids: `[T]`, everything after the document.
        own: the user's words in `ids`, without the template's.
    """

    text: str
    ids: Tensor
    own: slice


def global_view(caches: Sequence[BiLayerCache]) -> KV:
    """Prefix, then each document's L1 entries and tail: un-rotated slots of what a question sees before refilling."""
    parts = [caches[0].prefix]
    for cache in caches:
        parts += [cache.l1, cache.tail]
    return KV.cat(parts)


def question_queries(decoder: Decoder, view: KV, question_ids: Tensor, *, own: slice) -> Tensor:
    """Un-rotated queries of the question's own tokens.

    Args:
        decoder: the model.
        view: un-rotated slots to attend to.
        question_ids: `[T]`, everything after the document.
        own: the question's own tokens in it, without the template's.

    Returns:
        `[L, H, T_own, D]`.
    """
    past = to_transformers(KV(decoder.rope.rotate(view.keys), view.values))
    with torch.inference_mode(), decoder.capture_queries() as captured:
        decoder.base(input_ids=question_ids[None], past_key_values=past, use_cache=True)
    return torch.stack([layer[0, own] for layer in captured]).transpose(1, 2)
