"""A document that has been read: its text, where its tokens and passages stand in it, and where its cache is held."""

import hashlib
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from acre_rag.blocks import Run, chars_of_tokens
from acre_rag.cache import BiLayerCache
from acre_rag.errors import DocumentError
from acre_rag.passages import Passage


def text_digest(text: str) -> str:
    """SHA-256 of a text, lone surrogates included."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class Holder:
    """Holds a document's cache while it is on the device; residency.py fills and empties it."""

    def __init__(self, cache: BiLayerCache | None = None) -> None:
        self.cache = cache


@dataclass(frozen=True, eq=False)
class Document:
    """What `ACRE.add` returns and `ACRE.ask` takes: light, also while its cache rests on disk.

    Attributes:
        id: the user's name for it, or a digest of the text.
        text: the text that was read; source positions count its characters.
        token_ids: `[N]`, the tokens.
        offsets: `[N, 2]` character span of each.
        passages: whole paragraphs of about equal length, in order.
        interval: `l`.
        construct_s: seconds that reading took.
        tenant: whose it is.
        holder: where its cache is while in use.
        notes: what the user should know of the reading, e.g. that memory was short.
    """

    id: str
    text: str
    token_ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    passages: tuple[Passage, ...]
    interval: int
    construct_s: float
    tenant: str = ""
    holder: Holder = field(default_factory=Holder)
    notes: tuple[str, ...] = ()

    @property
    def cache(self) -> BiLayerCache:
        """The bi-layer cache.

        Raises:
            DocumentError: it is not on the device now (removed, released, or waiting in a slower tier).
        """
        if self.holder.cache is None:
            raise DocumentError(
                f"The cache of {self.id!r} is not on the device: it was removed or released, or rests in a slower "
                "tier. Ask through the engine, or pin the document."
            )
        return self.holder.cache

    @property
    def n_tokens(self) -> int:
        """`N`."""
        return len(self.offsets)

    @property
    def n_blocks(self) -> int:
        """`M`."""
        return self.n_tokens // self.interval

    def chars_of_blocks(self, blocks: Run) -> tuple[int, int]:
        """Characters that a run of blocks covers."""
        return chars_of_tokens(blocks.start * self.interval, blocks.stop * self.interval, self.offsets)
