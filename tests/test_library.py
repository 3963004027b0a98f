"""The documents asked: each once, and those that can be read where all are asked; another text is another document."""

from collections.abc import Callable
from pathlib import Path

import pytest
from test_engine import SHORT, TEXT
from test_store import engine

from acre_rag import ACRE
from acre_rag.errors import CorruptCacheError, DocumentError
from acre_rag.store import Store

QUESTION = "Where is the drum?"


def notes_of_an_answer(acre: ACRE) -> list[str]:
    answer = acre.ask(QUESTION, settings=SHORT)
    assert {source.document for source in answer.sources} == {"whole"}
    return list(answer.notes)


def notes_of_a_batch(acre: ACRE) -> list[str]:
    first, second = acre.ask_batch([QUESTION, "Kite?"], settings=SHORT)
    assert first.notes == second.notes and first.sources and second.sources
    return list(first.notes)


def notes_of_a_stream(acre: ACRE) -> list[str]:
    *_, answer = acre.stream(QUESTION, settings=SHORT)
    return list(answer.notes)


def notes_of_a_selection(acre: ACRE) -> list[str]:
    prepared = acre.prepare(QUESTION)
    assert [document.id for document in prepared.documents] == ["whole"]
    return list(prepared.notes)


WAYS = [notes_of_an_answer, notes_of_a_batch, notes_of_a_stream, notes_of_a_selection]


def damage(root: Path, id: str, file: str) -> None:
    path = Store(root).find(id)[0].folder / file
    raw = bytearray(path.read_bytes())
    raw[-5] ^= 16
    path.write_bytes(raw)


def test_a_document_named_twice_is_asked_once(tiny_acre: ACRE) -> None:
    document = tiny_acre.add(TEXT, id="rooms")
    once = tiny_acre.ask(QUESTION, "rooms", settings=SHORT)
    for asked in (["rooms", "rooms"], [document, "rooms", document]):
        answer = tiny_acre.ask(QUESTION, asked, settings=SHORT)
        assert (answer.text, answer.sources, answer.usage) == (once.text, once.sources, once.usage)


def test_another_text_of_the_same_tokens_is_another_document(tmp_path: Path) -> None:
    """To the model a lone surrogate is the character U+FFFD; the text of the document tells them apart."""
    here, there = engine(tmp_path), engine(tmp_path)
    assert not here.documents
    there.add(TEXT + "\ufffd", id="rooms")
    with pytest.raises(DocumentError, match="'rooms' with another text is stored; remove it first"):
        here.add(TEXT + "\ud83d", id="rooms")
    assert here.add(TEXT + "\ufffd", id="rooms").text == TEXT + "\ufffd"


@pytest.mark.parametrize("notes_of", WAYS)
@pytest.mark.parametrize("file", ["compact.safetensors", "l2-00000.safetensors"])
def test_all_documents_are_those_that_can_be_read(
    file: str, notes_of: Callable[[ACRE], list[str]], tmp_path: Path
) -> None:
    writer = engine(tmp_path)
    for name in ("hurt", "whole", "hurt too"):
        writer.add(TEXT[:400].replace("room", name), id=name)
    for name in ("hurt", "hurt too"):
        damage(tmp_path, name, file)
    acre = engine(tmp_path).using(budget=4096, max_passages=99)  # every block is read
    for _ in range(2):
        notes = notes_of(acre)
        assert all(
            note.startswith(f"left out: The stored cache of {name!r} is damaged")
            for note, name in zip(notes, ("hurt", "hurt too"), strict=True)
        )
    with pytest.raises(CorruptCacheError, match="'hurt' is damaged"):
        acre.ask(QUESTION, ["whole", "hurt"], settings=SHORT)
    acre.remove("whole")
    with pytest.raises(CorruptCacheError, match="is damaged"):
        acre.ask(QUESTION, settings=SHORT)


@pytest.mark.parametrize("notes_of", WAYS)
def test_what_another_process_removed_is_not_among_all_documents(
    notes_of: Callable[[ACRE], list[str]], tmp_path: Path
) -> None:
    here, there = engine(tmp_path), engine(tmp_path)
    for name in ("gone", "whole"):
        here.add(TEXT[:400].replace("room", name), id=name)
    here.release("gone")
    there.remove("gone")
    assert notes_of(here) == []
    assert list(here.documents) == ["whole"]
