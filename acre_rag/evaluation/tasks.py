"""How each dataset is asked and scored: prompt, limit of the answer, metric; knows no files and no models.

A chat model gets the prompt as the user's message, as LongBench `pred.py` does for these datasets.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from acre_rag.errors import ConfigError, EvaluationError
from acre_rag.evaluation import published
from acre_rag.evaluation.item import EvalItem
from acre_rag.evaluation.metrics import METRICS
from acre_rag.prompts import ANSWER, SHORT_ANSWER, PromptTemplate

LONGBENCH = ("narrativeqa", "qasper", "multifieldqa_en", "hotpotqa", "2wikimqa", "musique")
ULTRADOMAIN = ("financial", "legal", "physics", "biology", "mathematics", "cs")
OWN_DATA = ("own", "own_choice", "own_long")
"""A user's own questions: short answers, options, long answers; "own:NAME" tells several files apart."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """How one dataset is asked and scored.

    Attributes:
        name: the dataset's.
        template: what stands before the document and after it.
        max_new_tokens: most tokens of an answer.
        metric: name in `METRICS`.
        stop: strings that end an answer.
        prompt_source: where prompt and limit come from.
    """

    name: str
    template: PromptTemplate
    max_new_tokens: int
    metric: str
    stop: tuple[str, ...] = ()
    prompt_source: str

    def __post_init__(self) -> None:
        """A task must be scorable.

        Raises:
            ConfigError: the metric is unknown.
        """
        if self.metric not in METRICS:
            raise ConfigError(f"metric={self.metric!r} is unknown; known: {', '.join(METRICS)}.")

    def score(self, answer: str, item: EvalItem) -> float:
        """0 to 100."""
        return METRICS[self.metric](answer, item)


def task_of(dataset: str) -> Task:
    """The task of a dataset.

    Args:
        dataset: its name; "own:NAME", "own_choice:NAME" and "own_long:NAME" for a user's own file.

    Raises:
        EvaluationError: unknown.
    """
    family = dataset.partition(":")[0]
    if family in OWN_DATA:
        return {"own": _phrase, "own_choice": _options, "own_long": _paragraph}[family](dataset)
    if dataset not in TASKS:
        raise EvaluationError(
            f"Unknown dataset {dataset!r}. For questions of your own: own=PATH, a .jsonl file with document, question "
            f"and answer a line ({', '.join(OWN_DATA[1:])} for options and long answers, own:NAME for several files)."
            f"\nKnown: {', '.join(sorted(TASKS))}."
        )
    return TASKS[dataset]


_OURS = "acre-rag"


def _short(name: str) -> Task:
    """A few words, ended by a line feed."""
    return Task(name=name, template=SHORT_ANSWER, max_new_tokens=32, metric="qa_f1", stop=("\n",), prompt_source=_OURS)


def _phrase(name: str) -> Task:
    """A phrase or a sentence."""
    return Task(name=name, template=ANSWER, max_new_tokens=64, metric="qa_f1", stop=("\n",), prompt_source=_OURS)


def _options(name: str) -> Task:
    """The right one of several options, by its text (the longest of the known datasets has 39 words)."""
    template = PromptTemplate(
        before=SHORT_ANSWER.before,
        after="\n\nExactly one of the options answers the question from the text above. Answer with the text of that "
        "option only, without explanation.\n\nQuestion: {question}",
    )
    return Task(
        name=name, template=template, max_new_tokens=64, metric="option_accuracy", stop=("\n",), prompt_source=_OURS
    )


def _long(name: str, request: str, max_new_tokens: int) -> Task:
    """A sentence, a paragraph or a page."""
    template = PromptTemplate(before=ANSWER.before, after=f"\n\n{request}\n\nQuestion: {{question}}")
    return Task(name=name, template=template, max_new_tokens=max_new_tokens, metric="rouge_l", prompt_source=_OURS)


def _paragraph(name: str) -> Task:
    return _long(name, "Use the text above to answer in one paragraph.", 256)


def _longbench(name: str, like: str) -> Task:
    """A dataset asked like one of LongBench: that one itself, or another with the same kind of document and answer."""
    template, limit, metric = {
        "narrativeqa": (published.LONGBENCH_STORY, 128, "qa_f1"),
        "qasper": (published.LONGBENCH_ARTICLE, 128, "qa_f1"),
        "multifieldqa_en": (published.LONGBENCH_FIELDS, 64, "qa_f1"),
        "hotpotqa": (published.LONGBENCH_PASSAGES, 32, "qa_f1"),
        "2wikimqa": (published.LONGBENCH_PASSAGES, 32, "qa_f1"),
        "musique": (published.LONGBENCH_PASSAGES, 32, "qa_f1"),
        "qmsum": (published.LONGBENCH_MEETING, 512, "rouge_l"),
    }[like]
    source = f"THUDM/LongBench config/dataset2prompt.json and dataset2maxlen.json ({like})"
    return Task(name=name, template=template, max_new_tokens=limit, metric=metric, prompt_source=source)


def _ruler(name: str, template: PromptTemplate, max_new_tokens: int, metric: str, deviation: str = "") -> Task:
    """RULER opens the answer for the model ("The special magic number for X ... is"); here nothing does."""
    source = f"NVIDIA/RULER scripts/data/synthetic/constants.py, answer not opened{deviation}"
    return Task(
        name=f"ruler_{name}", template=template, max_new_tokens=max_new_tokens, metric=metric, prompt_source=source
    )


def _of_longbench() -> Iterator[Task]:
    for name in LONGBENCH:
        yield _longbench(name, name)
        yield _longbench(f"longbench_{name}", name)
    yield _longbench("leval_qasper", "qasper")
    yield _longbench("cacheblend_musique", "musique")
    yield _longbench("ircot_musique", "musique")
    yield _longbench("ircot_2wikimqa", "2wikimqa")
    yield _longbench("qmsum", "qmsum")


def _of_others() -> Iterator[Task]:
    yield Task(
        name="longbook_qa_eng",
        template=published.INFINITEBENCH_BOOK,
        max_new_tokens=40,
        metric="qa_f1",
        prompt_source="OpenBMB/InfiniteBench src/prompt.py (open models) and src/eval_utils.py",
    )
    for domain in ULTRADOMAIN:
        yield Task(
            name=f"ultradomain_{domain}",
            template=published.MEMORAG_QA,
            max_new_tokens=256,
            metric="qa_f1",
            prompt_source="qhjqhj00/MemoRAG memorag/prompt.py (qa_gen), and the limit of its calls",
        )


def _of_ruler() -> Iterator[Task]:
    for name in ("single_1", "single_2", "multikey_1", "multikey_2"):
        yield _ruler(f"niah_{name}", published.ruler_needles("number", several=False), 128, "ruler_all")
    for name in ("single_3", "multikey_3"):
        yield _ruler(f"niah_{name}", published.ruler_needles("uuid", several=False), 128, "ruler_all")
    for name in ("multivalue", "multiquery"):
        yield _ruler(f"niah_{name}", published.ruler_needles("number", several=True), 128, "ruler_all")
    more = "; no worked example before the document, and 64 tokens instead of 30 as the answer is not opened"
    yield _ruler("vt", published.RULER_VARIABLES, 64, "ruler_all", more)
    yield _ruler("qa", published.RULER_DOCUMENTS, 32, "ruler_part")


def _ours() -> Iterator[Task]:
    yield from map(_short, ("squad_article", "leval_nq", "bamboo_altqa", "fairytaleqa"))
    yield from map(_phrase, ("covidqa", "loogle"))
    yield from map(_options, ("leval_quality", "leval_scifi", "bamboo_paperqa", "bamboo_meetingqa"))
    for name in ("graphrag_novel", "leval_multidoc2dial"):
        yield _long(name, "Use the text above to answer in one sentence.", 96)
    yield _long("leval_cuad", "Quote the parts of the contract above that answer, word for word, nothing else.", 256)
    yield _long("squality", "Use the story above to answer in about 250 words.", 512)


TASKS: Mapping[str, Task] = MappingProxyType(
    {task.name: task for make in (_of_longbench, _of_others, _of_ruler, _ours) for task in make()}
)
"""Every known dataset by name."""
