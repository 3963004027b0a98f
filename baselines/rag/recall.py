"""What MemoRAG asks of its memory, and how what it says is read. Knows no memory and no search.

The three tasks are those of the repository qhjqhj00/MemoRAG (`prompt.py`: "span", "sur" and "qa"), in our own words.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from acre_rag.answer import Step
from acre_rag.baselines.rag.lines import listed
from acre_rag.prompts import PromptTemplate

BEFORE = "Here is a long text. Remember what it says; a task follows after it.\n\n"

RECALL_TOKENS = 128
"""Most tokens of each of memory's three replies, in the repository. It also penalises repetition (1.2): no system does
here, so that all of them decode alike."""

LEAST_WORDS = 4
"""A clue of fewer words says too little to search by; the repository draws the same line."""


def _task(text: str) -> PromptTemplate:
    return PromptTemplate(before=BEFORE, after=f"\n\n{text}\n\nQuestion: {{question}}")


CLUES = _task(
    "Someone will ask the question below about the text. Recall the passages of the text that help to answer it, and "
    "write down what they say: one or more short clues, one on each line, nothing else."
)
QUESTIONS = _task(
    "Someone will ask the question below about the text. Write one or more exact questions whose answers in the text "
    "would help, one on each line, nothing else."
)
DRAFT = _task("Answer the question below from the text, in one short sentence.")
TASKS = (CLUES, QUESTIONS, DRAFT)


@dataclass(frozen=True)
class Recalled:
    """What memory said to one question.

    Attributes:
        clues: what the text may say.
        questions: more exact questions.
        draft: a first answer.
    """

    clues: tuple[str, ...]
    questions: tuple[str, ...]
    draft: str

    @property
    def queries(self) -> list[str]:
        """What is searched beside the question itself."""
        return [*self.clues, *self.questions, *([self.draft] if self.draft else [])]

    @property
    def steps(self) -> list[Step]:
        """The same as a trace."""
        named = [("clue", each) for each in self.clues] + [("surrogate question", each) for each in self.questions]
        return [Step(name, text) for name, text in [*named, ("draft", self.draft)] if text]


def recalled(clues: str, questions: str, draft: str, *, most: int | None = None) -> Recalled:
    """What memory said to `TASKS`, in that order, put in order.

    Args:
        clues: its reply to the first task.
        questions: to the second.
        draft: to the third.
        most: most clues, and most questions, that are taken; all of them by default.
    """
    useful = [tuple(listed(said, most=most, least_words=LEAST_WORDS)) for said in (clues, questions)]
    return Recalled(useful[0], useful[1], " ".join(draft.split()))


def all_queries(question: str, recollections: Sequence[Recalled]) -> list[str]:
    """The question and everything recalled, without repetition."""
    return list(dict.fromkeys([question, *(query for each in recollections for query in each.queries)]))
