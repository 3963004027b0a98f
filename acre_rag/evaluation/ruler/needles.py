"""Needles in a haystack: facts of one kind hidden in a text, some of them asked for; knows no model and no length."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from acre_rag.errors import ConfigError
from acre_rag.evaluation.ruler.haystack import spread_depths
from acre_rag.evaluation.ruler.quiz import Fill, Quiz, QuizMaker
from acre_rag.evaluation.ruler.words import NOISE, different


@dataclass(frozen=True, kw_only=True)
class Needles:
    """What is hidden where (RULER `scripts/synthetic.yaml`).

    Attributes:
        hay: "noise" (one line again and again), "book", or "needles" (the same kind of sentence with other keys).
        keys: "words" or "uuids".
        values: "numbers" or "uuids".
        n_keys: keys hidden.
        n_values: values of each key.
        n_asked: keys asked for.
    """

    hay: str = "book"
    keys: str = "words"
    values: str = "numbers"
    n_keys: int = 1
    n_values: int = 1
    n_asked: int = 1


NEEDLES: Mapping[str, Needles] = MappingProxyType(
    {
        "ruler_niah_single_1": Needles(hay="noise"),
        "ruler_niah_single_2": Needles(),
        "ruler_niah_single_3": Needles(values="uuids"),
        "ruler_niah_multikey_1": Needles(n_keys=4),
        "ruler_niah_multikey_2": Needles(hay="needles"),
        "ruler_niah_multikey_3": Needles(hay="needles", keys="uuids", values="uuids"),
        "ruler_niah_multivalue": Needles(n_values=4),
        "ruler_niah_multiquery": Needles(n_keys=4, n_asked=4),
    }
)
"""The needle tasks by name."""


def needle_maker(spec: Needles, sentences: Sequence[str], fill: Fill) -> QuizMaker:
    """Hides and asks as a specification says.

    Args:
        spec: what is hidden.
        sentences: of the book, in order; repeated where they do not fill the length.
        fill: makes a document of the wanted length.

    Raises:
        ConfigError: no sentence.
    """
    if not sentences:
        raise ConfigError("texts hold no sentence; pass texts, or leave it out for the shipped book.")

    def make(rng: random.Random, _: int) -> Quiz:
        keys = different(spec.keys, spec.n_keys, rng)
        numbers = iter(different(spec.values, spec.n_keys * spec.n_values, rng))
        values = {key: [next(numbers) for _ in range(spec.n_values)] for key in keys}
        hidden = [(key, value) for key in keys for value in values[key]]
        rng.shuffle(hidden)
        asked = rng.sample(keys, spec.n_asked)
        start, salt = rng.randrange(len(sentences)), rng.random()

        def hay(n: int) -> list[str]:
            if spec.hay == "noise":
                return [NOISE] * n
            if spec.hay == "book":
                return [sentences[(start + i) % len(sentences)] for i in range(n)]
            others = random.Random(salt)  # anew each time: the first n are the same for every n
            return [
                _needle(spec, different(spec.keys, 1, others, keys)[0], different(spec.values, 1, others)[0])
                for _ in range(n)
            ]

        haystack = fill(
            hay,
            [_needle(spec, key, value) for key, value in hidden],
            spread_depths(len(hidden), rng),
            separator=" " if spec.hay == "book" else "\n",
        )
        return Quiz(
            haystack,
            _needle_question(spec, asked),
            tuple(value for key in asked for value in values[key]),
            tuple(i for i, (key, _) in enumerate(hidden) if key in asked),
        )

    return make


def _needle(spec: Needles, key: str, value: str) -> str:
    return f"One of the special magic {spec.values} for {key} is: {value}."


def _needle_question(spec: Needles, asked: Sequence[str]) -> str:
    listed = asked[0] if len(asked) == 1 else f"{', '.join(asked[:-1])}, and {asked[-1]}"
    several = spec.n_asked * spec.n_values > 1
    what = f"are all the special magic {spec.values}" if several else f"is the special magic {spec.values[:-1]}"
    return f"What {what} for {listed} mentioned in the provided text?"
