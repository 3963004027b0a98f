"""The lines of a list that a small model wrote, whatever it put around them. Knows no prompts and no model."""

import re
from collections.abc import Iterator

from acre_rag.retrieve import UNSPACED

_BULLET = re.compile(r"^\s*(?:[-*•–—>#]+\s*|\(?(?:\d{1,3}[.):\]]|[a-zA-Z][):\]]|[a-z]\.)\s+|\d{1,3}[.):](?!\d))+")
_LABEL = re.compile(
    r"^(?:(?:the\s+)?(?:new|re-?written|clearer|simpler|improved|sub-?|search|clue|surrogate|key)?[\s-]*"
    r"(?:question|query|queries|questions|answer|version|rewrite|clue|phrase)\s*\d*)(?:\s*[:：]\s*|\s+[-–]\s+)",
    re.IGNORECASE,
)
_QUOTES = " \t\"'`*_“”‘’«»"
_MOST_CHARACTERS = 300  # of one query: what is longer is no query but a model that went on talking


def listed(text: str, *, most: int | None = None, least_words: int = 1) -> list[str]:
    """The entries of a list: without numbers, bullets, labels and quotation marks, and none of them twice.

    Announcements ("Here are the questions:") are left out. Several questions on one line are several entries.

    Args:
        text: what the model wrote.
        most: most entries; `None` takes all.
        least_words: entries of fewer words are left out; a character of a script without spaces counts as a word.
    """
    found: dict[str, str] = {}
    for entry in _entries(text):
        if _n_words(entry) >= least_words and re.search(r"\w", entry):
            found.setdefault(_plain(entry), entry)
    return list(found.values())[:most]


def _entries(text: str) -> Iterator[str]:
    for line in text.splitlines():
        bare = _bare(line)
        if bare.endswith((":", "：")):
            continue
        for part in re.split(r"(?<=\?)\s+|(?<=？)\s*", bare):
            yield _bare(part)[:_MOST_CHARACTERS].strip()


def _n_words(entry: str) -> int:
    spaced, n_unspaced = UNSPACED.subn(" ", entry)
    words = [word for word in spaced.split() if not n_unspaced or re.search(r"\w", word)]  # "？" is no word of its own
    return len(words) + n_unspaced


def _bare(line: str) -> str:
    """A line without what stands around its words."""
    while (shorter := _LABEL.sub("", _BULLET.sub("", line.strip(_QUOTES))).strip(_QUOTES)) != line:
        line = shorter
    return line


def _plain(entry: str) -> str:
    """What two entries have in common when they say the same."""
    return " ".join(re.findall(r"\w+", entry.casefold()))
