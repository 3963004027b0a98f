"""What a reader must know of rows that stand side by side: where they were not asked, made or measured alike."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from acre_rag.evaluation.rows import Row


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
    commits: set[str] = set()
    for row in rows:
        run = row.run
        alike[run.dataset].add((run.template, run.max_new_tokens, tuple(run.stop), run.metric, run.seed))
        contents[run.dataset, row.item].add(row.content)
        commits.add(str(row.where.get("commit", "unknown")))
    told = "prompts, limits, metric or seed differ between systems."
    changed = Counter(dataset for (dataset, _), of in contents.items() if len(of) > 1)
    return [
        *(f"{dataset}: {told}" for dataset, of in alike.items() if len(of) > 1),
        *(f"{dataset}: {n} questions differ between systems." for dataset, n in changed.items()),
        *([f"Rows were measured at several commits: {', '.join(sorted(commits))}."] if len(commits) > 1 else []),
    ]


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
