"""A comparison as one HTML file that needs nothing else: tables, pictures, every question side by side.

Answers, documents and data sets are other people's text: the template escapes all of it, and the page runs no script.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import groupby
from typing import Any

from acre_rag.errors import MissingExtraError
from acre_rag.evaluation import plots
from acre_rag.evaluation.report import Comparison
from acre_rag.evaluation.sheets import Sheet, heading, sheets_of
from acre_rag.evaluation.side_by_side import AskedQuestion, asked_questions

_TEMPLATE = "comparison.html"


@dataclass(frozen=True)
class Picture:
    """A picture inside the page.

    Attributes:
        title: what it shows.
        address: a `data:` address that holds all of it.
    """

    title: str
    address: str


@dataclass(frozen=True)
class Chapter:
    """One comparison as the template takes it."""

    heading: str
    comparison: Comparison
    sheets: Sequence[Sheet]
    pictures: Sequence[Picture]
    questions: Mapping[str, Sequence[AskedQuestion]]


def page(comparisons: Sequence[Comparison], *, quoted: bool = True) -> str:
    """The whole file.

    Args:
        comparisons: the findings.
        quoted: whether evidence and steps on the way are quoted; else the page only tells where the evidence stands.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not installed.
    """
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise MissingExtraError("jinja2", "evaluation", "The HTML page") from error
    text = (resources.files("acre_rag") / "data" / _TEMPLATE).read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(text).render(chapters=[_chapter(each) for each in comparisons], quoted=quoted)


def _chapter(comparison: Comparison) -> Chapter:
    questions = sorted(asked_questions(comparison), key=lambda each: list(comparison.datasets).index(each.dataset))
    return Chapter(
        heading=heading(comparison),
        comparison=comparison,
        sheets=sheets_of(comparison),
        pictures=_pictures(comparison),
        questions={name: list(of) for name, of in groupby(questions, key=lambda each: each.dataset)},
    )


def _pictures(comparison: Comparison) -> list[Picture]:
    drawn: list[tuple[str, Any]] = [
        ("Quality against cost", plots.quality_against_cost(comparison)),
        ("Score of each data set", plots.bars_by_dataset(comparison)),
        ("Score by document length", plots.score_by_length(comparison)),
    ]
    return [Picture(title, _address(figure)) for title, figure in drawn if figure is not None]


def _address(figure: Any) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(plots.svg_of(figure)).decode("ascii")
