"""MInference (arXiv 2407.02490): sparse attention while the document is read, for CUDA devices.

Library: minference, which patches a model's forward pass with CUDA kernels. It was written for transformers 4, so where
this package runs its import fails today, and this system says so. The use below has never run.
"""

import copy
from typing import Any

from torch import Tensor
from transformers import Cache, DynamicCache

from acre_rag.baselines.base import Setting
from acre_rag.baselines.kv.base import KVBaseline
from acre_rag.construct import ProgressCallback
from acre_rag.errors import UnavailableError


class MInferenceContext(KVBaseline):
    """Full context, read by the library's patched copy of the model and answered by the stock model.

    Args:
        setting: what is the same for every system; `setting.decoder.name` must be a model that the library has
            patterns for.
        reserve_tokens: see `KVBaseline`.

    Raises:
        UnavailableError: no CUDA device, or the library cannot be imported.
    """

    def __init__(self, setting: Setting, *, reserve_tokens: int | None = None) -> None:
        super().__init__(setting, reserve_tokens=reserve_tokens)
        patch = _patch(setting)
        self._sparse = patch(copy.deepcopy(self.decoder.model))  # other systems go on with the stock model

    def build(self, ids: Tensor, progress: ProgressCallback) -> Cache:
        """`N` slots, in one pass: the sparse patterns are estimated over the whole prompt."""
        cache = DynamicCache()
        self._sparse.model(input_ids=ids[None], past_key_values=cache, use_cache=True)
        progress(len(ids), len(ids))
        return cache


def _patch(setting: Setting) -> Any:
    if setting.decoder.device.type != "cuda":
        raise UnavailableError(
            f"MInference runs on CUDA devices only, and {setting.decoder.name} is on the "
            f"{setting.decoder.device.type.upper()}. Use 'full' here: MInference approximates its answers."
        )
    try:
        from minference import MInference  # type: ignore[import-not-found]
    except Exception as error:  # its import runs into names that transformers 5 no longer has
        raise UnavailableError(
            f"MInference needs the package 'minference', which cannot be imported ({type(error).__name__}: {error}); "
            "its releases so far are for transformers 4. Use 'full': MInference approximates its answers."
        ) from error
    return MInference("minference", setting.decoder.name)


def make_minference(setting: Setting, *, reserve_tokens: int | None = None) -> MInferenceContext:
    """MInference. Arguments as in the class."""
    return MInferenceContext(setting, reserve_tokens=reserve_tokens)
