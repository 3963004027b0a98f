"""Progress of long work on a terminal's standard error; silent everywhere else. Knows no models."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from acre_rag.construct import ProgressCallback


class _Count(ProgressColumn):
    """Tokens read of tokens in all."""

    def render(self, task: Task) -> Text:
        """Nothing until the first stride is done."""
        return Text(f"{task.completed:,.0f}/{task.total:,.0f} tokens" if task.total else "")


class _Speed(ProgressColumn):
    """Tokens per second."""

    def render(self, task: Task) -> Text:
        """Speed so far, once there is one."""
        return Text(f"{task.speed:,.0f} tokens/s" if task.speed else "")


@contextmanager
def reading_progress(label: str, *, shown: bool = True) -> Iterator[ProgressCallback]:
    """A bar with tokens, tokens per second and time left, for `ACRE.add(progress=...)`."""
    console = Console(stderr=True)
    if not shown or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        _Count(),
        _Speed(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, speed_estimate_period=60) as progress:
        task = progress.add_task(label, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def waiting(label: str) -> Iterator[None]:
    """A spinner for work of unknown length."""
    if not sys.stderr.isatty():
        yield
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        progress.add_task(label, total=None)
        yield
