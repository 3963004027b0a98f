"""Next-token loss on later strides under different memories of the earlier ones; the same targets for all of them.

How much of what full attention knows of a document's earlier strides passes through L1. Much of it is what any text
before a stride gives, and some is no memory at all, so another document's strides and no past serve as controls. Knows
no files.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from transformers import DynamicCache

from acre_rag.cache import KV
from acre_rag.construct import slots_of, to_transformers
from acre_rag.decoder import Decoder
from acre_rag.errors import ConfigError
from acre_rag.proxies.learned import L1Parameters
from acre_rag.proxies.pooled import PooledProxy
from acre_rag.training.layout import reading
from acre_rag.training.lesson import Lesson
from acre_rag.training.losses import next_token_loss
from acre_rag.training.reader import NestedReader

Memory = Callable[[KV, int], KV]
"""What is kept of a stride that was read: `(un-rotated slots, interval)` to un-rotated slots."""


def everything(stride: KV, interval: int) -> KV:
    """Full attention."""
    return stride


def nothing(stride: KV, interval: int) -> KV:
    """A stride sees the prefix and itself."""
    return stride.slots(0, 0)


def pooled(stride: KV, interval: int) -> KV:
    """The means of its blocks (no training)."""
    whole = len(stride) // interval * interval
    return PooledProxy().split(stride.slots(0, whole), interval=interval)[0]


def learned_loss(decoder: Decoder, l1: L1Parameters, lesson: Lesson) -> float:
    """Loss when earlier strides are seen through L1 tokens, as the lesson's layout says; in nats a token.

    Args:
        decoder: the model.
        l1: trained, or not.
        lesson: of stage 1.
    """
    with torch.no_grad():
        hidden = NestedReader(decoder, l1)(lesson.token_ids, lesson.layout)
        return float(next_token_loss(decoder, hidden[lesson.slots.to(hidden.device)], lesson.targets))


def remembered_loss(decoder: Decoder, memory: Memory, lesson: Lesson) -> float:
    """Loss when what is seen of earlier strides is what `memory` kept of them; in nats a token.

    The document is read as plain tokens, with contiguous positions over all that is seen.

    Args:
        decoder: the model.
        memory: `everything`, `nothing` or `pooled`.
        lesson: of stage 1: its strides and its targets.
    """
    layout, hidden = lesson.layout, []
    prefix, document, _ = lesson.token_ids.tensor_split([layout.n_prefix, layout.n_prefix + layout.n_tokens])
    kept: list[KV] = []
    with torch.no_grad():
        if len(prefix):
            kept.append(_read(decoder, kept, prefix)[1])
        for step in layout.steps[1 if len(prefix) else 0 :]:
            start, stop = torch.searchsorted(layout.token_slots, torch.tensor([step.start, step.stop])).tolist()
            states, slots = _read(decoder, kept, document[start:stop])
            hidden.append(states)
            kept.append(memory(slots, layout.interval))
        tokens = torch.searchsorted(layout.token_slots, lesson.slots).to(decoder.device)
        return float(next_token_loss(decoder, torch.cat(hidden)[tokens], lesson.targets))


def last_stride(lesson: Lesson) -> Lesson:
    """The same reading with targets in its last stride alone.

    Args:
        lesson: of stage 1.
    """
    kept = lesson.slots >= lesson.layout.steps[-1].start
    return replace(lesson, slots=lesson.slots[kept], targets=lesson.targets[kept])


def alone(lesson: Lesson) -> Lesson:
    """The last stride as a document of its own, behind the prefix: what an adapter gains without remembering anything.

    The L1 tokens of a stride help that stride's own tokens, too; this loss has their help and no past.

    Args:
        lesson: of stage 1.
    """
    layout, last = lesson.layout, last_stride(lesson)
    start = layout.steps[-1].start
    earlier = int(torch.searchsorted(layout.token_slots, start))
    n_tokens = layout.n_tokens - earlier
    whole = reading(n_prefix=layout.n_prefix, n_tokens=n_tokens, interval=layout.interval, stride=n_tokens)
    token_ids = torch.cat([lesson.token_ids[: layout.n_prefix], lesson.token_ids[layout.n_prefix + earlier :]])
    return Lesson(token_ids, whole, last.slots - start + layout.n_prefix, last.targets)


def after_another(lesson: Lesson, other: Lesson) -> Lesson:
    """The last stride of one document behind the earlier strides of another: what any past gives, not its own.

    Args:
        lesson: of stage 1.
        other: of stage 1, of another document with the same layout.

    Raises:
        ConfigError: layouts differ.
    """
    layout = lesson.layout
    if (layout.interval, len(lesson.token_ids)) != (other.layout.interval, len(other.token_ids)):
        raise ConfigError("The two documents are read differently; cut both to the same length, with one interval.")
    earlier = int(torch.searchsorted(layout.token_slots, layout.steps[-1].start)) + layout.n_prefix
    token_ids = torch.cat([other.token_ids[:earlier], lesson.token_ids[earlier:]])
    return replace(last_stride(lesson), token_ids=token_ids)


def _read(decoder: Decoder, kept: list[KV], token_ids: Tensor) -> tuple[Tensor, KV]:
    """Hidden states and un-rotated slots of some tokens, read over what was kept."""
    past = DynamicCache()
    if kept:
        seen = KV.cat(kept)
        past = to_transformers(KV(decoder.rope.rotate(seen.keys), seen.values))
    n_past = past.get_seq_length()
    output = decoder.base(input_ids=token_ids[None], past_key_values=past, use_cache=True)
    new = slots_of(past, n_past)
    return output.last_hidden_state[0], KV(decoder.rope.unrotate(new.keys, n_past), new.values)
