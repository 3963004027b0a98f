"""Progress of an evaluation on a terminal's standard error; silent everywhere else. Knows no systems."""

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Bars:
    """Two bars: questions of the systems at work, and the document that is being read."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
        console = Console(stderr=True)
        shown = sys.stderr.isatty()
        self._progress = Progress(
            *columns, TimeRemainingColumn(), console=console, transient=True, disable=not shown, redirect_stdout=shown
        )
        self._asking = self._progress.add_task("", total=None, visible=False)
        self._reading = self._progress.add_task("", total=None, visible=False)

    def __enter__(self) -> "Bars":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def begin(self, label: str, *, done: int, total: int) -> None:
        """A group of systems starts on a data set."""
        self._progress.reset(self._asking, description=label, completed=done, total=total, visible=True)

    def reading(self, label: str, done: int, total: int) -> None:
        """Tokens of a document that were read."""
        self._progress.update(
            self._reading, description=f"reading {label}", completed=done, total=total, visible=done < total
        )

    def asked(self) -> None:
        """One question was answered, or failed."""
        self._progress.advance(self._asking)
