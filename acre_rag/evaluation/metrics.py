"""Scores of answers, 0 to 100, as the benchmarks compute them; knows neither datasets nor prompts.

LongBench's and InfiniteBench's F1 are one formula (`qa_f1_score` in THUDM/LongBench `metrics.py` and in
OpenBMB/InfiniteBench `src/compute_scores.py`), so `qa_f1` serves both.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from types import MappingProxyType
from typing import Any

from acre_rag.errors import MissingExtraError
from acre_rag.evaluation.item import EvalItem
from acre_rag.retrieve import UNSPACED

LETTERS = string.ascii_uppercase
"""Labels of options, in order."""


def normalised(text: str) -> str:
    """Lower case, without punctuation, articles and extra white space, in SQuAD's order of steps."""
    plain = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", plain).split())


def qa_f1(answer: str, references: Sequence[str]) -> float:
    """Token-multiset F1 of normalised texts against the best reference (LongBench, InfiniteBench En.QA)."""
    return 100 * max(_f1(answer, reference) for reference in references)


def exact_match(answer: str, references: Sequence[str]) -> float:
    """100 when the normalised answer is one of the normalised references (SQuAD)."""
    return 100.0 * any(normalised(answer) == normalised(reference) for reference in references)


def contains_answer(answer: str, references: Sequence[str]) -> float:
    """100 when some normalised reference stands in the normalised answer, at word bounds."""
    said = f" {normalised(answer)} "
    wanted = [normalised(reference) for reference in references]
    return 100.0 * any(f" {each} " in said for each in wanted if each)


def rouge_l(answer: str, references: Sequence[str]) -> float:
    """ROUGE-L F-measure against the best reference, without stemming, by Google's `rouge-score`.

    Words are those of every script (`unicode_words`); of ASCII text, the package's own.

    LongBench itself uses the package `rouge`, which joins per-sentence subsequences and counts repeated words once; its
    figures are near these, but not the same.

    Raises:
        MissingExtraError: `rouge-score` is not installed.
    """
    scorer = _rouge()
    return 100 * max(float(scorer.score(reference, answer)["rougeL"].fmeasure) for reference in references)


def unicode_words(text: str) -> list[str]:
    """Runs of letters, marks and digits in lower case; where a script puts no spaces between words, its characters.

    `rouge-score` itself knows the ASCII letters and digits alone, and finds nothing in Chinese, Greek or Hindi.
    """
    plain = unicodedata.normalize("NFKC", text).lower()
    spaced = UNSPACED.sub(r" \g<0> ", plain)
    return "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in spaced).split()


def ruler_all(answer: str, references: Sequence[str]) -> float:
    """Share of the references that stand in the answer, whatever the case (RULER's `string_match_all`)."""
    return 100 * sum(reference.lower() in answer.lower() for reference in references) / len(references)


def ruler_part(answer: str, references: Sequence[str]) -> float:
    """100 when any reference stands in the answer, whatever the case (RULER's `string_match_part`)."""
    return 100.0 * any(reference.lower() in answer.lower() for reference in references)


def option_accuracy(answer: str, references: Sequence[str], options: Sequence[str]) -> float:
    """100 when the answer names the right option, by its text or its letter.

    Args:
        answer: what a model said.
        references: the right option's text, or its letter.
        options: all of them, in order.
    """
    right = {chosen_option(reference, options) for reference in references} - {None}
    return 100.0 * (chosen_option(answer, options) in right)


def chosen_option(answer: str, options: Sequence[str]) -> int | None:
    """Number of the option that an answer names; None when it names none, or several.

    In this order: the whole answer is an option's text; it begins with or announces a letter ("B.", "(B)", "the answer
    is B"); it begins with or announces an option's text; one option's text stands in it; it is mostly one option's text
    (cut short, or a word changed: token F1 of 0.5 or more, and more than for any other option).
    """
    said = normalised(answer)
    texts = [normalised(option) for option in options]
    whole = [i for i, text in enumerate(texts) if text == said]
    if whole:
        return whole[0]
    letter = _letter(answer, len(options))
    if letter is not None:
        return letter
    announced = _announced(said, texts)
    if announced is not None:
        return announced
    held = [i for i, text in enumerate(texts) if text and f" {text} " in f" {said} "]
    held = [i for i in held if not any(i != j and f" {texts[i]} " in f" {texts[j]} " for j in held)]
    if held:
        return held[0] if len(held) == 1 else None
    scores = [_f1(answer, option) for option in options]
    best = max(scores, default=0.0)
    return scores.index(best) if best >= 0.5 and scores.count(best) == 1 else None


_VERDICT_WORDS = 2


def _announced(said: str, texts: Sequence[str]) -> int | None:
    """The longest short option that stands first, or behind "answer is".

    What follows a verdict may weigh the other ("False. It is not true that ..."); a sentence behind a sentence is a
    second choice.
    """
    after = said.partition("answer is ")[2]
    short = [i for i, text in enumerate(texts) if text and len(text.split()) <= _VERDICT_WORDS]
    named = [i for i in short if any(_begins(part, texts[i]) for part in (said, after))]
    return max(named, key=lambda i: len(texts[i])) if named else None


def _begins(said: str, text: str) -> bool:
    return f"{said} ".startswith(f"{text} ") and not said.startswith(f"{text} or ")


def _letter(answer: str, n_options: int) -> int | None:
    """A letter that labels an option; never the article "A" of a sentence."""
    labels = LETTERS[:n_options]
    alone = re.match(rf"\s*(?:option\s+)?[(\[*]*([{labels}])(?:[)\].:,*\n]|\s*$)", answer, re.IGNORECASE)
    announced = re.search(
        rf"(?:answer|option|choice)(?:\s+is)?\s*:?\s*[(\[*]*([{labels}])(?:[)\].:,*\n]|\s*$|\s+(?:because|as|since)\b)",
        answer,
        re.IGNORECASE,
    )
    found = alone or announced
    another = rf"[\W_]*(?:(?:and|or)\s+)?[(\[*]*[{labels}](?:[)\].:,*;]|\s*$|\s+(?:and|or)\b)"
    if not found or re.match(another, answer[found.end() :]):
        return None  # several letters name no option
    return labels.index(found[1].upper())


def _f1(answer: str, reference: str) -> float:
    """Token-multiset F1 of two texts, 0 to 1."""
    said, wanted = normalised(answer).split(), normalised(reference).split()
    common = sum((Counter(said) & Counter(wanted)).values())
    if not common:
        return 0.0
    precision, recall = common / len(said), common / len(wanted)
    return 2 * precision * recall / (precision + recall)


@cache
def _rouge() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingExtraError("rouge-score", "evaluation", "Scoring long answers (ROUGE-L)") from error
    return RougeScorer(["rougeL"], tokenizer=_Words())


class _Words:
    """`unicode_words` as `rouge-score` takes it."""

    def tokenize(self, text: str) -> list[str]:
        """Words in order."""
        return unicode_words(text)


def _by_references(metric: Callable[[str, Sequence[str]], float]) -> Callable[[str, EvalItem], float]:
    return lambda answer, item: metric(answer, item.answers)


METRICS: Mapping[str, Callable[[str, EvalItem], float]] = MappingProxyType(
    {
        "qa_f1": _by_references(qa_f1),
        "exact_match": _by_references(exact_match),
        "contains_answer": _by_references(contains_answer),
        "rouge_l": _by_references(rouge_l),
        "ruler_all": _by_references(ruler_all),
        "ruler_part": _by_references(ruler_part),
        "option_accuracy": lambda answer, item: option_accuracy(answer, item.answers, item.options),
    }
)
"""Every metric by name: takes the answer and its item, gives 0 to 100."""
