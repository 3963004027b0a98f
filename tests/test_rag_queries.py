"""Queries out of whatever a small model wrote, and the choice among several answers."""

import re

import pytest
import torch
from conftest import tiny_decoder
from hypothesis import given
from hypothesis import strategies as st

from acre_rag.baselines.base import Call
from acre_rag.baselines.prompted import nothing, token_ids
from acre_rag.baselines.rag.confidence import Sure, answer_surely, most_confident, voted
from acre_rag.baselines.rag.lines import listed
from acre_rag.baselines.rag.recall import all_queries, recalled
from acre_rag.baselines.rag.rewriting import ACTIONS, refined
from acre_rag.generate import Generated, GenerationSettings, decode

UGLY = {
    "1. Who is Dinah?\n2. Where is she?": ["Who is Dinah?", "Where is she?"],
    "Sure! Here are the questions:\n\n - Who is Dinah?\n * **Where is she?**": ["Who is Dinah?", "Where is she?"],
    "1) Who is Dinah? 2) Where is she?": ["Who is Dinah?", "Where is she?"],
    "(a) Who is Dinah?\n(b) Where is she?": ["Who is Dinah?", "Where is she?"],
    'Rewritten question: "Who is Dinah?"': ["Who is Dinah?"],
    "Sub-question 1: Who is Dinah?\nSub-question 2: Where is she?": ["Who is Dinah?", "Where is she?"],
    "Query: Dinah the cat\nQuery: dinah, the cat!": ["Dinah the cat"],
    "“Who is Dinah?”\n`Who is Dinah?`\nWHO IS DINAH": ["Who is Dinah?"],
    "- 1. **Question:** Who is Dinah?": ["Who is Dinah?"],
    "1984 was written by whom?": ["1984 was written by whom?"],
    "3.5 percent of what?": ["3.5 percent of what?"],
    "A cat sat here.": ["A cat sat here."],
    "J. K. Rowling was born in which town?": ["J. K. Rowling was born in which town?"],
    "a. Who is Dinah?\nb. Where is she?": ["Who is Dinah?", "Where is she?"],
    "Answer the call of duty": ["Answer the call of duty"],
    "Question-answering systems need what?": ["Question-answering systems need what?"],
    "Answer-sheet: where is it kept?": ["Answer-sheet: where is it kept?"],
    "Question - Who is Dinah?\nClue – Dinah is a cat": ["Who is Dinah?", "Dinah is a cat"],
    "以下是问题：\n1. 猫叫什么名字？它住在哪里？ 谁养它？": ["猫叫什么名字？", "它住在哪里？", "谁养它？"],
    "": [],
    "\n \n": [],
    "...\n---\n**": [],
}


@pytest.mark.parametrize("text", UGLY)
def test_ugly_lists_are_read(text: str) -> None:
    assert listed(text, most=3) == UGLY[text]


def test_a_list_is_cut_and_short_entries_can_be_left_out() -> None:
    assert listed("one\ntwo\nthree", most=2) == ["one", "two"]
    assert listed("the cat\nthe cat is called Dinah", most=3, least_words=4) == ["the cat is called Dinah"]


def test_characters_without_spaces_are_words() -> None:
    said = recalled("猫住在旧磨坊里。\n猫！", "แมวอาศัยอยู่ที่ไหน", "")
    assert said.clues == ("猫住在旧磨坊里。",) and said.questions == ("แมวอาศัยอยู่ที่ไหน",)
    assert listed("the 猫 cat", most=1, least_words=3) == ["the 猫 cat"]
    assert listed("the 猫？", most=1, least_words=3) == []


@given(st.text(st.sampled_from('ab 12.?:*-•"()\nQuestion'), max_size=200), st.integers(1, 4), st.integers(1, 4))
def test_whatever_is_written_entries_are_clean_and_few(text: str, most: int, least: int) -> None:
    entries = listed(text, most=most, least_words=least)
    assert len(entries) <= most
    words = [re.findall(r"\w+", entry.casefold()) for entry in entries]
    assert all(words) and len({tuple(each) for each in words}) == len(words)
    for entry in entries:
        assert entry in text
        assert entry == entry.strip() and "\n" not in entry and not entry.startswith(("- ", "• ", '"'))
        assert len(entry.split()) >= least


def test_each_action_gives_a_query_and_those_equal_asking_one_by_one() -> None:
    decoder, call = tiny_decoder(), Call(GenerationSettings())
    said = refined(decoder, "Where?", call)
    found = said.queries
    assert list(found) == ["rewrite", "decompose", "disambiguate"]
    assert said.every == list(dict.fromkeys(query for each in found.values() for query in each))
    n_tokens = 0
    for action in ACTIONS:
        assert 1 <= len(found[action.name]) <= action.most
        text = f"<s>{action.task.after.replace('{question}', 'Where?')}\nAnswer:"
        n_tokens += len(token_ids(decoder, text))
        settings = GenerationSettings(max_new_tokens=64)
        [alone] = decode(decoder, [nothing(decoder)], [token_ids(decoder, text)], settings)
        assert found[action.name] == (listed(alone.text, most=action.most) or ["Where?"])
    assert said.prompt_tokens == n_tokens


def test_control_tokens_in_a_question_that_is_refined_are_words() -> None:
    sly, harmless = (refined(tiny_decoder(), text, Call(GenerationSettings())) for text in ("a</s>b?", "where??"))
    assert sly.prompt_tokens == harmless.prompt_tokens


def test_memory_is_read_into_queries_and_steps() -> None:
    said = recalled("1. The cat is called Dinah.\n2. cat", "Who owns the cat Dinah?", "A cat\nof Alice's.")
    assert said.clues == ("The cat is called Dinah.",)
    assert said.questions == ("Who owns the cat Dinah?",)
    assert [(step.name, step.text) for step in said.steps] == [
        ("clue", "The cat is called Dinah."),
        ("surrogate question", "Who owns the cat Dinah?"),
        ("draft", "A cat of Alice's."),
    ]
    assert all_queries("Who?", [said, said]) == ["Who?", *said.queries]
    assert recalled("", "", " ").queries == [] and recalled("", "", "").steps == []


@pytest.mark.parametrize(("seed", "stop"), [(0, ()), (1, ()), (2, ()), (0, ("stop",))])
def test_confidence_is_that_of_the_tokens_generated(seed: int, stop: tuple[str, ...]) -> None:
    """Against `generate`'s own scores; what strips and what ends an answer counts as everything else."""
    decoder = tiny_decoder()
    prompt = "The owl hunts at night. Who hunts? "
    ids = token_ids(decoder, prompt + "?" * seed)
    if stop:  # a part of what the model says anyhow, no half character
        [plain] = decode(decoder, [nothing(decoder)], [ids], GenerationSettings(max_new_tokens=12))
        stop = (plain.text[2:4],)
    settings = GenerationSettings(max_new_tokens=12, stop=stop)
    sure = answer_surely(decoder, ids, settings, stopped=lambda: False)
    options = {"stop_strings": list(stop), "tokenizer": decoder.tokenizer} if stop else {}
    out = decoder.model.generate(
        ids[None],
        attention_mask=torch.ones_like(ids[None]),
        max_new_tokens=12,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        **options,
    )
    new = out.sequences[0, len(ids) :]
    assert sure.generated.ids == tuple(new.tolist())
    each = [step[0].log_softmax(-1)[token] for step, token in zip(out.logits, new, strict=True)]
    assert sure.confidence == pytest.approx(float(torch.stack(each).mean().exp()), rel=1e-4)


def test_an_answer_without_words_has_no_confidence() -> None:
    decoder = tiny_decoder()
    ids = token_ids(decoder, "The owl hunts at night. Who hunts? ")
    [first] = decode(decoder, [nothing(decoder)], [ids], GenerationSettings(max_new_tokens=1))
    sure = answer_surely(
        decoder, ids, GenerationSettings(max_new_tokens=4, stop=(first.text[:1],)), stopped=lambda: False
    )
    assert (sure.generated.text, sure.confidence) == ("", 0.0)


def _sure(text: str, confidence: float) -> Sure:
    return Sure(Generated(text, 1, True, 0.0, 0.0), confidence)


def test_the_surest_branch_and_the_vote_may_differ() -> None:
    branches = [_sure("Rome", 0.5), _sure("Paris.", 0.3), _sure("paris", 0.4)]
    assert most_confident(branches) == 0
    assert voted(branches) == 2
    assert most_confident([_sure("a", 0.5), _sure("b", 0.5)]) == 0
