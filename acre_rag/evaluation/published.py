"""Prompts of published benchmarks, word for word; knows neither limits nor metrics nor who uses them.

Each is cut where the document stands, so that what comes before it is read once with the document. Sources:
THUDM/LongBench `config/dataset2prompt.json`, OpenBMB/InfiniteBench `src/prompt.py` (the template of the open models),
qhjqhj00/MemoRAG `memorag/prompt.py`, NVIDIA/RULER `scripts/data/synthetic/constants.py` (arXiv 2404.06654).
"""

from acre_rag.prompts import PromptTemplate

_CONCISELY = (
    "as concisely as you can, using a single phrase if possible. Do not provide any explanation."  # twice in one prompt
)
_UNANSWERABLE = (
    "as concisely as you can, using a single phrase or sentence if possible. If the question cannot be answered based "
    'on the information in the article, write "unanswerable". If the question is a yes/no question, answer "yes", '
    '"no", or "unanswerable". Do not provide any explanation.'
)
_FROM_PASSAGES = (
    "Answer the question based on the given passages. Only give me the answer and do not output any other words."
)
_FROM_DOCUMENTS = (
    "Answer the question based on the given documents. Only give me the answer and do not output any other words."
)

LONGBENCH_STORY = PromptTemplate(
    before="You are given a story, which can be either a novel or a movie script, and a question. Answer the question "
    f"{_CONCISELY}\n\nStory: ",
    after=f"\n\nNow, answer the question based on the story {_CONCISELY}\n\nQuestion: {{question}}\n\nAnswer:",
)
"""NarrativeQA."""

LONGBENCH_ARTICLE = PromptTemplate(
    before=f"You are given a scientific article and a question. Answer the question {_UNANSWERABLE}\n\nArticle: ",
    after=f"\n\n Answer the question based on the above article {_UNANSWERABLE}\n\nQuestion: {{question}}\n\nAnswer:",
)
"""Qasper."""

LONGBENCH_FIELDS = PromptTemplate(
    before="Read the following text and answer briefly.\n\n",
    after="\n\nNow, answer the following question based on the above text, only give me the answer and do not output "
    "any other words.\n\nQuestion: {question}\nAnswer:",
)
"""MultiFieldQA-en."""

LONGBENCH_PASSAGES = PromptTemplate(
    before=f"{_FROM_PASSAGES}\n\nThe following are given passages.\n",
    after=f"\n\n{_FROM_PASSAGES}\n\nQuestion: {{question}}\nAnswer:",
)
"""HotpotQA, 2WikiMultihopQA, MuSiQue."""

LONGBENCH_MEETING = PromptTemplate(
    before="You are given a meeting transcript and a query containing a question or instruction. Answer the query in "
    "one or more sentences.\n\nTranscript:\n",
    after="\n\nNow, answer the query based on the above meeting transcript in one or more sentences.\n\n"
    "Query: {question}\nAnswer:",
)
"""QMSum."""

INFINITEBENCH_BOOK = PromptTemplate(
    before="Read the book and answer the question. Be very concise in your answer.\n\n",
    after="\n\nQuestion: {question}\nAnswer:",
)
"""En.QA."""

MEMORAG_QA = PromptTemplate(
    before="Read the text below and answer a question.\n\n", after="\n\nQuestion: {question}\n\nBe concise."
)
"""UltraDomain."""

RULER_VARIABLES = PromptTemplate(
    before="Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n",
    after="\nQuestion: {question}",
)
"""Variable tracking."""

RULER_DOCUMENTS = PromptTemplate(
    before=f"{_FROM_DOCUMENTS}\n\nThe following are given documents.\n\n",
    after=f"\n\n{_FROM_DOCUMENTS}\n\nQuestion: {{question}}",
)
"""Question answering among distractors."""


def ruler_needles(kind: str, *, several: bool) -> PromptTemplate:
    """Needles in a haystack.

    Args:
        kind: what is hidden: "number" or "uuid".
        several: whether more than one is asked for; RULER's wording changes.
    """
    subject = f"Some special magic {kind}s are" if several else f"A special magic {kind} is"
    before = (
        f"{subject} hidden within the following text. Make sure to memorize it. I will quiz you about the "
        f"{kind}{'s' if several else ''} afterwards.\n"
    )
    return PromptTemplate(before=before, after="\n{question}")
