"""A document's passages: whole paragraphs or sentences of about equal length, and the blocks that cover them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from semantic_text_splitter import TextSplitter

from acre_rag.blocks import Run, blocks_of_tokens, tokens_of_chars


@dataclass(frozen=True)
class Passage:
    """Characters `start <= c < stop` of a document, the tokens in them and the blocks that cover those."""

    start: int
    stop: int
    tokens: Run
    blocks: Run


def split_passages(text: str, offsets: NDArray[np.int64], *, interval: int, passage_tokens: int) -> tuple[Passage, ...]:
    """Cut a document at paragraph, else sentence, else word borders.

    Args:
        text: the document.
        offsets: `[N, 2]` character span of each token.
        interval: `l`.
        passage_tokens: target length; a passage ends at the first good border between 75 % and 125 % of it.

    Returns:
        Passages in document order, without gaps other than white space. Tokens of the tail belong to a passage but to
        no block.
    """
    n_tokens = len(offsets)
    target = passage_tokens * len(text) / max(1, n_tokens)  # in characters; fewer than tokens in some scripts
    chunks = TextSplitter((max(1, round(0.75 * target)), max(1, round(1.25 * target)))).chunk_indices(text)
    passages = []
    for start, chunk in chunks:
        first, last = tokens_of_chars(start, start + len(chunk), offsets)
        blocks = blocks_of_tokens(first, last, interval=interval, n_blocks=n_tokens // interval)
        passages.append(Passage(start, start + len(chunk), Run(first, last), blocks))
    return tuple(passages)
