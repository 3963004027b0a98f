"""Full context ("Original" in the paper): the stock model on everything that fits its window. Knows no compression."""

from torch import Tensor
from transformers import Cache

from acre_rag.baselines.base import Setting
from acre_rag.baselines.kv.base import KVBaseline
from acre_rag.baselines.kv.prefill import prefill
from acre_rag.construct import ProgressCallback


class FullContext(KVBaseline):
    """The stock model's own cache of the document, its middle left out at the window, kept between questions."""

    def build(self, ids: Tensor, progress: ProgressCallback) -> Cache:
        """`N` slots, as they are."""
        return prefill(self.decoder, ids, progress)


def make_full(setting: Setting, *, reserve_tokens: int | None = None) -> FullContext:
    """Full context. Arguments as in `KVBaseline`."""
    return FullContext(setting, reserve_tokens=reserve_tokens)
