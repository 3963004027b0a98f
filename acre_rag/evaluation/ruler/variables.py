"""Variable tracking: a chain of assignments hidden in noise, all its variables asked for; knows no model, no length."""

import random
from itertools import pairwise

from acre_rag.evaluation.ruler.haystack import spread_depths
from acre_rag.evaluation.ruler.quiz import Fill, Quiz, QuizMaker
from acre_rag.evaluation.ruler.words import NOISE, different

_HOPS = 4


def variable_maker(fill: Fill) -> QuizMaker:
    """One chain of assignments, `_HOPS` long, among noise; asked for are all variables of the chain."""

    def make(rng: random.Random, _: int) -> Quiz:
        names = different("variables", _HOPS + 1, rng)
        value = str(rng.randrange(10_000, 100_000))
        chain = [f"VAR {names[0]} = {value}"]
        chain += [f"VAR {new} = VAR {old}" for old, new in pairwise(names)]
        haystack = fill(lambda n: [NOISE] * n, chain, spread_depths(len(chain), rng), separator="\n")
        question = f"Find all variables that are assigned the value {value} in the text above."
        return Quiz(haystack, question, tuple(names), tuple(range(len(chain))))

    return make
