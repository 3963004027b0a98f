"""Where an answer ends: end tokens, stop strings, and the text up to there, whole or in pieces. Runs no model."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, TextStreamer

from acre_rag.decoder import Decoder


class PieceStreamer(TextStreamer):
    """Hands finished pieces of text on, as transformers decodes them; holds back what may begin a stop string."""

    def __init__(self, decoder: Decoder, on_text: Callable[[str], None], stops: tuple[str, ...]) -> None:
        super().__init__(decoder.tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._on_text, self._stops = on_text, stops
        self._longest = max((len(stop) for stop in stops), default=1)
        self._text, self._n_handed, self._stopped = "", 0, False
        self._ends = end_ids(decoder)

    def put(self, value: Tensor) -> None:
        """Called by transformers with each token; the text ends at an end, also when the model goes on."""
        untyped: Any = super()
        if not self.next_tokens_are_prompt and value.flatten().tolist()[0] in self._ends:
            untyped.end()
            self._stopped = True
        else:
            untyped.put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Called by transformers with each piece."""
        if self._stopped:
            return
        self._text += text
        cut = find_stop(self._text, self._stops)
        self._stopped = cut is not None
        ready = len(self._text) - (0 if stream_end else self._longest - 1) if cut is None else cut
        if ready > self._n_handed:
            self._on_text(self._text[self._n_handed : ready])
            self._n_handed = ready


def find_stop(text: str, stops: tuple[str, ...]) -> int | None:
    """Where the first stop string begins that reaches into the answer: models often begin with a line feed."""
    blank = len(text) - len(text.lstrip())
    places = (text.find(stop, max(0, blank - len(stop) + 1)) for stop in stops)
    return min((place for place in places if place >= 0), default=None)


class Stops(StoppingCriteria):
    """Ends each row at its stop string; of transformers' own, one before the answer's first word would end it too."""

    def __init__(self, decoder: Decoder, n_prompt: int, stops: tuple[str, ...]) -> None:
        self._decoder, self._n_prompt, self._stops = decoder, n_prompt, stops
        self._reach = 4 * max(map(len, stops)) + 4  # tokens: one may be a single byte of a character

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """Called by transformers after each token; `[B]`, true where a row ends."""
        return torch.tensor(
            [self._ended(row.tolist()) for row in input_ids[:, self._n_prompt :]], device=input_ids.device
        )

    def _ended(self, ids: list[int]) -> bool:
        if not any(stop in self._text(ids[-self._reach :]) for stop in self._stops):
            return False  # a long answer is not decoded whole at each of its tokens
        return find_stop(self._text(ids), self._stops) is not None

    def _text(self, ids: list[int]) -> str:
        # Special tokens too: one may be a stop string, and behind the first one nothing is kept.
        return str(self._decoder.tokenizer.decode(ids, skip_special_tokens=False))


def end_ids(decoder: Decoder) -> frozenset[int]:
    """Tokens that end an answer: every special one, and the model's own ends, which its tokenizer may not name."""
    own = decoder.model.generation_config.eos_token_id
    own = [] if own is None else [own] if isinstance(own, int) else own
    return frozenset([*decoder.tokenizer.all_special_ids, *own])


def answer_text(decoder: Decoder, row: Tensor, stops: tuple[str, ...]) -> tuple[str, int, bool]:
    """Text, tokens, and whether it ended by itself."""
    ids = row.tolist()
    ends = end_ids(decoder)
    ended = next((i for i, token in enumerate(ids) if token in ends), len(ids))
    text = str(decoder.tokenizer.decode(ids[:ended], skip_special_tokens=True))
    cut = find_stop(text, stops)
    if cut is not None:  # what stands behind a stop string is padding
        return text[:cut].strip(), ended, True
    return text.strip(), min(len(ids), ended + 1), ended < len(ids)
