"""Every system on the same questions, one row each: goes on where it was stopped, records what fails. Knows no method.

Documents are outermost, so that a system reads each once; systems that keep the same of a document share the reading.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from time import perf_counter
from typing import Any

from acre_rag.answer import Answer
from acre_rag.baselines.base import Pipeline, Setting
from acre_rag.decoder import Decoder
from acre_rag.engine import ACRE
from acre_rag.errors import ConfigError
from acre_rag.evaluation.bars import Bars
from acre_rag.evaluation.circumstances import circumstances
from acre_rag.evaluation.forms import Form, grouped_by_reading
from acre_rag.evaluation.item import EvalItem, sample
from acre_rag.evaluation.memory import MemoryMeter
from acre_rag.evaluation.rows import Row, RowFile, Run, digest_of, row_path
from acre_rag.evaluation.tasks import Task, task_of
from acre_rag.generate import GenerationSettings
from acre_rag.prompts import render

_QUOTED_SOURCES, _QUOTE_CHARS, _MESSAGE_CHARS = 3, 240, 500


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is the same for every system of a run.

    Attributes:
        limit: most questions of each data set; `None` for all.
        documents: most documents of each data set; `None` for no limit.
        seed: of the sample and of whatever a system draws.
        window: `W`, in tokens; `None` takes the model's own.
        adapter: learned L1.
        heads: retrieval heads file.
        embedder: embedding model of dense retrieval.
        retry: ask again what failed in an earlier run.
    """

    limit: int | None = None
    documents: int | None = None
    seed: int = 0
    window: int | None = None
    adapter: Path | None = None
    heads: Path | None = None
    embedder: str | None = None
    retry: bool = False


@dataclass(frozen=True, kw_only=True)
class Done:
    """What was found of one system on one data set.

    Attributes:
        form: the system.
        dataset: the data set.
        path: the file of rows.
        rows: all of its rows that count.
        asked: how many of these are new.
    """

    form: Form
    dataset: str
    path: Path
    rows: Sequence[Row]
    asked: int


def evaluate(
    decoder: Decoder,
    forms: Sequence[Form],
    datasets: Mapping[str, Sequence[EvalItem]],
    *,
    out: Path,
    options: Options | None = None,
    report: Callable[[Done], None] = lambda done: None,
) -> None:
    """Ask every system every question and write a row for each, to `out/DATASET/SYSTEM.jsonl`.

    Args:
        decoder: the model, loaded once for all.
        forms: the systems.
        datasets: items by data set.
        out: folder of rows; what it holds is not asked again.
        options: what is the same for every system.
        report: called when a system is done with a data set.

    Raises:
        ConfigError: two systems of one name, or an option out of range.
        EvaluationError: a file of rows is damaged, was written with other options or is open elsewhere.
    """
    chosen = options or Options()
    if twice := {form.label for form in forms if [each.label for each in forms].count(form.label) > 1}:
        raise ConfigError(f"{min(twice)!r} is named twice; name each system once.")
    with Bars() as bars:
        for dataset, items in datasets.items():
            board = _Board.of(decoder, dataset, items, chosen)
            for group in grouped_by_reading(forms):
                for done in _run_group(board, group, out, bars):
                    report(done)


@dataclass(frozen=True, kw_only=True)
class _Board:
    """One data set as every system meets it."""

    task: Task
    items: Sequence[EvalItem]
    setting: Setting
    options: Options
    where: Mapping[str, Any]
    contents: Mapping[str, str]
    lengths: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, decoder: Decoder, dataset: str, items: Sequence[EvalItem], options: Options) -> "_Board":
        task = task_of(dataset)
        chosen = sample(items, limit=options.limit or len(items), seed=options.seed, documents=options.documents)
        setting = Setting(
            decoder=decoder,
            template=task.template,
            window=options.window,
            seed=options.seed,
            embedder=options.embedder,
            adapter=str(options.adapter) if options.adapter else None,
            heads=str(options.heads) if options.heads else None,
        )
        contents = {item.id: digest_of(item.document, item.question, *item.answers) for item in chosen}
        return cls(task=task, items=chosen, setting=setting, options=options, where=circumstances(), contents=contents)

    def run_of(self, form: Form) -> Run:
        """What the rows of a system share."""
        decoder, task, options = self.setting.decoder, self.task, self.options
        prompt = render(task.template, decoder.tokenizer)
        return Run(
            system=form.label,
            name=form.name,
            options=form.all_options,
            dataset=task.name,
            metric=task.metric,
            model=Path(decoder.name).name,
            weights=decoder.digest[:16],
            dtype=str(decoder.dtype).removeprefix("torch."),
            window=self.setting.most_tokens,
            template=digest_of(prompt.prefix, prompt.ask("")[0]),
            max_new_tokens=task.max_new_tokens,
            stop=task.stop,
            seed=options.seed,
            documents=options.documents,
            adapter=_file_digest(options.adapter),
            heads=_file_digest(options.heads),
            embedder=Path(options.embedder).name if options.embedder else "",
        )

    def tokens_of(self, item: EvalItem) -> int:
        """The document's length in the model's tokens."""
        if item.document_id not in self.lengths:
            ids = self.setting.decoder.tokenizer(item.document, add_special_tokens=False, verbose=False)["input_ids"]
            self.lengths[item.document_id] = len(ids)
        return self.lengths[item.document_id]


@dataclass(eq=False)
class _Seat:
    """A system at work on a data set: its file, and once it is made, its pipeline."""

    form: Form
    file: RowFile
    pending: Mapping[str, EvalItem]
    pipeline: Pipeline | None = None
    before: int = 0

    @property
    def facts(self) -> Mapping[str, str]:
        """What the system says of itself; of ACRE, its options."""
        if isinstance(self.pipeline, ACRE):
            return {name: str(value) for name, value in asdict(self.pipeline.config).items()}
        return dict(getattr(self.pipeline, "facts", {}))

    @property
    def done(self) -> Done:
        rows = self.file.rows
        return Done(
            form=self.form,
            dataset=self.file.run.dataset,
            path=self.file.path,
            rows=rows,
            asked=len(rows) - self.before,
        )


def _run_group(board: _Board, group: Sequence[Form], out: Path, bars: Bars) -> Iterator[Done]:
    """The systems that share one reading, document by document."""
    with _seats(board, group, out) as seats:
        waiting = [seat for seat in seats if seat.pending]
        _make(board, waiting)
        ready = [seat for seat in waiting if seat.pipeline]
        total = sum(len(seat.pending) for seat in ready)
        if ready:
            bars.begin(f"{board.task.name}: {', '.join(seat.form.label for seat in ready)}", done=0, total=total)
        for _, items in groupby(board.items, key=lambda item: item.document_id):
            _run_document(board, ready, list(items), bars)
        yield from (seat.done for seat in seats)


@contextmanager
def _seats(board: _Board, group: Sequence[Form], out: Path) -> Iterator[list[_Seat]]:
    with ExitStack() as open_files:
        seats = []
        for form in group:
            run = board.run_of(form)
            file = RowFile(row_path(out, run), run, retry=board.options.retry)
            open_files.callback(file.close)
            file.check_content(board.contents)
            done = file.done
            pending = {item.id: item for item in board.items if item.id not in done}
            seats.append(_Seat(form, file, pending, before=len(file.rows)))
        yield seats


def _make(board: _Board, seats: Sequence[_Seat]) -> None:
    """Pipelines of the systems; a row says why one cannot be made."""
    shared: Pipeline | None = None
    for seat in seats:
        try:
            seat.pipeline = seat.form.make(board.setting, shared)
        except Exception as error:  # whatever it is, it is this system's result
            seat.file.append(Row(run=seat.file.run, error=_failure(error), where=_now(board)))
            continue
        shared = shared or seat.pipeline
        seat.file.check_facts(seat.facts)


def _run_document(board: _Board, seats: Sequence[_Seat], items: Sequence[EvalItem], bars: Bars) -> None:
    """Read one document once, ask every system its questions, forget it."""
    asking = [(seat, pending) for seat in seats if (pending := [item for item in items if item.id in seat.pending])]
    if not asking:
        return
    document, first = items[0], asking[0][0].pipeline
    assert first is not None
    meter = MemoryMeter(board.setting.decoder.device)
    meter.mark()
    try:
        start = perf_counter()
        first.add(
            document.document,
            document.document_id,
            progress=lambda done, total: bars.reading(document.document_id, done, total),
        )
        read_s = perf_counter() - start
    except Exception as error:  # a failure to read is a failure of each of its questions
        for seat, pending in asking:
            for item in pending:
                seat.file.append(_row(board, seat, item, error=_failure(error)))
                bars.asked()
        return
    try:
        for seat, pending in asking:
            for item in pending:
                seat.file.append(_asked(board, seat, item, meter, read_s))
                bars.asked()
    finally:
        first.remove(document.document_id)


def _asked(board: _Board, seat: _Seat, item: EvalItem, meter: MemoryMeter, read_s: float) -> Row:
    task = board.task
    settings = GenerationSettings(max_new_tokens=task.max_new_tokens, stop=task.stop)
    assert seat.pipeline is not None
    start = perf_counter()
    try:
        with meter.watching():
            answer = seat.pipeline.ask(item.question, [item.document_id], settings=settings)
    except Exception as error:  # recorded, not hidden
        return _row(board, seat, item, error=_failure(error), seconds={"read": round(read_s, 4)})
    seconds = {"read": read_s, "question": perf_counter() - start, "first_token": answer.timings.first_token_s}
    return _row(
        board,
        seat,
        item,
        answer=answer.text,
        score=round(task.score(answer.text, item), 4),
        finished=answer.finished,
        seconds={name: round(value, 4) for name, value in seconds.items()},
        memory=meter.facts(),
        **_what_it_says(answer),
    )


def _row(board: _Board, seat: _Seat, item: EvalItem, **outcome: Any) -> Row:
    return Row(
        run=seat.file.run,
        item=item.id,
        content=board.contents[item.id],
        document=item.document_id,
        document_tokens=board.tokens_of(item),
        question=item.question,
        gold=item.answers,
        facts=seat.facts,
        where=_now(board),
        **outcome,
    )


def _what_it_says(answer: Answer) -> dict[str, Any]:
    usage = answer.usage
    return {
        "tokens": {
            "prompt": usage.prompt_tokens,
            "cached": usage.cached_tokens,
            "refilled": usage.refilled_tokens,
            "generated": usage.generated_tokens,
        },
        "sources": [
            {
                "start": source.start,
                "end": source.end,
                "score": round(source.score, 5),
                **({"text": source.text[:_QUOTE_CHARS]} if rank < _QUOTED_SOURCES else {}),
            }
            for rank, source in enumerate(answer.sources)
        ],
        "trace": [asdict(step) for step in answer.trace],
        "notes": list(answer.notes),
    }


def _failure(error: Exception) -> dict[str, str]:
    return {"kind": type(error).__name__, "message": str(error)[:_MESSAGE_CHARS]}


def _now(board: _Board) -> dict[str, Any]:
    return {**board.where, "time": datetime.now(UTC).isoformat(timespec="seconds")}


def _file_digest(path: Path | None) -> str:
    """Of a file, or of all files of a folder; empty for none. A missing file is the systems' to report."""
    if path is None:
        return ""
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    total = hashlib.sha256()
    for file in files:
        if file.is_file():
            total.update(hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()[:16]
