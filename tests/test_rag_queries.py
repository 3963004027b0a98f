"""Queries out of whatever a small model wrote, and the choice among several answers."""

import re
from math import inf

import pytest
import torch
from conftest import tiny_decoder
from hypothesis import given
from hypothesis import strategies as st

from acre_rag.baselines.base import Call
from acre_rag.baselines.prompted import nothing, token_ids
from acre_rag.baselines.rag.confidence import Sure, answer_surely, ensemble, least_perplexed, most_confident
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
def test_confidence_is_the_mean_of_the_likeliest_tokens_and_perplexity_that_of_everything(
    seed: int, stop: tuple[str, ...]
) -> None:
    """Against `generate`'s own scores, and the stock model's own loss."""
    decoder = tiny_decoder()
    prompt = "The owl hunts at night. Who hunts? "
    ids = token_ids(decoder, prompt + "?" * seed)
    if stop:  # a part of what the model says anyhow, no half character
        [plain] = decode(decoder, [nothing(decoder)], [ids], GenerationSettings(max_new_tokens=12))
        stop = (plain.text[2:4],)
    settings = GenerationSettings(max_new_tokens=12, stop=stop)
    sure = answer_surely(decoder, ids, settings, stopped=lambda: False, perplexity=True)
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
    blank = [not decoder.tokenizer.decode([token]).strip() for token in new.tolist()]
    each = [float(step[0].softmax(-1).max()) for step in out.logits][blank.index(False) :]
    assert sure.confidence == pytest.approx(sum(each) / len(each), rel=1e-4)
    loss = decoder.model(out.sequences, labels=out.sequences).loss
    assert sure.perplexity == pytest.approx(float(loss.exp()), rel=1e-4)
    assert answer_surely(decoder, ids, settings, stopped=lambda: False).perplexity == inf


def test_what_stands_around_an_answer_does_not_count_in_its_confidence(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = tiny_decoder()
    ids = token_ids(decoder, "The owl hunts at night. Who hunts? ")
    written = token_ids(decoder, " \nan owl</s>").tolist()

    def says(*_args: object, **_kwargs: object) -> list[Generated]:
        decoder.base(input_ids=torch.cat([ids, torch.tensor(written)])[None], past_key_values=_args[1])
        return [Generated("an owl", len(written), True, 0.0, 0.0, tuple(written))]

    monkeypatch.setattr("acre_rag.baselines.rag.confidence.decode_on", says)
    sure = answer_surely(decoder, ids, GenerationSettings(), stopped=lambda: False)
    logits = decoder.model(torch.cat([ids, torch.tensor(written)])[None]).logits[0]
    places = slice(len(ids) + 2 - 1, len(ids) + len(written) - 1 - 1)  # that predict "an owl" alone
    assert sure.confidence == pytest.approx(float(logits[places].softmax(-1).amax(-1).mean()), rel=1e-4)


def test_perplexity_is_the_same_in_strides(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = tiny_decoder()
    ids = token_ids(decoder, "The owl hunts at night. Who hunts? ")
    settings = GenerationSettings(max_new_tokens=4)
    whole, parts = answer_surely(decoder, ids, settings, stopped=lambda: False, perplexity=True), []
    for stride in (1, 7):
        monkeypatch.setattr("acre_rag.baselines.rag.confidence._STRIDE", stride)
        parts.append(answer_surely(decoder, ids, settings, stopped=lambda: False, perplexity=True).perplexity)
    assert parts == pytest.approx([whole.perplexity] * 2, rel=1e-4)


def test_an_answer_without_words_has_no_confidence() -> None:
    decoder = tiny_decoder()
    ids = token_ids(decoder, "The owl hunts at night. Who hunts? ")
    [first] = decode(decoder, [nothing(decoder)], [ids], GenerationSettings(max_new_tokens=1))
    sure = answer_surely(
        decoder, ids, GenerationSettings(max_new_tokens=4, stop=(first.text[:1],)), stopped=lambda: False
    )
    assert (sure.generated.text, sure.confidence) == ("", 0.0)


def _sure(text: str, confidence: float, perplexity: float = inf) -> Sure:
    return Sure(Generated(text, 1, True, 0.0, 0.0), confidence, perplexity)


def test_the_three_choices_may_differ() -> None:
    branches = [_sure("Rome", 0.5, 9.0), _sure("Paris", 0.3, 8.0), _sure("Paris", 0.4, 9.0), _sure("Bern", 0.1, 7.0)]
    assert most_confident(branches) == 0
    assert ensemble(branches) == 2
    assert least_perplexed(branches) == 3
    for choose in (most_confident, ensemble, least_perplexed):
        assert choose([_sure("a", 0.5, 3.0), _sure("b", 0.5, 3.0)]) == 0
    assert ensemble([_sure("Rome", 0.5), _sure("Paris.", 0.3), _sure("Paris", 0.4)]) == 0, "as the repository counts"
