"""Most memory in use while something runs. Knows no models and no systems.

On CUDA it is what PyTorch's allocator had handed out at most, weights included (`torch.cuda.max_memory_allocated`), as
papers report it. On a CPU no such count exists: a thread reads the process' resident set every few milliseconds, and
its highest level above a mark is reported. The mark is set before a document is read, so that what a system keeps of
the document counts and the model's weights do not. It is a hint: what the allocator keeps for later blurs it by some
megabytes, though glibc is asked to give back what is free before the mark. The two figures are not comparable; `kind`
says which a row has.
"""

import ctypes
import gc
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

_STATM = Path("/proc/self/statm")
_EVERY_S = 0.005


class MemoryMeter:
    """Measures on the device where a model computes.

    Args:
        device: the model's.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device if device.type == "cuda" else None
        self._mark = 0
        self.peak_bytes: int | None = None

    @property
    def kind(self) -> str:
        """What is measured."""
        return "CUDA memory allocated" if self._cuda else "resident set above its level before reading"

    def mark(self) -> None:
        """From now on, count from the present level."""
        gc.collect()
        _give_back_free_pages()
        self._mark = 0 if self._cuda else resident_bytes() or 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Sets `peak_bytes` to the highest level inside the block; `None` where the system tells no level."""
        with self._watching_cuda() if self._cuda else self._watching_resident():
            yield

    @contextmanager
    def _watching_cuda(self) -> Iterator[None]:
        torch.cuda.reset_peak_memory_stats(self._cuda)
        try:
            yield
        finally:
            self.peak_bytes = torch.cuda.max_memory_allocated(self._cuda)

    @contextmanager
    def _watching_resident(self) -> Iterator[None]:
        levels = [resident_bytes()]
        done = threading.Event()

        def sample() -> None:
            while not done.wait(_EVERY_S):
                levels[0] = max(levels[0] or 0, resident_bytes() or 0)

        thread = threading.Thread(target=sample, name="acre-memory", daemon=True)
        if levels[0] is not None:
            thread.start()
        try:
            yield
        finally:
            done.set()
            if levels[0] is not None:
                thread.join()
                levels[0] = max(levels[0], resident_bytes() or 0)
            self.peak_bytes = None if levels[0] is None else max(0, levels[0] - self._mark)


def _give_back_free_pages() -> None:
    """Where the C library is glibc; elsewhere the mark is a little too high."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, TypeError, AttributeError):
        return


def resident_bytes() -> int | None:
    """The process' resident set; `None` where the system does not say (anything but Linux)."""
    try:
        return int(_STATM.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None
