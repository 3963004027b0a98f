"""Supervised fine-tuning of the vanilla model, for the ablation: low-rank changes of q, k and v, full attention.

The same data, the same projections and the same rank as learned L1, but no L1: what the training data alone teaches.
Knows nothing of nested sequences. `peft` makes the low-rank layers.
"""

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from acre_rag.decoder import Decoder
from acre_rag.errors import ConfigError, MissingExtraError
from acre_rag.training.layout import Layout
from acre_rag.training.reader import recompute

_TARGETS = ("q_proj", "k_proj", "v_proj", "qkv_proj")


class PlainReader(nn.Module):
    """The vanilla model as the trainer sees a reader: its parameters are the low-rank changes alone.

    Args:
        decoder: the model; its projections are changed in place.
        rank: of the changes, 1 or more.
        seed: of their start values.
        checkpointing: a second forward pass instead of the memory of activations.

    Raises:
        ConfigError: rank 0.
        MissingExtraError: `peft` is not installed.
    """

    def __init__(self, decoder: Decoder, *, rank: int, seed: int = 0, checkpointing: bool = False) -> None:
        super().__init__()
        self.rank = rank
        if not rank:
            raise ConfigError("rank=0 would change every weight of the model. Use a rank of 1 or more for sft.")
        if importlib.util.find_spec("peft") is None:
            raise MissingExtraError("peft", "train", "acre train sft")
        import peft

        torch.manual_seed(seed)
        names = {name.rpartition(".")[2] for name, _ in decoder.base.named_modules()}
        config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=sorted(names & set(_TARGETS)))
        self._aside: tuple[Decoder, Any] = (decoder, peft.get_peft_model(decoder.model, config))
        changes = {n.replace(".", "-"): p for n, p in decoder.model.named_parameters() if p.requires_grad}
        self.trained = nn.ParameterDict(changes)
        recompute(decoder, checkpointing)

    @property
    def decoder(self) -> Decoder:
        """The model, changes included."""
        return self._aside[0]

    def forward(self, token_ids: Tensor, layout: Layout, *, watch: None = None) -> Tensor:
        """Hidden states `[T, hidden]` of `[T]` tokens; the layout of a plain sequence says nothing more."""
        hidden: Tensor = self.decoder.base(input_ids=token_ids[None], use_cache=False).last_hidden_state[0]
        return hidden

    def save_merged(self, folder: Path) -> None:
        """The fine-tuned model as an ordinary one, in float32, for `--model`; the changes are in its weights then."""
        decoder, adapted = self._aside
        adapted.float()  # a small change of a bfloat16 weight would be rounded away
        adapted.merge_and_unload().save_pretrained(folder)
        decoder.tokenizer.save_pretrained(folder)
