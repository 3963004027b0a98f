"""The options of the method, validated once: knows numbers and names, nothing of tensors or models."""

from dataclasses import dataclass, fields, replace
from typing import Literal, get_args

from acre_rag.errors import CapacityError, ConfigError

Strategy = Literal["auto", "paper", "consensus", "retriever", "hybrid"]
Granularity = Literal["blocks", "passages"]

ASKS_A_RETRIEVER = ("retriever", "hybrid")
"""Strategies that ask the text retriever."""

INTERVALS = (8, 16, 32, 64, 128)
"""The intervals that the paper trains with, and the choices of the automatic interval."""


@dataclass(frozen=True, kw_only=True)
class ACREConfig:
    """Options of reading a document and of answering from it.

    Attributes:
        window: `W`, most keys that any token attends to, in tokens; `None` takes the model's own window,
            at most 32768 (the paper's).
        interval: `l`, document tokens per L1 entry; `None` picks the smallest of 8, 16, 32, 64, 128 with
            `N / l <= W / 2` (and at least `min_interval`).
        min_interval: smallest interval that the automatic choice may pick (the paper's default is 16).
        stride: `S`, document tokens read in one forward pass; `None` takes a quarter of the window, at most 2048.
            Where a long prompt and many L1 entries leave the window less room, a stride is shorter.
        budget: `eta`, most tokens refilled per question (Eq. 17).
        select: how blocks are chosen: "paper", "consensus", "retriever" or "hybrid"; "auto" is consensus where the
            model's retrieval heads are known (hybrid with a retriever of your own), else retriever: without them
            attention alone is often wrong.
        granularity: "passages" refills runs of blocks that cover whole paragraphs, "blocks" single ones.
        passage_tokens: target length of one passage, in tokens.
        max_passages: most passages refilled per question; more is not better for a small reader.
        l2_bits: bits of the exact layer: 16 as the model computes it, or 8 or 4 (needs the "quantised" extra).
        l1_context: whether the L1 entries stay between the refilled blocks when decoding.
        recompute: whether refilled passages are read anew where they stand, instead of taken from L2: better answers
            from a small reader, for one more forward pass over them at each question (beyond the paper).
        prior: whether the attention of content-free questions is taken off a question's (off: for comparison).

    Raises:
        ConfigError: an option is out of range.
    """

    window: int | None = None
    interval: int | None = None
    min_interval: int = 16
    stride: int | None = None
    budget: int = 4096
    select: Strategy = "auto"
    granularity: Granularity = "passages"
    passage_tokens: int = 450
    max_passages: int = 2
    l2_bits: int = 16
    l1_context: bool = True
    recompute: bool = False
    prior: bool = True

    def __post_init__(self) -> None:
        """Check every option on its own."""
        _at_least("window", self.window, 64)
        _at_least("interval", self.interval, 1)
        _at_least("min_interval", self.min_interval, 1)
        _at_least("stride", self.stride, 1)
        _at_least("budget", self.budget, 0)
        _at_least("passage_tokens", self.passage_tokens, 1)
        _at_least("max_passages", self.max_passages, 1)
        _one_of("select", self.select, get_args(Strategy))
        if self.l2_bits not in (4, 8, 16):
            raise ConfigError(f"l2_bits={self.l2_bits} is unknown: choose 16 (exact), 8 or 4.")
        _one_of("granularity", self.granularity, get_args(Granularity))
        if self.recompute and self.select == "paper":
            raise ConfigError(
                "recompute=True reads a passage once for all layers, and select='paper' chooses for each layer its "
                "own: use another strategy, or leave recompute out."
            )
        if self.interval is not None and self.window is not None and self.interval > self.window // 2:
            raise ConfigError(
                f"interval={self.interval} is more than half of window={self.window}: no block would fit beside "
                f"its L1 entries. Use an interval of at most {self.window // 2}, or a larger window."
            )

    def settled(self, *, heads_known: bool, own_retriever: bool = False) -> "ACREConfig":
        """The same with "auto" in its meaning for a model and a retriever of the user's own."""
        if self.select != "auto":
            return self
        if not heads_known:
            return replace(self, select="retriever")
        return replace(self, select="hybrid" if own_retriever else "consensus")


def _at_least(name: str, value: object, low: int) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{name} must be a whole number, got {value!r}.")
    if value < low:
        raise ConfigError(f"{name}={value} is too small: use {low} or more.")


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name}={value!r} is unknown: choose one of {', '.join(choices)}.")


def auto_interval(n_tokens: int, window: int, min_interval: int = 16) -> int:
    """Smallest allowed interval with `N / l <= W / 2`.

    Args:
        n_tokens: `N`, document length in tokens.
        window: `W`, in tokens.
        min_interval: smallest interval to consider.

    Raises:
        CapacityError: no interval is large enough; states the numbers and the remedy.
    """
    candidates = [interval for interval in INTERVALS if interval >= min_interval] or [min_interval]
    for interval in candidates:
        if n_tokens <= interval * (window // 2):
            return interval
    largest = candidates[-1]
    raise CapacityError(
        f"The document has {n_tokens:,} tokens; with window={window:,} and the largest interval {largest} at most "
        f"{largest * (window // 2):,} fit. Use a larger window, a larger interval, or split the document."
    )


READING_OPTIONS = ("window", "interval", "min_interval", "stride", "passage_tokens", "l2_bits")
"""Options that decide how a document is read; another value needs it read anew."""

ASKING_OPTIONS = tuple(field.name for field in fields(ACREConfig) if field.name not in READING_OPTIONS)
"""Options that one cache serves with any value."""
