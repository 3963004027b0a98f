"""An answer and how sure the model is of it; picks the best of several. Knows no search."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import DynamicCache

from acre_rag.decoder import Decoder
from acre_rag.generate import Generated, GenerationSettings, decode_on


@dataclass(frozen=True)
class Sure:
    """An answer with its confidence.

    Attributes:
        generated: the answer.
        confidence: geometric mean of the probabilities of the tokens generated, its end among them, 0 to 1; 0 for an
            empty answer.
    """

    generated: Generated
    confidence: float


def answer_surely(decoder: Decoder, ids: Tensor, settings: GenerationSettings, *, stopped: Callable[[], bool]) -> Sure:
    """Decode after `ids` `[T]`, and score the answer on the cache that decoding left behind."""
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
    log_probabilities = logits.log_softmax(-1).gather(1, answer[:, None])
    return Sure(generated, float(log_probabilities.mean().exp()))


def most_confident(branches: Sequence[Sure]) -> int:
    """The branch with the highest confidence; the first of equals."""
    return max(range(len(branches)), key=lambda i: (branches[i].confidence, -i))


def voted(branches: Sequence[Sure]) -> int:
    """The most confident branch of the answer whose branches are, summed up, the most confident.

    The paper calls this the ensemble. Answers are the same when their words are, whatever case and punctuation.
    """
    votes: dict[str, float] = {}
    for branch in branches:
        key = _words(branch)
        votes[key] = votes.get(key, 0.0) + branch.confidence
    winner = max(votes, key=lambda key: votes[key])
    return max(
        (i for i, branch in enumerate(branches) if _words(branch) == winner),
        key=lambda i: (branches[i].confidence, -i),
    )


def _words(branch: Sure) -> str:
    return " ".join(re.findall(r"\w+", branch.generated.text.casefold()))


Choice = Literal["confidence", "vote"]
Chooser = Callable[[Sequence[Sure]], int]

CHOOSERS: Mapping[Choice, Chooser] = {"confidence": most_confident, "vote": voted}
"""How the best of several answers is chosen."""
