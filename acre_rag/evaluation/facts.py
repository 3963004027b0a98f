"""What systems say of themselves in their rows: together, and as short lines below a table. Knows no scores."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import fields

from acre_rag.config import ACREConfig
from acre_rag.evaluation.rows import Row

_TOLD_ELSEWHERE = {field.name for field in fields(ACREConfig)} | {"heads"}
"""What a heading or a system's name says already; heads are pairs of numbers that tell a reader nothing."""

_MOST_CHARS = 80


def facts_of(rows: Iterable[Row]) -> dict[str, str]:
    """What one system's rows say of it; where they differ, all of it."""
    found: dict[str, dict[str, None]] = defaultdict(dict)
    for row in rows:
        for name, value in row.facts.items():
            found[name][value] = None
    return {name: ", ".join(values) for name, values in found.items()}


def told(facts: Mapping[str, str]) -> dict[str, str]:
    """Of these facts those that say what a system is: its embedding model, memory, adapter, options of its own."""
    return {name: shortened(value) for name, value in facts.items() if value and name not in _TOLD_ELSEWHERE}


def shortened(value: str) -> str:
    """The beginning of a long value: of a digest or a list enough to tell it from another."""
    return value if len(value) <= _MOST_CHARS else f"{value[: _MOST_CHARS - 1]}…"


def lines(systems: Iterable[tuple[str, Mapping[str, str]]]) -> list[str]:
    """One line for all systems that say the same.

    Args:
        systems: title and facts of each.
    """
    found: dict[str, list[str]] = defaultdict(list)
    for title, facts in systems:
        if said := "; ".join(f"{name} {value}" for name, value in sorted(told(facts).items())):
            found[said].append(title)
    return [f"{', '.join(titles)}: {said}." for said, titles in found.items()]
