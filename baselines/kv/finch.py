"""FINCH (TACL 2024, doi 10.1162/tacl_a_00716): the slots that the question attends to, each head its own.

Library: kvpress' FinchPress. Knows how a question compresses a cache and which chunk it reads next, nothing of scores.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache, DynamicCache

from acre_rag.baselines.base import Call, Held, Setting
from acre_rag.baselines.kv.base import Prefilled
from acre_rag.baselines.kv.prefill import prefill, strides
from acre_rag.baselines.kv.pressed import Pressed
from acre_rag.baselines.kv.pressing import load_kvpress, pressed_by
from acre_rag.baselines.prompted import text_ids
from acre_rag.construct import ProgressCallback
from acre_rag.question import Question


@dataclass(frozen=True, eq=False)
class Unread(Prefilled):
    """A document that does not fit one pass: each question reads it, chunk by chunk.

    Attributes:
        ids: `[N]` of prompt and document.
        kept_tokens: slots that a question keeps of it.
    """

    ids: Tensor
    kept_tokens: int

    @property
    def n_slots(self) -> int:
        """Slots that stand before the question when it is answered."""
        return self.kept_tokens


class Finch(Pressed):
    """Each question compresses a copy of the document's cache before it is answered.

    A document that fits the window beside `reserve_tokens` is read once, in full. Document and question stand in one
    context, so the question's tokens read the whole cache (nothing is saved there) and are always kept, besides
    `kept_tokens` slots. That equals reading document and question anew, because the document's slots do not depend on
    the question.

    A longer document is read with each question, as published: the question stands behind each chunk and chooses from
    what is kept so far and the chunk; what it keeps grows with what was read, to `kept_tokens` at the end. The kept
    keys are rotated to the positions from 0 on, in document order, as the library does. A chunk is what the window
    holds beside `kept_tokens` and the question (the paper's longest); nothing is left out.
    """

    def __init__(self, setting: Setting, *, kept_tokens: int | None = None, reserve_tokens: int | None = None) -> None:
        super().__init__(setting, kept_tokens=kept_tokens, always_kept=0, reserve_tokens=reserve_tokens)

    def read(self, text: str, progress: ProgressCallback) -> Prefilled:
        """All `N` slots of prompt and document, or its ids where they do not fit one pass."""
        body = text_ids(self.decoder, text)
        if len(self.prefix_ids) + len(body) <= self.setting.most_tokens - self.reserve_tokens:
            return super().read(text, progress)
        progress(len(body), len(body))
        return Unread(DynamicCache(), len(body), 0, torch.cat([self.prefix_ids, body]), self.kept_tokens)

    def build(self, ids: Tensor, progress: ProgressCallback) -> Cache:
        """All `N` slots."""
        return prefill(self.decoder, ids, progress)

    def working_cache(self, state: Prefilled, question: Question, call: Call) -> tuple[Cache, Tensor]:
        """`kept_tokens` slots and the question's; what follows the question's words in the prompt is left to read."""
        asked = min(question.own.stop, len(question.ids) - 1)  # something must be left to decode from
        if isinstance(state, Unread):
            cache = self._read_in_chunks(state.ids, question.ids[:asked], call)
        else:
            cache = self._pressed(state.cache, question.ids[:asked], kept=self.kept_tokens)
        return cache, question.ids[asked:]

    def _read_in_chunks(self, ids: Tensor, question_ids: Tensor, call: Call) -> Cache:
        """What `question_ids` `[T]` keep of `ids` `[N]`, and their own slots as they stood behind the last chunk."""
        cache: Cache = DynamicCache()
        chunk = self.setting.most_tokens - self.kept_tokens - len(question_ids)
        for start, stop in strides(len(ids), stride=chunk):
            if start:
                cache.crop(-len(question_ids))  # negative: so many slots go
            prefill(self.decoder, ids[start:stop], lambda _done, _total: call.check(), cache=cache)
            cache = self._pressed(cache, question_ids, kept=-(-self.kept_tokens * stop // len(ids)))
        return cache

    def _pressed(self, cache: Cache, question_ids: Tensor, *, kept: int) -> Cache:
        """A copy of `cache` that read `question_ids` `[T]`: per head the `kept` slots they attend to, and theirs."""
        press = load_kvpress().FinchPress()
        press.window_size = len(question_ids)
        return pressed_by(press, self.decoder, cache, question_ids, keep=kept + len(question_ids))

    def _state(self, documents: Sequence[Held[Prefilled]], call: Call) -> tuple[Prefilled, tuple[str, ...]]:
        """A long document's answer says that it was read for this question."""
        state, notes = super()._state(documents, call)
        if isinstance(state, Unread):
            notes += (f"{state.n_tokens:,} tokens were read in chunks for this question",)
        return state, notes


def make_finch(setting: Setting, *, kept_tokens: int | None = None, reserve_tokens: int | None = None) -> Finch:
    """FINCH. Arguments as in the class."""
    return Finch(setting, kept_tokens=kept_tokens, reserve_tokens=reserve_tokens)
