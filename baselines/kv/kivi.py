"""KIVI (arXiv 2402.02750): a cache of few bits, keys per channel, values per token, what is recent in full precision.

Knows how a layer of such a cache grows. Transformers' own quantised cache is another method: it keeps nothing of a
prompt in full precision, and writes everything anew, from its rounded values, whenever the recent part is full.
"""

from math import gcd
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from acre_rag.baselines.base import Setting
from acre_rag.baselines.kv.base import KVBaseline
from acre_rag.baselines.kv.codes import Codes, encode
from acre_rag.baselines.kv.prefill import prefill
from acre_rag.construct import ProgressCallback
from acre_rag.errors import ConfigError

_BITS = (2, 4, 8)


class KiviLayer(DynamicLayer):
    """Keys and values of one layer: codes of what is old, tensors of what is recent.

    Keys are rounded in groups of `group` neighbouring tokens of one channel, `residual` tokens at a time; values in
    groups of (at most) `group` neighbouring channels of one token, as soon as `residual` newer tokens stand behind it.
    Nothing is rounded twice, and codes are never written into.

    Args:
        bits: 2, 4 or 8.
        group: numbers that share a step.
        residual: recent tokens in full precision; a multiple of `group`.
    """

    keys: Tensor  # the recent ones, as `values`; set by the first update
    values: Tensor

    def __init__(self, *, bits: int, group: int, residual: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bits, self.group, self.residual = bits, group, residual
        self.key_codes: Codes | None = None  # of [1, Hkv, D, T]
        self.value_codes: Codes | None = None  # of [1, Hkv, T, D]
        self.n_tokens = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, *_args: object, **_kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Take `[1, Hkv, T, D]` more; returns all that there is, the old part as its codes have it."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.n_tokens += key_states.shape[-2]
        self.keys = torch.cat([self.keys, key_states], dim=-2)
        self.values = torch.cat([self.values, value_states], dim=-2)
        keys, values = self.keys, self.values
        if self.key_codes:
            keys = torch.cat([self.key_codes.decode().transpose(2, 3), keys], dim=-2)
        if self.value_codes:
            values = torch.cat([self.value_codes.decode(), values], dim=-2)
        self._round_old_keys()
        self._round_old_values()
        return keys, values

    def get_seq_length(self) -> int:
        """Tokens held."""
        return self.n_tokens

    @property
    def n_bytes(self) -> int:
        """Bytes held."""
        codes = sum(codes.n_bytes for codes in (self.key_codes, self.value_codes) if codes)
        return codes + (int(self.keys.nbytes + self.values.nbytes) if self.is_initialized else 0)

    def _round_old_keys(self) -> None:
        old = self.keys.shape[-2] // self.residual * self.residual
        if old:
            codes = encode(self.keys[:, :, :old].transpose(2, 3), bits=self.bits, group=self.group)
            self.key_codes = self.key_codes.cat(codes, dim=-1) if self.key_codes else codes
            self.keys = self.keys[:, :, old:].clone()

    def _round_old_values(self) -> None:
        old = self.values.shape[-2] - self.residual
        if old > 0:
            group = gcd(self.group, self.values.shape[-1])
            codes = encode(self.values[:, :, :old], bits=self.bits, group=group)
            self.value_codes = self.value_codes.cat(codes, dim=-2) if self.value_codes else codes
            self.values = self.values[:, :, old:].clone()


class Kivi(KVBaseline):
    """The document is read in full precision; then its cache is rounded, layer by layer.

    Each layer is decoded anew for every token of an answer, as it would be on a device that holds only the codes; the
    authors' fused CUDA kernels save that time, not other numbers.

    Args:
        setting: what is the same for every system.
        bits: of keys and values: 2, 4 or 8.
        group: numbers that share a step (the paper's 32).
        residual: recent tokens in full precision (the paper's 128).
        reserve_tokens: see `KVBaseline`.

    Raises:
        ConfigError: an option is out of range.
    """

    def __init__(
        self,
        setting: Setting,
        *,
        bits: int = 4,
        group: int = 32,
        residual: int = 128,
        reserve_tokens: int | None = None,
    ) -> None:
        super().__init__(setting, reserve_tokens=reserve_tokens)
        if bits not in _BITS:
            raise ConfigError(f"bits={bits} is unknown: choose {', '.join(map(str, _BITS))}.")
        if group < 8 // bits or group % (8 // bits) or residual < group or residual % group:
            raise ConfigError(
                f"group={group} must be a multiple of the {8 // bits} numbers in a byte, and residual={residual} a "
                "multiple of the group. The paper has 32 and 128."
            )
        self.bits, self.group, self.residual = bits, group, residual

    @property
    def facts(self) -> dict[str, str]:
        """Bits, group and residual."""
        return super().facts | {"bits": str(self.bits), "group": str(self.group), "residual": str(self.residual)}

    def build(self, ids: Tensor, progress: ProgressCallback) -> Cache:
        """`N` slots in codes, up to the residual."""
        plain = prefill(self.decoder, ids, progress)
        exact_layers: list[Any] = plain.layers
        layers: list[Any] = []
        while exact_layers:  # each layer's exact tensors go as its codes come
            exact = exact_layers.pop(0)
            layer = KiviLayer(bits=self.bits, group=self.group, residual=self.residual)
            layer.update(exact.keys, exact.values)
            layers.append(layer)
        return Cache(layers=layers)


def make_kivi(
    setting: Setting, *, bits: int = 4, group: int = 32, residual: int = 128, reserve_tokens: int | None = None
) -> Kivi:
    """KIVI. Arguments as in the class."""
    return Kivi(setting, bits=bits, group=group, residual=residual, reserve_tokens=reserve_tokens)
