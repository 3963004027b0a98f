"""Rows to findings: score of each system on each data set, averages, paired differences, costs. Draws nothing.

A failure counts as score 0, and is counted. A system that could not be made has no score. Rows of different models,
windows or types are never averaged together: each such setting is a comparison of its own.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from acre_rag.baselines.registry import SYSTEMS
from acre_rag.errors import ConfigError
from acre_rag.evaluation.costs import Cost, cost_of
from acre_rag.evaluation.facts import facts_of
from acre_rag.evaluation.forms import title_of
from acre_rag.evaluation.remarks import elsewhere, machines_of, made_unlike, mixed, unequal
from acre_rag.evaluation.rows import Row
from acre_rag.evaluation.statistics import Estimate, Sample, mean_of, mean_of_means, paired_differences


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One system on one data set.

    Attributes:
        score: mean score, failures counting 0.
        answered: mean score of the questions that did not fail; `None` when all did.
        difference: to the baseline, over the questions that both have; `None` for the baseline itself.
        n: questions.
        documents: what they are about.
        failed: how many of these failed.
    """

    score: Estimate
    answered: float | None
    difference: Estimate | None
    n: int
    documents: int
    failed: int


@dataclass(frozen=True, kw_only=True)
class SystemFindings:
    """One system over all data sets.

    Attributes:
        system: its label.
        title: for people.
        family: "acre", "kv", "retrieval"; empty when the registry does not know it any more.
        cells: by data set; those that it could not be made for, or was not asked, are missing.
        refusals: why it could not be made, by data set.
        average: over the data sets; `None` unless it has all of them.
        difference: of the average to the baseline's.
        cost: what it took.
        failures: what was raised, and how often.
        facts: what it says of itself, by name; all values where its rows differ.
    """

    system: str
    title: str
    family: str
    cells: Mapping[str, Cell]
    refusals: Mapping[str, str]
    average: Estimate | None
    difference: Estimate | None
    cost: Cost
    failures: Mapping[str, int]
    facts: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Systems on the same model with the same window.

    Attributes:
        model: name of the model.
        setting: type and window, for people.
        machine: where it ran.
        baseline: the system that the others are compared with.
        datasets: the metric of each data set.
        systems: in the registry's order.
        rows: behind all of it, by (data set, item, system).
        remarks: what a reader must know: missing questions, rows left out.
    """

    model: str
    setting: str
    machine: str
    baseline: str
    datasets: Mapping[str, str]
    systems: Sequence[SystemFindings]
    rows: Mapping[tuple[str, str, str], Row]
    remarks: Sequence[str]


def compare(rows: Iterable[Row], *, baseline: str = "acre") -> list[Comparison]:
    """Findings of each setting (model, type, window) that the rows have.

    Raises:
        ConfigError: no setting has the baseline.
    """
    settings = by_setting(rows)
    labels = sorted({row.run.system for each in settings for row in each})
    if baseline not in labels:
        raise ConfigError(f"No rows of the baseline {baseline!r}; there are: {', '.join(labels)}. Use --baseline.")
    return [_compared(each, baseline) for each in settings]


def by_setting(rows: Iterable[Row]) -> list[list[Row]]:
    """Rows that can be compared with one another: of one model (its very weights), type and window."""
    settings: dict[tuple[str, str, str, int], list[Row]] = defaultdict(list)
    for row in rows:
        settings[row.run.model, row.run.weights, row.run.dtype, row.run.window].append(row)
    return list(settings.values())


def of_one_setting(found: Sequence[Comparison]) -> Comparison:
    """The only comparison of several.

    Raises:
        ConfigError: the rows were of several settings; names them.
    """
    if len(found) > 1:
        settings = ", ".join(f"{each.model} ({each.setting})" for each in found)
        raise ConfigError(f"The rows are of several settings: {settings}. Write each to a folder of its own.")
    return found[0]


def _compared(rows: Sequence[Row], baseline: str) -> Comparison:
    _check_made_alike(rows)
    asked, remarks = _one_each([row for row in rows if not row.refused])
    refused = [row for row in rows if row.refused]
    datasets = {row.run.dataset: row.run.metric for row in rows}
    systems = sorted({row.run.system: row.run.name for row in rows}.items(), key=registry_order)
    scores: dict[tuple[str, str], dict[str, float]] = {(s, d): {} for s, _ in systems for d in datasets}
    for (dataset, item, system), row in asked.items():
        scores[system, dataset][item] = row.score
    findings = [
        _findings(
            [row for row in (*asked.values(), *refused) if row.run.system == system],
            {dataset: scores[system, dataset] for dataset in datasets},
            {dataset: scores.get((baseline, dataset), {}) for dataset in datasets} if system != baseline else None,
        )
        for system, _ in systems
    ]
    first = rows[0]
    return Comparison(
        model=first.run.model,
        setting=f"{first.run.dtype}, window {first.run.window:,}",
        machine="; ".join(machines_of(rows)),
        baseline=baseline,
        datasets=datasets,
        systems=findings,
        rows=asked,
        remarks=[*remarks, *unequal(scores), *mixed(asked.values()), *made_unlike(asked.values()), *elsewhere(rows)],
    )


def _findings(
    rows: Sequence[Row],
    scores: Mapping[str, Mapping[str, float]],
    baseline: Mapping[str, Mapping[str, float]] | None,
) -> SystemFindings:
    cells: dict[str, Cell] = {}
    samples: dict[str, Sample] = {}
    differences: dict[str, Sample] = {}
    for dataset, by_item in scores.items():
        here = [row for row in rows if row.run.dataset == dataset and not row.refused]
        if not by_item:
            continue
        documents = {str(row.item): row.document for row in here}
        paired = paired_differences(by_item, baseline[dataset]) if baseline is not None else {}
        samples[dataset] = _by_document(by_item, documents)
        differences[dataset] = _by_document(paired, documents)
        answered = [row.score for row in here if row.error is None]
        cells[dataset] = Cell(
            score=mean_of(samples[dataset]),
            answered=fmean(answered) if answered else None,
            difference=mean_of(differences[dataset]) if paired else None,
            n=len(by_item),
            documents=len(samples[dataset]),
            failed=sum(row.error is not None for row in here),
        )
    complete = len(cells) == len(scores)
    comparable = complete and all(differences.values())
    return SystemFindings(
        system=rows[0].run.system,
        title=title_of(rows[0].run.name, rows[0].run.options),
        family=_family(rows[0].run.name),
        cells=cells,
        refusals={row.run.dataset: _said(row) for row in rows if row.refused and row.run.dataset not in cells},
        average=mean_of_means(list(samples.values())) if complete else None,
        difference=mean_of_means(list(differences.values())) if comparable else None,
        cost=cost_of([row for row in rows if not row.refused]),
        failures=Counter(_said(row) for row in rows if row.error and not row.refused),
        facts=facts_of(rows),
    )


def _by_document(values: Mapping[str, float], documents: Mapping[str, str]) -> Sample:
    """Values of questions, as statistics takes them."""
    found: dict[str, list[float]] = defaultdict(list)
    for item, value in values.items():
        found[documents[item]].append(value)
    return found


def _check_made_alike(rows: Sequence[Row]) -> None:
    """One name stands for one system, on all data sets.

    Raises:
        ConfigError: it was made from another adapter, heads file or embedding model in some of the rows.
    """
    first: dict[str, dict[str, str]] = defaultdict(dict)
    for row in rows:
        if row.refused:
            continue
        known = first[row.run.system]
        if differing := [name for name, part in _parts(row).items() if known.setdefault(name, part) != part]:
            raise ConfigError(
                f"{row.run.system} was asked with more than one {' and '.join(differing)}; their rows would be "
                "mixed. Compare such folders apart, or use `acre ablate`, which names adapters."
            )


def _parts(row: Row) -> Mapping[str, str]:
    """What a system was told to take, and what it said it found."""
    told = {"adapter": row.run.adapter, "heads": row.run.heads, "embedder": row.run.embedder}
    return told | {f"{name} (as found)": row.facts[name] for name in told if name in row.facts}


def _one_each(rows: Sequence[Row]) -> tuple[dict[tuple[str, str, str], Row], list[str]]:
    """Each system's last row of each question."""
    found: dict[tuple[str, str, str], Row] = {}
    for row in rows:
        assert row.item is not None
        found[row.run.dataset, row.item, row.run.system] = row
    repeated = len(rows) - len(found)
    return found, [f"{repeated} rows repeat a question; the last one counts."] if repeated else []


def registry_order(system: tuple[str, str]) -> tuple[int, list[str | int]]:
    """As the registry has them; the same system with several options by the options' numbers."""
    label, name = system
    parts = re.split(r"(\d+)", label)  # words and numbers in turn
    natural = [int(part) if place % 2 else part for place, part in enumerate(parts)]
    return (list(SYSTEMS).index(name) if name in SYSTEMS else len(SYSTEMS), natural)


def _family(name: str) -> str:
    return SYSTEMS[name].family if name in SYSTEMS else ""


def _said(row: Row) -> str:
    error = row.error or {}
    return f"{error.get('kind', '')}: {error.get('message', '')}"
