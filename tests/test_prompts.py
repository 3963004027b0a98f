"""Templates in a model's own format, and in plain text where it has none."""

import copy
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pytest
from conftest import byte_tokenizer

from acre_rag.errors import ConfigError
from acre_rag.evaluation import published
from acre_rag.prompts import ANSWER, PromptTemplate, render

PUBLISHED = {name: value for name, value in vars(published).items() if isinstance(value, PromptTemplate)}


@dataclass
class Words:
    """A tokenizer as `render` sees it."""

    chat_template: str | None = None
    bos_token: str | None = "<s>"
    form: str = "[{}]"

    def apply_chat_template(self, messages: list[dict[str, str]], **options: Any) -> str:
        return "".join(self.form.format(each["content"]) for each in messages)


def test_a_model_without_a_chat_format_gets_plain_text_and_a_cue() -> None:
    prompt = render(ANSWER, Words())
    assert prompt.prefix == "<s>Read the following text carefully.\n\n"
    text, start, stop = prompt.ask("Who?")
    assert text[start:stop] == "Who?"
    assert text.endswith("Question: Who?\nAnswer:")


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_the_cue_stands_once(name: str) -> None:
    text, _, _ = render(PUBLISHED[name], Words()).ask("Who?")
    assert text.rstrip().endswith(":") and text.count("Answer:") <= 1


def test_a_chat_format_has_the_system_message_and_no_cue() -> None:
    template = PromptTemplate(before="Text: ", after="\n{question}", system="Be brief.")
    prompt = render(template, Words(chat_template="any"))
    assert prompt.prefix == "[Be brief.][Text: "
    assert prompt.ask("Who?")[0] == "\nWho?]"


def test_a_chat_format_that_drops_the_message_is_named() -> None:
    with pytest.raises(ConfigError, match="template of your own"):
        render(ANSWER, Words(chat_template="any", form="nothing"))


USERS_ONLY = "{% for message in messages %}{{ '[' + message['content'] + ']' }}{% endfor %}"
REFUSES = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + USERS_ONLY
DROPS = USERS_ONLY.replace("messages %}", "messages if message['role'] == 'user' %}")


@pytest.mark.parametrize("form", [REFUSES, DROPS], ids=["refuses", "drops"])
def test_a_system_message_that_a_chat_format_has_no_place_for_stands_before_the_users(form: str) -> None:
    tokenizer = copy.deepcopy(byte_tokenizer())
    tokenizer.chat_template = form
    template = PromptTemplate(before="Text: ", after="\n{question}", system="Be brief.")
    prompt = render(template, tokenizer)
    assert prompt.prefix == "[Be brief.\n\nText: " and prompt.ask("Who?")[0] == "\nWho?]"


DATED = (
    "\n{%- macro head() -%}{%- if strftime_now is defined -%}Today: {{ strftime_now('%d %b %Y, %A') }}{%- endif -%}"
    "{%- endmacro %}\n\n<{{ head() }}>{% for message in messages %}[{{ message['content'] }}]{% endfor %}"
)


class Later(datetime):
    """A clock that has gone on."""

    @classmethod
    def now(cls, tz: Any = None) -> datetime:
        return datetime(2031, 3, 5)


@pytest.mark.parametrize("form", [DATED, {"default": DATED, "tool_use": "nothing"}], ids=["one", "several"])
def test_a_chat_format_with_todays_date_is_the_same_tomorrow(form: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = copy.deepcopy(byte_tokenizer())
    tokenizer.chat_template = form
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Later)
    own = tokenizer.apply_chat_template([{"role": "user", "content": ANSWER.before}], tokenize=False)
    assert "Today: 05 Mar 2031" in own
    expected = own.removesuffix("]").replace("05 Mar 2031, Wednesday", "26 Jul 2024, Friday")
    assert render(ANSWER, tokenizer).prefix == expected
