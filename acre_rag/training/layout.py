"""Who sees whom when a whole nested sequence is read at once (Eq. 13-14): slot numbers only, no model, no keys.

The slots of a training sequence stand in one line: prefix, document with its L1 tokens, tail, and perhaps questions.
They are read in *steps* (the strides of a document, a question). Each step sees some earlier slots, and itself
causally, at contiguous positions, exactly as if the slots that it does not see had never been there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from acre_rag.blocks import distant_blocks
from acre_rag.errors import CapacityError, ConfigError


@dataclass(frozen=True)
class Step:
    """Slots `start <= t < stop`, read together.

    Attributes:
        start: first slot.
        stop: one past the last slot.
        seen: `[K]` earlier slots that every slot of the step attends to, ascending.
    """

    start: int
    stop: int
    seen: Tensor

    @property
    def shifts(self) -> Tensor:
        """`[K]` places that each seen slot moves right: as many as there are unseen slots between it and the step.

        They never rise: first come slots that move (prefix, distant L1 entries), then those that stay (recent ones).
        """
        n_seen = len(self.seen)
        return self.start - n_seen + torch.arange(n_seen) - self.seen

    @property
    def n_moved(self) -> int:
        """Seen slots that move; the others are the `K - n_moved` slots just before the step."""
        return int((self.shifts > 0).sum())


@dataclass(frozen=True)
class Layout:
    """A document as training reads it, with what is asked of it.

    Attributes:
        interval: `l`.
        n_prefix: `P`.
        n_tokens: `N`, document tokens, tail included.
        steps: all steps in order; the first is the prefix if there is one.
    """

    interval: int
    n_prefix: int
    n_tokens: int
    steps: tuple[Step, ...]

    @property
    def n_blocks(self) -> int:
        """`M`."""
        return self.n_tokens // self.interval

    @property
    def n_slots(self) -> int:
        """Slots in all."""
        return self.steps[-1].stop

    @property
    def l1_slots(self) -> Tensor:
        """`[M]`, where the L1 tokens stand."""
        return self.n_prefix + torch.arange(1, self.n_blocks + 1) * (self.interval + 1) - 1

    @property
    def token_slots(self) -> Tensor:
        """`[N]`, where the document's tokens stand."""
        token = torch.arange(self.n_tokens)
        return self.n_prefix + token + torch.clamp(token // self.interval, max=self.n_blocks)

    def asking(self, n_new: int, *, refilled: Sequence[int] = ()) -> "Layout":
        """The layout with one more step behind it, which sees prefix, all L1 entries, tail and the refilled blocks.

        It sees no other question. Its slots are the refilled cache of Eq. 18-19: each block stands just before its
        L1 entry.

        Args:
            n_new: tokens of the question (and its answer).
            refilled: block numbers.
        """
        n_document = self.n_prefix + self.n_tokens + self.n_blocks
        seen = torch.zeros(n_document, dtype=torch.bool)
        seen[: self.n_prefix] = True
        seen[self.l1_slots] = True
        seen[n_document - self.n_tokens % self.interval :] = True
        for block in refilled:
            first = self.n_prefix + block * (self.interval + 1)
            seen[first : first + self.interval] = True
        step = Step(self.n_slots, self.n_slots + n_new, seen.nonzero()[:, 0])
        return Layout(self.interval, self.n_prefix, self.n_tokens, (*self.steps, step))


def reading(*, n_prefix: int, n_tokens: int, interval: int, stride: int, window: int | None = None) -> Layout:
    """The steps of reading a document, as `construct` takes them.

    Args:
        n_prefix: `P`, tokens before the document.
        n_tokens: `N`.
        interval: `l`.
        stride: `S`, document tokens a step; rounded down to whole blocks.
        window: `W`, most keys; `None` for the narrowest: a stride sees of earlier strides their L1 entries alone, so
            that all that it knows of them passes through L1.

    Raises:
        ConfigError: no block fits a stride, or there is nothing to read.
        CapacityError: prefix, L1 and one stride do not fit the window.
    """
    if stride < interval or n_tokens < 1:
        raise ConfigError(
            f"{n_tokens} tokens in strides of {stride} with interval={interval}: no block fits a stride. "
            f"Use a stride of at least {interval}, and documents that are not empty."
        )
    if window is not None and n_prefix >= window // 2:
        raise CapacityError(
            f"The prompt before the document has {n_prefix} tokens, more than half of window={window:,}. "
            "Use a larger window or a shorter prompt."
        )
    slots_per_block, n_blocks, per_stride = interval + 1, n_tokens // interval, stride // interval
    steps = [Step(0, n_prefix, torch.empty(0, dtype=torch.long))] if n_prefix else []
    done, first = 0, True
    while first or done < n_blocks:
        now = min(per_stride, n_blocks - done)
        tail = n_tokens % interval if done + now == n_blocks else 0
        start, incoming = n_prefix + done * slots_per_block, now * slots_per_block + tail
        distant = done
        if window is not None:
            distant = distant_blocks(
                n_done=done, prefix=n_prefix, incoming=incoming, window=window, slots_per_block=slots_per_block
            )
        steps.append(Step(start, start + incoming, _seen(n_prefix, distant, start, slots_per_block)))
        done, first = done + now, False
    return Layout(interval, n_prefix, n_tokens, tuple(steps))


def _seen(n_prefix: int, distant: int, start: int, slots_per_block: int) -> Tensor:
    """Prefix, L1 entries of the distant blocks, all slots of the recent ones."""
    l1 = n_prefix + torch.arange(1, distant + 1) * slots_per_block - 1
    recent = torch.arange(n_prefix + distant * slots_per_block, start)
    return torch.cat([torch.arange(n_prefix), l1, recent])
