"""What may stand behind MemoRAG's clues: a text in an ordinary cache, or ACRE's compact layer. Knows no search.

A memory gives, for one question, a working cache and a prompt for each of `TASKS`; the caller decodes them.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import count
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from transformers import DynamicCache

from acre_rag.baselines.base import Call, Setting
from acre_rag.baselines.prompted import answer_from_text, middle_truncated, room_for_text, text_ids, token_ids
from acre_rag.baselines.rag.chunks import split_chunks
from acre_rag.baselines.rag.recall import RECALL_TOKENS, TASKS
from acre_rag.cache import KV
from acre_rag.config import ACREConfig
from acre_rag.construct import ProgressCallback
from acre_rag.decoder import Decoder
from acre_rag.document import Document
from acre_rag.engine import ACRE
from acre_rag.errors import CapacityError, ConfigError
from acre_rag.generate import GenerationSettings
from acre_rag.prompts import PromptTemplate, render
from acre_rag.proxies import Proxy
from acre_rag.reading import tokenised_question

M = TypeVar("M")

_STRIDE = 1024
_QUESTION_TOKENS = 256  # kept free for the question


@dataclass(frozen=True)
class Ready:
    """A task for the model: rotated slots, and the ids behind them `[T]`."""

    slots: KV
    ids: Tensor


class Memory(ABC, Generic[M]):
    """What is remembered of a document.

    Args:
        setting: model and window.
        recall_tokens: most tokens of each reply; an eighth of the window where that is less.
    """

    about: str
    """What it is, for result rows."""

    def __init__(self, setting: Setting, recall_tokens: int) -> None:
        if recall_tokens < 1:
            raise ConfigError(f"recall_tokens={recall_tokens} must be 1 or more.")
        self.window = setting.most_tokens
        self.speech = GenerationSettings(max_new_tokens=min(recall_tokens, self.window // 8))
        self._shortened = self.speech.max_new_tokens < recall_tokens

    @abstractmethod
    def read(self, text: str, progress: ProgressCallback) -> M:
        """Form the memory; runs on the model's thread."""

    @abstractmethod
    def tasks(self, memory: M, question: str) -> list[Ready]:
        """One of each of `TASKS`.

        Raises:
            CapacityError: the question does not fit behind the memory.
        """

    def notes(self, memory: M) -> tuple[str, ...]:
        """What the user should know of it."""
        said = f"memory: replies of at most {self.speech.max_new_tokens} tokens, an eighth of the window"
        return (said,) if self._shortened else ()

    def forget(self, memory: M) -> None:
        """Free what is not freed with the object itself."""


@dataclass(frozen=True, eq=False)
class Kept:
    """A text in a cache.

    Attributes:
        slots: rotated keys and values of prompt and text.
        text: what was read.
        notes: what was left out.
    """

    slots: KV
    text: str
    notes: tuple[str, ...] = ()


class FullMemory(Memory[Kept]):
    """A long-context model's own cache of the document, its middle left out where the window is too short.

    Args:
        setting: model and window.
        recall_tokens: see `Memory`.
    """

    about = "the model's cache of the document"

    def __init__(self, setting: Setting, *, recall_tokens: int = RECALL_TOKENS) -> None:
        super().__init__(setting, recall_tokens)
        self.decoder = setting.decoder
        self._prompts = [render(task, setting.decoder.tokenizer) for task in TASKS]

    def read(self, text: str, progress: ProgressCallback) -> Kept:
        """Read the document as it is."""
        kept = middle_truncated(ids := text_ids(self.decoder, text), self.room())
        left_out = len(ids) - len(kept)
        notes = (f"memory: the middle {left_out:,} tokens of its text did not fit the window",) if left_out else ()
        prefix = token_ids(self.decoder, self._prompts[0].prefix)
        return Kept(_read(self.decoder, torch.cat([prefix, kept]), progress), text, notes)

    def room(self) -> int:
        """Tokens of text that fit beside prompts, a question and a reply.

        Raises:
            CapacityError: none.
        """
        prefix = len(token_ids(self.decoder, self._prompts[0].prefix))
        task = max(len(token_ids(self.decoder, prompt.ask("")[0])) for prompt in self._prompts)
        reserved = task + min(_QUESTION_TOKENS, self.window // 8) + self.speech.max_new_tokens
        room = self.window - prefix - reserved
        if room < 1:
            raise CapacityError(
                f"The memory's prompt ({prefix} tokens) and what is kept free for a question ({reserved}) fill "
                f"window={self.window:,}. Use a larger window."
            )
        return room

    def tasks(self, memory: Kept, question: str) -> list[Ready]:
        """The tasks behind the text."""
        asked = [tokenised_question(question, prompt, self.decoder) for prompt in self._prompts]
        ready = [Ready(memory.slots, each.ids) for each in asked]
        longest = len(memory.slots) + max(len(each.ids) for each in ready) + self.speech.max_new_tokens
        if longest > self.window:
            raise CapacityError(
                f"Memory, question and clues need {longest:,} tokens, more than window={self.window:,}. "
                "Ask a shorter question."
            )
        return ready

    def notes(self, memory: Kept) -> tuple[str, ...]:
        """What was left out or made shorter."""
        return (*super().notes(memory), *memory.notes)


GIST = PromptTemplate(before="Read the following text carefully.\n\n", after="\n\n{question}")
_GIST_REQUEST = (
    "Say in a few plain sentences what happens or is stated in the text above. Keep the names, places and numbers."
)


class GistMemory(FullMemory):
    """MemoRAG-Lite's memory: the model sums up stretch after stretch, and the gists are read into a cache.

    Every stretch costs one reading and one short generation. A document of more stretches than `most` is sampled:
    stretches spread evenly over it, and the answer's notes say so. All gists share the window: where it is too small
    for that many of that length, each is cut to its share, with a note.

    Args:
        setting: model and window.
        most: most stretches that are summed up (the repository: all of them).
        stretch_tokens: length of a stretch (the repository's); at most half of the window.
        gist_tokens: most tokens of a gist (the repository's); at most a quarter of the window.
        recall_tokens: see `Memory`.
    """

    def __init__(
        self,
        setting: Setting,
        *,
        most: int = 16,
        stretch_tokens: int = 4096,
        gist_tokens: int = 512,
        recall_tokens: int = RECALL_TOKENS,
    ) -> None:
        if min(most, stretch_tokens, gist_tokens) < 1:
            raise ConfigError(f"most={most}, stretch_tokens={stretch_tokens}, gist_tokens={gist_tokens}: 1 or more.")
        super().__init__(setting, recall_tokens=recall_tokens)
        self.about = f"gists of {gist_tokens} tokens of at most {most} stretches"
        self.most, self.stretch_tokens, self.gist_tokens = most, stretch_tokens, gist_tokens
        self._prompt = render(GIST, setting.decoder.tokenizer)
        self._asked_tokens = len(token_ids(self.decoder, self._prompt.prefix)) + len(
            tokenised_question(_GIST_REQUEST, self._prompt, self.decoder).ids
        )

    def read(self, text: str, progress: ProgressCallback) -> Kept:
        """Sum up, then read the gists."""
        stretches = split_chunks(text, self.decoder.tokenizer, self._fitting_stretch())
        n = min(self.most, len(stretches))
        chosen = [stretches[i * len(stretches) // n] for i in range(n)]
        settings = self._share(n)
        gists, total, done, n_cut = [], sum(stretch.n_tokens for stretch in chosen), 0, 0
        for stretch in chosen:
            progress(done, total)
            said = answer_from_text(
                self.decoder,
                self._prompt,
                text[stretch.start : stretch.stop],
                _GIST_REQUEST,
                Call(settings),
                window=self.window,
            ).generated
            gists.append(said.text)
            n_cut += not said.finished
            done += stretch.n_tokens
        kept = super().read("\n".join(gists), lambda *_: progress(done, total))
        notes = [f"memory: gists of {n} of {len(stretches)} stretches"] if n < len(stretches) else []
        if n_cut and settings.max_new_tokens < self.gist_tokens:
            notes.append(f"memory: {n_cut} of {n} gists were cut to {settings.max_new_tokens} tokens to fit the window")
        return Kept(kept.slots, kept.text, (*notes, *kept.notes))

    def _fitting_stretch(self) -> int:
        """Tokens of a stretch; half of the window holds it, or what prompt and gist leave.

        Raises:
            CapacityError: they leave nothing.
        """
        room = room_for_text(prompt_tokens=self._asked_tokens, settings=self._share(1), window=self.window)
        return min(self.stretch_tokens, self.window // 2, room)

    def _share(self, n: int) -> GenerationSettings:
        """The length of a gist of which `n`, each with a line's end, fit the window."""
        share = max(self.room() // n - 1, 1)
        return GenerationSettings(max_new_tokens=min(self.gist_tokens, self.window // 4, share))


class ACREMemory(Memory[Document]):
    """The compact layer of an ACRE cache: one entry per block, nothing refilled.

    Args:
        setting: model and window.
        proxy: what an entry is; by default pooled, which nobody trained to be remembered from.
        recall_tokens: see `Memory`.
    """

    def __init__(self, setting: Setting, proxy: Proxy | None = None, *, recall_tokens: int = RECALL_TOKENS) -> None:
        super().__init__(setting, recall_tokens)
        self.about = "ACRE's compact layer, trained" if proxy else "ACRE's compact layer, untrained"
        config = ACREConfig(window=setting.most_tokens, budget=0)
        first, *others = TASKS
        engine = ACRE(setting.decoder, proxy=proxy, config=config, template=first)
        self._engines = [engine, *(engine.using(template=task) for task in others)]
        self._names = count()

    def read(self, text: str, progress: ProgressCallback) -> Document:
        """Read into a bi-layer cache."""
        return self._engines[0].add(text, id=str(next(self._names)), progress=progress)

    def tasks(self, memory: Document, question: str) -> list[Ready]:
        """The tasks behind the compact layer."""
        prepared = [engine.prepare(question, [memory]) for engine in self._engines]
        return [Ready(each.slots, each.ids) for each in prepared]

    def forget(self, memory: Document) -> None:
        """Free its cache."""
        self._engines[0].remove(memory)


def _read(decoder: Decoder, ids: Tensor, progress: ProgressCallback) -> KV:
    """Rotated slots of `ids` `[T]`, read in strides so that somebody may lose interest in between."""
    cache = DynamicCache()
    with torch.inference_mode():
        for start in range(0, len(ids), _STRIDE):
            progress(start, len(ids))
            decoder.base(input_ids=ids[None, start : start + _STRIDE], past_key_values=cache, use_cache=True)
    layers: list[Any] = cache.layers
    return KV(torch.cat([layer.keys for layer in layers]), torch.cat([layer.values for layer in layers]))
