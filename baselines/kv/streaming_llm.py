"""StreamingLLM (arXiv 2309.17453): the first few tokens and the most recent ones, positions counted in the cache.

Library: kvpress' StreamingLLMPress within KeyRerotationPress, which together are the published method. Knows no model.
"""

from torch import Tensor
from transformers import Cache, DynamicCache

from acre_rag.baselines.base import Setting
from acre_rag.baselines.kv.prefill import STRIDE, forward, strides
from acre_rag.baselines.kv.pressed import Pressed
from acre_rag.baselines.kv.pressing import load_kvpress, pressing, ratio_that_keeps
from acre_rag.construct import ProgressCallback
from acre_rag.errors import ConfigError


class StreamingLLM(Pressed):
    """Attention sinks and a rolling cache: reads a document of any length.

    The published method drops one token for each that it reads. Here a whole stride is read (its tokens see the kept
    slots and each other), then the cache is cut back; after the last stride it holds the same tokens.

    Args:
        setting: what is the same for every system.
        kept_tokens: slots of the cache, sinks among them; see `Pressed`.
        n_sink: first tokens that are never dropped (the paper's 4).
        reserve_tokens: see `KVBaseline`.

    Raises:
        ConfigError: an option is out of range.
    """

    def __init__(
        self, setting: Setting, *, kept_tokens: int | None = None, n_sink: int = 4, reserve_tokens: int | None = None
    ) -> None:
        if n_sink < 0:
            raise ConfigError(f"n_sink={n_sink} must be 0 or more.")
        super().__init__(setting, kept_tokens=kept_tokens, always_kept=n_sink, reserve_tokens=reserve_tokens)
        self.n_sink = n_sink

    @property
    def facts(self) -> dict[str, str]:
        """Library, budget, sinks."""
        return super().facts | {"n_sink": str(self.n_sink)}

    @property
    def most_read(self) -> None:
        """Any number."""
        return None

    def build(self, ids: Tensor, progress: ProgressCallback) -> Cache:
        """Sinks and recents: `min(N, kept_tokens)` slots."""
        cache = DynamicCache()
        stride = min(STRIDE, self.setting.most_tokens - self.kept_tokens)
        for start, stop in strides(len(ids), stride=stride):
            self._read_stride(ids[start:stop], cache)
            progress(stop, len(ids))
        return cache

    def _read_stride(self, ids: Tensor, cache: Cache) -> None:
        kvpress = load_kvpress()
        ratio = ratio_that_keeps(self.kept_tokens, of=int(cache.get_seq_length()) + len(ids))
        press = kvpress.StreamingLLMPress(compression_ratio=ratio, n_sink=self.n_sink)
        with pressing(self.decoder, kvpress.KeyRerotationPress(press)):
            forward(self.decoder, ids, cache)


def make_streaming_llm(
    setting: Setting, *, kept_tokens: int | None = None, n_sink: int = 4, reserve_tokens: int | None = None
) -> StreamingLLM:
    """StreamingLLM. Arguments as in the class."""
    return StreamingLLM(setting, kept_tokens=kept_tokens, n_sink=n_sink, reserve_tokens=reserve_tokens)
