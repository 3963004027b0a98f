"""RULER-style documents: what is hidden is there once, the length is right, the same seed makes the same."""

import re
from typing import Any

import pytest
from conftest import byte_tokenizer, tiny_decoder
from hypothesis import given, settings
from hypothesis import strategies as st

from acre_rag.decoder import Decoder
from acre_rag.errors import ConfigError, EvaluationError
from acre_rag.evaluation import EvalItem, task_of
from acre_rag.evaluation.board import Board, Options
from acre_rag.evaluation.ruler import RULER, generate, questions
from acre_rag.evaluation.ruler.haystack import filled_haystack, sentences_of
from acre_rag.evaluation.tasks import TASKS
from acre_rag.prompts import render

NEEDLE = re.compile(r"One of the special magic (?:numbers|uuids) for (\S+) is: (\S+)\.")


def n_tokens(text: str) -> int:
    return len(byte_tokenizer()(text, add_special_tokens=False)["input_ids"])


def made(name: str, **options: Any) -> list[EvalItem]:
    return generate(name, **({"tokenizer": byte_tokenizer(), "tokens": 5000, "count": 2} | options))


def test_every_task_that_is_made_can_be_asked_and_scored() -> None:
    assert set(RULER) == {name for name in TASKS if name.startswith("ruler_")}


@pytest.mark.parametrize("name", RULER)
@pytest.mark.parametrize("tokens", [2500, 10_000])
def test_documents_have_the_length_and_their_answers(name: str, tokens: int) -> None:
    for item in made(name, tokens=tokens):
        length = n_tokens(item.document)
        assert item.facts["tokens"] == length
        assert tokens - 1200 < length <= tokens  # within the longest sentence or passage of the book
        gold = " ".join(item.document[start:stop] for start, stop in item.facts["gold"])
        assert all(answer.lower() in gold.lower() for answer in item.answers[:1])
        assert task_of(name).score(", ".join(item.answers), item) == 100
        assert task_of(name).score("no idea", item) == 0


@pytest.mark.parametrize("name", RULER)
def test_the_seed_makes_the_document(name: str) -> None:
    assert made(name, seed=1) == made(name, seed=1)
    assert made(name, seed=1, count=1) == made(name, seed=1)[:1]  # more items do not change the first ones
    documents = [item.document for seed in (1, 2) for item in made(name, seed=seed)]
    assert len(set(documents)) == len(documents)


@pytest.mark.parametrize(
    ("name", "keys", "answers", "wording"),
    [
        ("ruler_niah_single_1", 1, 1, "What is the special magic number for "),
        ("ruler_niah_single_3", 1, 1, "What is the special magic uuid for "),
        ("ruler_niah_multikey_1", 4, 1, "What is the special magic number for "),
        ("ruler_niah_multivalue", 1, 4, "What are all the special magic numbers for "),
        ("ruler_niah_multiquery", 4, 4, "What are all the special magic numbers for "),
    ],
)
def test_needles_are_hidden_as_specified(name: str, keys: int, answers: int, wording: str) -> None:
    for item in made(name):
        hidden = NEEDLE.findall(item.document)
        assert len({key for key, _ in hidden}) == keys
        asked = re.findall(
            r"\w+-\w+", item.question.removeprefix(wording).removesuffix(" mentioned in the provided text?")
        )
        assert item.question.startswith(wording)
        assert sorted(value for key, value in hidden if key in asked) == sorted(item.answers)
        assert len(item.answers) == answers
        gold = [item.document[start:stop] for start, stop in item.facts["gold"]]
        assert sorted(gold) == sorted(each[0] for each in re.finditer(NEEDLE, item.document) if each[1] in asked)


@pytest.mark.parametrize("name", ["ruler_niah_multikey_2", "ruler_niah_multikey_3"])
def test_among_needles_only_one_has_the_asked_key(name: str) -> None:
    for item in made(name, tokens=30_000):
        hidden = NEEDLE.findall(item.document)
        assert len(hidden) > 200
        assert [value for key, value in hidden if f" {key} " in item.question] == list(item.answers)


def test_no_other_needle_takes_the_asked_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """With three keys in all, chance would give the asked one to every third needle."""
    monkeypatch.setattr("acre_rag.evaluation.ruler.words._ADJECTIVES", ["old"])
    monkeypatch.setattr("acre_rag.evaluation.ruler.words._NOUNS", ["oak", "elm", "fir"])
    for item in made("ruler_niah_multikey_2", tokens=3000):
        values = [value for key, value in NEEDLE.findall(item.document) if f" {key} " in item.question]
        assert values == list(item.answers)


def test_variables_form_one_chain_in_order() -> None:
    for item in made("ruler_vt"):
        steps = re.findall(r"^VAR (\w+) = (?:VAR )?(\w+)$", item.document, re.MULTILINE)
        value = re.search(r"\d+", item.question)
        assert value
        assert [name for name, _ in steps] == list(item.answers)
        assert [source for _, source in steps] == [value[0], *item.answers[:-1]]
        assert len(item.answers) == len(item.facts["gold"]) == 5
        assert task_of("ruler_vt").score(f"{item.answers[0]} and {item.answers[3]}", item) == 40


def test_needles_stand_at_spread_places() -> None:
    starts = [
        item.facts["gold"][0][0] / len(item.document) for item in made("ruler_niah_single_1", count=40, tokens=3000)
    ]
    assert min(starts) < 0.15
    assert max(starts) > 0.85


def test_questions_about_the_book_are_answered_by_their_passage() -> None:
    for item in made("ruler_qa", count=8):
        ((start, stop),) = item.facts["gold"]
        passage = item.document[start:stop]
        assert any(answer in passage for answer in item.answers)
        assert item.document.count(passage) == 1
        assert re.findall(r"^Document (\d+):$", item.document, re.MULTILINE) == [
            str(i + 1) for i in range(item.document.count("Document "))
        ]


def pair(number: int) -> EvalItem:
    return EvalItem(
        id=str(number),
        dataset="own",
        document_id=str(number),
        document=f"Town {number} has {number * 7} houses. " * 5,
        question=f"How many houses has town {number}?",
        answers=(str(number * 7),),
    )


def test_given_pairs_are_asked_among_their_own_passages_and_given_texts() -> None:
    pairs = [pair(i) for i in range(10, 60)]
    for item, asked in zip(made("ruler_qa", pairs=pairs), pairs, strict=False):
        assert (item.question, item.answers) == (asked.question, asked.answers)
        assert asked.document in item.document
        assert "Alice" not in item.document
    with_texts = made("ruler_qa", pairs=pairs[:3], texts=["".join(f"Filler {i} stands here.\n\n" for i in range(400))])
    assert all(item.document.count("Filler") > 50 for item in with_texts)


def test_too_little_hay_is_said() -> None:
    with pytest.raises(ConfigError, match=r"There is hay for [\d,]+ of 5,000 tokens"):
        made("ruler_qa", pairs=[pair(i) for i in range(3)])
    with pytest.raises(ConfigError, match=r"tokens=20 is too few: what is to be hidden has \d+ tokens"):
        made("ruler_niah_single_2", tokens=20)
    with pytest.raises(ConfigError, match="texts hold no sentence"):
        made("ruler_niah_single_2", texts=[" "])
    with pytest.raises(ConfigError, match="count=0"):
        made("ruler_vt", count=0)
    with pytest.raises(EvaluationError, match="Unknown RULER-style task 'niah'; known: ruler_niah_single_1, "):
        made("niah")


def test_short_texts_are_repeated_and_long_ones_are_not() -> None:
    (item,) = made("ruler_niah_single_2", texts=["One thing.\n\nTwo things! Three"], count=1)
    assert item.document.count("Two things!") > 100
    assert sentences_of(["One thing.\n\nTwo\nthings! Three"]) == ["One thing.", "Two things!", "Three"]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=40),
    depths=st.lists(st.floats(0, 1), min_size=1, max_size=3),
    tokens=st.integers(40, 900),
)
def test_filling_takes_as_many_pieces_as_fit(lengths: list[int], depths: list[float], tokens: int) -> None:
    """Against trying every number of pieces."""
    pieces = ["x" * length for length in lengths]
    hidden = [f"<{i}>" for i in range(len(depths))]

    def joined(n: int) -> int:
        return len(" ".join([*pieces[:n], *hidden]))

    fitting = max(n for n in range(len(pieces) + 1) if joined(n) <= tokens)
    if fitting == len(pieces) and joined(fitting) < 0.9 * tokens:
        with pytest.raises(ConfigError, match="There is hay for"):
            _filled(pieces, hidden, depths, tokens)
        return
    haystack = _filled(pieces, hidden, depths, tokens)
    assert haystack.tokens == joined(fitting) == len(haystack.text)
    assert [haystack.text[start:stop] for start, stop in haystack.spans] == hidden
    assert [part for part in haystack.text.split(" ") if part not in hidden] == pieces[:fitting]


def _filled(pieces: list[str], hidden: list[str], depths: list[float], tokens: int) -> Any:
    return filled_haystack(
        lambda n: pieces[:n],
        hidden,
        depths,
        tokenizer=byte_tokenizer(),
        tokens=tokens,
        separator=" ",
        most=len(pieces),
    )


@pytest.mark.model
def test_with_the_tokenizer_of_the_built_in_model(smollm2: Decoder) -> None:
    (item,) = generate("ruler_niah_multikey_1", tokenizer=smollm2.tokenizer, tokens=60_000, count=1)
    assert 59_000 < len(smollm2.tokenizer(item.document, add_special_tokens=False)["input_ids"]) <= 60_000


@pytest.mark.parametrize("name", RULER)
def test_a_longer_run_leaves_questions_the_same_room(name: str) -> None:
    decoder = tiny_decoder()
    items = generate(name, tokenizer=decoder.tokenizer, tokens=4000, count=12)
    assert questions(name, count=12) == [item.question for item in items]
    reserved = [Board.of(decoder, name, items[:n], Options()).setting.reserve_tokens for n in (1, 12)]
    assert reserved[0] == reserved[1]
    prompt = render(task_of(name).template, decoder.tokenizer)
    longest = max(len(decoder.tokenizer(prompt.ask(item.question)[0])["input_ids"]) for item in items)
    assert reserved[0] >= longest + task_of(name).max_new_tokens
