"""What a question gives back: the answer, its sources, what it cost. Plain data."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Source:
    """A stretch of a document that the answer was refilled from.

    Attributes:
        document: the document's id.
        start: first character.
        end: one past the last character.
        text: `document.text[start:end]`.
        score: how strongly the question chose it; higher is better, comparable within one answer only.
    """

    document: str
    start: int
    end: int
    text: str
    score: float


@dataclass(frozen=True)
class Usage:
    """Tokens of one answer.

    Attributes:
        prompt_tokens: question and template, read for this answer.
        cached_tokens: cache slots that the answer was decoded on (prefix, L1, refilled, tail).
        refilled_tokens: exact document tokens refilled from L2.
        generated_tokens: tokens of the answer.
        also_read_tokens: prompts of steps on the way, which the answer itself did not attend to (sub-queries, clues).
    """

    prompt_tokens: int
    cached_tokens: int
    refilled_tokens: int
    generated_tokens: int
    also_read_tokens: int = 0


@dataclass(frozen=True)
class Timings:
    """Seconds of one answer.

    Attributes:
        construct_s: reading the documents; paid once, before the first question.
        select_s: question to chosen blocks.
        refill_s: chosen blocks to the working cache.
        first_token_s: from asking to the first token of the answer.
        decode_s: the tokens after the first.
    """

    construct_s: float
    select_s: float
    refill_s: float
    first_token_s: float
    decode_s: float


@dataclass(frozen=True)
class Step:
    """Something a system did on its way to an answer, for people to read.

    Attributes:
        name: what: "rewrite", "sub-query", "clue", "draft", ...
        text: what came of it.
    """

    name: str
    text: str


@dataclass(frozen=True)
class Answer:
    """The answer to one question.

    Attributes:
        text: the answer.
        sources: where it stands, best first; neighbouring blocks are merged.
        usage: tokens.
        timings: seconds.
        scope: "passages" when the question pointed somewhere, "document" when it asked about the whole and the
            refilled passages are a sample spread over it; "none" when no document was asked.
        finished: whether the model ended it (or a stop string did), not the limit of tokens.
        notes: what the user should know: documents left out, memory that was short.
        trace: steps on the way, of systems that take several.
    """

    text: str
    sources: tuple[Source, ...]
    usage: Usage
    timings: Timings
    scope: str = "passages"
    finished: bool = True
    notes: tuple[str, ...] = ()
    trace: tuple[Step, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return asdict(self)
