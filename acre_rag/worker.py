"""One thread that owns a model: callers from any thread or event loop wait in line. Knows nothing of models.

A caller gets a `Ticket`: to wait on, with a deadline, from a thread or an event loop, and to cancel. Tickets of one
group that wait at the same time are run together, as a batch.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from concurrent.futures import wait as wait_for
from contextlib import contextmanager
from contextvars import ContextVar
from time import monotonic
from typing import Any

from acre_rag.errors import BusyError, ConfigError, DeadlineError

Run = Callable[[Sequence["Ticket"]], Sequence[Any]]
"""Tickets of one group to their results, in order; an exception among the results fails its ticket alone."""

_IDLE_S = 5.0

_INSIDE: ContextVar["_Call | None"] = ContextVar("acre_call", default=None)
"""The work's call that runs this code, also on other threads: LangChain's pools and event loops copy contexts."""


class Ticket:
    """A caller's place in line.

    Args:
        run: does the work of several tickets of the same group.
        payload: what this ticket asks for.
        group: tickets with an equal group may run together; `None` runs alone.
        timeout_s: seconds until the caller loses interest; `None` waits for ever.
    """

    def __init__(
        self, run: Run, payload: Any = None, *, group: Hashable = None, timeout_s: float | None = None
    ) -> None:
        self.run, self.payload, self.group = run, payload, group
        self.future: Future[Any] = Future()
        self._timeout_s = timeout_s
        self._deadline = None if timeout_s is None else monotonic() + timeout_s
        self._cancelled = threading.Event()

    def cancel(self) -> bool:
        """Lose interest: what waits is dropped (true), what runs stops at its next token or stride."""
        self._cancelled.set()
        return self.future.cancel()

    def stop(self) -> None:
        """Cancel, and wait until the worker has let go."""
        if not self.cancel():
            wait_for([self.future])

    def stopped(self) -> bool:
        """Whether the caller has lost interest or the deadline is past; asked by whoever does the work."""
        return self._cancelled.is_set() or self._late()

    def check(self) -> None:
        """Raise if the work should stop.

        Raises:
            DeadlineError: the deadline is past.
            CancelledError: the caller has lost interest.
        """
        if self._cancelled.is_set():
            raise CancelledError
        if self._late():
            raise self._deadline_error()

    def result(self) -> Any:
        """Wait in a thread. An interruption (Ctrl-C) stops the work before it is raised.

        Raises:
            DeadlineError: not done in time.
        """
        try:
            return self.future.result(self.remaining_s())
        except TimeoutError as error:
            if not self._late() or isinstance(error, DeadlineError):
                raise  # the work's own
            raise self.give_up() from error
        except (KeyboardInterrupt, SystemExit):
            self.stop()
            raise

    async def wait(self) -> Any:
        """Wait on an event loop, without blocking it. Cancelling the waiting task stops the work.

        Raises:
            DeadlineError: not done in time.
        """
        try:
            async with asyncio.timeout(self.remaining_s()):
                return await asyncio.wrap_future(self.future)
        except TimeoutError as error:
            if not self._late() or isinstance(error, DeadlineError):
                raise  # the work's own
            raise self.give_up() from error
        except asyncio.CancelledError:
            self.cancel()
            raise

    def give_up(self) -> DeadlineError:
        """The deadline is past: the work stops, and the caller raises this."""
        self.cancel()
        return self._deadline_error()

    def finish(self, outcome: Any) -> None:
        """Hand the outcome to the caller; an exception is raised there."""
        if self.future.cancelled():
            return
        if isinstance(outcome, BaseException):
            self.future.set_exception(outcome)
        else:
            self.future.set_result(outcome)

    def _late(self) -> bool:
        return self._deadline is not None and monotonic() > self._deadline

    def remaining_s(self) -> float | None:
        """Seconds until the deadline; `None` without one."""
        return None if self._deadline is None else max(0.0, self._deadline - monotonic())

    def _deadline_error(self) -> DeadlineError:
        return DeadlineError(
            f"Not done within timeout_s={self._timeout_s:g}; the work was stopped. Allow more time, ask for fewer "
            "tokens, or send fewer questions at once."
        )


class _Call:
    """Code of others that a worker waits for; ended, it holds up nobody whose context still names it."""

    def __init__(self, worker: "Worker") -> None:
        self.worker, self.ended = worker, False


class Worker:
    """Runs tickets one group after another on one thread, which starts when needed and ends when idle.

    Args:
        max_waiting: most tickets that may wait; one more is refused.
        max_batch: most tickets that run together.
    """

    def __init__(self, *, max_waiting: int = 256, max_batch: int = 8) -> None:
        self.max_waiting, self.max_batch = max_waiting, max_batch
        self._waiting: deque[Ticket] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._ending = False

    @property
    def n_waiting(self) -> int:
        """Tickets in line, those at work excepted."""
        return len(self._waiting)

    def results(self, tickets: Sequence[Ticket]) -> list[Any]:
        """Put any number of tickets in line, one batch at a time, and wait for them in a thread.

        Others' tickets go between the batches. When one fails, those behind it are cancelled.

        Returns:
            Results in order.

        Raises:
            BusyError: too many are waiting already. Once the first batch is in line, the next ones wait for room.
            DeadlineError: not done in time.
        """
        found: list[Any] = []
        at_once = min(self.max_batch, self.max_waiting)
        try:
            for first in range(0, len(tickets), at_once):
                batch = tickets[first : first + at_once]
                self.submit(batch, patient=first > 0)
                found += [ticket.result() for ticket in batch]
            return found
        finally:
            for ticket in tickets:
                ticket.cancel()

    def submit(self, tickets: Sequence[Ticket], *, patient: bool = False) -> None:
        """Put tickets in line, together: those of one group are run as one batch.

        Called on the worker's own thread (a retriever that asks the engine), it runs them at once: waiting would be
        waiting for itself. From another thread that it started inside `calling` and waits for, it cannot: a thread that
        took over the context of its maker is refused; a plain thread pool's threads do not, and would wait for ever.

        Args:
            tickets: at most `max_waiting`.
            patient: wait for room, at most until the first ticket's deadline.

        Raises:
            BusyError: too many are waiting already; none is taken.
            DeadlineError: there was no room in time.
            ConfigError: called from another thread by work of this worker's.
        """
        if threading.current_thread() is self._thread:
            _run(tickets)
            return
        if (call := _INSIDE.get()) is not None and call.worker is self and not call.ended:
            raise ConfigError(
                "A retriever that guides this engine asked it from another thread (a batch, a thread pool): the "
                "model's thread waits for the retriever and would never come to answer. Ask one question after another "
                "there, without batch or threads, or let the retriever ask an engine with a model of its own."
            )
        with self._changed:
            if patient and not self._changed.wait_for(lambda: self._has_room(tickets), tickets[0].remaining_s()):
                raise tickets[0].give_up()
            if not self._has_room(tickets):
                raise BusyError(
                    f"{len(self._waiting):,} requests are waiting and at most {self.max_waiting:,} may; "
                    f"{len(tickets):,} more were refused. Try again later."
                )
            for ticket in tickets:
                ticket.future.add_done_callback(self._leave_if_cancelled)
            self._waiting.extend(tickets)
            if self._thread is None or not self._thread.is_alive():  # a forked process has lost its parent's thread
                self._thread = threading.Thread(target=self._work, name="acre-model", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    @contextmanager
    def calling(self) -> Iterator[None]:
        """Around a call of others' code that the work waits for: inside, no other thread may wait for this worker.

        Only there: what merely happens while the work runs, such as a progress callback that schedules a task on an
        event loop, may stand in line.
        """
        call = _Call(self)
        before = _INSIDE.set(call)
        try:
            yield
        finally:
            _INSIDE.reset(before)
            call.ended = True

    def stop_when_idle(self) -> None:
        """Wait until the line is empty and the thread has ended (before a fork); the next call starts a new one."""
        thread = self._thread
        if thread:
            with self._changed:
                self._ending = True
                self._changed.notify_all()
            thread.join()

    def _leave_if_cancelled(self, future: Future[Any]) -> None:
        """Nobody waits for a ticket that was cancelled in line: its place is another's."""
        if not future.cancelled():
            return
        with self._changed:
            self._waiting = deque(ticket for ticket in self._waiting if not ticket.future.cancelled())
            self._changed.notify_all()

    def _has_room(self, tickets: Sequence[Ticket]) -> bool:
        return len(self._waiting) + len(tickets) <= self.max_waiting

    def _work(self) -> None:
        while batch := self._next():
            _run(batch)
            del batch  # or the last results would live until the next question

    def _next(self) -> list[Ticket]:
        """The head of the line and the tickets of its group; empty when the line stays empty."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._waiting or self._ending, timeout=_IDLE_S) or not self._waiting:
                self._thread, self._ending = None, False
                return []
            batch = [self._waiting.popleft()]
            if batch[0].group is not None:
                alike = [ticket for ticket in self._waiting if ticket.group == batch[0].group]
                batch += alike[: self.max_batch - 1]
                for ticket in batch[1:]:
                    self._waiting.remove(ticket)
            self._changed.notify_all()  # there is room
            return batch


def _run(tickets: Sequence[Ticket]) -> None:
    live = [ticket for ticket in tickets if ticket.future.set_running_or_notify_cancel()]
    ready = []
    for ticket in live:
        try:
            ticket.check()
            ready.append(ticket)
        except (DeadlineError, CancelledError) as late:
            ticket.finish(late)
    if not ready:
        return
    try:
        outcomes = ready[0].run(ready)
    except BaseException as error:  # raised in the callers' threads; this one has to go on
        outcomes = [error] * len(ready)
    for ticket, outcome in zip(ready, outcomes, strict=True):
        ticket.finish(outcome)
