"""What a reader must know of rows that stand side by side: where they were not asked, made or measured alike."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from acre_rag.evaluation.facts import shortened
from acre_rag.evaluation.rows import Row

_BY_DATASET = {"reserve_tokens"}
"""Facts that follow the questions of a data set, and so may differ between data sets."""


def unequal(scores: Mapping[tuple[str, str], Mapping[str, float]]) -> list[str]:
    """Systems that were not asked what the others were."""
    remarks = []
    for dataset in {dataset: None for _, dataset in scores}:
        asked = {system: set(items) for (system, of), items in scores.items() if of == dataset and items}
        everything = set().union(*asked.values())
        missing = {system: len(everything - items) for system, items in asked.items() if everything - items}
        for system, count in missing.items():
            remarks.append(
                f"{dataset}: {system} lacks {count} of {len(everything)} questions; its mean is over those it has."
            )
    return remarks


def mixed(rows: Iterable[Row]) -> list[str]:
    """Data sets that were not asked alike: prompts, limits, metric or seed differ, an item's text, or the code."""
    alike: dict[str, set[tuple[str, int, tuple[str, ...], str, int]]] = defaultdict(set)
    contents: dict[tuple[str, str | None], set[str]] = defaultdict(set)
    commits: dict[tuple[str, str], set[str]] = defaultdict(set)
    for row in rows:
        run = row.run
        alike[run.dataset].add((run.template, run.max_new_tokens, tuple(run.stop), run.metric, run.seed))
        contents[run.dataset, row.item].add(row.content)
        commits[run.system, run.dataset].add(str(row.where.get("commit") or "unknown"))
    unlike = "prompts, limits, metric or seed differ between systems."
    changed = Counter(dataset for (dataset, _), of in contents.items() if len(of) > 1)
    return [
        *(f"{dataset}: {unlike}" for dataset, of in alike.items() if len(of) > 1),
        *(f"{dataset}: {n} questions differ between systems." for dataset, n in changed.items()),
        *_several_commits(commits),
    ]


def _several_commits(commits: Mapping[tuple[str, str], set[str]]) -> list[str]:
    """One line, however many rows; names the systems whose rows of one data set are of several."""
    every = sorted(set().union(*commits.values()))
    if len(every) < 2:
        return []
    within = [f"{system} on {dataset}" for (system, dataset), of in commits.items() if len(of) > 1]
    more = f"; several within {', '.join(within)}" if within else ""
    return [f"Rows were measured at several commits: {', '.join(every)}{more}."]


def made_unlike(rows: Iterable[Row]) -> list[str]:
    """Systems whose rows do not all say the same of how they were made, or do not all say it."""
    said: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        said[row.run.system].append(row)
    together: dict[tuple[str, str], list[str]] = defaultdict(list)
    for system, of in said.items():
        unlike: dict[str, list[str]] = defaultdict(list)
        for name in sorted({name for row in of for name in row.facts}):
            unlike[_unlike(name, of)].append(name)
        for how, names in unlike.items():
            together[how, ", ".join(names)].append(system)
    return [f"{', '.join(each)}: rows differ in {names}: {how}." for (how, names), each in together.items() if how]


def _unlike(name: str, rows: Sequence[Row]) -> str:
    """Values of a fact with the data sets that have each; empty where there is one value. A missing one is a value."""
    values: dict[str, dict[str | None, None]] = defaultdict(dict)
    for row in rows:
        values[row.run.dataset][row.facts.get(name)] = None
    places: dict[str | None, list[str]] = defaultdict(list)
    for dataset, of in values.items():
        for value in of:
            places[value].append(dataset)
    told = [value for value in places if value is not None]
    within = any(len(set(of) - {None}) > 1 for of in values.values())
    if not within and (len(told) == 1 or name in _BY_DATASET):
        merged = [dataset for dataset, of in values.items() if set(of) != {None}]
        places = {"told": merged} | ({None: places[None]} if None in places else {})
    if len(places) < 2:
        return ""
    return "; ".join(
        f"{'not told' if value is None else shortened(value)} ({', '.join(of)})" for value, of in places.items()
    )


def elsewhere(rows: Sequence[Row]) -> list[str]:
    """Several machines or devices behind one table; several measures of memory in one system's rows."""
    machines = machines_of(rows)
    kinds: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row.memory:
            kinds[row.run.system].add(row.memory["kind"])
    return [
        *(
            [f"Rows were measured on several machines, so times are means over unlike ones: {'; '.join(machines)}."]
            * (len(machines) > 1)
        ),
        *(
            f"{system}: memory was measured in several ways ({', '.join(sorted(of))}), so no peak is told."
            for system, of in kinds.items()
            if len(of) > 1
        ),
    ]


def machines_of(rows: Iterable[Row]) -> list[str]:
    """Machine and device of all rows, each once."""
    return sorted({_machine(row) for row in rows} - {""})


def _machine(row: Row) -> str:
    return ", ".join(each for each in (row.where.get("machine", ""), row.where.get("device", "")) if each)
