"""Pooled L1: the mean of a block's un-rotated keys and the mean of its values. Needs no training."""

from torch import Tensor

from acre_rag.cache import KV
from acre_rag.decoder import Decoder


class PooledProxy:
    """An L1 entry is the mean of its block (beyond the paper: no L1 tokens are read at all)."""

    name = "pooled"
    extra_slots = 0

    def read(self, decoder: Decoder, token_ids: Tensor, *, n_blocks: int, interval: int, past: object) -> None:
        """Read the stride as ordinary tokens."""
        decoder.base(input_ids=token_ids[None], past_key_values=past, use_cache=True)

    def split(self, nested: KV, *, interval: int) -> tuple[KV, KV]:
        """Means of each block, and the block itself."""
        return KV(_block_means(nested.keys, interval), _block_means(nested.values, interval)), nested


def _block_means(x: Tensor, interval: int) -> Tensor:
    """`[L, Hkv, n * l, D] -> [L, Hkv, n, D]`, summed in float32."""
    n_layers, n_heads, length, dim = x.shape
    return x.float().view(n_layers, n_heads, length // interval, interval, dim).mean(dim=3).to(x.dtype)
