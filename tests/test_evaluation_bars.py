"""Progress of an evaluation: on a terminal it says what is at work and how far it is, elsewhere nothing."""

import io

import pytest

from acre_rag.evaluation.bars import Bars


class Terminal(io.StringIO):
    """What a shell gives as standard error."""

    def isatty(self) -> bool:
        """A person is looking."""
        return True


def shown(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> str:
    """All that two of three questions and half a document write to standard error."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr", stream)
    with Bars() as bars:
        bars.begin("squad: acre [1/2]", done=0, total=3)
        bars.asked()
        bars.asked()
        bars.reading("Persuasion", 40, 80)
    return stream.getvalue()


def test_a_terminal_sees_questions_and_the_document_being_read(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(Terminal(), monkeypatch)
    assert "squad: acre [1/2]" in text and "2/3" in text
    assert "reading Persuasion" in text and "40/80" in text


def test_elsewhere_nothing_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(io.StringIO(), monkeypatch) == ""
