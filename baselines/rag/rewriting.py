"""RQ-RAG's three ways to refine a question, as prompts to any model. Knows no search.

RQ-RAG (arXiv 2404.00610) trains a model to rewrite, decompose or disambiguate; here the same model that answers is
asked to, in our own words.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from acre_rag.answer import Step
from acre_rag.baselines.base import Call
from acre_rag.baselines.prompted import nothing, token_ids
from acre_rag.baselines.rag.lines import listed
from acre_rag.decoder import Decoder
from acre_rag.generate import GenerationSettings, decode
from acre_rag.prompts import PromptTemplate, render
from acre_rag.reading import tokenised_question

SHORT = GenerationSettings(max_new_tokens=64)
"""How refinements are decoded: greedily, whatever the answer's settings, so that searches can be repeated."""


@dataclass(frozen=True)
class Action:
    """A way to refine a question.

    Attributes:
        name: of the trace's step.
        task: what the model is told.
        most: most queries that it may give.
    """

    name: str
    task: PromptTemplate
    most: int


def _task(text: str) -> PromptTemplate:
    return PromptTemplate(before="", after=f"{text}\n\nQuestion: {{question}}")


REWRITE = Action(
    "rewrite",
    _task(
        "Rewrite the question below as one search query that would find the passage that answers it. Keep every name "
        "and number. Write only the query."
    ),
    1,
)
DECOMPOSE = Action(
    "decompose",
    _task(
        "Which simpler questions have to be answered first to answer the question below? Write at most three, one on "
        "each line, and nothing else. If it is simple already, repeat it."
    ),
    3,
)
DISAMBIGUATE = Action(
    "disambiguate",
    _task(
        "The question below may be unclear. Write at most two clear versions of it, one on each line, each saying "
        "exactly who or what is meant. Do not answer it. Write nothing else."
    ),
    2,
)
ACTIONS = (REWRITE, DECOMPOSE, DISAMBIGUATE)


@dataclass(frozen=True)
class Refined:
    """A question's refinements.

    Attributes:
        queries: by action, each at least one.
        prompt_tokens: read for them.
    """

    queries: Mapping[str, Sequence[str]]
    prompt_tokens: int

    @property
    def every(self) -> list[str]:
        """All queries, without repetition."""
        return list(dict.fromkeys(query for each in self.queries.values() for query in each))


def refined(decoder: Decoder, question: str, call: Call) -> Refined:
    """Queries by action; where the model gives nothing of use, the question itself.

    The three prompts are decoded as one batch, which costs little more than one of them.
    """
    prompts = [render(action.task, decoder.tokenizer) for action in ACTIONS]
    ids = [
        torch.cat([token_ids(decoder, prompt.prefix), tokenised_question(question, prompt, decoder).ids])
        for prompt in prompts
    ]
    call.check()
    said = decode(
        decoder,
        [nothing(decoder)] * len(prompts),
        ids,
        SHORT,
        stopped=[call.stopped] * len(prompts),
    )
    call.check()
    queries = {
        action.name: listed(each.text, most=action.most) or [question]
        for action, each in zip(ACTIONS, said, strict=True)
    }
    return Refined(queries, sum(map(len, ids)))


def steps(queries: Mapping[str, Sequence[str]]) -> list[Step]:
    """The queries as a trace."""
    return [Step(name, query) for name, each in queries.items() for query in each]
