"""The bi-layer KV cache of one document: tensors and their shapes; knows neither the model nor how they came to be.

All keys are un-rotated (see rope.py). L1 and the prefix live on the model's device, L2 in host memory.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from acre_rag.l2 import L2, HostRows


@dataclass(frozen=True)
class KV:
    """Keys and values of some slots over all layers: each `[L, Hkv, T, D]`, keys un-rotated."""

    keys: Tensor
    values: Tensor

    def __len__(self) -> int:
        return int(self.keys.shape[-2])

    @property
    def n_bytes(self) -> int:
        """Bytes held by the tensors."""
        return self.keys.nbytes + self.values.nbytes

    def slots(self, start: int, stop: int) -> "KV":
        """View of slots `start <= t < stop`."""
        return KV(self.keys[:, :, start:stop], self.values[:, :, start:stop])

    def to(self, device: torch.device) -> "KV":
        """The same slots on a device."""
        return KV(self.keys.to(device), self.values.to(device))

    @staticmethod
    def cat(parts: "list[KV]") -> "KV":
        """The parts one after another."""
        return KV(torch.cat([p.keys for p in parts], dim=2), torch.cat([p.values for p in parts], dim=2))


@dataclass(frozen=True)
class Prior:
    """What content-free questions attend to in one document.

    Attributes:
        scores: `[n, M * l]` float32, their mean attention to each token, one row per retrieval head.
        shares: `[questions, P]`, how each of them spreads its attention over the passages; rows sum to one.
    """

    scores: Tensor
    shares: NDArray[np.float64]


@dataclass(frozen=True)
class BiLayerCache:
    """One document's cache. Never changed after construction.

    Attributes:
        interval: `l`.
        n_tokens: `N`, document tokens, tail included.
        prefix: the template before the document.
        l1: `M` entries, on the device.
        l2: blocks `[M, L, 2, Hkv, l, D]` in host memory or on disk: one block is one contiguous run.
        tail: the last `N mod l` tokens, kept raw.
        head_keys: `[G, M * l, D]` un-rotated keys of the retrieval heads at full resolution, on the device; one row
            per distinct (layer, kv head). Empty (`G = 0`) for a model without calibrated heads.
        prior: computed once, after the document has been read.
    """

    interval: int
    n_tokens: int
    prefix: KV
    l1: KV
    l2: L2
    tail: KV
    head_keys: Tensor
    prior: Prior | None = None

    @property
    def n_blocks(self) -> int:
        """`M`, blocks (and L1 entries)."""
        return len(self.l1)

    @property
    def device_bytes(self) -> int:
        """Bytes that stay on the model's device."""
        prior = self.prior.scores.nbytes if self.prior else 0
        return self.prefix.n_bytes + self.l1.n_bytes + self.tail.n_bytes + self.head_keys.nbytes + prior

    @property
    def host_bytes(self) -> int:
        """Bytes of host memory that L2 holds."""
        return self.l2.host_bytes

    @property
    def tensors(self) -> list[Tensor]:
        """Every tensor in memory that the cache owns; rows mapped from a store are the store's."""
        compact = [tensor for part in (self.prefix, self.l1, self.tail) for tensor in (part.keys, part.values)]
        rows = [part.tensor for part in self.l2.parts.values() if isinstance(part, HostRows)]
        return [*compact, self.head_keys, *([self.prior.scores] if self.prior else []), *rows]

    def to(self, device: torch.device) -> "BiLayerCache":
        """The same cache with its compact part on a device; L2 stays where it is."""
        return replace(
            self,
            prefix=self.prefix.to(device),
            l1=self.l1.to(device),
            tail=self.tail.to(device),
            head_keys=self.head_keys.to(device),
            prior=self.prior and replace(self.prior, scores=self.prior.scores.to(device)),
        )
