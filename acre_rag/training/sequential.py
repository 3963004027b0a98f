"""The slow and obvious way to read a layout: step by step with an ordinary cache, gradients through it.

The reference of nested_attention.py, and the way for rotations whose frequencies change with the length.
"""

import torch
from torch import Tensor
from transformers import DynamicCache

from acre_rag.cache import KV
from acre_rag.construct import slots_of, to_transformers
from acre_rag.decoder import Decoder
from acre_rag.proxies.learned import L1Parameters, l1_projections
from acre_rag.rope import Rope
from acre_rag.training.layout import Layout


def read_sequentially(decoder: Decoder, l1: L1Parameters, embeds: Tensor, layout: Layout) -> Tensor:
    """Hidden states of all slots, one forward pass a step.

    Args:
        decoder: the frozen model.
        l1: learned L1.
        embeds: `[T, hidden]`, input embeddings of all slots.
        layout: the steps, and what each of them sees.

    Returns:
        `[T, hidden]`, after the last norm.
    """
    rope = Rope(decoder.base.rotary_emb, decoder.device)  # the decoder's own tables may be inference tensors
    is_l1 = torch.zeros(layout.n_slots, dtype=torch.bool)
    is_l1[layout.l1_slots] = True
    hidden: list[Tensor] = []
    done: list[KV] = []
    for step in layout.steps:
        past = DynamicCache()
        if len(step.seen):
            past = _working_cache(rope, KV.cat(done), step.seen.to(decoder.device))
        rows = is_l1[step.start : step.stop].nonzero()[:, 0].to(decoder.device)
        with l1_projections(decoder, l1, rows):
            output = decoder.base(
                inputs_embeds=embeds[None, step.start : step.stop], past_key_values=past, use_cache=True
            )
        hidden.append(output.last_hidden_state[0])
        new = slots_of(past, len(step.seen))
        done.append(KV(rope.unrotate(new.keys, len(step.seen)), new.values))
    return torch.cat(hidden)


def _working_cache(rope: Rope, slots: KV, seen: Tensor) -> DynamicCache:
    """The seen slots at contiguous positions."""
    keys, values = slots.keys.index_select(2, seen), slots.values.index_select(2, seen)
    return to_transformers(KV(rope.rotate(keys), values))
