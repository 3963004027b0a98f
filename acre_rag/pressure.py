"""What to do when memory runs out: walk down a ladder of smaller attempts, then say so clearly. Knows no tensors."""

import gc
from collections.abc import Callable, Iterable
from typing import TypeVar

import torch

from acre_rag.errors import CapacityError

T = TypeVar("T")

_WORDS = ("out of memory", "alloc_failed", "can't allocate memory", "not enough memory")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on the device or the host.

    Pinning fails with a plain "CUDA error: out of memory", cuBLAS with CUBLAS_STATUS_ALLOC_FAILED.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _WORDS)


def descend(rungs: Iterable[Callable[[], T]], *, purpose: str, before: Callable[[], None] = lambda: None) -> T:
    """Try each rung until one has memory enough.

    Args:
        rungs: attempts, each needing less than the one before.
        purpose: what is being done, for the message.
        before: frees what can be freed, before every attempt but the first.

    Raises:
        CapacityError: even the last rung ran out.
    """
    last = ""
    for number, attempt in enumerate(rungs):
        if number == 1:
            gc.collect()  # seconds in a large process, so once
        if number:
            before()
        try:
            return attempt()
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            last = str(error).splitlines()[0] if str(error) else type(error).__name__
    raise CapacityError(
        f"Out of memory while {purpose}, also with everything else freed and the smallest settings ({last}). Use a "
        "smaller window, a larger interval, a shorter document, a smaller model, or a machine with more memory."
    )


def halvings(start: int, smallest: int) -> list[int]:
    """`start, start / 2, ...`, in multiples of `smallest`, ending with it."""
    steps = [start]
    while steps[-1] > smallest:
        steps.append(max(smallest, steps[-1] // 2 // smallest * smallest))
    return steps
