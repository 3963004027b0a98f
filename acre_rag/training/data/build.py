"""From sources to a folder of shards: two readings, and a manifest of what was done. Knows no model."""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from acre_rag.errors import TrainingDataError
from acre_rag.store.files import write_file
from acre_rag.training.data.composing import compose_example
from acre_rag.training.data.example import TrainingExample
from acre_rag.training.data.manifest import NAME, Manifest, Shard
from acre_rag.training.data.options import BuildOptions
from acre_rag.training.data.overlap import Exclusion
from acre_rag.training.data.record import Record
from acre_rag.training.data.sampling import Kind, Selection, quotas
from acre_rag.training.data.source import Source, sources_of
from acre_rag.training.data.stretches import paragraphs, stretches
from acre_rag.training.data.survey import Survey, documents_of, name_of, survey
from acre_rag.training.data.writer import ShardWriter, new_folder


def build(
    paths: Sequence[Path],
    out: Path,
    *,
    options: BuildOptions,
    exclude: Sequence[Path] = (),
    licence: str = "",
    report: Callable[[str], None] = lambda line: None,
) -> Manifest:
    """Make a folder of training shards; on any error there is none.

    A question whose own document is longer than the most tokens is left out, and counted.

    Args:
        paths: texts and JSON lines, or folders of them (see `source` and `record` for the forms).
        out: the folder to make; it must not exist.
        options: how documents are cut, composed and sampled.
        exclude: evaluation files, or folders of them, whose documents and questions are kept out.
        licence: of texts for which no listing beside them gives one.
        report: called with a line of progress now and then.

    Returns:
        The manifest, which stands in the folder as well.

    Raises:
        TrainingDataError: a source cannot be read, nothing is left to train on, or the folder cannot be made.
    """
    sources = sources_of(paths, licence=licence)
    kept_out = sources_of(exclude) if exclude else []
    exclusion = Exclusion((r for source in kept_out for r in source.parts()), threshold=options.threshold)
    with new_folder(out) as folder:
        found = survey(sources, options, exclusion, report)
        wanted = quotas(found.counts(), caps=options.caps, limit=options.limit)
        selection = Selection(found.kinds, wanted, seed=options.seed)
        if options.stage == 1:
            examples = _stage1(sources, options, selection)
        else:
            examples = _stage2(sources, options, selection, found, exclusion)
        tally = _Tally()
        shards = _written(folder, tally.counted(examples), options, report)
        if not shards:
            raise TrainingDataError(
                f"Nothing reaches {options.min_tokens} tokens: give more passages or texts to put around the "
                "questions' own, or ask for shorter documents."
            )
        manifest = Manifest(
            stage=options.stage,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            options=asdict(options),
            sources=found.sources,
            counts={
                "examples": tally.n_examples,
                "chars": tally.n_chars,
                "tokens": options.lengths.tokens(tally.n_chars),
                **_left_out(found, sum(wanted.values()) - tally.n_examples),
            },
            exclusion=_excluded(kept_out, exclusion, found) if exclude else {},
            gold_places=tally.gold_places if options.stage == 2 else [],
            shards=shards,
        )
        write_file(folder / NAME, [manifest.dump()])
    return manifest


class _Tally:
    """Counts of what passes by."""

    def __init__(self) -> None:
        self.n_examples = self.n_chars = 0
        self.gold_places = [0] * 10

    def counted(self, examples: Iterable[TrainingExample]) -> Iterator[TrainingExample]:
        for example in examples:
            self.n_examples += 1
            self.n_chars += len(example.document)
            for start, stop in example.gold[:1]:
                self.gold_places[10 * (start + stop) // 2 // len(example.document)] += 1
            yield example


def _written(
    folder: Path, examples: Iterable[TrainingExample], options: BuildOptions, report: Callable[[str], None]
) -> list[Shard]:
    """The shards that hold some examples."""
    writer = ShardWriter(folder, shard_examples=options.shard_examples)
    for example in examples:
        if writer.add(example):
            report(f"{sum(shard.examples for shard in writer.shards):,} examples written")
    writer.flush()
    return writer.shards


def _stage1(sources: Sequence[Source], options: BuildOptions, selection: Selection) -> Iterator[TrainingExample]:
    """The chosen stretches."""
    index = 0
    for source in sources:
        for number, record in enumerate(source.records()):
            name = name_of(source, record, number)
            for i, text in enumerate(documents_of(source, record, number, options)):
                if selection.takes(index):
                    yield TrainingExample(document=text, question=None, answer=None, gold=(), id=f"{name}-{i}")
                index += 1


def _stage2(
    sources: Sequence[Source], options: BuildOptions, selection: Selection, found: Survey, exclusion: Exclusion
) -> Iterator[TrainingExample]:
    """The chosen questions, each in a document of its own."""
    hosts = _hosts(found.hosts, options, exclusion)
    for index, (source, number, record) in enumerate(_asked(sources)):
        if selection.takes(index):
            rng = random.Random(f"{options.seed} {index}")
            in_host = found.hosts and (not len(found.pool) or rng.random() < options.book_share)
            others = iter(next(hosts, [])) if in_host else found.pool.draw(record, rng)
            name = name_of(source, record, number)
            example = compose_example(record, others, lengths=options.lengths, rng=rng, id=name)
            if example is not None:
                yield example


def _asked(sources: Sequence[Source]) -> Iterator[tuple[Source, int, Record]]:
    """Records with a question, each with its file and its number there."""
    for source in sources:
        for number, record in enumerate(source.records()):
            if record.question is not None:
                yield source, number, record


def _hosts(sources: Sequence[Source], options: BuildOptions, exclusion: Exclusion) -> Iterator[list[str]]:
    """Paragraphs of one stretch after another, over and over; none is near an evaluation document."""
    rng = random.Random(f"hosts {options.seed}")
    fruitful = True
    while fruitful:
        fruitful = False
        for source in sources:
            for record in source.records():
                texts = stretches(record.document, options.lengths, rng) if record.question is None else ()
                for text in texts:
                    if exclusion.of_text(text) is None:
                        fruitful = True
                        yield paragraphs(text)


def _left_out(found: Survey, too_short: int) -> dict[str, int]:
    """Candidates that became no example, by reason."""
    counts = found.counts()
    return {
        "candidates": len(found.kinds),
        "excluded": counts[Kind.EXCLUDED],
        "too_long": counts[Kind.TOO_LONG],
        "too_short": too_short,
        "distractor_passages": len(found.pool),
    }


def _excluded(sources: Sequence[Source], exclusion: Exclusion, found: Survey) -> dict[str, Any]:
    return {
        "files": [{"name": source.name, "sha256": source.sha256} for source in sources],
        "threshold": exclusion.threshold,
        "documents": len(exclusion.names),
        "questions": len(exclusion.questions),
        "dropped": found.counts()[Kind.EXCLUDED],
        "some_of_them": found.dropped,
    }
