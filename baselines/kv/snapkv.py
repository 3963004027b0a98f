"""SnapKV (arXiv 2404.14469): the slots that the prompt's last tokens attend to, each head its own.

Library: kvpress' SnapKVPress.
"""

from typing import Any, Literal, get_args

from torch import Tensor
from transformers import Cache, DynamicCache

from acre_rag.baselines.base import Call, Setting
from acre_rag.baselines.kv.base import Prefilled
from acre_rag.baselines.kv.prefill import forward, prefill, strides
from acre_rag.baselines.kv.pressed import Pressed
from acre_rag.baselines.kv.pressing import load_kvpress, moved_back, pressed_by, pressing, ratio_that_keeps
from acre_rag.construct import ProgressCallback
from acre_rag.errors import ConfigError
from acre_rag.question import Question

Observed = Literal["question", "document"]


class SnapKV(Pressed):
    """Full attention while reading, then each head of each layer keeps `kept_tokens` slots.

    As published, the end of the prompt is observed, where the question stands: the document is read once, in full, and
    each question compresses a copy of its cache (nothing is saved while reading). With `observe="document"` the end of
    the document decides once for all questions, and the cache that waits for them is small.

    Kept keys keep their rotations, and what follows goes on behind the document's last position, as published (all are
    moved back together, which changes no distance). The window bounds what can be read: the middle of a longer document
    is left out.

    Args:
        setting: what is the same for every system.
        kept_tokens: slots of each head, the question's own not counted; see `Pressed`.
        observe: whose end decides: "question" (the prompt's, as published) or "document".
        observed_tokens: last tokens whose attention decides; always kept (the library's 64).
        kernel_tokens: width of the pooling over neighbouring slots' scores (the library's 5).
        reserve_tokens: see `KVBaseline`.
    """

    def __init__(
        self,
        setting: Setting,
        *,
        kept_tokens: int | None = None,
        observe: Observed = "question",
        observed_tokens: int = 64,
        kernel_tokens: int = 5,
        reserve_tokens: int | None = None,
    ) -> None:
        super().__init__(setting, kept_tokens=kept_tokens, always_kept=observed_tokens, reserve_tokens=reserve_tokens)
        if observe not in get_args(Observed):
            raise ConfigError(f"observe={observe!r} is unknown: choose one of {', '.join(get_args(Observed))}.")
        self.observe, self.observed_tokens, self.kernel_tokens = observe, observed_tokens, kernel_tokens

    @property
    def facts(self) -> dict[str, str]:
        """Library, budget, and whose end is observed."""
        return super().facts | {"observe": self.observe}

    def build(self, ids: Tensor, progress: ProgressCallback) -> Cache:
        """All `N` slots; `min(N, kept_tokens)` where the document decides."""
        if self.observe == "question":
            return prefill(self.decoder, ids, progress)
        return self._pressed_while_reading(ids, progress)

    def working_cache(self, state: Prefilled, question: Question, call: Call) -> tuple[Cache, Tensor]:
        """The slots that the prompt's last tokens attend to, and those of the prompt but its very last token."""
        if self.observe == "document":
            return super().working_cache(state, question, call)
        asked = len(question.ids) - 1  # something must be left to decode from
        # The library wants one token before those that it observes.
        press, n_slots = self._press(min(self.observed_tokens, asked - 1)), state.n_slots + asked
        cache = pressed_by(press, self.decoder, state.cache, question.ids[:asked], keep=self.kept_tokens + asked)
        moved_back(cache, self.decoder.rope, n_slots - int(cache.get_seq_length()))
        return cache, question.ids[asked:]

    def _press(self, n_observed: int) -> Any:
        return load_kvpress().SnapKVPress(window_size=n_observed, kernel_size=self.kernel_tokens)

    def _pressed_while_reading(self, ids: Tensor, progress: ProgressCallback) -> Cache:
        press = self._press(self.observed_tokens)
        press.compression_ratio = ratio_that_keeps(self.kept_tokens, of=len(ids))
        # The queries of the observed tokens must all be in the pass that is pressed.
        *before, (start, _) = strides(len(ids), last=self.observed_tokens + 1)
        cache = prefill(self.decoder, ids[:start], progress) if before else DynamicCache()
        with pressing(self.decoder, press):
            forward(self.decoder, ids[start:], cache)
        progress(len(ids), len(ids))
        moved_back(cache, self.decoder.rope, len(ids) - int(cache.get_seq_length()))
        return cache


def make_snapkv(
    setting: Setting,
    *,
    kept_tokens: int | None = None,
    observe: Observed = "question",
    observed_tokens: int = 64,
    kernel_tokens: int = 5,
    reserve_tokens: int | None = None,
) -> SnapKV:
    """SnapKV. Arguments as in the class."""
    return SnapKV(
        setting,
        kept_tokens=kept_tokens,
        observe=observe,
        observed_tokens=observed_tokens,
        kernel_tokens=kernel_tokens,
        reserve_tokens=reserve_tokens,
    )
