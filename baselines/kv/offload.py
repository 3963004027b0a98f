"""Naive offloading: the whole cache in host memory, moved to the device layer by layer (library: transformers).

Quality is that of full context; what differs is memory and speed. Knows nothing of transformers' streams.
"""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor
from transformers import Cache, DynamicCache

from acre_rag.answer import Answer
from acre_rag.baselines.base import Call, Held, Setting
from acre_rag.baselines.kv.base import KVBaseline, Prefilled
from acre_rag.baselines.kv.prefill import prefill
from acre_rag.construct import ProgressCallback

_NOT_NEEDED = "the model computes on the CPU, where its cache is anyway: nothing was offloaded"


class OffloadedContext(KVBaseline):
    """Full context on transformers' offloaded cache.

    Its streams need CUDA. On the CPU host memory is where the cache is computed, so an ordinary cache does the same;
    facts and answers say so.
    """

    @property
    def facts(self) -> dict[str, str]:
        """Says whether anything is offloaded."""
        return super().facts | {"offload": "transformers" if self._offloads else _NOT_NEEDED}

    @property
    def _offloads(self) -> bool:
        return self.decoder.device.type == "cuda"

    def build(self, ids: Tensor, progress: ProgressCallback) -> Cache:
        """`N` slots, in host memory."""
        return prefill(self.decoder, ids, progress, cache=DynamicCache(offloading=self._offloads))

    def answer(self, question: str, documents: Sequence[Held[Prefilled]], call: Call) -> Answer:
        """As full context answers; notes where nothing was offloaded."""
        answer = super().answer(question, documents, call)
        return answer if self._offloads else replace(answer, notes=(*answer.notes, _NOT_NEEDED))


def make_offload(setting: Setting, *, reserve_tokens: int | None = None) -> OffloadedContext:
    """Naive offloading. Arguments as in `KVBaseline`."""
    return OffloadedContext(setting, reserve_tokens=reserve_tokens)
