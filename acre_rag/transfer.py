"""Copies between device and host: the only file that knows streams, events and pinned memory."""

from collections import deque
from functools import cache
from time import perf_counter

import torch
from torch import Tensor

from acre_rag.l2 import NewTensor, pageable
from acre_rag.pressure import out_of_memory

_MOST_LANDING = 2


class HostWriter:
    """Moves results off the device while the next ones are computed.

    On CUDA each write is queued on the copy stream: it waits for the compute that made the source and lands in pinned
    memory of its own size; when two are on their way, the older one is first unloaded into the host tensor. So the host
    tensor is ordinary memory: pinned, it would have to be found in one piece, rounded up to a power of two, and torch
    would keep it. Elsewhere a write is a plain copy.

    Args:
        shape: shape of the host tensor.
        dtype: its type.
        device: where the sources live.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        self._stream = _copy_stream(device) if device.type == "cuda" else None
        self._landing: deque[tuple[int, Tensor, torch.cuda.Event]] = deque()
        self._host = torch.empty(shape, dtype=dtype)

    def write(self, start: int, source: Tensor) -> None:
        """Copy `source [n, ...]` to rows `start .. start + n` of the host tensor."""
        if self._stream is None:
            self._host[start : start + len(source)].copy_(source)
            return
        if len(self._landing) == _MOST_LANDING:
            self._unload()
        landing = pinned(tuple(source.shape), source.dtype)
        self._stream.wait_stream(torch.cuda.current_stream(source.device))
        with torch.cuda.stream(self._stream):
            landing.copy_(source, non_blocking=True)
        # The allocator must not hand this memory to later compute before the copy has read it.
        source.record_stream(self._stream)
        self._landing.append((start, landing, self._stream.record_event()))

    def wait(self) -> Tensor:
        """The host tensor, once every write has landed."""
        while self._landing:
            self._unload()
        return self._host

    def _unload(self) -> None:
        start, landing, landed = self._landing.popleft()
        landed.synchronize()
        self._host[start : start + len(landing)].copy_(landing)


@cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all documents: memory that a copy has used belongs to its stream, and serves the next document there."""
    return torch.cuda.Stream(device)


def pinned(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An empty host tensor that the device reaches by itself; an ordinary one (slower) where none can be pinned."""
    try:
        return torch.empty(shape, dtype=dtype, pin_memory=True)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return torch.empty(shape, dtype=dtype)


def staging_for(device: torch.device) -> NewTensor:
    """What makes host tensors that are to go to a device."""
    return pinned if device.type == "cuda" else pageable


def to_device(picked: Tensor, device: torch.device) -> Tensor:
    """A tensor that was just gathered in host memory, on the device."""
    # Pinned memory is freed on return; the caching host allocator keeps it until the copy has finished.
    return picked.to(device, non_blocking=device.type == "cuda")


def settle(device: torch.device) -> None:
    """Wait until the device has done what it was asked for: a clock read before knows nothing of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def clock(device: torch.device) -> float:
    """Seconds, read once the device has done what it was asked for."""
    settle(device)
    return perf_counter()


def release_unused(device: torch.device) -> None:
    """Give memory back that torch keeps for later: the device's, and pinned host memory."""
    if device.type != "cuda":
        return
    torch.cuda.empty_cache()
    # The public name is newer than the oldest torch we take; this one is as old.
    getattr(torch.accelerator, "empty_host_cache", torch._C._host_emptyCache)()
