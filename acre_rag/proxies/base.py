"""The interface of a proxy: how one stride is fed to the model and split into L1 and L2."""

from typing import Protocol

from torch import Tensor

from acre_rag.cache import KV
from acre_rag.decoder import Decoder


class Proxy(Protocol):
    """Turns document tokens into L1 entries."""

    name: str
    extra_slots: int
    """L1 tokens per block in the nested sequence: 0 pooled, 1 learned."""

    def read(self, decoder: Decoder, token_ids: Tensor, *, n_blocks: int, interval: int, past: object) -> None:
        """One forward pass that appends the keys and values of a stride to `past`.

        Args:
            decoder: the model.
            token_ids: `[T]`, the first `n_blocks * interval` in whole blocks, the rest a tail without L1 token.
            n_blocks: whole blocks in the stride.
            interval: `l`.
            past: transformers cache; grows by `T + n_blocks * extra_slots`.
        """
        ...

    def split(self, nested: KV, *, interval: int) -> tuple[KV, KV]:
        """Eq. 9-12: `n * (l + extra_slots)` nested slots, un-rotated, into `n` L1 entries and `n * l` L2 tokens."""
        ...
