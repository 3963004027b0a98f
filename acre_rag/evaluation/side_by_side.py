"""Single questions, every system's answer and evidence beside each other: chosen, and shown on a terminal."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console, Group
from rich.padding import Padding
from rich.panel import Panel
from rich.text import Text

from acre_rag.evaluation.report import Comparison
from acre_rag.evaluation.rows import Row

_EVIDENCE = 2
_STEP_CHARS, _EVIDENCE_CHARS = 200, 160


@dataclass(frozen=True, kw_only=True)
class AskedQuestion:
    """One question with what each system made of it.

    Attributes:
        dataset: the data set.
        item: the question's id.
        question: the question.
        gold: accepted answers.
        document: the document's id.
        document_tokens: its length.
        rows: title and row of each system, in the comparison's order.
    """

    dataset: str
    item: str
    question: str
    gold: Sequence[str]
    document: str
    document_tokens: int
    rows: Sequence[tuple[str, Row]]

    @property
    def spread(self) -> float:
        """How much the systems differ: best score minus worst."""
        scores = [row.score for _, row in self.rows]
        return max(scores) - min(scores)


def asked_questions(comparison: Comparison) -> list[AskedQuestion]:
    """Every question, by data set, in the order in which they were asked."""
    return list(_questions(comparison))


def most_telling(comparison: Comparison, count: int) -> list[AskedQuestion]:
    """The questions on which the systems differ most; of equal ones, the data sets in turn."""
    seen: dict[str, int] = {}
    ranked = []
    for question in sorted(_questions(comparison), key=lambda each: -each.spread):
        seen[question.dataset] = seen.get(question.dataset, 0) + 1
        ranked.append((-question.spread, seen[question.dataset], question))
    return [question for _, _, question in sorted(ranked, key=lambda each: each[:2])[:count]]


def show_question(console: Console, asked: AskedQuestion) -> None:
    """One question with a block for each system."""
    parts: list[Text | Padding] = [Text(f"gold: {' / '.join(asked.gold)}", style="green")]
    for title, row in asked.rows:
        parts += [Text(""), Text.assemble((f"{title}  ", "bold"), (_verdict(row), "cyan")), Text(_answer(row))]
        parts += [Padding(Text(line, style="dim"), (0, 0, 0, 2)) for line in _evidence(row)]
    where = f"{asked.dataset} · {asked.document} · {asked.document_tokens:,} tokens"
    console.print(Panel(Group(*parts), title=Text(asked.question), subtitle=Text(where), title_align="left"))


def _questions(comparison: Comparison) -> Iterator[AskedQuestion]:
    keys = dict.fromkeys((dataset, item) for dataset, item, _ in comparison.rows)
    for dataset, item in keys:
        rows = [
            (system.title, row)
            for system in comparison.systems
            if (row := comparison.rows.get((dataset, item, system.system)))
        ]
        first = rows[0][1]
        yield AskedQuestion(
            dataset=dataset,
            item=item,
            question=first.question,
            gold=first.gold,
            document=first.document,
            document_tokens=first.document_tokens,
            rows=rows,
        )


def _verdict(row: Row) -> str:
    if row.error:
        return "failed"
    return f"{row.score:.0f}   {row.seconds['question']:.1f} s" + ("" if row.finished else "   cut at the limit")


def _answer(row: Row) -> str:
    return f"{row.error['kind']}: {row.error['message']}" if row.error else row.answer or "(nothing)"


def _evidence(row: Row) -> list[str]:
    steps = [f"{step['name']}: {_line(step['text'], _STEP_CHARS)}" for step in row.trace]
    sources = [
        f"▸ {source['start']:,}-{source['end']:,}: {_line(source['text'], _EVIDENCE_CHARS)}"
        for source in row.sources[:_EVIDENCE]
        if "text" in source
    ]
    return steps + sources


def _line(text: str, most: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"
