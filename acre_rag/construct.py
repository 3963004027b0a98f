"""Document tokens to a bi-layer cache, stride by stride (Eq. 13-14); knows nothing of questions.

Device memory holds the prefix, L1, one window of recent slots and the retrieval heads' keys: nothing else grows
with the document. L2 goes to host memory as each stride is done.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from acre_rag.blocks import distant_blocks
from acre_rag.cache import KV, BiLayerCache
from acre_rag.decoder import Decoder
from acre_rag.errors import CapacityError, ConfigError
from acre_rag.l2 import L2
from acre_rag.proxies.base import Proxy
from acre_rag.transfer import HostWriter

ProgressCallback = Callable[[int, int], None]
"""Called with (tokens read, tokens in all)."""


@dataclass(frozen=True, kw_only=True)
class ReadingPlan:
    """The numbers of one construction: `W`, `l`, `S` (a multiple of `l`)."""

    window: int
    interval: int
    stride: int

    def __post_init__(self) -> None:
        """A stride holds at least one block."""
        if self.stride < self.interval:
            raise ConfigError(
                f"stride={self.stride} is smaller than interval={self.interval}: no block fits a stride. "
                f"Use a stride of at least {self.interval}."
            )


def construct(
    decoder: Decoder,
    proxy: Proxy,
    *,
    prefix_ids: Tensor,
    token_ids: Tensor,
    plan: ReadingPlan,
    key_heads: Sequence[tuple[int, int]] = (),
    progress: ProgressCallback | None = None,
    on_keys: Callable[[int], None] | None = None,
) -> BiLayerCache:
    """Read a document once.

    Args:
        decoder: the model.
        proxy: what an L1 entry is.
        prefix_ids: `[P]`, the template before the document; kept whole.
        token_ids: `[N]`, the document.
        plan: window, interval, stride.
        key_heads: (layer, kv head) pairs whose un-rotated keys stay on the device at full resolution.
        progress: called after every stride.
        on_keys: called with `|K|`, the keys attended to, at every step (for tests and diagnosis).

    Raises:
        CapacityError: prefix, L1 and one stride do not fit the window.
    """
    with torch.inference_mode():
        reader = _Reader(decoder, proxy, plan, n_tokens=len(token_ids), key_heads=key_heads)
        reader.read_prefix(prefix_ids)
        while reader.n_read < len(token_ids):
            n_keys = reader.read_stride(token_ids)
            if on_keys:
                on_keys(n_keys)
            if progress:
                progress(reader.n_read, len(token_ids))
        return reader.finish()


class _Reader:
    """The growing cache while a document is read."""

    def __init__(
        self,
        decoder: Decoder,
        proxy: Proxy,
        plan: ReadingPlan,
        *,
        n_tokens: int,
        key_heads: Sequence[tuple[int, int]],
    ) -> None:
        self._decoder, self._proxy, self._plan, self._key_heads = decoder, proxy, plan, key_heads
        self._n_blocks = n_tokens // plan.interval
        self._n_tokens = n_tokens
        n_layers, n_kv, dim = decoder.n_layers, decoder.n_kv_heads, decoder.head_dim
        self._l1 = KV(
            self._empty(n_layers, n_kv, self._n_blocks, dim), self._empty(n_layers, n_kv, self._n_blocks, dim)
        )
        self._head_keys = self._empty(len(key_heads), self._n_blocks * plan.interval, dim)
        self._l2 = HostWriter((self._n_blocks, n_layers, 2, n_kv, plan.interval, dim), decoder.dtype, decoder.device)
        nothing = self._empty(n_layers, n_kv, 0, dim)
        self._prefix = self._tail = KV(nothing, nothing)
        self._recent = self._prefix  # nested slots of the recent blocks, un-rotated
        self._fixed = self._prefix  # prefix and distant L1 entries, keys rotated to their final places
        self._n_distant = 0
        self.n_read = 0

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self._decoder.dtype, device=self._decoder.device)

    @property
    def _slots_per_block(self) -> int:
        return self._plan.interval + self._proxy.extra_slots

    @property
    def _n_done(self) -> int:
        return self._n_distant + len(self._recent) // self._slots_per_block

    def read_prefix(self, prefix_ids: Tensor) -> None:
        """Read the template before the document as ordinary tokens."""
        if len(prefix_ids) >= self._plan.window // 2:
            raise CapacityError(
                f"The prompt before the document has {len(prefix_ids)} tokens, more than half of "
                f"window={self._plan.window:,}. Use a larger window or a shorter prompt."
            )
        if not len(prefix_ids):
            return
        cache = DynamicCache()
        self._decoder.base(input_ids=prefix_ids[None], past_key_values=cache, use_cache=True)
        self._fixed = slots_of(cache, 0)
        self._prefix = self._unrotated(self._fixed, 0)

    def read_stride(self, token_ids: Tensor) -> int:
        """Read the next stride; returns `|K|`. The last stride takes the tail (`N mod l` tokens) with it."""
        interval = self._plan.interval
        n_blocks = min(self._plan.stride // interval, self._n_blocks - self._n_done)
        stop = self.n_read + n_blocks * interval
        if self._n_done + n_blocks == self._n_blocks:
            stop = self._n_tokens
        incoming = stop - self.n_read + n_blocks * self._proxy.extra_slots
        self._make_room(incoming)

        past = self._working_cache()
        n_past = past.get_seq_length()
        stride_ids = token_ids[self.n_read : stop]
        self._proxy.read(self._decoder, stride_ids, n_blocks=n_blocks, interval=interval, past=past)
        new = self._unrotated(slots_of(past, n_past), n_past)
        self._keep(new, n_blocks)
        self.n_read = stop
        return n_past + incoming

    def finish(self) -> BiLayerCache:
        """The finished cache, once all copies have landed."""
        return BiLayerCache(
            interval=self._plan.interval,
            n_tokens=self._n_tokens,
            prefix=self._prefix,
            l1=self._l1,
            l2=L2.plain(self._l2.wait()),
            tail=self._tail,
            head_keys=self._head_keys,
        )

    def _make_room(self, incoming: int) -> None:
        """Turn the oldest recent blocks distant: each moves once, as its L1 entry, to its compact place."""
        distant = distant_blocks(
            n_done=self._n_done,
            prefix=len(self._prefix),
            incoming=incoming,
            window=self._plan.window,
            slots_per_block=self._slots_per_block,
        )
        newly = max(0, distant - self._n_distant)
        if not newly:
            return
        entries = self._l1.slots(self._n_distant, self._n_distant + newly)
        rotated = KV(self._decoder.rope.rotate(entries.keys, len(self._fixed)), entries.values)
        self._fixed = KV.cat([self._fixed, rotated])
        recent = self._recent.slots(newly * self._slots_per_block, len(self._recent))
        self._recent = KV(recent.keys.clone(), recent.values.clone())  # frees what left the window
        self._n_distant += newly

    def _working_cache(self) -> DynamicCache:
        """Prefix, distant L1 and recent slots at contiguous positions, as an ordinary transformers cache."""
        rotated = KV(self._decoder.rope.rotate(self._recent.keys, len(self._fixed)), self._recent.values)
        return to_transformers(KV.cat([self._fixed, rotated]))

    def _keep(self, new: KV, n_blocks: int) -> None:
        """Split a stride into L1 and L2 and put each where it lives."""
        interval, done = self._plan.interval, self._n_done
        nested = new.slots(0, n_blocks * self._slots_per_block)
        if n_blocks:
            l1, l2 = self._proxy.split(nested, interval=interval)
            self._l1.keys[:, :, done : done + n_blocks] = l1.keys
            self._l1.values[:, :, done : done + n_blocks] = l1.values
            self._l2.write(done, _blocked(l2, interval))
            for row, (layer, head) in enumerate(self._key_heads):
                self._head_keys[row, done * interval : (done + n_blocks) * interval] = l2.keys[layer, head]
        tail = new.slots(len(nested), len(new))
        self._tail = KV(tail.keys.clone(), tail.values.clone())
        self._recent = KV.cat([self._recent, nested])

    def _unrotated(self, rotated: KV, start: int) -> KV:
        return KV(self._decoder.rope.unrotate(rotated.keys, start), rotated.values)


def to_transformers(slots: KV) -> DynamicCache:
    """An ordinary transformers cache of batch size one from rotated keys and values."""
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(zip(slots.keys, slots.values, strict=True)):
        cache.update(keys[None], values[None], layer)
    return cache


def slots_of(cache: DynamicCache, start: int) -> KV:
    """What a cache of batch size one holds from slot `start` on; keys still rotated."""
    layers: list[Any] = cache.layers
    return KV(
        torch.stack([layer.keys[0, :, start:] for layer in layers]),
        torch.stack([layer.values[0, :, start:] for layer in layers]),
    )


def _blocked(l2: KV, interval: int) -> Tensor:
    """`[L, Hkv, n * l, D]` keys and values to `[n, L, 2, Hkv, l, D]`."""
    both = torch.stack([l2.keys, l2.values], dim=1)  # [L, 2, Hkv, n * l, D]
    blocked: Tensor = both.unflatten(3, (-1, interval))
    return blocked.permute(3, 0, 1, 2, 4, 5)
