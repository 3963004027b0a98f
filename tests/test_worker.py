"""One model, many callers: deadlines, cancellation, bounded waiting, real batches, and a ladder when memory is short."""

import asyncio
import gc
import re
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path

import pytest
import torch
from conftest import tiny_decoder
from heartbeat import Hearts, hearts
from test_engine import SHORT, TEXT

from acre_rag import ACRE, ACREConfig, Answer, GenerationSettings
from acre_rag.decoder import Decoder
from acre_rag.errors import BusyError, CapacityError, ConfigError, CorruptCacheError, DeadlineError
from acre_rag.pressure import halvings, out_of_memory
from acre_rag.retrieve import Span
from acre_rag.worker import Ticket, Worker

CONFIG = ACREConfig(window=512, interval=8, stride=64, passage_tokens=32, max_passages=2, select="consensus")
LONG = GenerationSettings(max_new_tokens=128)


@pytest.fixture
def acre():
    """An engine with a model of its own, so that its worker can be tampered with."""
    shared = tiny_decoder()
    engine = ACRE(Decoder(model=shared.model, tokenizer=shared.tokenizer, name="tiny"), config=CONFIG)
    engine.add(TEXT, id="rooms")
    yield engine
    for module in engine.decoder.model.modules():  # the model itself is shared with other tests
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()


@pytest.fixture
def slow(acre: ACRE):
    """The model takes 20 ms a step."""
    handle = acre.decoder.model.register_forward_pre_hook(lambda *_: time.sleep(0.02))
    yield acre
    handle.remove()


def busy(acre: ACRE) -> threading.Event:
    """Occupy the worker until the event is set."""
    free = threading.Event()
    acre.decoder.worker.submit([Ticket(lambda _: [free.wait(20)])])
    return free


def test_questions_that_wait_together_are_one_batch(acre: ACRE) -> None:
    questions = ["Where is the drum?", "Kite?", "Where is the lamp?", "Where do I find the oar?"]
    serial = [acre.ask(question, settings=SHORT) for question in questions]
    sizes: list[int] = []
    handle = acre.decoder.model.register_forward_pre_hook(
        lambda _module, _args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    free = busy(acre)
    answers: dict[int, Answer] = {}
    threads = [
        threading.Thread(target=lambda i=i, q=q: answers.update({i: acre.ask(q, settings=SHORT)}))
        for i, q in enumerate(questions)
    ]
    for thread in threads:
        thread.start()
    while acre.decoder.worker.n_waiting < 4:
        time.sleep(0.01)
    free.set()
    for thread in threads:
        thread.join()
    handle.remove()
    assert max(sizes) == 4
    assert [(answers[i].text, answers[i].sources) for i in range(4)] == [(a.text, a.sources) for a in serial]


def test_a_bad_question_in_a_batch_fails_alone(acre: ACRE) -> None:
    free = busy(acre)
    desk = [
        acre._submit_asked([asked], SHORT, None)[0] for asked in _asked("Where is the drum?", "why " * 300, "Kite?")
    ]
    free.set()
    assert desk[0].result().sources and desk[2].result().text
    with pytest.raises(CapacityError, match="window=512"):
        desk[1].result()


def _asked(*questions: str) -> list:
    from acre_rag.desk import Asked

    return [Asked(question) for question in questions]


def test_a_seeded_sample_does_not_depend_on_who_else_asks(acre: ACRE) -> None:
    sampling = GenerationSettings(max_new_tokens=12, temperature=2.0, seed=7)
    alone = acre.ask("Where is the drum?", settings=sampling).text
    together = acre.ask_batch(["Kite?", "Where is the drum?", "Lamp?"], settings=sampling)
    assert together[1].text == alone


def test_a_deadline_ends_waiting_and_work(slow: ACRE) -> None:
    began = time.monotonic()
    with pytest.raises(DeadlineError, match="timeout_s=0.2"):
        slow.ask("Where is the drum?", settings=LONG, timeout_s=0.2)
    assert time.monotonic() - began < 1.5
    free = busy(slow)
    with pytest.raises(TimeoutError):
        slow.ask("Where is the drum?", settings=SHORT, timeout_s=0.1)
    free.set()
    with pytest.raises(DeadlineError):
        slow.add(TEXT.replace("room", "hall") * 2, id="halls", timeout_s=0.05)
    assert list(slow.documents) == ["rooms"]
    assert slow.ask("Where is the drum?", settings=SHORT, timeout_s=30).sources


def test_a_cancelled_question_stops_the_model(slow: ACRE) -> None:
    steps: list[int] = []
    handle = slow.decoder.model.register_forward_hook(lambda *_: steps.append(1))
    [ticket] = slow._submit_asked(_asked("Where is the drum?"), LONG, None)
    while not steps:
        time.sleep(0.005)
    ticket.stop()
    handle.remove()
    assert len(steps) < 50
    with pytest.raises(CancelledError):
        ticket.result()


def test_one_row_of_a_batch_can_be_cancelled(slow: ACRE) -> None:
    expected = slow.ask("Kite?", settings=SHORT).text
    free = busy(slow)
    first, second = (slow._submit_asked([asked], SHORT, None)[0] for asked in _asked("Where is the drum?", "Kite?"))
    free.set()
    first.cancel()
    assert second.result().text == expected


def test_a_full_line_refuses_at_once(acre: ACRE) -> None:
    acre.decoder.worker.max_waiting = 2
    free = busy(acre)
    while acre.decoder.worker.n_waiting:
        time.sleep(0.01)
    waiting = acre._submit_asked(_asked("Where is the drum?", "Kite?"), SHORT, None)
    with pytest.raises(BusyError, match="2 requests are waiting and at most 2"):
        acre.ask("Where is the lamp?", settings=SHORT)
    free.set()
    assert all(ticket.result().text for ticket in waiting)
    assert acre.ask("Where is the lamp?", settings=SHORT).sources


@pytest.mark.parametrize("way", ["cancelled", "timed out", "awaited and cancelled"])
def test_callers_that_are_gone_leave_their_places_in_line(way: str) -> None:
    worker, free, order = Worker(max_waiting=2), threading.Event(), []

    def work(tickets):
        order.extend(ticket.payload for ticket in tickets)
        return echo(tickets)

    async def awaited(ticket: Ticket) -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ticket.wait(), 0.05)

    worker.submit([Ticket(lambda _: [free.wait(20)])])
    while worker.n_waiting:
        time.sleep(0.01)
    gone = [Ticket(work, number, timeout_s=0.05 if way == "timed out" else None) for number in range(2)]
    worker.submit(gone)
    patient = threading.Thread(target=lambda: worker.submit([Ticket(work, "patient")], patient=True), daemon=True)
    patient.start()
    for ticket in gone:
        if way == "timed out":
            with pytest.raises(DeadlineError):
                ticket.result()
        elif way == "cancelled":
            assert ticket.cancel()
        else:
            asyncio.run(awaited(ticket))
    patient.join(5)
    assert not patient.is_alive() and worker.n_waiting == 1, "the one that waited for room has it, the model still busy"
    last = Ticket(work, "last")
    worker.submit([last])
    free.set()
    assert last.result() == "last" and order == ["patient", "last"]


def echo(tickets):
    return [ticket.payload for ticket in tickets]


def test_any_number_of_questions_may_be_asked_of_an_idle_engine(acre: ACRE) -> None:
    acre.decoder.worker.max_waiting = acre.decoder.worker.max_batch = 2
    questions = ["Where is the drum?", "Kite?", "Where is the lamp?", "Where do I find the oar?", "Kite?"]
    serial = [acre.ask(question, settings=SHORT).text for question in questions]
    assert [answer.text for answer in acre.ask_batch(questions, settings=SHORT)] == serial
    worker = Worker()
    assert worker.results([Ticket(echo, number, group=1) for number in range(1000)]) == list(range(1000))


def test_others_go_between_the_batches_of_many_questions() -> None:
    worker, order = Worker(), []
    others = [Ticket(lambda _: [order.append("other")]) for _ in range(2)]

    def work(tickets):
        if others:
            worker._waiting.append(others.pop())  # somebody asks while this batch runs
        order.append(len(tickets))
        return echo(tickets)

    worker.results([Ticket(work, number, group=1) for number in range(20)])
    assert order == [8, "other", 8, "other", 4]


def test_a_failure_among_many_questions_cancels_the_rest() -> None:
    worker, seen = Worker(), []

    def work(tickets):
        seen.extend(ticket.payload for ticket in tickets)
        return [ValueError("the ninth") if ticket.payload == 9 else None for ticket in tickets]

    tickets = [Ticket(work, number, group=1) for number in range(40)]
    with pytest.raises(ValueError, match="the ninth"):
        worker.results(tickets)
    assert seen == list(range(16)) and all(ticket.stopped() for ticket in tickets)
    assert worker.n_waiting == 0


def test_a_deadline_bounds_many_questions_together() -> None:
    worker = Worker()

    def work(tickets):
        done.append(len(tickets))
        time.sleep(0.2)
        return echo(tickets)

    done: list[int] = []
    with pytest.raises(DeadlineError, match="timeout_s=0.5"):
        worker.results([Ticket(work, number, group=1, timeout_s=0.5) for number in range(80)])
    assert len(done) < 4, "ten batches take two seconds"


@pytest.mark.parametrize("timeout_s", [None, 0.3])
def test_many_questions_that_were_begun_wait_for_room(timeout_s: float | None) -> None:
    worker, free = Worker(max_waiting=2, max_batch=2), threading.Event()

    def work(tickets):
        if tickets[0].payload == 0:  # others fill the line while the first batch runs
            worker._waiting.extend(Ticket(lambda _: [free.wait(20)]) for _ in range(2))
        return echo(tickets)

    tickets = [Ticket(work, number, group=1, timeout_s=timeout_s) for number in range(6)]
    if timeout_s is None:
        threading.Timer(0.3, free.set).start()
        assert worker.results(tickets) == list(range(6))
    else:
        with pytest.raises(DeadlineError):
            worker.results(tickets)
        free.set()


def test_the_readmes_lines_for_many_users_work(acre: ACRE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they are printed, but for the model."""
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    [lines] = [block for block in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "tenant=" in block]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ACRE, "from_pretrained", lambda **options: ACRE(acre.decoder, config=CONFIG, **options))
    names = {"ACRE": ACRE, "text": TEXT, "more_text": TEXT[:400]}
    exec(f"async def run():\n{textwrap.indent(lines, '    ')}\n    return acre", names)  # noqa: S102
    served = asyncio.run(names["run"]())
    assert served.documents_of("alice").keys() == {"contract", "appendix"}


def test_a_retriever_may_ask_the_engine_itself(acre: ACRE) -> None:
    def asks(question, documents):
        return [Span(s.document, s.start, s.end, s.score) for s in acre.retrieve(question, list(documents))]

    answer = acre.using(select="retriever", retriever=asks).ask("Where is the drum?", settings=SHORT, timeout_s=20)
    assert answer.sources[0].start in {source.start for source in acre.retrieve("Where is the drum?")}


def test_an_error_reaches_the_caller_and_the_worker_goes_on(acre: ACRE) -> None:
    def fails(question, documents):
        raise KeyError("no index")

    with pytest.raises(KeyError, match="no index"):
        acre.using(select="retriever", retriever=fails).ask("Where?", settings=SHORT)
    assert acre.ask("Where is the drum?", settings=SHORT).sources


def test_the_worker_ends_when_idle_and_begins_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("acre_rag.worker._IDLE_S", 0.05)
    worker = Worker()
    for _ in range(3):
        ticket = Ticket(lambda _: [threading.current_thread().name])
        worker.submit([ticket])
        assert ticket.result() == "acre-model"
        deadline = time.monotonic() + 5
        while worker._thread is not None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert worker._thread is None


def test_an_event_loop_keeps_beating_while_questions_are_answered(slow: ACRE) -> None:
    async def main() -> tuple[Hearts, list[Answer], str]:
        async with hearts() as beats:
            questions = [f"Where is the {thing}?" for thing in ("drum", "kite", "lamp", "oar")]
            answers = await asyncio.gather(*(slow.aask(question, settings=SHORT) for question in questions))
            streamed = "".join(
                [piece async for piece in slow.stream(questions[0], settings=SHORT) if isinstance(piece, str)]
            )
            await slow.aadd(TEXT.replace("room", "hall"), id="halls")
            assert await slow.aretrieve("Where is the drum?", "halls")
        return beats, answers, streamed

    beats, answers, streamed = asyncio.run(main())
    assert beats.spent_s > 0.5 and beats.held_s < 0.25
    assert answers[0].text == streamed.strip() == slow.ask("Where is the drum?", "rooms", settings=SHORT).text


def test_async_deadlines_cancellation_and_closing(slow: ACRE) -> None:
    async def main() -> None:
        with pytest.raises(DeadlineError):
            await slow.aask("Where is the drum?", settings=LONG, timeout_s=0.1)
        task = asyncio.create_task(slow.aask("Where is the drum?", settings=LONG))
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        stream = slow.stream("Where is the drum?", settings=LONG)
        await asyncio.sleep(0.2)
        began = time.monotonic()
        await stream.aclose()
        assert time.monotonic() - began < 1
        assert [piece async for piece in stream] == []
        assert (await slow.aask("Kite?", settings=SHORT, timeout_s=5)).text

    asyncio.run(main())


@pytest.fixture
def long_step(acre: ACRE) -> Iterator[tuple[threading.Event, threading.Event]]:
    """Holds the model inside a step: set when it is there, and to be set to let it go on."""
    begun, free = threading.Event(), threading.Event()

    def hang(*_: object) -> None:
        begun.set()
        free.wait(20)

    handle = acre.decoder.model.register_forward_pre_hook(hang)
    yield begun, free
    free.set()
    handle.remove()


def test_a_task_that_closes_a_stream_can_be_cancelled(
    acre: ACRE, long_step: tuple[threading.Event, threading.Event], caplog: pytest.LogCaptureFixture
) -> None:
    """While the model is inside a long step, which nothing ends early."""
    begun, free = long_step

    async def main() -> None:
        stream = acre.stream("Where is the drum?", settings=LONG)
        await asyncio.to_thread(begun.wait, 20)
        closing = asyncio.create_task(stream.aclose())
        await asyncio.sleep(0.1)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        free.set()
        await stream.aclose()
        assert (await acre.aask("Kite?", settings=SHORT)).text

    asyncio.run(main())
    gc.collect()
    assert "never retrieved" not in caplog.text


def test_sources_that_nobody_waits_for_any_more_are_no_error(
    acre: ACRE, long_step: tuple[threading.Event, threading.Event], caplog: pytest.LogCaptureFixture
) -> None:
    """A stream still in line: its reader gives up waiting for the sources, then closes it."""
    begun, free = long_step

    async def main() -> None:
        first = asyncio.create_task(acre.aask("Kite?", settings=SHORT))
        await asyncio.to_thread(begun.wait, 20)
        stream = acre.stream("Where is the drum?", settings=SHORT)
        waiting = asyncio.create_task(stream.asources())
        await asyncio.sleep(0.1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await stream.aclose()
        free.set()
        assert (await first).text

    asyncio.run(main())
    gc.collect()
    assert "never retrieved" not in caplog.text


def test_a_stream_that_nobody_holds_stops_the_model(slow: ACRE) -> None:
    steps: list[int] = []
    handle = slow.decoder.model.register_forward_hook(lambda *_: steps.append(1))
    stream = slow.stream("Where is the drum?", settings=LONG)
    while not steps:
        time.sleep(0.005)
    del stream
    slow.ask("Kite?", settings=GenerationSettings(max_new_tokens=1))
    handle.remove()
    assert len(steps) < 60


def test_a_stream_names_its_sources_before_the_first_piece(slow: ACRE) -> None:
    steps: list[int] = []
    handle = slow.decoder.model.register_forward_hook(lambda *_: steps.append(1))
    expected = slow.retrieve("Where is the drum?")
    with slow.stream("Where is the drum?", settings=LONG) as stream:
        assert stream.sources == expected and len(steps) < 20

    async def main() -> None:
        stream = slow.stream("Where is the drum?", settings=LONG)
        assert await stream.asources() == expected
        await stream.aclose()
        failing = slow.stream("why " * 300, settings=SHORT)
        with pytest.raises(CapacityError):
            await failing.asources()

    asyncio.run(main())
    handle.remove()
    failing = slow.stream("why " * 300, settings=SHORT)
    with pytest.raises(CapacityError):
        _ = failing.sources


def test_an_error_in_a_stream_is_raised_where_it_is_read(acre: ACRE) -> None:
    stream = acre.stream("why " * 300, settings=SHORT)
    with pytest.raises(CapacityError):
        list(stream)
    assert list(stream) == []


def test_a_plain_prompt_reaches_the_stock_model(acre: ACRE) -> None:
    prompt = "The drum is in room"
    ids = torch.tensor(acre.decoder.tokenizer(prompt, add_special_tokens=False)["input_ids"])[None]
    expected = acre.decoder.model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
    answer = acre.complete(prompt, settings=SHORT)
    assert answer.text == acre.decoder.tokenizer.decode(expected, skip_special_tokens=True).strip()
    assert answer.scope == "none" and answer.sources == () and answer.usage.prompt_tokens == ids.shape[1]
    *pieces, last = acre.stream_complete(prompt, settings=SHORT)
    assert "".join(pieces).strip() == last.text == answer.text
    assert asyncio.run(acre.acomplete(prompt, settings=SHORT)).text == answer.text
    with pytest.raises(CapacityError, match="1,024 positions"):
        acre.complete("word " * 400)


def test_options_of_asking_change_without_reading_again(acre: ACRE) -> None:
    forwards: list[int] = []
    handle = acre.decoder.base.register_forward_hook(lambda *_: forwards.append(1))
    other = acre.using(select="retriever", max_passages=1)
    assert not forwards
    handle.remove()
    assert other.ask("Where is the eagle?", settings=SHORT).sources != acre.ask("Where is the eagle?").sources
    assert other.documents == acre.documents and acre.config.select == "consensus"
    from dataclasses import replace

    after = replace(acre.template, after="\n\nSay where: {question}")
    assert acre.using(template=after).ask("drum", settings=SHORT).text
    with pytest.raises(ConfigError, match="before the document"):
        acre.using(template=replace(acre.template, before="Else: "))
    with pytest.raises(ConfigError, match="interval decide"):
        acre.using(interval=16)


class Hungry:
    """The model runs out of memory when it is given more than `most` tokens at once."""

    def __init__(self, acre: ACRE, most: int) -> None:
        self.most = most
        self.failures = 0
        self.handle = acre.decoder.base.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, _module, _args, kwargs) -> None:
        fed = kwargs["input_ids"] if kwargs.get("input_ids") is not None else kwargs["inputs_embeds"]
        past = kwargs["past_key_values"].get_seq_length() if kwargs.get("past_key_values") is not None else 0
        if fed.shape[0] * (fed.shape[1] + past) > self.most:
            self.failures += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def test_reading_halves_its_stride_when_memory_is_short(acre: ACRE) -> None:
    """Fewer tokens at once; the keys that a stride attends to are the window's, so only the stride is counted."""
    strides: list[int] = []

    def guard(_module, _args, kwargs) -> None:
        strides.append(kwargs["input_ids"].shape[1])
        if strides[-1] == 64:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    handle = acre.decoder.base.register_forward_pre_hook(guard, with_kwargs=True)
    document = acre.add(TEXT[:401], id="other")
    handle.remove()
    assert document.notes == ("memory was short: read in strides of 32 tokens",)
    assert strides.count(64) == 2 and strides.count(32) > 5
    answer = acre.ask("Where is the drum?", "other", settings=SHORT)
    assert answer.notes == ("other: memory was short: read in strides of 32 tokens",)


def test_answering_refills_less_when_memory_is_short(acre: ACRE) -> None:
    wide = acre.using(budget=256, max_passages=8)
    whole = wide.ask("Where is the drum?", settings=SHORT)
    hungry = Hungry(acre, most=whole.usage.cached_tokens + whole.usage.prompt_tokens - 60)
    answer = wide.ask("Where is the drum?", settings=SHORT)
    hungry.handle.remove()
    assert hungry.failures
    assert answer.usage.refilled_tokens < whole.usage.refilled_tokens
    assert answer.notes == ("memory was short: at most 128 tokens were refilled",)
    assert wide.ask("Where is the drum?", settings=SHORT).text == whole.text


def test_a_batch_that_is_too_large_is_answered_one_by_one(acre: ACRE) -> None:
    questions = ["Where is the drum?", "Kite?", "Where is the lamp?"]
    serial = [acre.ask(question, settings=SHORT).text for question in questions]
    hungry = Hungry(acre, most=2 * 300)
    answers = acre.ask_batch(questions, settings=SHORT)
    hungry.handle.remove()
    assert hungry.failures
    assert [answer.text for answer in answers] == serial
    assert not any(answer.notes for answer in answers)


def test_when_even_the_smallest_attempt_fails_it_is_said_and_the_engine_lives(acre: ACRE, tmp_path: Path) -> None:
    hungry = Hungry(acre, most=1)
    with pytest.raises(CapacityError, match="Out of memory while answering.*smaller window"):
        acre.ask("Where is the drum?", settings=SHORT)
    with pytest.raises(CapacityError, match="Out of memory while reading 'new'"):
        acre.add(TEXT[:300], id="new")
    with pytest.raises(CapacityError):
        list(acre.stream("Where is the drum?", settings=SHORT))
    hungry.handle.remove()
    assert acre.ask("Where is the drum?", settings=SHORT).sources
    assert list(acre.documents) == ["rooms"]


def test_only_memory_errors_are_taken_for_memory_errors() -> None:
    assert out_of_memory(torch.OutOfMemoryError("x")) and out_of_memory(MemoryError())
    assert out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."))
    assert out_of_memory(RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"))
    assert out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert not out_of_memory(RuntimeError("shapes do not match")) and not out_of_memory(ValueError("memory"))
    assert halvings(64, 8) == [64, 32, 16, 8] and halvings(100, 16) == [100, 48, 16] and halvings(8, 8) == [8]


def test_documents_that_do_not_fit_together_are_chosen_by_a_first_pass(acre: ACRE) -> None:
    """Window 512: five documents of 95 blocks need more than half of it."""
    for number in range(4):
        acre.add(TEXT.replace("room", f"hall{number}"), id=f"halls {number}")
    answer = acre.ask("Where is the drum?", settings=SHORT)
    assert "a first pass chose" in answer.notes[0] and "5 documents" in answer.notes[0]
    named = {name for name in acre.documents if name in answer.notes[0]}
    assert {source.document for source in answer.sources} <= named
    assert answer.usage.cached_tokens < acre.window
    prepared = acre.prepare("Where is the drum?")
    assert {document.id for document in prepared.documents} == named


@pytest.mark.parametrize("select", ["retriever", "hybrid"])
def test_a_first_pass_keeps_the_document_that_the_retriever_found(acre: ACRE, select: str) -> None:
    """Whichever it is: heads that cannot tell the halls apart do not decide alone, nor against it."""
    for number in range(4):
        acre.add(TEXT.replace("room", f"hall{number}"), id=f"halls {number}")
    for wanted in acre.documents:

        def finds(question, documents, wanted=wanted):  # searches an index of its own, so dropped ones come too
            return [Span(id_, 40, 60, 100.0 if id_ == wanted else 1.0) for id_ in acre.documents]

        asking = acre.using(select=select, retriever=finds)
        prepared = asking.prepare("Where is the drum?")
        assert wanted in {document.id for document in prepared.documents}
        assert prepared.sources[0].document == wanted or select == "hybrid"
    with pytest.raises(ConfigError, match="'elsewhere'"):
        acre.using(select=select, retriever=lambda *_: [Span("elsewhere", 0, 5, 1.0)]).prepare("Where is the drum?")


def test_one_callers_mistake_is_not_anothers(acre: ACRE) -> None:
    from acre_rag.desk import Asked

    free = busy(acre)
    asked = [Asked("Where is the drum?"), Asked("Kite?", documents=[3])]  # type: ignore[list-item]
    good, bad = (acre._submit_asked([each], SHORT, None)[0] for each in asked)
    free.set()
    assert good.result().sources
    with pytest.raises(AttributeError):
        bad.result()


def test_one_callers_damaged_document_is_not_anothers(acre: ACRE, tmp_path: Path) -> None:
    from acre_rag.desk import Asked

    for name in ("mine", "theirs"):
        ACRE(acre.decoder, config=CONFIG, store=tmp_path).add(TEXT.replace("room", name), id=name)
    again = ACRE(acre.decoder, config=CONFIG, store=tmp_path)
    assert sorted(again.documents) == ["mine", "theirs"]
    damaged = again._library.store.find("theirs")[0].folder / "compact.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-4] + b"oops")
    free = busy(again)
    asked = [Asked("Where is the drum?", documents=[name]) for name in ("mine", "theirs")]
    good, bad = (again._submit_asked([each], SHORT, None)[0] for each in asked)
    free.set()
    assert good.result().sources
    with pytest.raises(CorruptCacheError, match="theirs"):
        bad.result()


@pytest.mark.parametrize("reading", ["pieces", "sources", "awaited pieces", "awaited sources"])
def test_a_stream_waits_no_longer_than_its_deadline(acre: ACRE, reading: str) -> None:
    """Behind a long piece of work of somebody else, before anything of its own has begun."""
    free = busy(acre)
    stream = acre.stream("Where is the drum?", settings=SHORT, timeout_s=0.2)
    waits = {
        "pieces": lambda: next(stream),
        "sources": lambda: stream.sources,
        "awaited pieces": lambda: asyncio.run(anext(stream)),
        "awaited sources": lambda: asyncio.run(stream.asources()),
    }
    start = time.monotonic()
    with pytest.raises(DeadlineError, match="timeout_s=0.2"):
        waits[reading]()
    assert time.monotonic() - start < 10
    free.set()
    assert acre.ask("Where is the drum?", settings=SHORT).sources
