"""A document's text, or a part of it, read anew by the stock model for each question. Knows no retrieval.

What RAG does after its hits are found, and what "full context" does without a cache.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from acre_rag.answer import Usage
from acre_rag.baselines.base import Call
from acre_rag.cache import KV
from acre_rag.decoder import Decoder
from acre_rag.errors import CapacityError
from acre_rag.generate import Generated, GenerationSettings, decode
from acre_rag.prompts import RenderedPrompt
from acre_rag.reading import tokenised_question


@dataclass(frozen=True)
class Said:
    """What the stock model said to a prompt.

    Attributes:
        generated: its answer.
        usage: tokens.
        left_out: tokens of the text's middle that did not fit.
    """

    generated: Generated
    usage: Usage
    left_out: int


def middle_truncated(ids: Tensor, room: int) -> Tensor:
    """`[N]` to at most `[room]`: the first and the last half of the room, because both ends may carry what matters.

    LongBench `pred.py` and InfiniteBench `eval_utils.py` cut the same way; with an odd room the first half is one
    longer here, where LongBench leaves one slot empty.
    """
    if len(ids) <= room:
        return ids
    first = -(-room // 2)
    return torch.cat([ids[:first], ids[len(ids) - (room - first) :]])


def token_ids(decoder: Decoder, text: str) -> Tensor:
    """`[T]` of a prompt, in which control tokens are what they are."""
    return _tensor(decoder, decoder.tokenizer(text, add_special_tokens=False)["input_ids"])


def text_ids(decoder: Decoder, text: str) -> Tensor:
    """`[T]` of a document or a part of it, in which control tokens are words."""
    return _tensor(decoder, decoder.literal_tokenizer(text, add_special_tokens=False)["input_ids"])


def _tensor(decoder: Decoder, ids: list[int]) -> Tensor:
    return torch.tensor(ids, dtype=torch.long, device=decoder.device)


def say(decoder: Decoder, ids: Tensor, call: Call, *, settings: GenerationSettings | None = None) -> Generated:
    """What the model says after a prompt `[T]` (for queries on the way: nobody listens to these pieces)."""
    call.check()
    return decode(decoder, [nothing(decoder)], [ids], settings or call.settings, stopped=[call.stopped])[0]


def answer_from_text(
    decoder: Decoder, prompt: RenderedPrompt, text: str, question: str, call: Call, *, window: int
) -> Said:
    """The model's answer with `text` in the document's place; its middle is left out where the window is too short.

    Raises:
        CapacityError: prompt, question and answer alone do not fit.
    """
    prefix, asked = token_ids(decoder, prompt.prefix), tokenised_question(question, prompt, decoder).ids
    room = room_for_text(prompt_tokens=len(prefix) + len(asked), settings=call.settings, window=window)
    body = text_ids(decoder, text)
    kept = middle_truncated(body, room)
    ids = torch.cat([prefix, kept, asked])
    [generated] = decode(
        decoder, [nothing(decoder)], [ids], call.settings, on_text=call.on_text, stopped=[call.stopped]
    )
    usage = Usage(len(ids), 0, 0, generated.n_tokens)
    return Said(generated, usage, len(body) - len(kept))


def room_for_text(*, prompt_tokens: int, settings: GenerationSettings, window: int) -> int:
    """Tokens of text that the window holds beside prompt and answer.

    Raises:
        CapacityError: none.
    """
    room = window - prompt_tokens - settings.max_new_tokens
    if room < 1:
        raise CapacityError(
            f"Prompt and question ({prompt_tokens:,} tokens) and answer ({settings.max_new_tokens:,}) fill "
            f"window={window:,}. Use a shorter question, fewer new tokens or a larger window."
        )
    return room


def nothing(decoder: Decoder) -> KV:
    """A cache of no slots."""
    shape = (decoder.n_layers, decoder.n_kv_heads, 0, decoder.head_dim)
    empty = torch.empty(shape, dtype=decoder.dtype, device=decoder.device)
    return KV(empty, empty)
