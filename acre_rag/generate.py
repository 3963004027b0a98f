"""Decode and stream with the stock model on an ordinary cache; knows nothing of documents or blocks."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, StoppingCriteria, StoppingCriteriaList

from acre_rag.cache import KV
from acre_rag.decoder import Decoder
from acre_rag.ending import PieceStreamer, Stops, answer_text
from acre_rag.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """How answers are decoded.

    Attributes:
        max_new_tokens: most tokens of an answer.
        temperature: 0 decodes greedily; higher samples.
        top_p: nucleus of the samples.
        top_k: most candidates of a sample; 0 for all.
        stop: strings that end an answer (left out of it); one among the white space before an answer does not.
        seed: makes sampling repeatable.

    Raises:
        ConfigError: out of range.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    seed: int | None = None

    def __post_init__(self) -> None:
        """Check every option."""
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens={self.max_new_tokens} must be 1 or more.")
        if self.temperature < 0:
            raise ConfigError(f"temperature={self.temperature} must be 0 (greedy) or more.")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p={self.top_p} must be above 0 and at most 1.")
        if self.top_k < 0:
            raise ConfigError(f"top_k={self.top_k} must be 0 (all) or more.")
        if any(not stop for stop in self.stop):
            raise ConfigError("A stop string is empty; leave it out.")


@dataclass(frozen=True)
class Generated:
    """One decoded answer.

    Attributes:
        text: the answer, without special tokens and stop strings.
        n_tokens: tokens generated.
        finished: whether it ended by itself or at a stop string, not at the limit of tokens.
        first_token_s: seconds from the call to the first token.
        total_s: seconds of the whole call.
        ids: the tokens generated, as the model gave them: an end and a stop string's are among them.
    """

    text: str
    n_tokens: int
    finished: bool
    first_token_s: float
    total_s: float
    ids: tuple[int, ...] = ()


def decode(
    decoder: Decoder,
    slots: Sequence[KV],
    question_ids: Sequence[Tensor],
    settings: GenerationSettings,
    *,
    on_text: Callable[[str], None] | None = None,
    stopped: Sequence[Callable[[], bool]] = (),
) -> list[Generated]:
    """Answer one or several questions, each on its own working cache, as one batch.

    Args:
        decoder: the model.
        slots: rotated working cache of each question; lengths may differ (shorter ones are padded on the left).
        question_ids: `[T_b]` of each question.
        settings: how to decode.
        on_text: called with each piece of the answer's text; only with a single question.
        stopped: for each question, asked after every token; true stops that one.
    """
    cache, input_ids, mask = _padded_batch(slots, question_ids, pad_id=_pad_id(decoder), device=decoder.device)
    return decode_on(decoder, cache, input_ids, mask, settings, on_text=on_text, stopped=stopped)


def decode_on(
    decoder: Decoder,
    cache: Cache,
    input_ids: Tensor,
    mask: Tensor,
    settings: GenerationSettings,
    *,
    on_text: Callable[[str], None] | None = None,
    stopped: Sequence[Callable[[], bool]] = (),
) -> list[Generated]:
    """Answer on a transformers cache of any kind (quantised, offloaded, ...), which grows by the answers.

    Args:
        decoder: the model.
        cache: what stands before `input_ids`: `P` slots a row.
        input_ids: `[B, T]`, padded on the left.
        mask: `[B, P + T]`, 0 where padded.
        settings: how to decode.
        on_text: called with each piece of the answer's text; only with a single row.
        stopped: for each row, asked after every token; true stops that one.
    """
    clock = _Clock(stopped)
    stops = [Stops(decoder, input_ids.shape[1], settings.stop)] if settings.stop else []
    seeded = settings.seed is not None
    with torch.random.fork_rng(_own_generators(decoder.device), enabled=seeded), torch.inference_mode():
        if settings.seed is not None:
            torch.manual_seed(settings.seed)
        output = decoder.model.generate(
            input_ids=input_ids,
            attention_mask=mask,
            past_key_values=cache,
            stopping_criteria=StoppingCriteriaList([clock, *stops]),
            streamer=PieceStreamer(decoder, on_text, settings.stop) if on_text else None,
            **_slots_of(decoder, n_cached=mask.shape[1] - input_ids.shape[1], n_new=input_ids.shape[1]),
            **_options(decoder, settings),
        )
    new = output[:, input_ids.shape[1] :]
    results = [clock.result(*answer_text(decoder, row, settings.stop)) for row in new]
    return [replace(each, ids=tuple(row[: each.n_tokens].tolist())) for each, row in zip(results, new, strict=True)]


def _own_generators(device: torch.device) -> list[torch.device]:
    """Devices whose random numbers a model draws, beside the CPU; torch would wake every GPU of the machine."""
    return [device] if device.type == "cuda" else []


class _Clock(StoppingCriteria):
    """Notes when the first token came, and stops the rows that nobody waits for."""

    def __init__(self, stopped: Sequence[Callable[[], bool]]) -> None:
        self._start = perf_counter()
        self._first: float | None = None
        self._stopped = stopped

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        stopped = torch.tensor([ask() for ask in self._stopped] or [False] * len(input_ids), device=input_ids.device)
        if self._first is None:  # the copy above has waited for the token: on CUDA it may not be there yet before
            self._first = perf_counter() - self._start
        return stopped

    def result(self, text: str, n_tokens: int, finished: bool) -> Generated:
        total = perf_counter() - self._start
        return Generated(text, n_tokens, finished, self._first if self._first is not None else total, total)


_NOT_OF_THE_MODELS_FILE: dict[str, Any] = {
    # What was read stands in the cache alone: without it, or with another, the model would answer from the question.
    "use_cache": True,
    "cache_implementation": None,
    "prompt_lookup_num_tokens": None,
    # One row of ids for each question.
    "num_beams": 1,
    "num_return_sequences": 1,
    "return_dict_in_generate": False,
    "guidance_scale": None,
    "dola_layers": None,
    # A penalty would fall on what stands in the prompt as ids, and spare the same words in a cache.
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "encoder_no_repeat_ngram_size": 0,
    # `GenerationSettings` alone says how long an answer is and how it is sampled.
    "min_length": 0,
    "min_new_tokens": None,
    "exponential_decay_length_penalty": None,
    "forced_eos_token_id": None,  # a cut answer would count as finished
    "stop_strings": None,
    "max_time": None,
    "min_p": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
}
"""Options that a checkpoint's generation_config.json may set, at values that leave an answer as it should be."""


def _options(decoder: Decoder, settings: GenerationSettings) -> dict[str, Any]:
    return {
        **_NOT_OF_THE_MODELS_FILE,
        "max_new_tokens": settings.max_new_tokens,
        "pad_token_id": _pad_id(decoder),
        "do_sample": settings.temperature > 0,
        "temperature": settings.temperature or None,
        "top_p": settings.top_p if settings.temperature else None,
        "top_k": settings.top_k if settings.temperature else None,
    }


def _pad_id(decoder: Decoder) -> int:
    tokenizer = decoder.tokenizer
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return 0 if pad is None else int(pad)


def _slots_of(decoder: Decoder, *, n_cached: int, n_new: int) -> dict[str, Tensor]:
    """Transformers 5.2 must be told that the ids stand behind the cache; newer releases see it themselves."""
    if "cache_position" not in inspect.signature(decoder.model.forward).parameters:
        return {}
    return {"cache_position": torch.arange(n_cached, n_cached + n_new, device=decoder.device)}


def _padded_batch(
    slots: Sequence[KV], question_ids: Sequence[Tensor], *, pad_id: int, device: torch.device
) -> tuple[DynamicCache, Tensor, Tensor]:
    """One cache, one id matrix and one mask for all rows; shorter ones are padded on the left, and the mask hides it.

    Positions count unmasked slots only, so padding between cache and question does not move the question.
    """
    longest = max(len(each) for each in slots)
    longest_question = max(len(ids) for ids in question_ids)
    cache = DynamicCache()
    for layer in range(len(slots[0].keys)):
        keys = torch.stack([_pad_left(each.keys[layer], longest) for each in slots])
        values = torch.stack([_pad_left(each.values[layer], longest) for each in slots])
        cache.update(keys, values, layer)
    ids = torch.full((len(slots), longest_question), pad_id, device=device)
    mask = torch.zeros(len(slots), longest + longest_question, dtype=torch.long, device=device)
    for row, (each, question) in enumerate(zip(slots, question_ids, strict=True)):
        ids[row, longest_question - len(question) :] = question
        mask[row, longest - len(each) : longest] = 1
        mask[row, longest + longest_question - len(question) :] = 1
    return cache, ids, mask


def _pad_left(x: Tensor, length: int) -> Tensor:
    """`[Hkv, T, D]` to `[Hkv, length, D]`."""
    return torch.nn.functional.pad(x, (0, 0, length - x.shape[-2], 0))
