"""Prompt templates: what stands before the document, and what asks the question after it; knows no tensors."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from acre_rag.errors import ConfigError

_DOCUMENT = "\ue000document\ue000"  # private-use characters: no document or question holds them
_QUESTION = "\ue000question\ue000"

_DATE = {
    "%d": "26",
    "%m": "07",
    "%b": "Jul",
    "%B": "July",
    "%y": "24",
    "%Y": "2024",
    "%a": "Fri",
    "%A": "Friday",
    "%H": "00",
    "%M": "00",
    "%S": "00",
}
"""The day that chat templates are told it is: the one that Llama's own names where no clock is at hand."""


@dataclass(frozen=True)
class PromptTemplate:
    """A task: how a document is introduced and a question put.

    Attributes:
        before: text before the document; it is read once and cached with it.
        after: text after the document, with `{question}` in it.
        system: system message; `None` leaves the model's own.
        told: what others said before the question (a conversation so far), put in front of `after` as it is: control
            tokens in it are words, and "{question}" is no place for the question.
    """

    before: str
    after: str
    system: str | None = None
    told: str = ""

    def __post_init__(self) -> None:
        """The question stands in one place: without any, nothing is asked; of two, neither is the question's own."""
        if (n := self.after.count("{question}")) != 1:
            raise ConfigError(
                f"A prompt template needs '{{question}}' once in its text after the document; it has it {n} times."
            )


ANSWER = PromptTemplate(
    before="Read the following text carefully.\n\n",
    after="\n\nUse the text above to answer the question. Be brief and precise.\n\nQuestion: {question}",
)
"""Default: an answer in a sentence or two."""

SHORT_ANSWER = PromptTemplate(
    before="Read the following text carefully.\n\n",
    after="\n\nAnswer the question from the text above with a few words only, without explanation.\n\n"
    "Question: {question}",
)
"""A few words, as token-F1 evaluation expects."""

WHOLE_DOCUMENT_QUESTIONS = (
    "What is this text about?",
    "What is this book about?",
    "What is the article about?",
    "What is the main topic of the document?",
    "What is the main theme?",
    "Can you summarize it?",
    "Summarize the story.",
    "Give me a short summary of the text.",
    "What happens in it?",
    "Who are the main characters?",
    "Who wrote this, and why?",
    "What should I know about it?",
    "What are the most important points?",
    "Give me an overview.",
)
"""Content-free questions: what they attend to is the prior, taken off every real question's scores."""


@dataclass(frozen=True)
class RenderedPrompt:
    """A template in a model's own chat format: `prefix + document + ask(question)`."""

    prefix: str
    _before_question: str
    _after_question: str
    told: str = ""

    def ask(self, question: str) -> tuple[str, int, int]:
        """Text after the document, and the characters `start <= c < stop` of the question's own words in it.

        It begins with `told`, whose control tokens whoever makes tokens of it has to read as words.
        """
        before = f"{self.told}{self._before_question}"
        return f"{before}{question}{self._after_question}", len(before), len(before) + len(question)


def render(template: PromptTemplate, tokenizer: Any) -> RenderedPrompt:
    """Put a template into the chat format of a tokenizer; plain text for a model that has none.

    A chat format that names today's date (Llama 3.2's) gets a fixed one: the text before the document is in every
    cache, and must be the same tomorrow.
    """
    user = f"{template.before}{_DOCUMENT}{template.after.replace('{question}', _QUESTION)}"
    if getattr(tokenizer, "chat_template", None):
        # Templates that know thinking (Qwen3's) would spend an answer's tokens on it; others ignore the word.
        options: dict[str, Any] = {"enable_thinking": False}
        if "strftime_now" in str(tokenizer.chat_template):
            options["chat_template"] = _on_a_fixed_day(tokenizer.get_chat_template())
        system = [] if template.system is None else [{"role": "system", "content": template.system}]
        text = chat_text([*system, {"role": "user", "content": user}], tokenizer, **options)
    else:
        told = f"{template.system}\n\n" if template.system else ""
        cue = "" if user.endswith("Answer:") else "\nAnswer:"  # published prompts bring their own
        text = f"{tokenizer.bos_token or ''}{told}{user}{cue}"
    prefix, rest = _cut(text, _DOCUMENT)
    before, after = _cut(rest, _QUESTION)
    return RenderedPrompt(prefix, before, after, template.told)


def chat_text(messages: Sequence[Mapping[str, str]], tokenizer: Any, **options: Any) -> str:
    """Messages in the chat format of a tokenizer, up to where the assistant speaks next.

    What a system message says that the format refuses (Gemma's) or drops stands in front of the user's next message.

    Args:
        messages: `role` and `content` of each.
        tokenizer: one that has a chat format.
        options: what the format is told.

    Raises:
        ConfigError: the format refuses the messages, and not for a system message.
    """
    from jinja2 import TemplateError  # transformers asks for it where a chat format is used

    options = {"tokenize": False, "add_generation_prompt": True, **options}
    if systems := [each["content"].strip() for each in messages if each["role"] == "system"]:
        with contextlib.suppress(TemplateError):
            text = str(tokenizer.apply_chat_template(messages, **options))
            if all(system in text for system in systems):
                return text
    try:
        return str(tokenizer.apply_chat_template(_told_by_the_user(messages), **options))
    except TemplateError as error:
        raise ConfigError(
            f"The model's chat format refuses these messages ({error}). Many take the user's and the assistant's by "
            "turns only, the user's first."
        ) from error


def _told_by_the_user(messages: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """Messages without a system's: what it says stands before the user's next words, or behind the last ones."""
    turns: list[Mapping[str, str]] = []
    held: list[str] = []
    for each in messages:
        if each["role"] == "system":
            held += [each["content"]] if each["content"] else []
        elif each["role"] == "user" and held:
            turns.append({"role": "user", "content": "\n\n".join([*held, each["content"]])})
            held = []
        else:
            turns.append(each)
    if held:
        before = [turns.pop()["content"]] if turns and turns[-1]["role"] == "user" else []
        turns.append({"role": "user", "content": "\n\n".join([*before, *held])})
    return turns


def _on_a_fixed_day(chat_template: str) -> str:
    """A Jinja template with a macro in front of it that stands for transformers' clock."""
    day = "".join(f" | replace({code!r}, {value!r})" for code, value in _DATE.items())
    return f"{{%- macro strftime_now(format) -%}}{{{{ format{day} }}}}{{%- endmacro %}}\n{chat_template}"


def _cut(text: str, mark: str) -> Sequence[str]:
    parts = text.split(mark)
    if len(parts) != 2:
        raise ConfigError("The model's chat template drops or repeats the user's message; pass a template of your own.")
    return parts
