"""Copies between device and host: the only file that knows streams, events and pinned memory."""

import torch
from torch import Tensor


class HostWriter:
    """Moves results off the device while the next ones are computed.

    On CUDA each write is queued on a copy stream: it waits for the compute that made the source, lands in the pinned
    destination, and `wait` returns when all writes have landed. Elsewhere a write is a plain copy.

    Args:
        shape: shape of the host tensor.
        dtype: its type.
        device: where the sources live.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.host = torch.empty(shape, dtype=dtype, pin_memory=self._stream is not None)

    def write(self, start: int, source: Tensor) -> None:
        """Copy `source [n, ...]` to rows `start .. start + n` of the host tensor."""
        target = self.host[start : start + source.shape[0]]
        if self._stream is None:
            target.copy_(source)
            return
        self._stream.wait_stream(torch.cuda.current_stream(source.device))
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
        # The allocator must not hand this memory to later compute before the copy has read it.
        source.record_stream(self._stream)

    def wait(self) -> Tensor:
        """The host tensor, once every write has landed."""
        if self._stream is not None:
            self._stream.synchronize()
        return self.host


def to_device(picked: Tensor, device: torch.device) -> Tensor:
    """A tensor that was just gathered in host memory, on the device."""
    if device.type != "cuda":
        return picked.to(device)
    # The pinned staging buffer is freed on return; the caching host allocator keeps it until the copy has finished.
    return picked.pin_memory().to(device, non_blocking=True)


def settle(device: torch.device) -> None:
    """Wait until the device has done what it was asked for: a clock read before knows nothing of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def release_unused(device: torch.device) -> None:
    """Give memory back that torch keeps for later: the device's, and pinned host memory as large as a freed L2."""
    if device.type != "cuda":
        return
    torch.cuda.empty_cache()
    release_pinned = getattr(torch.accelerator, "empty_host_cache", None)  # newer than the oldest torch we take
    if release_pinned is not None:
        release_pinned()
