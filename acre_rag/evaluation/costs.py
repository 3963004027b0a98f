"""What a system took: seconds, memory, tokens, from its rows. Knows no scores."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from acre_rag.evaluation.rows import Row


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Means over everything that a system did; `None` where nothing was measured.

    Attributes:
        read_s: seconds to read a document.
        question_s: seconds of a question about a document that was read.
        first_token_s: seconds until its answer began.
        read_peak_bytes: highest peak memory while a document was read; `None` too where rows measured it in several
            ways.
        peak_bytes: highest peak memory of a question; likewise.
        memory: what that is; empty then.
        kv_tokens: tokens attended when an answer began: prompt and cache.
    """

    read_s: float | None
    question_s: float | None
    first_token_s: float | None
    read_peak_bytes: float | None
    peak_bytes: float | None
    memory: str
    kv_tokens: float | None


def cost_of(rows: Sequence[Row]) -> Cost:
    """Of one system's rows; each document counts once."""
    documents = {(row.run.dataset, row.document): row.seconds["read"] for row in rows if "read" in row.seconds}
    answered = [row for row in rows if row.error is None]
    measured = [row.memory for row in rows if row.memory]
    kinds = {memory["kind"] for memory in measured}
    return Cost(
        read_s=_mean(documents.values()),
        question_s=_mean(row.seconds["question"] for row in answered),
        first_token_s=_mean(row.seconds["first_token"] for row in answered),
        read_peak_bytes=_highest(measured, "read_peak_bytes") if len(kinds) == 1 else None,
        peak_bytes=_highest(measured, "peak_bytes") if len(kinds) == 1 else None,
        memory=kinds.pop() if len(kinds) == 1 else "",
        kv_tokens=_mean(row.tokens["prompt"] + row.tokens["cached"] for row in answered),
    )


def _highest(measured: Iterable[Mapping[str, Any]], name: str) -> float | None:
    return max((memory[name] for memory in measured if memory.get(name) is not None), default=None)


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return fmean(found) if found else None
