"""A document that has been read: its text, where its tokens and passages stand in it, and its cache."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from acre_rag.blocks import Run, blocks_of_tokens, chars_of_tokens, tokens_of_chars
from acre_rag.cache import BiLayerCache
from acre_rag.passages import Passage


@dataclass(frozen=True, eq=False)
class Document:
    """What `ACRE.add` returns and `ACRE.ask` takes.

    Attributes:
        id: the user's name for it, or a digest of the text.
        text: the text that was read; source positions count its characters.
        offsets: `[N, 2]` character span of each token.
        passages: whole paragraphs of about equal length, in order.
        cache: its bi-layer cache.
        construct_s: seconds that reading took.
    """

    id: str
    text: str
    offsets: NDArray[np.int64]
    passages: tuple[Passage, ...]
    cache: BiLayerCache
    construct_s: float

    @property
    def n_tokens(self) -> int:
        """`N`."""
        return self.cache.n_tokens

    def chars_of_blocks(self, blocks: Run) -> tuple[int, int]:
        """Characters that a run of blocks covers."""
        return chars_of_tokens(blocks.start * self.cache.interval, blocks.stop * self.cache.interval, self.offsets)

    def blocks_of_chars(self, start: int, stop: int) -> Run:
        """Whole blocks that cover characters `start <= c < stop`."""
        first, last = tokens_of_chars(start, stop, self.offsets)
        return blocks_of_tokens(first, last, interval=self.cache.interval, n_blocks=self.cache.n_blocks)
