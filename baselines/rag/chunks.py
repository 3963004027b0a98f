"""A document cut into chunks of about equal length, as every retrieval system here searches them. Knows no search."""

from dataclasses import dataclass
from typing import Any

from semantic_text_splitter import TextSplitter
from tokenizers import Tokenizer

from acre_rag.errors import ConfigError


@dataclass(frozen=True)
class Chunk:
    """Characters `start <= c < stop` of a document, and how many of the model's tokens they are."""

    start: int
    stop: int
    n_tokens: int


def split_chunks(text: str, tokenizer: Any, chunk_tokens: int) -> tuple[Chunk, ...]:
    """Cut a document at paragraph, else sentence, else word borders (library: semantic-text-splitter).

    Args:
        text: the document.
        tokenizer: the model's own; a chunk is measured in its tokens.
        chunk_tokens: most tokens of a chunk.

    Returns:
        Chunks in document order, without overlap and without gaps other than white space.

    Raises:
        ConfigError: `chunk_tokens` is below 1.
    """
    if chunk_tokens < 1:
        raise ConfigError(f"chunk_tokens={chunk_tokens} must be 1 or more.")
    # A copy: another thread may tokenise with the original, and a truncation that it has set would hide long chunks.
    counter = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    counter.no_truncation()
    found = TextSplitter.from_huggingface_tokenizer(counter, chunk_tokens).chunk_indices(text)
    lengths = [len(each.ids) for each in counter.encode_batch([part for _, part in found], add_special_tokens=False)]
    return tuple(Chunk(start, start + len(part), n) for (start, part), n in zip(found, lengths, strict=True))
