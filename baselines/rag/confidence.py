"""An answer and how sure the model is of it; picks the best of several. Knows no search.

Confidence, perplexity and the three choices are those of the repository chanchimin/RQ-RAG (`sample_from_tree.py`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Literal

import torch
from torch import Tensor
from transformers import DynamicCache

from acre_rag.decoder import Decoder
from acre_rag.generate import Generated, GenerationSettings, decode_on

_STRIDE = 256  # tokens whose logits are held at once


@dataclass(frozen=True)
class Sure:
    """An answer with its confidence.

    Attributes:
        generated: the answer.
        confidence: mean over the answer's tokens of the highest probability that any token had in that place, 0 to 1;
            white space before the answer and the token that ends it do not count; 0 for an empty answer.
        perplexity: of all that was read and written; infinite for an empty answer, and where nobody asked for it.
    """

    generated: Generated
    confidence: float
    perplexity: float = inf


def answer_surely(
    decoder: Decoder,
    ids: Tensor,
    settings: GenerationSettings,
    *,
    stopped: Callable[[], bool],
    perplexity: bool = False,
) -> Sure:
    """Decode after `ids` `[T]`, and score the answer on the cache that decoding left behind.

    Args:
        decoder: the model.
        ids: the prompt.
        settings: how to decode.
        stopped: asked after every token; true stops the decoding.
        perplexity: measure it too, which reads prompt and answer once more.
    """
    cache = DynamicCache()
    [generated] = decode_on(decoder, cache, ids[None], torch.ones_like(ids[None]), settings, stopped=[stopped])
    if not generated.text:
        return Sure(generated, 0.0)
    # The tokens themselves: their text, stripped and tokenised anew, may be others.
    answer = torch.tensor(generated.ids, dtype=torch.long, device=decoder.device)
    # The prompt's last token is read again: its logits score the answer's first. Negative: so many slots go.
    cache.crop(len(ids) - 1 - cache.get_seq_length())
    with torch.inference_mode():
        read = torch.cat([ids[-1:], answer[:-1]])
        logits = decoder.model(input_ids=read[None], past_key_values=cache).logits[0].float()
    highest = logits.softmax(-1).amax(-1)[_worded(decoder, generated.ids)]
    measured = _perplexity(decoder, torch.cat([ids, answer])) if perplexity else inf
    return Sure(generated, float(highest.mean()), measured)


def _worded(decoder: Decoder, ids: Sequence[int]) -> slice:
    """An answer's tokens without white space before it and without the control token that ends it."""
    tokenizer = decoder.tokenizer
    start = next((i for i, token in enumerate(ids) if tokenizer.decode([token]).strip()), 0)
    return slice(start, len(ids) - (ids[-1] in tokenizer.all_special_ids))


def _perplexity(decoder: Decoder, ids: Tensor) -> float:
    """Of `ids` `[T]`, the first of which is given."""
    cache, total = DynamicCache(), 0.0
    with torch.inference_mode():
        for start in range(0, len(ids) - 1, _STRIDE):
            following = ids[start + 1 : start + 1 + _STRIDE]
            read = ids[start : start + len(following)]
            logits = decoder.model(input_ids=read[None], past_key_values=cache).logits[0].float()
            total += float(torch.nn.functional.cross_entropy(logits, following, reduction="sum"))
    return float(torch.tensor(total / (len(ids) - 1)).exp())


def most_confident(branches: Sequence[Sure]) -> int:
    """The branch with the highest confidence; the first of equals."""
    return max(range(len(branches)), key=lambda i: (branches[i].confidence, -i))


def least_perplexed(branches: Sequence[Sure]) -> int:
    """The branch whose whole text the model finds the likeliest; the first of equals."""
    return min(range(len(branches)), key=lambda i: branches[i].perplexity)


def ensemble(branches: Sequence[Sure]) -> int:
    """The most confident branch of the answer whose branches are, summed up, the most confident.

    Answers are the same when their texts are.
    """
    votes: dict[str, float] = {}
    for branch in branches:
        votes[branch.generated.text] = votes.get(branch.generated.text, 0.0) + branch.confidence
    winner = max(votes, key=lambda text: votes[text])
    return max(
        (i for i, branch in enumerate(branches) if branch.generated.text == winner),
        key=lambda i: (branches[i].confidence, -i),
    )


Choice = Literal["confidence", "ppl", "ensemble"]

CHOOSERS: Mapping[Choice, Callable[[Sequence[Sure]], int]] = {
    "confidence": most_confident,
    "ppl": least_perplexed,
    "ensemble": ensemble,
}
"""How the best of several answers is chosen, by the repository's names."""


def scores_text(sure: Sure) -> str:
    """An answer and its scores, for a trace."""
    measured = f", perplexity {sure.perplexity:.2f}" if sure.perplexity < inf else ""
    return f"{sure.generated.text} (confidence {sure.confidence:.2f}{measured})"
