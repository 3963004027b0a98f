"""A training example as tensors: what is read, what is asked, what is to be predicted. Knows tokenizer and settings."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor

from acre_rag.blocks import blocks_of_tokens, tokens_of_chars
from acre_rag.decoder import Decoder
from acre_rag.errors import CapacityError, ConfigError, DocumentError
from acre_rag.prompts import SHORT_ANSWER, RenderedPrompt, render
from acre_rag.question import Question
from acre_rag.reading import tokenised_question
from acre_rag.training.data.example import TrainingExample
from acre_rag.training.layout import Layout, reading
from acre_rag.training.losses import stage1_targets
from acre_rag.training.settings import TrainingSettings


@dataclass(frozen=True)
class Lesson:
    """One example, ready to be read.

    Attributes:
        token_ids: `[P + N + Q]`, prefix, document, all that is asked.
        layout: who sees whom.
        slots: `[n]`, slots whose next token is to be predicted.
        targets: `[n]`, those tokens.
        question: slots of the question as it is first read, over the L1 entries alone; `None` in stage 1.
        gold: blocks that answer it.
        beside: slots and targets of the document's own next tokens (stage 1's), for `document_weight`.
    """

    token_ids: Tensor
    layout: Layout
    slots: Tensor
    targets: Tensor
    question: slice | None = None
    gold: tuple[int, ...] = ()
    beside: tuple[Tensor, Tensor] | None = None


_PIECE = 128  # tokens of a repeated document that keep their order
_MOST_SKIPPED = 100  # in one step; then the data is held to be of the wrong kind


@dataclass(frozen=True)
class Draw:
    """What is drawn anew for each step: the same in every process and after every restart."""

    interval: int
    n_tokens: int

    @classmethod
    def of(cls, settings: TrainingSettings, step: int) -> "Draw":
        """The draw of one step."""
        rng = random.Random(f"{settings.seed}:{step}")
        return cls(rng.choice(settings.intervals), rng.choice(settings.context))


class Teacher:
    """Turns examples into lessons for one model.

    Args:
        decoder: the model, for its tokenizer and prompt format.
        settings: of the run.
    """

    def __init__(self, decoder: Decoder, settings: TrainingSettings) -> None:
        self._decoder, self._settings = decoder, settings
        self._prompt: RenderedPrompt = render(SHORT_ANSWER, decoder.tokenizer)
        self._prefix = self._ids(self._prompt.prefix)

    def check_window(self) -> None:
        """Lay out a document of each length with each interval, so that no step fails hours into a run.

        Raises:
            ConfigError: one that a step may draw does not fit the window.
        """
        if self._settings.stage == "sft":
            return
        for n_tokens, interval in product(self._settings.context, self._settings.intervals):
            try:
                self._reading(n_tokens, interval)
            except CapacityError as error:
                raise ConfigError(
                    f"window={self._settings.window} is too small for context={n_tokens} with interval={interval}, and "
                    f"a step may draw both. {error}"
                ) from error

    def lesson(self, example: TrainingExample, draw: Draw) -> Lesson:
        """One example of the run's stage.

        Raises:
            DocumentError: too short to learn from, or without question and answer in stage 2.
            CapacityError: the document does not fit the window: what answers is spread too wide, or its tail is long.
        """
        if self._settings.stage == "stage1":
            return self.document_lesson(example, draw)
        if self._settings.stage == "sft":
            return self._plain_lesson(example, draw)
        return self._question_lesson(example, draw)

    def lessons(self, examples: Iterator[TrainingExample], draw: Draw, *, n: int) -> tuple[list[Lesson], list[str]]:
        """The next `n` lessons of an endless line of examples; those that teach nothing are passed over.

        Hours into a run, one short text is no reason to end it.

        Returns:
            The lessons, and for each example passed over the reason.

        Raises:
            DocumentError: a hundred of them teach nothing.
        """
        found: list[Lesson] = []
        skipped: list[str] = []
        while len(found) < n:
            example = next(examples)
            try:
                found.append(self.lesson(example, draw))
            except (DocumentError, CapacityError) as error:
                skipped.append(str(error))
                if len(skipped) == _MOST_SKIPPED:
                    raise DocumentError(
                        f"{len(skipped)} examples teach nothing, of {len(skipped) + len(found)} read for one step. "
                        f"The last: {error}"
                    ) from error
        return found, skipped

    def document_lesson(self, example: TrainingExample, draw: Draw) -> Lesson:
        """Eq. 20: the document's own next tokens."""
        document = self._ids(example.document)[: draw.n_tokens]
        rng = random.Random(f"{self._settings.seed}:{example.id}:{draw}")
        if rng.random() < self._settings.repeats:
            document = repeated(document, rng)
        if len(document) < self._settings.least_tokens:
            raise DocumentError(
                f"{example.id} has {len(document)} tokens, and a later stride to learn from takes "
                f"{self._settings.least_tokens}. Train on longer documents, or with a smaller stride."
            )
        layout = self._reading(len(document), draw.interval)
        ids = torch.cat([self._prefix, document])
        slots, targets = stage1_targets(layout, ids, first_stride=self._settings.first_stride)
        return Lesson(ids, layout, slots, targets)

    def _question_lesson(self, example: TrainingExample, draw: Draw) -> Lesson:
        """Eq. 21: the question is read over L1 alone, as in selection; then with refilled blocks, and answered."""
        question, answer = self._asked(example)
        rng = random.Random(f"{self._settings.seed}:{example.id}:{draw}")
        document, gold_tokens = self._around_gold(example, draw.n_tokens, rng)
        if len(document) < draw.interval:
            raise DocumentError(f"{example.id} has {len(document)} tokens, and a block takes {draw.interval}.")
        layout = self._reading(len(document), draw.interval)
        gold = _blocks_of(gold_tokens, layout)
        first = layout.n_slots
        beside = stage1_targets(layout, torch.cat([self._prefix, document])) if self._settings.document_weight else None
        refilled = {*gold, *self._random_run(layout, len(gold), rng)}
        layout = layout.asking(len(question.ids))
        layout = layout.asking(len(question.ids) + len(answer), refilled=sorted(refilled))
        ids = torch.cat([self._prefix, document, question.ids, question.ids, answer])
        slots = torch.arange(layout.n_slots - len(answer) - 1, layout.n_slots - 1)
        own = slice(first + question.own.start, first + question.own.stop)
        return Lesson(ids, layout, slots, answer, own, gold, beside)

    def _plain_lesson(self, example: TrainingExample, draw: Draw) -> Lesson:
        """The same example as ordinary text: one step, no block, no L1 token."""
        question, answer = self._asked(example)
        rng = random.Random(f"{self._settings.seed}:{example.id}:{draw}")
        document, _ = self._around_gold(example, draw.n_tokens, rng)
        ids = torch.cat([self._prefix, document, question.ids, answer])
        layout = reading(n_prefix=0, n_tokens=len(ids), interval=len(ids) + 1, stride=len(ids) + 1)
        return Lesson(ids, layout, torch.arange(len(ids) - len(answer) - 1, len(ids) - 1), answer)

    def _asked(self, example: TrainingExample) -> tuple[Question, Tensor]:
        """Question and answer in tokens."""
        if not example.question or not example.answer:
            raise DocumentError(
                f"{example.id} has no question and answer, and this stage needs them; stage 1 does not."
            )
        question = tokenised_question(example.question, self._prompt, self._decoder)
        return question, self._ids(f"{example.answer.strip()}{self._end}")

    def _reading(self, n_tokens: int, interval: int) -> Layout:
        return reading(
            n_prefix=len(self._prefix),
            n_tokens=n_tokens,
            interval=interval,
            stride=self._settings.stride,
            window=self._settings.window,
        )

    def _around_gold(
        self, example: TrainingExample, n_tokens: int, rng: random.Random
    ) -> tuple[Tensor, list[tuple[int, int]]]:
        """`n_tokens` tokens of the document, or more where what answers is spread wider, and its places there."""
        encoded = self._decoder.tokenizer(example.document, add_special_tokens=False, return_offsets_mapping=True)
        offsets = np.asarray(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2)
        spans = [tokens_of_chars(start, stop, offsets) for start, stop in example.gold]
        earliest = max(0, max((stop for _, stop in spans), default=0) - n_tokens)
        latest = min([start for start, _ in spans] + [max(0, len(offsets) - n_tokens)])
        if earliest > latest:  # what answers is spread wider than the step's length: a longer document, not a dead run
            earliest, n_tokens = latest, max(stop for _, stop in spans) - latest
        first = rng.randint(earliest, latest)
        ids = torch.tensor(encoded["input_ids"][first : first + n_tokens], device=self._decoder.device)
        return ids, [(start - first, stop - first) for start, stop in spans]

    def _random_run(self, layout: Layout, n_gold: int, rng: random.Random) -> range:
        """Neighbouring blocks that stand for what selection gets wrong."""
        n_more = min(max(0, self._settings.refill // layout.interval - n_gold), layout.n_blocks)
        start = rng.randint(0, layout.n_blocks - n_more)
        return range(start, start + n_more)

    @property
    def _end(self) -> str:
        """An answer teaches the model to end it."""
        return str(self._decoder.tokenizer.eos_token or "")

    def _ids(self, text: str) -> Tensor:
        ids = self._decoder.tokenizer(text, add_special_tokens=False)["input_ids"]
        return torch.tensor(ids, dtype=torch.long, device=self._decoder.device)


def repeated(document: Tensor, rng: random.Random) -> Tensor:
    """The first half of `[N]` tokens, then its pieces again in an order that is drawn (less an odd last one)."""
    half = document[: len(document) // 2]
    pieces = list(half.split(_PIECE))
    rng.shuffle(pieces)
    return torch.cat([half, *pieces])


def _blocks_of(spans: Sequence[tuple[int, int]], layout: Layout) -> tuple[int, ...]:
    blocks: set[int] = set()
    for start, stop in spans:
        run = blocks_of_tokens(start, stop, interval=layout.interval, n_blocks=layout.n_blocks)
        blocks.update(range(run.start, run.stop))
    return tuple(sorted(blocks))
