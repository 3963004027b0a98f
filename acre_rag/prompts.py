"""Prompt templates: what stands before the document, and what asks the question after it; knows no tensors."""

import contextlib
from collections.abc import Sequence
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
        """A template without a place for the question would ask nothing."""
        if "{question}" not in self.after:
            raise ConfigError("A prompt template needs '{question}' in its text after the document.")


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
        options: dict[str, Any] = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
        if "strftime_now" in str(tokenizer.chat_template):
            options["chat_template"] = _on_a_fixed_day(tokenizer.get_chat_template())
        text = _chat(tokenizer, template.system, user, options)
    else:
        system = f"{template.system}\n\n" if template.system else ""
        cue = "" if user.endswith("Answer:") else "\nAnswer:"  # published prompts bring their own
        text = f"{tokenizer.bos_token or ''}{system}{user}{cue}"
    prefix, rest = _cut(text, _DOCUMENT)
    before, after = _cut(rest, _QUESTION)
    return RenderedPrompt(prefix, before, after, template.told)


def _chat(tokenizer: Any, system: str | None, user: str, options: dict[str, Any]) -> str:
    """The chat format; a system message that it refuses (Gemma's) or drops stands in front of the user's."""
    from jinja2 import TemplateError  # transformers asks for it where a chat format is used

    message = {"role": "user", "content": user}
    if system is None:
        return str(tokenizer.apply_chat_template([message], **options))
    with contextlib.suppress(TemplateError):
        text = str(tokenizer.apply_chat_template([{"role": "system", "content": system}, message], **options))
        if system.strip() in text:
            return text
    return _chat(tokenizer, None, f"{system}\n\n{user}" if system else user, options)


def _on_a_fixed_day(chat_template: str) -> str:
    """A Jinja template with a macro in front of it that stands for transformers' clock."""
    day = "".join(f" | replace({code!r}, {value!r})" for code, value in _DATE.items())
    return f"{{%- macro strftime_now(format) -%}}{{{{ format{day} }}}}{{%- endmacro %}}\n{chat_template}"


def _cut(text: str, mark: str) -> Sequence[str]:
    parts = text.split(mark)
    if len(parts) != 2:
        raise ConfigError("The model's chat template drops or repeats the user's message; pass a template of your own.")
    return parts
