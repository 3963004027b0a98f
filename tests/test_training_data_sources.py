"""Records of every form, conversations taken apart, files read line by line, and where an answer stands."""

import gzip
import json
from pathlib import Path

import pytest

from acre_rag.errors import TrainingDataError
from acre_rag.training.data.conversations import UnsplitError, split_message
from acre_rag.training.data.gold import evidence
from acre_rag.training.data.record import Record, parts_of, records_of
from acre_rag.training.data.source import Source, load_pairs, sources_of

BOOK = "\n\n".join(f"Paragraph {i} of a story that goes on and on about the sea and the wind." for i in range(40))


def written(path: Path, *rows: object) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"context": "The sea.", "question": "What?", "answers": ["sea", "the sea"], "license": "MIT", "id": 7},
            Record(document="The sea.", question="What?", answers=("sea", "the sea"), licence="MIT", id="7"),
        ),
        (
            {"context": "The sea.", "input": "What?", "output": "sea"},
            Record(document="The sea.", question="What?", answers=("sea",)),
        ),
        (
            {"context": "The sea.", "input": "What?", "answers": ["sea"], "dataset": "narrativeqa", "_id": "x"},
            Record(document="The sea.", question="What?", answers=("sea",), source="narrativeqa", id="x"),
        ),
        (
            {"document": "The sea.", "question": "?", "answer": 3},
            Record(document="The sea.", question="?", answers=("3",)),
        ),
        ({"text": "The sea.", "meta": {"set": 1}}, Record(document="The sea.")),
    ],
)
def test_forms_of_records(row: dict, expected: Record) -> None:
    assert records_of(row) == [expected]


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({"prompt": "a", "completion": "b"}, "prompt, completion"),
        ({}, "none"),
        ([1, 2], "list"),
        ("text", "str"),
        ({"context": "The sea.", "question": "What?"}, "no answer"),
        ({"context": "The sea.", "question": "What?", "answers": []}, "no answer"),
        ({"conversations": [{"role": "user"}]}, "no role or no text"),
    ],
)
def test_unknown_forms_are_refused_by_what_they_hold(row: object, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        records_of(row)


@pytest.mark.parametrize(
    "message",
    [
        f"Story:\n\n{BOOK}\n\nWho sails?",
        f"Context information is below:\n----------\n{BOOK}\n----------\nWho sails?",
        f"Read the following context.\n\n{BOOK}\n\nAnswer my question using the knowledge from the context:\nWho sails?",
        f"You're a smart book reader. You're required to read through it.\n\n{BOOK}\n\nWho sails?",
        f"Below is a paper. Memorize the paper and answer my question after the paper.\n The paper begins. \n{BOOK}\n"
        "Now the paper ends. \nWho sails?",
        f"Below is some paragraphs in the book, Kim. Memorize the content and answer my question after the book.\n{BOOK}\n"
        "Now the material ends.\nWho sails?",
        f"{BOOK}\n\nWho sails?",
    ],
    ids=["story", "rules", "asked", "reader", "paper", "book", "plain"],
)
def test_the_document_of_a_conversation_is_told_from_its_question(message: str) -> None:
    assert split_message(message) == (BOOK, "Who sails?")


def test_each_turn_of_a_conversation_is_a_question() -> None:
    turns = [
        ("user", f"Story:\n\n{BOOK}\n\nWho sails?"),
        ("assistant", "Ann."),
        ("user", "Where?"),
        ("assistant", "Off Wick."),
    ]
    first = records_of({"conversations": [{"role": role, "content": text} for role, text in turns]})
    assert [(r.question, r.answers) for r in first] == [("Who sails?", ("Ann.",)), ("Where?", ("Off Wick.",))]
    assert all(r.document == BOOK for r in first)
    names = {"user": "human", "assistant": "gpt"}
    again = {
        "messages": [{"from": "system", "value": "Be brief."}] + [{"from": names[r], "value": t} for r, t in turns]
    }
    assert records_of(again) == first
    assert records_of({"instruction": turns[0][1], "output": "Ann."}) == first[:1]


def test_a_conversation_without_a_document_is_left_out_and_a_file_of_them_refused(tmp_path: Path) -> None:
    chat = {"conversations": [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Hello."}]}
    good = {"conversations": [{"role": "user", "content": f"{BOOK}\n\nWho?"}, {"role": "assistant", "content": "Ann."}]}
    with pytest.raises(UnsplitError):
        records_of(chat)
    reasons: list[str] = []
    path = written(tmp_path / "some.jsonl", good, chat, good)
    assert len(list(Source(path).records(unsplit=reasons.append))) == 2
    assert len(reasons) == 1 and reasons[0].startswith("line 2")
    with pytest.raises(TrainingDataError, match="No conversation"):
        list(Source(written(tmp_path / "none.jsonl", chat, chat)).records())


def test_evaluation_files_may_lack_documents_or_answers() -> None:
    assert parts_of({"question": "What?", "doc_id": "d"}) == Record(document="", question="What?", id="d")
    assert parts_of({"doc_id": "d", "context": "The sea."}) == Record(document="The sea.", id="d")
    assert parts_of({"context": "The sea.", "question": "What?"}).question == "What?"
    with pytest.raises(ValueError, match="fields a"):
        parts_of({"a": 1})


def test_folders_are_read_with_what_is_said_of_their_texts(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One.\r\nTwo.")
    (tmp_path / "b.md.gz").write_bytes(gzip.compress(b"# Three"))
    (tmp_path / ".hidden").write_text("no")
    written(tmp_path / "manifest.jsonl", {"file": "a.txt", "title": "Numbers", "licence": "public domain"})
    written(tmp_path / "c.jsonl.gz", {"text": "Four."})
    first, second, third = sources_of([tmp_path], licence="unknown")
    [one] = first.records()
    assert (one.document, one.title, one.licence) == ("One.\nTwo.", "Numbers", "public domain")
    [two] = second.records()
    assert (two.document, two.licence) == ("# Three", "unknown")
    assert next(third.records()).document == "Four."


def test_lines_are_read_one_at_a_time(tmp_path: Path) -> None:
    """What stands after the first record, however damaged, is not looked at before its turn."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "One."}\n{"text": "Two')
    records = Source(path).records()
    assert next(records).document == "One."
    with pytest.raises(TrainingDataError, match="near line 2"):
        next(records)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'[{"text": "x"}]', "jq -c"),
        ("a.jsonl", b"\xff\xfe\xff", "cannot be read"),
        ("a.jsonl.gz", b"not gzip", "cannot be read"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "x"}' * 1000, mtime=0)[:-20], "cannot be read"),
        ("a.jsonl", b'{"text": "x"}\n{"body": "x"}', "line 2.*body"),
        ("a.txt", b"", "empty"),
    ],
)
def test_damaged_files_are_named(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TrainingDataError, match=said):
        list(Source(tmp_path / name).records())


def test_missing_empty_and_repeated_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingDataError, match="does not exist"):
        sources_of([tmp_path / "nowhere"])
    with pytest.raises(TrainingDataError, match="has no files"):
        sources_of([tmp_path])
    path = written(tmp_path / "a.jsonl", {"text": "x"})
    with pytest.raises(TrainingDataError, match="twice"):
        sources_of([tmp_path, path])


def spans(record: Record) -> list[str]:
    return [record.document[start:stop] for start, stop in evidence(record)]


def test_evidence_is_the_sentence_that_shares_most_with_the_question() -> None:
    text = "Paris is large. Ann moved to Paris in spring.\nBob stayed in London. Comparisons are odious."
    assert spans(Record(document=text, question="Where did Ann move?", answers=("Paris",))) == [
        "Ann moved to Paris in spring."
    ]
    assert spans(Record(document=text, question="Who stayed?", answers=("bob",))) == ["Bob stayed in London."]
    assert spans(Record(document=text, question="Is it so?", answers=("yes",))) == []
    assert spans(Record(document=text, question="What is so?", answers=("the moon",))) == []
    assert spans(Record(document=text, question="What is so?", answers=("omparisons",))) == [], (
        "half a word is no answer"
    )


def test_evidence_is_the_passages_that_are_named() -> None:
    text = "Passage 1:\nCork\nA town.\n\nPassage 2:\nAnn\nA person.\n\nPassage 3:\nSea\nWater."
    found = spans(Record(document=text, question="?", answers=("A town",), supporting=(1, 3, 9)))
    assert [f.strip() for f in found] == ["Cork\nA town.", "Sea\nWater."]


def test_a_folder_or_a_missing_file_of_pairs_is_called_that(tmp_path: Path) -> None:
    with pytest.raises(TrainingDataError, match=r"is a folder\. Name the file"):
        load_pairs(tmp_path)
    with pytest.raises(TrainingDataError, match=r"There is no file .*pairs\.jsonl\.gz\."):
        load_pairs(tmp_path / "pairs.jsonl.gz")
