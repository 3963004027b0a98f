"""FINCH (TACL 2024, doi 10.1162/tacl_a_00716): the slots that the question attends to, each head its own.

Library: kvpress' FinchPress. Knows how a question compresses a cache, nothing of how the cache is read.
"""

from torch import Tensor
from transformers import Cache

from acre_rag.baselines.base import Setting
from acre_rag.baselines.kv.base import Prefilled
from acre_rag.baselines.kv.prefill import prefill
from acre_rag.baselines.kv.pressed import Pressed
from acre_rag.baselines.kv.pressing import load_kvpress, pressed_by
from acre_rag.construct import ProgressCallback
from acre_rag.question import Question


class Finch(Pressed):
    """The document is read once, in full; each question compresses a copy of its cache before it is answered.

    Document and question stand in one context, so the question's tokens read the whole cache (nothing is saved there)
    and are always kept, besides `kept_tokens` slots. That equals reading document and question anew,
    because the document's slots do not depend on the question. The paper reads the document in chunks, with the
    question behind each; the library's default, and ours, is one chunk. Its middle is left out at the window.
    """

    def __init__(self, setting: Setting, *, kept_tokens: int | None = None, reserve_tokens: int | None = None) -> None:
        super().__init__(setting, kept_tokens=kept_tokens, always_kept=0, reserve_tokens=reserve_tokens)

    def build(self, ids: Tensor, progress: ProgressCallback) -> Cache:
        """All `N` slots."""
        return prefill(self.decoder, ids, progress)

    def working_cache(self, state: Prefilled, question: Question) -> tuple[Cache, Tensor]:
        """`kept_tokens` slots and the question's; what follows the question's words in the prompt is left to read."""
        asked = min(question.own.stop, len(question.ids) - 1)  # something must be left to decode from
        press = load_kvpress().FinchPress()
        press.window_size = asked
        cache = pressed_by(press, self.decoder, state.cache, question.ids[:asked], keep=self.kept_tokens + asked)
        return cache, question.ids[asked:]


def make_finch(setting: Setting, *, kept_tokens: int | None = None, reserve_tokens: int | None = None) -> Finch:
    """FINCH. Arguments as in the class."""
    return Finch(setting, kept_tokens=kept_tokens, reserve_tokens=reserve_tokens)
