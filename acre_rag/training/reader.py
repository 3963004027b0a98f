"""A frozen decoder that reads nested sequences with trainable L1 parameters; knows neither losses nor data."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from acre_rag.decoder import Decoder
from acre_rag.errors import ConfigError
from acre_rag.proxies.learned import L1Parameters, l1_projections, nested_embeddings
from acre_rag.training.layout import Layout
from acre_rag.training.nested_attention import Watch, Way, nested_attention, switched
from acre_rag.training.sequential import read_sequentially

READINGS = ("parallel", "sequential")


class NestedReader(nn.Module):
    """The module that is trained: its parameters are the L1 parameters alone.

    The decoder is held aside, so that optimisers, checkpoints and `DistributedDataParallel` see nothing of it. The last
    layer's query projection is frozen too: what an L1 token's last layer attends to is read by nobody.

    Args:
        decoder: the frozen model.
        l1: learned L1, in float32 whatever the model computes in.
        reading: "parallel" (one forward pass), or "sequential" (a loop of steps, the slow reference).
        way: how parallel attention is computed; `None` chooses by device.
        checkpointing: a second forward pass instead of the memory of activations; "parallel" only.

    Raises:
        ConfigError: an unknown reading, or checkpointing with "sequential".
    """

    def __init__(
        self,
        decoder: Decoder,
        l1: L1Parameters,
        *,
        reading: str = "parallel",
        way: Way | None = None,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if reading not in READINGS:
            raise ConfigError(f"reading={reading!r} is unknown: choose one of {', '.join(READINGS)}.")
        if checkpointing and reading == "sequential":
            raise ConfigError("Gradient checkpointing needs reading='parallel': a loop of steps keeps a cache.")
        self.l1 = l1
        self._aside = (decoder,)  # a tuple, because nn.Module would register a module
        self._reading, self._way = reading, way
        self._rows = torch.empty(0, dtype=torch.long)
        last: Any = l1.layers[-1]
        last["q"].requires_grad_(False)
        recompute(decoder, checkpointing, context_fn=self._contexts)

    @property
    def decoder(self) -> Decoder:
        """The frozen model."""
        return self._aside[0]

    @property
    def rank(self) -> int:
        """Of the L1 projections; 0 for full rank."""
        return self.l1.rank

    @property
    def trained(self) -> nn.Module:
        """What a checkpoint holds."""
        return self.l1

    def forward(self, token_ids: Tensor, layout: Layout, *, watch: Watch | None = None) -> Tensor:
        """Hidden states after the last norm.

        Args:
            token_ids: `[P + N + Q]`: prefix, document, everything that is asked.
            layout: who sees whom; its L1 tokens are put between the document's.
            watch: called in every layer with its queries and keys; "parallel" only.

        Returns:
            `[T, hidden]`, one row a slot of the layout.
        """
        decoder = self.decoder
        embeds = self._embeddings(token_ids, layout)
        if self._reading == "sequential":
            return read_sequentially(decoder, self.l1, embeds, layout)
        self._rows = layout.l1_slots.to(decoder.device)
        with l1_projections(decoder, self.l1, self._rows), nested_attention(decoder, layout, way=self._way) as options:
            output = decoder.base(inputs_embeds=embeds[None], use_cache=False, watch=watch, **options)
        hidden: Tensor = output.last_hidden_state[0]
        return hidden

    def _embeddings(self, token_ids: Tensor, layout: Layout) -> Tensor:
        """Eq. 5 for the document, plain tokens before and behind it."""
        prefix, document, asked = token_ids.tensor_split([layout.n_prefix, layout.n_prefix + layout.n_tokens])
        embed = self.decoder.base.embed_tokens
        nested = nested_embeddings(self.decoder, self.l1, document, n_blocks=layout.n_blocks, interval=layout.interval)
        return torch.cat([embed(prefix), nested, embed(asked)])

    def _contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Around a layer's forward pass, and around its second one: by then `forward` has put everything back."""
        return nullcontext(), self._again(self._rows)

    @contextmanager
    def _again(self, rows: Tensor) -> Iterator[None]:
        with l1_projections(self.decoder, self.l1, rows), switched(self.decoder):
            yield


def recompute(decoder: Decoder, wanted: bool, **options: Any) -> None:
    """Whether the model's layers run a second time in the backward pass instead of keeping their activations.

    Layers recompute only in training mode; their dropouts, children of theirs, stay in evaluation mode.

    Args:
        decoder: the model.
        wanted: if not, layers are put back to evaluation mode.
        options: of `torch.utils.checkpoint.checkpoint`.
    """
    model = decoder.model
    if wanted:  # the older name goes with transformers 6, the newer came in 5.2x
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False, **options})
    for layer in decoder.base.layers:
        layer.training = wanted
