"""SnapKV (arXiv 2404.14469): the slots that the document's last tokens attend to, each head its own.

Library: kvpress' SnapKVPress. Knows no question: the choice is made once, when the document is read.
"""

from torch import Tensor
from transformers import Cache, DynamicCache

from acre_rag.baselines.base import Setting
from acre_rag.baselines.kv.prefill import forward, strides
from acre_rag.baselines.kv.pressed import Pressed
from acre_rag.baselines.kv.pressing import load_kvpress, moved_back, pressing, ratio_that_keeps
from acre_rag.construct import ProgressCallback


class SnapKV(Pressed):
    """Full attention while reading, then each head of each layer keeps `kept_tokens` slots.

    Kept keys keep their rotations, and what follows goes on behind the document's last position, as published (all are
    moved back together, which changes no distance). The window bounds what can be read: the middle of a longer document
    is left out.

    Args:
        setting: what is the same for every system.
        kept_tokens: slots of each head; see `Pressed`.
        observed_tokens: last tokens whose attention decides; always kept (the library's 64).
        kernel_tokens: width of the pooling over neighbouring slots' scores (the library's 5).
        reserve_tokens: see `KVBaseline`.
    """

    def __init__(
        self,
        setting: Setting,
        *,
        kept_tokens: int | None = None,
        observed_tokens: int = 64,
        kernel_tokens: int = 5,
        reserve_tokens: int | None = None,
    ) -> None:
        super().__init__(setting, kept_tokens=kept_tokens, always_kept=observed_tokens, reserve_tokens=reserve_tokens)
        self.observed_tokens, self.kernel_tokens = observed_tokens, kernel_tokens

    def build(self, ids: Tensor, progress: ProgressCallback) -> Cache:
        """`min(N, kept_tokens)` slots."""
        kvpress = load_kvpress()
        press = kvpress.SnapKVPress(
            compression_ratio=ratio_that_keeps(self.kept_tokens, of=len(ids)),
            window_size=self.observed_tokens,
            kernel_size=self.kernel_tokens,
        )
        cache = DynamicCache()
        # The queries of the observed tokens must all be in the pass that is pressed.
        for start, stop in strides(len(ids), last=self.observed_tokens + 1):
            if stop < len(ids):
                forward(self.decoder, ids[start:stop], cache)
            else:
                with pressing(self.decoder, press):
                    forward(self.decoder, ids[start:], cache)
            progress(stop, len(ids))
        moved_back(cache, self.decoder.rope, len(ids) - int(cache.get_seq_length()))
        return cache


def make_snapkv(
    setting: Setting,
    *,
    kept_tokens: int | None = None,
    observed_tokens: int = 64,
    kernel_tokens: int = 5,
    reserve_tokens: int | None = None,
) -> SnapKV:
    """SnapKV. Arguments as in the class."""
    return SnapKV(
        setting,
        kept_tokens=kept_tokens,
        observed_tokens=observed_tokens,
        kernel_tokens=kernel_tokens,
        reserve_tokens=reserve_tokens,
    )
