"""What training makes small: next-token loss (Eq. 20), answer loss (Eq. 21), and attention on the right blocks.

Knows hidden states, targets and layouts; nothing of how the sequence was read.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from acre_rag.decoder import Decoder
from acre_rag.rope import rotated
from acre_rag.training.layout import Layout

_ROWS = 512  # rows of the vocabulary's logits that are in memory at once


def stage1_targets(layout: Layout, token_ids: Tensor, *, first_stride: bool = False) -> tuple[Tensor, Tensor]:
    """Eq. 20: the document's tokens of later strides, each predicted from the slot of the token before it.

    A token that begins a block is predicted by the token before the L1 token: L1 slots carry no labels, and a stride's
    first token is predicted within the stride that holds the token before it, so it is left out.

    Args:
        layout: of one document, nothing asked.
        token_ids: `[P + N]`.
        first_stride: include the first stride, which sees no L1 of earlier ones.

    Returns:
        Slots `[n]` and the ids `[n]` that they predict.
    """
    strides = [step for step in layout.steps if step.start >= layout.n_prefix]
    wanted = strides if first_stride else strides[1:]
    slots = layout.token_slots
    step_of_slot = torch.full((layout.n_slots,), -1)
    for number, step in enumerate(wanted):
        step_of_slot[step.start : step.stop] = number
    steps = step_of_slot[slots]
    kept = (steps[1:] == steps[:-1]) & (steps[1:] >= 0)
    return slots[:-1][kept], token_ids[layout.n_prefix + 1 : layout.n_prefix + layout.n_tokens][
        kept.to(token_ids.device)
    ]


def next_token_loss(decoder: Decoder, hidden: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of the frozen head's logits, in nats a token.

    Args:
        decoder: the model, for its head.
        hidden: `[n, hidden]`.
        targets: `[n]`, the ids to predict.
    """
    losses: Tensor = token_losses(decoder, hidden, targets)
    return losses.mean()


def token_losses(decoder: Decoder, hidden: Tensor, targets: Tensor) -> Tensor:
    """`[n]` float32 cross-entropies, a few rows of logits at a time; differentiable in `hidden`."""
    losses: Tensor = _FrozenHead.apply(hidden, targets, decoder.model.lm_head)
    return losses


class _FrozenHead(torch.autograd.Function):
    """Cross-entropy behind a frozen head, whose backward pass keeps `[n, hidden]` instead of `[n, vocabulary]`.

    The gradient of each row's loss is made with the loss, while its logits are at hand (as in Liger Kernel's fused
    linear cross-entropy); the backward pass only scales it.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, head: Any) -> Tensor:
        losses, gradients = [], []
        for rows, wanted in zip(hidden.split(_ROWS), targets.split(_ROWS), strict=True):
            logits = head(rows).float()
            losses.append(functional.cross_entropy(logits, wanted, reduction="none"))
            if ctx.needs_input_grad[0]:
                probabilities = logits.softmax(dim=-1)
                probabilities[torch.arange(len(wanted)), wanted] -= 1
                gradients.append(probabilities.to(head.weight.dtype) @ head.weight)
        if gradients:
            ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, None, None]:
        (gradients,) = ctx.saved_tensors
        return gradients * outputs[0][:, None].to(gradients.dtype), None, None


class RetrievalWatch:
    """Collects, layer by layer, the question's attention to the L1 entries (Eq. 15); beyond the paper.

    Un-rotated, as selection scores blocks: what is right must not depend on where it stands.

    Args:
        decoder: the model.
        layout: of the document.
        question: slots of the question's tokens.
    """

    def __init__(self, decoder: Decoder, layout: Layout, question: slice) -> None:
        self._decoder = decoder
        self._question = torch.arange(layout.n_slots)[question].to(decoder.device)
        self._l1 = layout.l1_slots.to(decoder.device)
        with torch.no_grad():
            slots = torch.arange(layout.n_slots, device=decoder.device)[None]
            cos, sin = decoder.base.rotary_emb(torch.zeros(1, device=decoder.device), slots)
        norm = cos[0, :, :1] ** 2 + sin[0, :, :1] ** 2
        self._cos, self._sin = cos[0] / norm, -sin[0] / norm
        self.masses: dict[int, Tensor] = {}

    def __call__(self, layer: int, queries: Tensor, keys: Tensor) -> None:
        """`[M]`: attention of one layer, mean over heads and question tokens; sums to one."""
        q = self._unrotated(queries[0], self._question).float()  # [H, T, D]
        k = self._unrotated(keys[0], self._l1).float()  # [Hkv, M, D]
        logits = q @ k.repeat_interleave(len(q) // len(k), dim=0).transpose(1, 2) * self._decoder.scaling
        mass = logits.softmax(dim=-1).mean(dim=(0, 1))
        self.masses.setdefault(layer, mass)  # checkpointing computes a layer twice, and must save the same twice

    def loss(self, gold: Sequence[int]) -> Tensor:
        """`-log` of the attention on the gold blocks, summed over layers as selection sums them; in nats."""
        mass = torch.stack(list(self.masses.values())).mean(dim=0)
        return -mass[torch.as_tensor(list(gold), device=mass.device)].sum().clamp_min(1e-9).log()

    def _unrotated(self, x: Tensor, slots: Tensor) -> Tensor:
        return rotated(x.index_select(1, slots), self._cos[slots], self._sin[slots])
