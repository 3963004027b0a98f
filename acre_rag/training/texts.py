"""Excerpts of a folder of plain texts as training examples, drawn by number; knows no model and no tokens."""

import gzip
import hashlib
import random
from collections.abc import Iterator
from functools import lru_cache
from itertools import count
from pathlib import Path

from acre_rag.errors import DocumentError
from acre_rag.training.data.example import TrainingExample

_SUFFIXES = (".txt", ".txt.gz")


class Excerpts:
    """Excerpt number `i` is the same in every run, process and after every restart.

    Args:
        files: the texts; longer ones are drawn from as often as shorter ones.
        n_chars: characters of an excerpt, all of a shorter text; it starts at a paragraph where one is near.
        seed: of the draws.
    """

    def __init__(self, files: list[Path], *, n_chars: int, seed: int = 0) -> None:
        self._files, self._n_chars, self._seed = files, n_chars, seed

    def starting_at(self, number: int) -> Iterator[TrainingExample]:
        """Excerpts `number`, `number + 1`, ... without end."""
        return map(self.excerpt, count(number))

    def excerpt(self, number: int) -> TrainingExample:
        """One excerpt."""
        rng = random.Random(f"{self._seed}/{number}")
        path = rng.choice(self._files)
        text = _text(path)
        last = max(0, len(text) - self._n_chars)  # a later start would leave too little to learn from
        start = rng.randrange(max(1, last))
        paragraph = text.find("\n\n", start, min(start + self._n_chars // 4, last))
        start = start if paragraph < 0 else paragraph + 2
        return TrainingExample(text[start : start + self._n_chars], None, None, (), f"{path.name}:{start}")


def split_texts(folder: Path, *, held_out: int, least_chars: int = 0) -> tuple[list[Path], list[Path]]:
    """The `.txt` and `.txt.gz` files to train on, and those to measure on, chosen by their names' digests.

    Args:
        folder: the texts.
        held_out: files to measure on.
        least_chars: shorter texts are left out: there is nothing to learn from them.

    Raises:
        DocumentError: too few files.
    """
    files = [path for path in folder.glob("*") if path.name.endswith(_SUFFIXES)] if folder.is_dir() else []
    files = [path for path in files if _holds(path, least_chars)]
    files.sort(key=lambda path: hashlib.sha256(path.name.encode()).digest())
    if len(files) <= held_out:
        raise DocumentError(
            f"{folder} has {len(files)} files of plain text (.txt, .txt.gz) of {least_chars:,} characters or more, "
            f"and {held_out} are held out. "
            "Give a folder with more, or hold out fewer."
        )
    return files[held_out:], files[:held_out]


def digest_of(files: list[Path]) -> str:
    """SHA-256 over names and bytes of the files."""
    total = hashlib.sha256()
    for path in files:
        total.update(f"{path.name}\n".encode())
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


@lru_cache(maxsize=8)
def _text(path: Path) -> str:
    return _beginning(path, -1)


def _holds(path: Path, n_chars: int) -> bool:
    return not n_chars or len(_beginning(path, n_chars)) >= n_chars


def _beginning(path: Path, n_chars: int) -> str:
    """So many characters; all for -1."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            return str(file.read(n_chars))
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DocumentError(f"{path} cannot be read as text ({error}).") from error
