"""Learned L1 before any training: where a run begins, and what measurements call untrained. Knows no files."""

import torch

from acre_rag.decoder import Decoder
from acre_rag.proxies.learned import L1Parameters

START_TEXT = "\n"
"""What an untrained L1 token reads like: a line break disturbs a model least (benchmarks/LOG.md)."""


def untrained(decoder: Decoder, *, rank: int, start_text: str = START_TEXT, seed: int = 0) -> L1Parameters:
    """L1 parameters that change nothing yet: copies of the model's own projections, and an embedding it knows.

    Args:
        decoder: the frozen model.
        rank: of the projections; 0 for full rank. What is read before any training is the same for every rank.
        start_text: the L1 token's embedding is the mean of this text's; "" for the end-of-text token's.
        seed: of the low-rank start values; the generators that others draw from stay as they are.

    Returns:
        Parameters in float32 on the model's device.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # `L1Parameters` draws on the CPU, whatever the model's device
        l1 = L1Parameters(decoder, rank=rank)
    ids = decoder.tokenizer(start_text, add_special_tokens=False)["input_ids"]
    if ids:
        with torch.no_grad():
            l1.embedding.copy_(decoder.base.embed_tokens.weight[ids].float().mean(dim=0))
    return l1
