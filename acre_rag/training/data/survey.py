"""First of two readings of the sources: what kind is each candidate, and what is there to distract with?

Knows the sources and what must be kept out; writes nothing.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from acre_rag.errors import TrainingDataError
from acre_rag.training.data.composing import Pool
from acre_rag.training.data.options import BuildOptions
from acre_rag.training.data.overlap import Exclusion, Overlap
from acre_rag.training.data.record import Record
from acre_rag.training.data.sampling import Kind
from acre_rag.training.data.source import Source
from acre_rag.training.data.stretches import stretches

_MOST_EXAMPLES_OF_DROPPED = 50
_POOL_SHARE = 0.25  # of the most characters: a longer passage leaves no room for others


@dataclass
class Survey:
    """What the first reading found.

    Attributes:
        kinds: a byte for each candidate, in order.
        sources: facts of each file, for the manifest.
        dropped: some of what was kept out, and why.
        pool: passages to distract with.
        hosts: files that hold texts long enough to put a passage into.
    """

    pool: Pool
    kinds: bytearray = field(default_factory=bytearray)
    sources: list[dict[str, Any]] = field(default_factory=list)
    dropped: list[dict[str, Any]] = field(default_factory=list)
    hosts: list[Source] = field(default_factory=list)

    def counts(self) -> dict[Kind, int]:
        """Candidates of each kind."""
        return {kind: self.kinds.count(kind) for kind in Kind}

    def add(self, name: str, kind: Kind, overlap: Overlap | None) -> None:
        """Note one candidate."""
        self.kinds.append(Kind.EXCLUDED if overlap else kind)
        if overlap and len(self.dropped) < _MOST_EXAMPLES_OF_DROPPED:
            self.dropped.append({"what": name, "like": overlap.document, "share": round(overlap.share, 3)})


def survey(
    sources: Sequence[Source], options: BuildOptions, exclusion: Exclusion, report: Callable[[str], None]
) -> Survey:
    """Read everything once.

    Raises:
        TrainingDataError: a file cannot be read, or is not for this stage.
    """
    longest = round(_POOL_SHARE * options.lengths.max_chars)
    result = Survey(Pool(seed=options.seed, longest_chars=longest))
    for source in sources:
        licences: Counter[str] = Counter()
        unsplit: list[str] = []
        before = len(result.kinds)
        for number, record in enumerate(source.records(unsplit=unsplit.append)):
            licences[record.licence or "not said"] += 1
            name = name_of(source, record, number)
            if options.stage == 1:
                for i, text in enumerate(documents_of(source, record, number, options)):
                    result.add(f"{name}-{i}", Kind.PLAIN, exclusion.of_text(text))
            elif record.question is None:
                _offer(result, source, record, longest, exclusion)
            else:
                overlap = exclusion.of_question(record.question) or exclusion.of_text(record.document)
                result.add(name, _kind(record, options), overlap)
                if not overlap:
                    result.pool.offer(record)
        facts = {"name": source.name, "sha256": source.sha256, "records": licences.total(), "licences": dict(licences)}
        result.sources.append(facts | {"unsplit": len(unsplit)})
        report(f"{source.name}: {len(result.kinds) - before:,} candidates" + "".join(f", {r}" for r in unsplit[:1]))
    result.pool.seal()
    return result


def documents_of(source: Source, record: Record, number: int, options: BuildOptions) -> Iterator[str]:
    """The stretches of one text, the same at every reading.

    Raises:
        TrainingDataError: the record asks a question.
    """
    if record.question is not None:
        raise TrainingDataError(
            f"{source.path} holds questions, and stage 1 trains on documents alone. Leave it out, or use --stage 2."
        )
    yield from stretches(record.document, options.lengths, random.Random(f"{options.seed} {source.name} {number}"))


def name_of(source: Source, record: Record, number: int) -> str:
    """What an example made from a record is called."""
    return record.id or f"{source.name.split('.')[0]}-{number}"


def _offer(result: Survey, source: Source, record: Record, longest: int, exclusion: Exclusion) -> None:
    """A text without a question: a passage to distract with, or a host for passages."""
    if len(record.document) > longest:
        if source not in result.hosts:
            result.hosts.append(source)
    elif exclusion.of_text(record.document) is None:
        result.pool.offer(record)


def _kind(record: Record, options: BuildOptions) -> Kind:
    if len(record.document) > options.lengths.max_chars:
        return Kind.TOO_LONG
    if record.yes_or_no:
        return Kind.YES_NO
    return Kind.SHORT if len(record.document.split()) < options.short_words else Kind.PLAIN
