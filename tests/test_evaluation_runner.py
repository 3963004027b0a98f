"""Runs: every system gets the same, a stopped run goes on, what fails is recorded. The tiny model really answers."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import byte_tokenizer, tiny_decoder
from evaluation_case import FORMS, item, items, run, write_data

from acre_rag.answer import Answer
from acre_rag.baselines import registry
from acre_rag.baselines.base import Setting
from acre_rag.baselines.registry import make_system
from acre_rag.baselines.system import System
from acre_rag.engine import ACRE
from acre_rag.errors import ConfigError, EvaluationError
from acre_rag.evaluation import runner
from acre_rag.evaluation.forms import Form, grouped_by_reading, title_of
from acre_rag.evaluation.memory import resident_bytes
from acre_rag.evaluation.report import compare
from acre_rag.evaluation.row_files import read_rows
from acre_rag.evaluation.rows import Row
from acre_rag.evaluation.runner import Done, evaluate
from acre_rag.evaluation.tasks import task_of
from acre_rag.generate import GenerationSettings


@pytest.fixture
def adds(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each document was read."""
    seen: Counter[str] = Counter()
    original = ACRE.add

    def counted(self: ACRE, text: str, id: str, **more: object) -> object:
        seen[id] += 1
        return original(self, text, id, **more)

    monkeypatch.setattr(ACRE, "add", counted)
    return seen


def answers(rows: list[Row]) -> dict[tuple[str, str | None], str]:
    return {(row.run.system, row.item): row.answer for row in rows}


def test_a_row_has_what_it_takes_to_ask_again(tmp_path: Path) -> None:
    rows = run(tmp_path, items(), forms=[Form(name="acre")])
    assert len(rows) == 4
    for row in rows:
        task = task_of("own:houses")
        assert row.run.model == "tiny-llama" and row.run.weights and row.run.dtype == "float32"
        assert (row.run.metric, row.run.max_new_tokens, row.run.window) == (task.metric, task.max_new_tokens, 1024)
        assert row.document_tokens == len(byte_tokenizer()(items()[0].document)["input_ids"])
        assert row.tokens["generated"] and row.tokens["cached"] > row.tokens["refilled"] > 0
        assert row.seconds["question"] >= row.seconds["first_token"] > 0 and row.seconds["read"] > 0
        assert row.where["versions"]["torch"] == torch.__version__ and row.where["time"]
        assert row.facts["passage_tokens"] == "450"
        assert row.error is None
        original = next(each for each in items() if each.id == row.item)
        assert row.score == pytest.approx(task.score(row.answer, original), abs=1e-4)
        for source in row.sources:
            assert original.document[source["start"] : source["end"]].startswith(source.get("text", ""))


def test_systems_that_share_a_reading_answer_as_if_alone(tmp_path: Path, adds: Counter[str]) -> None:
    names = ("acre", "acre-paper", "acre-l1", "acre-refill", "acre-retriever")
    rows = run(tmp_path, items(), forms=[Form(name=name) for name in names])
    assert set(adds.values()) == {1}  # once for all five
    task = task_of("own:houses")
    setting = Setting(decoder=tiny_decoder(), template=task.template)
    settings = GenerationSettings(max_new_tokens=task.max_new_tokens, stop=task.stop)
    for name in names:
        alone = make_system(name, setting)
        for each in items():
            alone.add(each.document, each.document_id)
            expected = alone.ask(each.question, [each.document_id], settings=settings)
            [row] = [row for row in rows if (row.run.system, row.item) == (name, each.id)]
            assert row.answer == expected.text
            assert row.tokens["refilled"] == expected.usage.refilled_tokens


def test_only_what_reading_does_not_depend_on_is_shared() -> None:
    forms = [
        Form(name="acre"),
        Form(name="rag"),
        Form(name="acre", options={"interval": 8}),
        Form(name="acre-l1", options={"interval": 8}),
        Form(name="acre-hybrid", options={"budget": 7}),
        Form(name="acre-learned"),
        Form(name="acre-learned-paper"),
        Form(name="bm25"),
    ]
    groups = [[form.label for form in group] for group in grouped_by_reading(forms)]
    assert groups == [
        ["acre", "acre-hybrid,budget=7"],
        ["rag"],
        ["acre,interval=8", "acre-l1,interval=8"],
        ["acre-learned", "acre-learned-paper"],
        ["bm25"],
    ]
    assert title_of("acre-hybrid", forms[4].all_options) == "ACRE (hybrid), budget 7"
    assert title_of("gone", {"x": 1}) == "gone, x 1"


def test_a_finished_run_asks_nothing_and_a_cut_one_only_the_rest(tmp_path: Path, adds: Counter[str]) -> None:
    forms = [Form(name="acre"), Form(name="acre-l1")]
    first = run(tmp_path, items(), forms=forms)
    adds.clear()
    assert answers(run(tmp_path, items(), forms=forms)) == answers(first)
    assert not adds
    [path] = tmp_path.rglob("acre.jsonl")
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join(lines[:3]) + b"\n" + lines[3][:50])  # three rows and a half
    again = run(tmp_path, items(), forms=forms)
    assert answers(again) == answers(first) and len(again) == len(first)
    assert adds == {first[-1].document: 1}


def test_a_larger_limit_prolongs_and_other_data_are_refused(tmp_path: Path) -> None:
    forms = [Form(name="acre-l1")]
    short = run(tmp_path, items(documents=3), forms=forms, limit=2)
    longer = run(tmp_path, items(documents=3), forms=forms, limit=5)
    assert len(short) == 2 and len(longer) == 5
    assert answers(short).items() <= answers(longer).items()
    changed = [replace(each, answers=("elsewhere",)) for each in items(documents=3)]
    with pytest.raises(EvaluationError, match="another now"):
        run(tmp_path, changed, forms=forms)
    with pytest.raises(EvaluationError, match="seed"):
        run(tmp_path, items(documents=3), forms=forms, seed=1)


def test_a_document_that_does_not_fit_fails_its_questions_alone(tmp_path: Path) -> None:
    long = item("own:houses", 9, 0, lines=40, words="On and on. " * 60)
    rows = run(tmp_path, [*items(documents=1), long], forms=[Form(name="acre"), Form(name="acre-l1")], window=320)
    failed = [row for row in rows if row.error]
    assert {(row.run.system, row.item) for row in failed} == {("acre", "9-0"), ("acre-l1", "9-0")}
    assert all(
        row.error and row.error["kind"] == "CapacityError" and "window=320" in row.error["message"] for row in failed
    )
    assert all(row.score == 0 and row.document_tokens > 10_000 for row in failed)
    assert len(rows) - len(failed) == 4


def test_a_system_that_cannot_be_made_has_one_row_and_is_tried_again(tmp_path: Path) -> None:
    rows = run(tmp_path, items(), items("own:more"))
    refused = [row for row in rows if row.refused]
    assert [(row.run.system, row.run.dataset) for row in refused] == [
        ("acre-learned", "own:houses"),
        ("acre-learned", "own:more"),
    ]
    assert all(
        row.error and row.error["kind"] == "UnavailableError" and "--adapter" in row.error["message"] for row in refused
    )
    assert sum(row.run.system == "acre" for row in rows) == 8
    assert len(run(tmp_path, items(), items("own:more"))) == len(rows)  # in place of the old row, not beside it


class Broken:
    """A system that fails in every way a system can."""

    def __init__(self) -> None:
        self.documents: dict[str, str] = {}
        self.facts = {"embedder": "none"}

    def add(self, text: str, id: str, **_: object) -> None:
        if id == "house-1":
            raise MemoryError("no room for the document")
        self.documents[id] = text

    def ask(self, question: str, documents: list[str], **_: object) -> None:
        raise ZeroDivisionError(f"{question} of {documents}")

    def remove(self, id: str) -> None:
        del self.documents[id]


made: list[Broken] = []


def make_broken(setting: Setting) -> Broken:
    made.append(Broken())
    return made[-1]


def test_whatever_is_raised_becomes_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.SYSTEMS, "broken", System("broken", "Broken", "kv", f"{__name__}:make_broken", ""))
    rows = run(tmp_path, items(), forms=[Form(name="broken"), Form(name="acre-l1")])
    kinds = {row.item: row.error["kind"] for row in rows if row.run.system == "broken" and row.error}
    assert kinds == {"0-0": "ZeroDivisionError", "0-1": "ZeroDivisionError", "1-0": "MemoryError", "1-1": "MemoryError"}
    assert not made[-1].documents  # the document that was read is forgotten all the same
    assert all(row.error is None for row in rows if row.run.system == "acre-l1")
    again = run(tmp_path, items(), forms=[Form(name="broken")], retry=True)
    assert len(again) == len(rows)


@pytest.mark.parametrize("score", [float("nan"), float("-inf")])
def test_a_source_without_a_finite_score_ends_no_evaluation(
    score: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = ACRE.ask

    def scoreless(self: ACRE, *arguments: object, **options: object) -> Answer:
        answer = original(self, *arguments, **options)
        return replace(answer, sources=tuple(replace(source, score=score) for source in answer.sources))

    monkeypatch.setattr(ACRE, "ask", scoreless)
    rows = run(tmp_path, items(), forms=[Form(name="acre")])
    assert len(rows) == 4 and all(row.error is None and row.answer for row in rows)
    assert {source["score"] for row in rows for source in row.sources} == {None}


def test_documents_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engines: list[ACRE] = []
    original = Form.make

    def kept(self: Form, *arguments: object) -> object:
        engines.append(original(self, *arguments))
        return engines[-1]

    monkeypatch.setattr(Form, "make", kept)
    run(tmp_path, items(documents=3), forms=[Form(name="acre"), Form(name="acre-l1")])
    assert len(engines) == 2 and not any(engine.documents for engine in engines)


def test_wrong_names_are_told_before_anything_is_asked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="acre-hybrid"):
        Form(name="acer")
    with pytest.raises(ConfigError, match="twice"):
        run(tmp_path, items(), forms=[*FORMS, Form(name="acre")])


def test_the_reporter_hears_of_every_system_and_data_set(tmp_path: Path) -> None:
    heard: list[Done] = []
    forms = [Form(name="acre-l1"), Form(name="acre-learned")]
    for expected in (4, 0):
        heard.clear()
        evaluate(tiny_decoder(), forms, {"own:houses": items()}, out=tmp_path, report=heard.append)
        assert [(done.form.label, done.dataset) for done in heard] == [(f.label, "own:houses") for f in forms]
        assert heard[0].asked == expected and len(heard[0].rows) == 4 and heard[0].path.is_file()


METERED = """
import time
import torch
from acre_rag.evaluation.memory import MemoryMeter

meter = MemoryMeter(torch.device("cpu"))
torch.ones(1)
meter.mark()
held = torch.ones(64 * 2**20 // 4)  # 64 MiB, from before the question
with meter.watching():
    used = torch.ones(96 * 2**20 // 4)
    time.sleep(0.5)
    del used
print(meter.peak_bytes)
"""


def test_the_meter_sees_memory_that_was_used_and_given_back() -> None:
    """In a process of its own: here, other tests' memory comes and goes."""
    if resident_bytes() is None:
        pytest.skip("this system does not tell a process its resident set")
    done = subprocess.run([sys.executable, "-c", METERED], capture_output=True, text=True, check=True, timeout=120)
    assert 150 * 2**20 < int(done.stdout) < 200 * 2**20


class Levels:
    """A meter that tells each block's number: reading a document is the first, its questions follow."""

    kind = "tested"

    def __init__(self, device: torch.device) -> None:
        self.peak_bytes = 0

    def mark(self) -> None:
        self.peak_bytes = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        self.peak_bytes += 1
        yield


def test_peak_memory_is_watched_while_a_document_is_read_and_at_each_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "MemoryMeter", Levels)
    rows = run(tmp_path, items(), forms=[Form(name="acre-l1")])
    assert [row.memory["read_peak_bytes"] for row in rows] == [1] * 4
    assert [row.memory["peak_bytes"] for row in rows] == [2, 3, 2, 3]  # of two documents


def test_a_failed_question_keeps_what_reading_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> Answer:
        raise RuntimeError("oh")

    monkeypatch.setattr(runner, "MemoryMeter", Levels)
    monkeypatch.setattr(ACRE, "ask", fails)
    rows = run(tmp_path, items(), forms=[Form(name="acre-l1")])
    assert [dict(row.memory) for row in rows] == [{"read_peak_bytes": 1, "kind": "tested"}] * 4
    assert all(row.seconds["read"] > 0 for row in rows)


def test_a_run_goes_on_with_rows_that_tell_no_memory_of_reading(tmp_path: Path) -> None:
    rows = run(tmp_path, items(), forms=[Form(name="acre-l1")])
    [path] = tmp_path.rglob("*.jsonl")
    earlier = {"peak_bytes": 5, "kind": rows[0].memory["kind"]}
    path.write_bytes(b"".join(replace(row, memory=earlier).to_line() for row in rows[:3]))
    again = run(tmp_path, items(), forms=[Form(name="acre-l1")])
    assert [dict(row.memory) for row in again[:3]] == [earlier] * 3
    assert "read_peak_bytes" in again[3].memory
    [comparison] = compare(again, baseline="acre-l1")
    assert comparison.systems[0].cost.read_peak_bytes == again[3].memory["read_peak_bytes"]


N_ROWS = 2 * 24  # systems, questions


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tiny")
    tiny_decoder().model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def start(tmp_path: Path, model: str) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """`acre eval` as a process of its own."""
    data = write_data(tmp_path / "own.jsonl", count=12)
    command = [sys.executable, "-m", "acre_rag.cli", "eval", "--model", model, "--systems", "acre,acre-l1"]
    command += ["--data", f"own:houses={data}", "--limit", "24", "--out", str(tmp_path / "out")]
    running: list[subprocess.Popen[str]] = []

    def begin() -> subprocess.Popen[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        running.append(subprocess.Popen(command, text=True, env=environment, preexec_fn=heed_interrupts, **pipes))
        return running[-1]

    yield begin
    for process in running:
        if process.poll() is None:
            process.kill()
        process.communicate()


def heed_interrupts() -> None:
    """A suite started in a shell's background would hand on that interrupts are ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def n_lines(folder: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in folder.rglob("*.jsonl"))


def stop_midway(process: subprocess.Popen[str], out: Path, sent: signal.Signals, *, rows: int) -> str:
    """Wait for so many rows, stop the process, return what it said on standard error."""
    while n_lines(out) < rows and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(sent)
    return process.communicate(timeout=120)[1]


@pytest.mark.faults
def test_a_stopped_process_leaves_whole_rows_and_the_next_goes_on(
    tmp_path: Path, start: Callable[[], subprocess.Popen[str]]
) -> None:
    out = tmp_path / "out"
    interrupted = start()
    said = stop_midway(interrupted, out, signal.SIGINT, rows=3)
    assert interrupted.returncode == 130 and "goes on from there" in said, said
    first = answers(read_rows([out]))
    assert 3 <= len(first) < N_ROWS
    killed = start()
    said = stop_midway(killed, out, signal.SIGKILL, rows=len(first) + 3)
    second = answers(read_rows([out]))
    assert killed.returncode == -signal.SIGKILL and len(first) < len(second) < N_ROWS, said
    last = start()
    said, problems = last.communicate(timeout=240)
    assert last.returncode == 0, problems
    assert "own:houses · acre: " in said and "0 failed" in said
    whole = answers(read_rows([out]))
    assert len(whole) == n_lines(out) == N_ROWS
    assert first.items() <= second.items() <= whole.items()


def test_no_questions_are_not_all_questions(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="limit"):
        run(tmp_path, items(), limit=0)


def test_room_for_the_longest_question_and_answer_is_reserved(tmp_path: Path) -> None:
    """A task of long answers leaves a quarter of a small window too little."""
    long = items("own_long:houses", lines=60)
    rows = run(tmp_path, long, forms=[Form(name="full")], window=1024)
    assert {row.error is None for row in rows} == {True}
    assert rows[0].document_tokens > 1024 - rows[0].run.max_new_tokens


def test_rows_that_are_asked_again_are_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = run(tmp_path, items(), forms=[Form(name="acre")])
    [path] = tmp_path.rglob("*.jsonl")
    spoilt = replace(rows[-1], error={"kind": "RuntimeError", "message": "oh"})
    path.write_bytes(b"".join(row.to_line() for row in (*rows[:-1], spoilt)))
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space"):
            run(tmp_path, items(), forms=[Form(name="acre")], retry=True)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]
    assert all(row.error is None for row in run(tmp_path, items(), forms=[Form(name="acre")], retry=True))
