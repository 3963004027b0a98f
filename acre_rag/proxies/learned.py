"""Learned L1 (the paper): L1 tokens with their own embedding and projections beside a frozen base model.

Knows how the nested sequence is fed to a stock model; nothing of files (adapter.py) or of training.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from acre_rag.cache import KV
from acre_rag.decoder import Decoder

KINDS = ("q", "k", "v")
logger = logging.getLogger(__name__)


class L1Projection(nn.Module):
    """`W^L1` of one projection: full rank as in the paper, or a low-rank delta on the frozen one.

    Args:
        in_features: width of the hidden state.
        out_features: width of the projection.
        rank: 0 for full rank.
        bias: whether the full-rank projection has a bias.
    """

    def __init__(self, in_features: int, out_features: int, *, rank: int = 0, bias: bool = False) -> None:
        super().__init__()
        self.rank = rank
        if rank:
            self.down = nn.Parameter(torch.empty(rank, in_features))
            self.up = nn.Parameter(torch.zeros(out_features, rank))
            nn.init.kaiming_uniform_(self.down, a=5**0.5)
        else:
            self.weight = nn.Parameter(torch.empty(out_features, in_features))
            self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None

    def forward(self, x: Tensor, base: Tensor) -> Tensor:
        """Eq. 6 for L1 rows.

        Args:
            x: `[B, n, in]`, hidden states of the L1 tokens.
            base: `[B, n, out]`, what the frozen projection makes of them.
        """
        if self.rank:
            return base + functional.linear(functional.linear(x, self.down.to(x)), self.up.to(x))
        return functional.linear(x, self.weight.to(x), None if self.bias is None else self.bias.to(x))


class L1Parameters(nn.Module):
    """All trainable parameters: one embedding, and q, k, v projections of every layer.

    Args:
        decoder: the base model that gives the shapes and the start values.
        rank: 0 for full rank (the paper).

    Attributes:
        intervals: smallest and largest interval `l` of the training; `None` where nobody said.
    """

    def __init__(self, decoder: Decoder, *, rank: int = 0) -> None:
        super().__init__()
        self.rank = rank
        self.intervals: tuple[int, int] | None = None
        self.embedding = nn.Parameter(_eos_embedding(decoder))
        self.layers = nn.ModuleList()
        for attention in decoder.attentions:
            layer = nn.ModuleDict()
            for kind, weight, bias in frozen_projections(decoder, attention):
                projection = L1Projection(weight.shape[1], weight.shape[0], rank=rank, bias=bias is not None)
                if not rank:
                    with torch.no_grad():
                        projection.weight.copy_(weight)
                        if bias is not None and projection.bias is not None:
                            projection.bias.copy_(bias)
                layer[kind] = projection
            self.layers.append(layer)
        self.to(decoder.device)


class LearnedProxy:
    """Reads the nested sequence of Eq. 5: one L1 token after every `l` document tokens."""

    name = "learned"
    extra_slots = 1

    def __init__(self, parameters: L1Parameters) -> None:
        self.parameters = parameters
        self._told: set[int] = set()

    def read(self, decoder: Decoder, token_ids: Tensor, *, n_blocks: int, interval: int, past: object) -> None:
        """Read the stride with its L1 tokens in nested order."""
        self._tell_untrained(interval)
        embeds = nested_embeddings(decoder, self.parameters, token_ids, n_blocks=n_blocks, interval=interval)
        rows = l1_rows(n_blocks, interval, decoder.device)
        with l1_projections(decoder, self.parameters, rows):
            decoder.base(inputs_embeds=embeds[None], past_key_values=past, use_cache=True)

    def split(self, nested: KV, *, interval: int) -> tuple[KV, KV]:
        """Every `l + 1`-th slot is L1, the others are L2."""
        return KV(*_take(nested, interval, l1=True)), KV(*_take(nested, interval, l1=False))

    def _tell_untrained(self, interval: int) -> None:
        """Log once for each interval that the training did not cover."""
        least, most = self.parameters.intervals or (interval, interval)
        if not least <= interval <= most and interval not in self._told:
            self._told.add(interval)
            logger.warning(
                "Reading with interval=%d, but the adapter was trained with %d to %d: how well it reads so is unknown. "
                "Use an interval of its training (a larger window allows a smaller one), or pooled L1.",
                interval,
                least,
                most,
            )


def l1_rows(n_blocks: int, interval: int, device: torch.device) -> Tensor:
    """`[n]` places of the L1 tokens in `n` nested blocks."""
    return torch.arange(1, n_blocks + 1, device=device) * (interval + 1) - 1


def nested_embeddings(
    decoder: Decoder, parameters: L1Parameters, token_ids: Tensor, *, n_blocks: int, interval: int
) -> Tensor:
    """Eq. 5: `[T]` token ids to `[T + n, hidden]` embeddings in nested order; a tail gets no L1 token."""
    tokens: Tensor = decoder.base.embed_tokens(token_ids)
    blocks = tokens[: n_blocks * interval].view(n_blocks, interval, tokens.shape[-1])
    l1 = parameters.embedding.to(tokens).expand(n_blocks, 1, -1)
    nested = torch.cat([blocks, l1], dim=1).flatten(0, 1)
    return torch.cat([nested, tokens[n_blocks * interval :]])


@contextmanager
def l1_projections(decoder: Decoder, parameters: L1Parameters, rows: Tensor) -> Iterator[None]:
    """Rows `rows` of every forward pass inside the block use the L1 projections (Eq. 6)."""
    handles = []
    try:
        for attention, layer in zip(decoder.attentions, parameters.layers, strict=True):
            for module, kinds in _modules(attention):
                projections = [cast(L1Projection, cast(nn.ModuleDict, layer)[kind]) for kind in kinds]
                handles.append(module.register_forward_hook(_row_hook(projections, rows)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def frozen_projections(decoder: Decoder, attention: nn.Module) -> Iterator[tuple[str, Tensor, Tensor | None]]:
    """(kind, weight `[out, in]`, bias `[out]` or None) of q, k and v, cut out of a fused one if need be."""
    widths = [decoder.n_heads * decoder.head_dim] + 2 * [decoder.n_kv_heads * decoder.head_dim]
    for module, kinds in _modules(attention):
        linear: Any = module
        if len(kinds) == 1:
            yield kinds[0], linear.weight, linear.bias
            continue
        biases = [None] * len(kinds) if linear.bias is None else linear.bias.split(widths)
        yield from zip(kinds, linear.weight.split(widths), biases, strict=True)


def _modules(attention: nn.Module) -> list[tuple[nn.Module, tuple[str, ...]]]:
    fused = getattr(attention, "qkv_proj", None)
    if isinstance(fused, nn.Module):
        return [(fused, KINDS)]
    return [(getattr(attention, f"{kind}_proj"), (kind,)) for kind in KINDS]


def _row_hook(projections: list[L1Projection], rows: Tensor) -> Any:
    def replace_rows(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = inputs[0].index_select(1, rows)
        base = output.index_select(1, rows)
        widths = [
            projection.up.shape[0] if projection.rank else projection.weight.shape[0] for projection in projections
        ]
        parts = [p(x, b) for p, b in zip(projections, base.split(widths, dim=-1), strict=True)]
        return output.index_copy(1, rows, torch.cat(parts, dim=-1).to(output.dtype))

    return replace_rows


def _take(nested: KV, interval: int, *, l1: bool) -> tuple[Tensor, Tensor]:
    def cut(x: Tensor) -> Tensor:
        blocks: Tensor = x.unflatten(2, (-1, interval + 1))  # [L, Hkv, n, l + 1, D]
        return blocks[..., interval, :] if l1 else blocks[..., :interval, :].flatten(2, 3)

    return cut(nested.keys), cut(nested.values)


def _eos_embedding(decoder: Decoder) -> Tensor:
    eos = decoder.model.config.eos_token_id
    first = eos[0] if isinstance(eos, list) else eos
    weight: Tensor = decoder.base.embed_tokens.weight
    return weight[first if first is not None else 0].detach().float().clone()
