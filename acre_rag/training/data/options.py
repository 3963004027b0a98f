"""What training data is built with: every choice, with its default. Knows no texts."""

from dataclasses import dataclass

from acre_rag.errors import TrainingDataError
from acre_rag.training.data.sampling import Kind
from acre_rag.training.data.stretches import CHARS_PER_TOKEN, Lengths


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """How documents are cut, composed and sampled.

    Attributes:
        stage: 1 for documents alone, 2 for questions about documents.
        min_tokens: least tokens of a document, estimated.
        max_tokens: most; at least a third more than the least.
        chars_per_token: what the estimate divides characters by.
        limit: most examples; None takes all that the caps allow.
        seed: of every draw.
        threshold: share of 9-word shingles from which a text is too near an evaluation document.
        yes_no_share: most examples, of all, that are answered by yes, no, maybe, true or false: a small model that sees
            more learns to say yes.
        short_share: most examples whose passage is short.
        short_words: a passage of fewer words is short.
        book_share: examples whose passage stands in a stretch of a long text, where there are any, instead of among
            distractor passages.
        shard_examples: most examples of a file.

    Raises:
        TrainingDataError: a choice is out of range.
    """

    stage: int
    min_tokens: int = 2048
    max_tokens: int = 4096
    chars_per_token: float = CHARS_PER_TOKEN
    limit: int | None = None
    seed: int = 0
    threshold: float = 0.08
    yes_no_share: float = 0.1
    short_share: float = 0.1
    short_words: int = 50
    book_share: float = 0.3
    shard_examples: int = 256

    def __post_init__(self) -> None:
        """Refuse what the parts would not notice."""
        if self.stage not in (1, 2):
            raise TrainingDataError(f"stage={self.stage}: training has stages 1 (documents) and 2 (questions).")
        if not 0 <= self.book_share <= 1 or self.shard_examples < 1 or self.short_words < 0:
            raise TrainingDataError(
                f"book_share={self.book_share} must be from 0 to 1, shard_examples={self.shard_examples} 1 or more, "
                f"short_words={self.short_words} 0 or more."
            )

    @property
    def lengths(self) -> Lengths:
        """Of a document."""
        return Lengths(self.min_tokens, self.max_tokens, self.chars_per_token)

    @property
    def caps(self) -> dict[Kind, float]:
        """Of the kinds that would crowd out the rest."""
        return {Kind.YES_NO: self.yes_no_share, Kind.SHORT: self.short_share}
