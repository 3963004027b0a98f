"""Scores against values worked out by hand, and against published implementations where one is installed."""

import random

import pytest
from llama_index.core.evaluation.benchmarks.hotpotqa import exact_match_score, f1_score
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer

from acre_rag import errors
from acre_rag.evaluation import EvalItem, Task, task_of
from acre_rag.evaluation.metrics import (
    METRICS,
    chosen_option,
    contains_answer,
    exact_match,
    normalised,
    option_accuracy,
    qa_f1,
    rouge_l,
    ruler_all,
    ruler_part,
    unicode_words,
)
from acre_rag.prompts import ANSWER

OPTIONS = ("He left the town.", "He stayed in the town and married.", "A letter came from the King.", "None of these")


def item(**fields: object) -> EvalItem:
    given = {"id": "1", "dataset": "own", "document_id": "d", "document": "text", "question": "?", "answers": ("x",)}
    return EvalItem(**(given | fields))


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("The  Cat, and a dog!", "cat and dog"),
        ("An apple\na day", "apple day"),
        ("U.S.A.", "usa"),
        ("theatre", "theatre"),
        ("the", ""),
        ("Don't", "dont"),
    ],
)
def test_normalising_is_squads(text: str, plain: str) -> None:
    assert normalised(text) == plain


@pytest.mark.parametrize(
    ("answer", "references", "score"),
    [
        ("the Krag", ["Krag."], 100),
        ("a golden key", ["tiny golden key"], 80),  # 2 common; precision 2/2, recall 2/3
        ("key key", ["key"], 200 / 3),  # a multiset: the second "key" counts as wrong
        ("red or blue", ["green", "blue or red", "yellow"], 100),  # order is nothing, the best reference counts
        ("nothing", ["something"], 0),
        ("", ["something"], 0),
        ("the", ["the"], 0),  # nothing left to compare: LongBench gives 0 too
    ],
)
def test_f1(answer: str, references: list[str], score: float) -> None:
    assert qa_f1(answer, references) == pytest.approx(score)


def test_f1_and_exact_match_are_those_of_a_published_implementation() -> None:
    """HotpotQA's official scores, as LlamaIndex ships them; they differ from LongBench's only for yes and no."""
    rng = random.Random(0)
    words = ["the", "a", "An", "Key.", "key", "golden", "gold-en", "1,964", "U.S.", "it's", "door", "Door!", "an"]
    for _ in range(300):
        said, wanted = (" ".join(rng.choices(words, k=rng.randint(0, 7))) for _ in range(2))
        assert qa_f1(said, [wanted]) == pytest.approx(100 * f1_score(said, wanted)[0])
        assert exact_match(said, [wanted]) == 100 * exact_match_score(said, wanted)


def test_exact_match_and_containment() -> None:
    assert exact_match("The Golden Key.", ["tiny key", "golden key"]) == 100
    assert exact_match("golden keys", ["golden key"]) == 0
    assert contains_answer("It was a golden key, I think", ["golden key"]) == 100
    assert contains_answer("It was a golden keyring", ["golden key"]) == 0  # at word bounds
    assert contains_answer("anything", ["the"]) == 0  # an empty reference stands everywhere


def lcs(a: list[str], b: list[str]) -> int:
    if not a or not b:
        return 0
    if a[-1] == b[-1]:
        return 1 + lcs(a[:-1], b[:-1])
    return max(lcs(a[:-1], b), lcs(a, b[:-1]))


def test_rouge_l() -> None:
    # LCS "cat sat mat" 3 of 4 and 5 words: precision 3/4, recall 3/5
    assert rouge_l("cat sat on mat", ["the cat sat a mat"]) == pytest.approx(100 * 2 * 0.75 * 0.6 / 1.35)
    assert rouge_l("running", ["run"]) == 0  # no stemming
    rng = random.Random(1)
    for _ in range(50):
        said, wanted = ([rng.choice("abcde") for _ in range(rng.randint(1, 7))] for _ in range(2))
        expected = 2 * lcs(said, wanted) / (len(said) + len(wanted))
        assert rouge_l(" ".join(said), ["zz", " ".join(wanted)]) == pytest.approx(100 * expected)


def test_rouge_l_of_ascii_text_is_the_packages_own_without_stemming() -> None:
    rng = random.Random(2)
    pieces = [
        "The",
        "cats",
        "running",
        "don't",
        "U.S.A.",
        "1,964",
        "snake_case",
        "--",
        "x*y",
        "ran",
        "\n",
        "e-mail",
        "a",
    ]
    own, stemmed = (RougeScorer(["rougeL"], use_stemmer=stemming) for stemming in (False, True))
    for _ in range(200):
        said, wanted = (" ".join(rng.choices(pieces, k=rng.randint(1, 12))) for _ in range(2))
        assert unicode_words(said) == DefaultTokenizer(use_stemmer=False).tokenize(said)
        assert rouge_l(said, [wanted]) == pytest.approx(100 * own.score(wanted, said)["rougeL"].fmeasure)
    assert rouge_l("running", ["run"]) == 0 and stemmed.score("run", "running")["rougeL"].fmeasure == 1


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        ("Η γάτα κοιμάται", "Η γάτα τρέχει", 200 / 3),
        ("кошка спит", "Кошка спит.", 100),
        ("बिल्ली सो रही है", "बिल्ली सो गयी है", 75),  # vowel signs are of their words
        ("猫在睡觉", "猫在跑步", 50),  # without spaces, characters are compared
        ("แมวนอน", "แมวนอน", 100),
        ("cafe\u0301 noir", "CAFÉ noir", 100),
        ("猫", "犬", 0),
    ],
)
def test_rouge_l_knows_every_script(answer: str, reference: str, score: float) -> None:
    assert rouge_l(answer, [reference]) == pytest.approx(score)


def test_ruler_scores() -> None:
    assert ruler_all("They are 111 and 333.", ["111", "222", "333", "444"]) == 50
    assert ruler_all("abcde", ["ABCDE"]) == 100
    assert ruler_part("in Paris", ["paris", "Lyon"]) == 100
    assert ruler_part("nowhere", ["paris", "Lyon"]) == 0


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("He left the town", 0),
        ("B", 1),
        ("(b)", 1),
        ("**B.** He stayed", 1),
        ("C: because of it", 2),
        ("The answer is B.", 1),
        ("the correct option is: (D)", 3),
        ("Option D", 3),
        ("I think that he left the town, long ago", 0),
        ("A letter came from the King.", 2),  # begins with the article, not with the letter of the first option
        ("A letter came from the Queen", 2),  # one word differs
        ("He stayed in the town and", 1),  # cut short
        ("None of these", 3),
        ("He left the town. He stayed in the town and married.", None),  # two of them
        ("no idea", None),
        ("A, B", None),  # several letters name none
        ("(A), (C)", None),
        ("B or C", None),
        ("The answer is B because he stayed", 1),
        ("B. A man who stayed", 1),  # the article after a letter is no letter
        ("", None),
        ("E", None),
    ],
)
def test_the_chosen_option(answer: str, number: int | None) -> None:
    assert chosen_option(answer, OPTIONS) == number


def test_an_option_inside_a_longer_one_is_not_a_second_choice() -> None:
    assert chosen_option("it is dark blue indeed, said he to her", ["blue", "dark blue", "red"]) == 1


def test_option_accuracy_takes_text_or_letter_as_the_reference() -> None:
    assert option_accuracy("He left the town", [OPTIONS[0]], OPTIONS) == 100
    assert option_accuracy("A", ["A"], OPTIONS) == 100
    assert option_accuracy("B", [OPTIONS[0]], OPTIONS) == 0
    assert option_accuracy("False", ["False"], ("True", "False")) == 100
    for said, number in {
        "False. It is not true that Martians build canals.": 1,
        "The answer is False, not True.": 1,
        "True or False, nobody knows.": None,
    }.items():
        assert chosen_option(said, ("True", "False")) == number
    assert (
        option_accuracy("no idea", ["something that is no option"], OPTIONS) == 0
    )  # no choice equals no choice: wrong


def test_every_metric_gives_full_marks_to_the_right_answer_and_none_to_another() -> None:
    right = item(answers=("He left the town.",), options=OPTIONS)
    for name, metric in METRICS.items():
        assert metric("He left the town.", right) == 100, name
        assert metric("zebra", right) == 0, name


def test_a_task_scores_by_its_metric_and_knows_no_unknown_one() -> None:
    assert task_of("hotpotqa").score("golden key", item(answers=("tiny golden key",))) == pytest.approx(80)
    assert task_of("leval_quality").score("A", item(answers=(OPTIONS[0],), options=OPTIONS)) == 100
    with pytest.raises(errors.ConfigError, match="'bleu' is unknown; known: qa_f1"):
        Task(name="x", template=ANSWER, max_new_tokens=1, metric="bleu", prompt_source="")
