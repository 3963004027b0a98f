"""Conversations whose first message holds a long document and a question about it, taken apart.

The form of Activation Beacon's long-llm data, which the authors of ACRE trained on too: {"conversations": [{"role":
"user", "content": ...}, {"role": "assistant", ...}, ...]}; ShareGPT's {"from": "human", "value": ...} and LongAlpaca's
{"instruction", "output"} are the same thing in other words. Knows text only.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_LONGEST_QUESTION = 2_000
_SHORTEST_DOCUMENT = 1_000
_USER = {"user", "human"}
_ASSISTANT = {"assistant", "gpt"}

# What the collections write before the document ...
_HEADER = re.compile(
    r"\A(?:(?:Story|Paper|Context):|Read the following context\.|Context information is below:\s*-{5,}"
    r"|Below (?:presents|is) [^\n]*|There (?:is|are) [^\n]*|Here is a chapter in a book\.[^\n]*"
    r"|I want you read the given [^\n]*|You're a [^\n]*)\s*"
    r"(?:The (?:first )?paper begins\.\s*)?"
)
# ... and between it and the question.
_END = re.compile(r"\s*(?:Now the (?:second )?(?:paper|material) ends\.|\n-{5,}\n|\n[ \t]*\n)\s*")
_ASKING = re.compile(r"\AAnswer my question using the knowledge from the context:\s*")


class UnsplitError(ValueError):
    """A conversation whose document cannot be told from its question; collections have a few."""


@dataclass(frozen=True)
class Turns:
    """A document, and each question about it with its answer."""

    document: str
    asked: tuple[tuple[str, str], ...]


def turns_of(row: Mapping[str, Any]) -> Turns | None:
    """The document, and every question with its answer; None for an object that is no conversation.

    Raises:
        UnsplitError: a conversation that does not begin with a document and a question, or has no answer.
        ValueError: a message without a role or text.
    """
    messages = _messages(row)
    if messages is None:
        return None
    if not messages or messages[0][0] != "user":
        raise UnsplitError("its conversation does not begin with the user")
    document, question = split_message(messages[0][1])
    turns: list[tuple[str, str]] = []
    for role, text in messages[1:]:
        if role == "user":
            question = text.strip()
        elif question and text.strip():
            turns.append((question, text.strip()))
            question = ""
    if not turns:
        raise UnsplitError("its conversation has no answer")
    return Turns(document, tuple(turns))


def split_message(message: str) -> tuple[str, str]:
    """A document and the question after it: at the last known mark, else at the last blank line.

    Raises:
        UnsplitError: no such place, or what stands after it is too long for a question.
    """
    start = header.end() if (header := _HEADER.match(message)) else 0
    ends = [end for end in _END.finditer(message, start) if end.end() < len(message.rstrip())]
    marks = [end for end in ends if end.group().strip()]
    if not ends:
        raise UnsplitError("its first message has no blank line between document and question")
    end = (marks or ends)[-1]
    document, question = message[start : end.start()].strip(), _ASKING.sub("", message[end.end() :]).strip()
    if len(document) < _SHORTEST_DOCUMENT or len(question) > _LONGEST_QUESTION:
        raise UnsplitError(
            f"its first message splits into {len(document):,} characters of document and {len(question):,} of "
            f"question; {_SHORTEST_DOCUMENT:,} or more and {_LONGEST_QUESTION:,} or less are believable"
        )
    return document, question


def _messages(row: Mapping[str, Any]) -> list[tuple[str, str]] | None:
    """Role and text of each message, system messages left out."""
    if isinstance(row.get("instruction"), str) and isinstance(row.get("output"), str):
        more = row.get("input")
        asked = f"{row['instruction']}\n\n{more}" if isinstance(more, str) and more.strip() else row["instruction"]
        return [("user", asked), ("assistant", row["output"])]
    listed = row.get("conversations") or row.get("messages")
    if not isinstance(listed, list):
        return None
    messages = []
    for message in listed:
        role = message.get("role", message.get("from")) if isinstance(message, Mapping) else None
        text = message.get("content", message.get("value")) if isinstance(message, Mapping) else None
        if not isinstance(role, str) or not isinstance(text, str):
            raise ValueError("a message of its conversation has no role or no text")
        if role in _USER | _ASSISTANT:
            messages.append(("user" if role in _USER else "assistant", text))
    return messages
