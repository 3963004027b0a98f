"""Naive offloading: the whole cache in host memory, moved to the device layer by layer (library: transformers).

Quality is that of full context; what differs is memory and speed. Of transformers' streams it knows one thing: what the
one that fetches a layer must wait for.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache

from acre_rag.answer import Answer
from acre_rag.baselines.base import Call, Held, Setting
from acre_rag.baselines.kv.base import KVBaseline, Prefilled
from acre_rag.baselines.kv.prefill import prefill
from acre_rag.construct import ProgressCallback

_NOT_NEEDED = "the model computes on the CPU, where its cache is anyway: nothing was offloaded"


class WaitingCache(DynamicCache):
    """Transformers' cache, whose fetches wait for the computation before them.

    Until 5.23 a layer was fetched on a stream of its own while its move to host memory, on the model's stream, might
    still be under way: the answer came from a half-written cache, without an error.
    """

    def prefetch(self, *args: Any, **options: Any) -> None:
        """Fetch the next layer once all that was asked of the model's stream is done."""
        self.prefetch_stream.wait_stream(torch.cuda.current_stream())
        super().prefetch(*args, **options)


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
        cache = WaitingCache(offloading=True) if self._offloads else DynamicCache()
        return prefill(self.decoder, ids, progress, cache=cache)

    def answer(self, question: str, documents: Sequence[Held[Prefilled]], call: Call) -> Answer:
        """As full context answers; notes where nothing was offloaded."""
        answer = super().answer(question, documents, call)
        return answer if self._offloads else replace(answer, notes=(*answer.notes, _NOT_NEEDED))


def make_offload(setting: Setting, *, reserve_tokens: int | None = None) -> OffloadedContext:
    """Naive offloading. Arguments as in `KVBaseline`."""
    return OffloadedContext(setting, reserve_tokens=reserve_tokens)
