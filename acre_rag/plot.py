"""One picture of one question: where in the document it attended, and what was refilled. Knows no models."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from acre_rag.choose import Selection
from acre_rag.document import Document
from acre_rag.errors import ConfigError, DocumentError, MissingExtraError

_QUIET, _CHOSEN, _EDGE = "#b9c6d3", "#d1495b", "#33415c"
_SNIPPET_CHARS = 90
_ENDINGS = (".png", ".svg", ".pdf")


def check_ending(path: Path) -> None:
    """Refuse a picture of a format that is not drawn, before the work whose findings it is to show.

    Raises:
        ConfigError: neither .png nor .svg nor .pdf.
    """
    if path.suffix.lower() not in _ENDINGS:
        raise ConfigError(f"The picture {path} has an ending that is not drawn. Use one of: {', '.join(_ENDINGS)}.")


def check_picture(path: Path) -> None:
    """Refuse a picture that `plot_selection` could not write, before anything is read.

    Raises:
        ConfigError: neither .png nor .svg nor .pdf.
        DocumentError: its folder does not exist.
    """
    check_ending(path)
    if not path.parent.is_dir():
        raise DocumentError(f"The picture {path} cannot be written: there is no folder {path.parent}. Create it first.")


def plot_selection(
    question: str, selection: Selection, documents: Sequence[Document], path: Path, *, answer: str = ""
) -> None:
    """Draw the score of every passage over the length of each document; refilled ones stand out and are quoted.

    Args:
        question: the question.
        selection: what it chose.
        documents: the documents asked.
        path: picture to write; the suffix says the format (png, svg, pdf).
        answer: shown under the question.

    Raises:
        MissingExtraError: matplotlib is not installed.
        DocumentError: the picture cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plot", "--plot") from error
    figure = Figure(figsize=(11, 1.2 + 2.6 * len(documents)), layout="constrained")
    axes = figure.subplots(len(documents), squeeze=False)[:, 0]
    for index, (axis, document) in enumerate(zip(axes, documents, strict=True)):
        _draw(axis, selection, document, index)
    title = f"Q: {question}" + (f"\nA: {_shorten(answer, 160)}" if answer else "")
    figure.suptitle(title.replace("$", r"\$"), fontsize=11, ha="left", x=0.02)
    try:
        figure.savefig(path, dpi=130)
    except (OSError, ValueError) as error:
        raise DocumentError(
            f"The picture {path} cannot be written ({error}). Use a .png, .svg or .pdf path."
        ) from error


def _draw(axis: Any, selection: Selection, document: Document, index: int) -> None:
    length = max(1, len(document.text))
    chosen = {unit.blocks.start for unit, _ in selection.units if unit.document == index}
    peaks = []
    for unit, score in selection.unit_scores:
        if unit.document != index:
            continue
        start, stop = unit.start, unit.stop
        picked = unit.blocks.start in chosen
        axis.bar(
            100 * start / length,
            max(score, 0.0),
            width=100 * (stop - start) / length,
            align="edge",
            color=_CHOSEN if picked else _QUIET,
            edgecolor="white",
            linewidth=0.3,
        )
        if picked:
            peaks.append((score, 100 * (start + stop) / 2 / length, document.text[start:stop]))
    highest = max((score for score, _, _ in peaks), default=1.0) or 1.0
    for rank, (score, place, text) in enumerate(sorted(peaks, reverse=True)[:3], 1):
        axis.text(place, max(score, 0.0), str(rank), color=_CHOSEN, ha="center", va="bottom", fontweight="bold")
        quote = f"{rank}.  {_shorten(text, _SNIPPET_CHARS)}".replace("$", r"\$")
        axis.text(0.01, 1.0 - 0.09 * rank, quote, transform=axis.transAxes, fontsize=8, color=_EDGE)
    axis.set_ylim(0, 1.6 * max(highest, 1e-9))
    axis.set_xlim(0, 100)
    axis.set_xlabel(f"position in {document.id} (%)   ·   {document.n_tokens:,} tokens   ·   red: refilled")
    axis.set_ylabel("score of the passage")
    axis.spines[["top", "right"]].set_visible(False)


def _shorten(text: str, most: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"
