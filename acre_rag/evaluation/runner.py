"""Every system on the same questions, one row each: goes on where it was stopped, records what fails. Knows no method.

Documents are outermost, so that a system reads each once; systems that keep the same of a document share the reading.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import groupby
from math import isfinite
from pathlib import Path
from typing import Any

from acre_rag.answer import Answer
from acre_rag.baselines.base import Pipeline
from acre_rag.decoder import Decoder
from acre_rag.engine import ACRE
from acre_rag.errors import ConfigError
from acre_rag.evaluation.bars import Bars
from acre_rag.evaluation.board import Board, Options
from acre_rag.evaluation.forms import Form, grouped_by_reading
from acre_rag.evaluation.item import EvalItem
from acre_rag.evaluation.memory import MemoryMeter
from acre_rag.evaluation.row_files import RowFile, row_path
from acre_rag.evaluation.rows import Row
from acre_rag.generate import GenerationSettings
from acre_rag.transfer import clock

_QUOTED_SOURCES, _QUOTE_CHARS, _MESSAGE_CHARS = 3, 240, 500


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
            board = Board.of(decoder, dataset, items, chosen)
            for group in grouped_by_reading(forms):
                for done in _run_group(board, group, out, bars):
                    report(done)


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
        """What the system says of itself; of ACRE, its options and what it was made from."""
        if isinstance(self.pipeline, ACRE):
            made_from = {name: str(self.pipeline.fingerprint[name]) for name in ("adapter", "heads")}
            return {name: str(value) for name, value in asdict(self.pipeline.config).items()} | made_from
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


def _run_group(board: Board, group: Sequence[Form], out: Path, bars: Bars) -> Iterator[Done]:
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
def _seats(board: Board, group: Sequence[Form], out: Path) -> Iterator[list[_Seat]]:
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


def _make(board: Board, seats: Sequence[_Seat]) -> None:
    """Pipelines of the systems; a row says why one cannot be made."""
    shared: Pipeline | None = None
    for seat in seats:
        try:
            seat.pipeline = seat.form.make(board.setting, shared)
        except Exception as error:  # whatever it is, it is this system's result
            seat.file.append(Row(run=seat.file.run, error=_failure(error), where=board.now()))
            continue
        shared = shared or seat.pipeline
        seat.file.check_facts(seat.facts)


def _run_document(board: Board, seats: Sequence[_Seat], items: Sequence[EvalItem], bars: Bars) -> None:
    """Read one document once, ask every system its questions, forget it."""
    asking = [(seat, pending) for seat in seats if (pending := [item for item in items if item.id in seat.pending])]
    if not asking:
        return
    document, first = items[0], asking[0][0].pipeline
    assert first is not None
    device = board.setting.decoder.device
    meter = MemoryMeter(device)
    meter.mark()
    try:
        with meter.watching():
            start = clock(device)
            first.add(
                document.document,
                document.document_id,
                progress=lambda done, total: bars.reading(document.document_id, done, total),
            )
            read_s = clock(device) - start
    except Exception as error:  # a failure to read is a failure of each of its questions
        for seat, pending in asking:
            for item in pending:
                seat.file.append(_row(board, seat, item, error=_failure(error)))
                bars.asked()
        return
    reading = _Reading(round(read_s, 4), meter.peak_bytes)
    try:
        for seat, pending in asking:
            for item in pending:
                seat.file.append(_asked(board, seat, item, meter, reading))
                bars.asked()
    finally:
        first.remove(document.document_id)


@dataclass(frozen=True)
class _Reading:
    """What reading a document took; the same in the rows of all its questions."""

    seconds: float
    peak_bytes: int | None


def _asked(board: Board, seat: _Seat, item: EvalItem, meter: MemoryMeter, reading: _Reading) -> Row:
    task, device = board.task, board.setting.decoder.device
    settings = GenerationSettings(max_new_tokens=task.max_new_tokens, stop=task.stop)
    assert seat.pipeline is not None
    read = {"read_peak_bytes": reading.peak_bytes, "kind": meter.kind}
    try:
        start = clock(device)
        with meter.watching():
            answer = seat.pipeline.ask(item.question, [item.document_id], settings=settings)
        question_s = clock(device) - start
    except Exception as error:  # recorded, not hidden
        return _row(board, seat, item, error=_failure(error), seconds={"read": reading.seconds}, memory=read)
    asked = {"question": question_s, "first_token": answer.timings.first_token_s}
    return _row(
        board,
        seat,
        item,
        answer=answer.text,
        score=round(task.score(answer.text, item), 4),
        finished=answer.finished,
        seconds={"read": reading.seconds} | {name: round(value, 4) for name, value in asked.items()},
        memory={"peak_bytes": meter.peak_bytes, **read},
        **_what_it_says(answer),
    )


def _row(board: Board, seat: _Seat, item: EvalItem, **outcome: Any) -> Row:
    return Row(
        run=seat.file.run,
        item=item.id,
        content=board.contents[item.id],
        document=item.document_id,
        document_tokens=board.tokens_of(item),
        question=item.question,
        gold=item.answers,
        facts=seat.facts,
        where=board.now(),
        **outcome,
    )


def _what_it_says(answer: Answer) -> dict[str, Any]:
    usage = answer.usage
    return {
        "tokens": {
            "prompt": usage.prompt_tokens,
            "also_read": usage.also_read_tokens,
            "cached": usage.cached_tokens,
            "refilled": usage.refilled_tokens,
            "generated": usage.generated_tokens,
        },
        "sources": [
            {
                "start": source.start,
                "end": source.end,
                "score": _finite(source.score),
                **({"text": source.text[:_QUOTE_CHARS]} if rank < _QUOTED_SOURCES else {}),
            }
            for rank, source in enumerate(answer.sources)
        ],
        "trace": [asdict(step) for step in answer.trace],
        "notes": list(answer.notes),
    }


def _finite(score: float) -> float | None:
    """As JSON can say it; `None` for what is no number: the answer counts all the same."""
    return round(float(score), 5) if isfinite(score) else None


def _failure(error: Exception) -> dict[str, str]:
    return {"kind": type(error).__name__, "message": str(error)[:_MESSAGE_CHARS]}
