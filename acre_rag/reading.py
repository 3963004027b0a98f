"""Text to a document with its cache: tokens, plan, construction, passages, prior. Keeps nothing.

Runs on the worker's thread.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from acre_rag.blocks import fitting_stride
from acre_rag.config import INTERVALS, ACREConfig, auto_interval
from acre_rag.construct import ProgressCallback, ReadingPlan, construct
from acre_rag.decoder import Decoder
from acre_rag.document import Document, Holder
from acre_rag.errors import CapacityError, ConfigError, DocumentError
from acre_rag.heads import RetrievalHeads
from acre_rag.passages import split_passages
from acre_rag.pressure import descend, halvings
from acre_rag.prompts import WHOLE_DOCUMENT_QUESTIONS, RenderedPrompt
from acre_rag.proxies.base import Proxy
from acre_rag.quantise import codec_of, with_codec
from acre_rag.question import Question
from acre_rag.select import Selector

_MAX_STRIDE = 2048
_MOST_CHARS_PER_TOKEN = 16
_PDF_HEAD = 1024  # characters in which a PDF file's first line may stand, as readers of PDF have it
_SURROGATES = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Tokens:
    """A text in the model's tokens: ids `[N]` and their character spans `[N, 2]`."""

    ids: Tensor
    offsets: NDArray[np.int64]


class Reader:
    """Reads texts with one model and one set of options.

    Args:
        decoder: the model.
        proxy: what an L1 entry is.
        heads: retrieval heads whose keys are kept.
        config: options of the method.
        prompt: gives the template before the document.
        selector: computes the prior.
    """

    def __init__(
        self,
        decoder: Decoder,
        *,
        proxy: Proxy,
        heads: RetrievalHeads | None,
        config: ACREConfig,
        prompt: RenderedPrompt,
        selector: Selector,
    ) -> None:
        self.decoder, self.proxy, self.heads, self.config = decoder, proxy, heads, config
        self.window = _window(config, decoder)
        self.prompt = prompt
        prefix = _plain_ids(decoder.tokenizer, prompt.prefix)
        self.prefix_ids = torch.tensor(prefix, dtype=torch.long, device=decoder.device)
        self._selector = selector
        self._codec = codec_of(config.l2_bits)

    def tokenise(self, text: str, name: str) -> Tokens:
        """Tokens of a document; control tokens in it are words.

        Raises:
            DocumentError: empty, or the bytes of a PDF file.
            CapacityError: too long, whatever the interval.
        """
        if not text.strip():
            raise DocumentError(f"The document {name!r} is empty: there is nothing to read.")
        if text[:_PDF_HEAD].lstrip("\ufeff \t\r\n").startswith("%PDF-"):
            raise DocumentError(
                f"The document {name!r} is a PDF file's bytes, not its text: it begins with %PDF-. The command `acre` "
                "reads PDF files; LlamaIndex's SimpleDirectoryReader does with: pip install llama-index-readers-file"
            )
        self._check_length(text, name)
        encoded = self.decoder.literal_tokenizer(encodable(text), add_special_tokens=False, return_offsets_mapping=True)
        offsets = np.asarray(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2)
        return Tokens(torch.tensor(encoded["input_ids"], dtype=torch.long, device=self.decoder.device), offsets)

    def plan(self, n_tokens: int) -> ReadingPlan:
        """Interval and stride for a document of `n_tokens` (Eq. 17's consequence: the interval adapts).

        Raises:
            CapacityError: its L1 entries would take more than half of the window, or leave no room for a block.
        """
        config = self.config
        interval = config.interval or auto_interval(n_tokens, self.window, config.min_interval)
        if n_tokens // interval > self.window // 2:
            raise CapacityError(
                f"The document has {n_tokens:,} tokens; at interval={interval} its {n_tokens // interval:,} L1 entries "
                f"would take more than half of window={self.window:,}. Use an interval of at least "
                f"{-(-n_tokens // (self.window // 2))}, a larger window, or leave the interval to be chosen."
            )
        wanted = config.stride or min(_MAX_STRIDE, self.window // 4)
        stride = fitting_stride(
            max(interval, wanted // interval * interval),
            n_tokens=n_tokens,
            interval=interval,
            prefix=len(self.prefix_ids),
            window=self.window,
            slots_per_block=interval + self.proxy.extra_slots,
        )
        if stride is None:
            raise CapacityError(
                f"The prompt before the document ({len(self.prefix_ids):,} tokens), {n_tokens // interval:,} L1 "
                f"entries and one block of {interval} tokens do not fit window={self.window:,} together. Use a "
                "larger window, a larger interval or a shorter prompt."
            )
        return ReadingPlan(window=self.window, interval=interval, stride=stride)

    def read(
        self,
        text: str,
        tokens: Tokens,
        name: str,
        *,
        tenant: str = "",
        progress: ProgressCallback | None = None,
        free_memory: Callable[[], None] = lambda: None,
    ) -> Document:
        """Read once. When memory runs out: free what rests, then halve the stride, then give up clearly.

        Args:
            text: the document.
            tokens: its tokens.
            name: its id.
            tenant: whose it is.
            progress: called with (tokens read, tokens in all); an exception raised there ends the reading.
            free_memory: releases what no one needs now.
        """
        plan = self.plan(len(tokens.ids))
        strides = halvings(plan.stride, plan.interval)

        def attempt(stride: int) -> Callable[[], Document]:
            return lambda: self._read(text, tokens, name, tenant, replace(plan, stride=stride), plan, progress)

        rungs = [attempt(strides[0]), *map(attempt, strides)]  # the first retry only has more free memory
        l2_bytes = len(tokens.ids) // plan.interval * plan.interval * self.decoder.kv_bytes_per_token
        purpose = f"reading {name!r} (L2 takes {l2_bytes:,} bytes of host memory, whatever the stride)"
        return descend(rungs, purpose=purpose, before=free_memory)

    def _read(
        self,
        text: str,
        tokens: Tokens,
        name: str,
        tenant: str,
        plan: ReadingPlan,
        wanted: ReadingPlan,
        progress: ProgressCallback | None,
    ) -> Document:
        start = perf_counter()
        cache = construct(
            self.decoder,
            self.proxy,
            prefix_ids=self.prefix_ids,
            token_ids=tokens.ids,
            plan=plan,
            key_heads=self.heads.key_heads(self.decoder) if self.heads else (),
            progress=progress,
        )
        cache = with_codec(cache, self._codec)
        passages = split_passages(
            encodable(text), tokens.offsets, interval=plan.interval, passage_tokens=self.config.passage_tokens
        )
        token_ids = tokens.ids.to("cpu", torch.int32).numpy()
        notes = () if plan == wanted else (f"memory was short: read in strides of {plan.stride:,} tokens",)
        document = Document(
            name, text, token_ids, tokens.offsets, passages, plan.interval, 0.0, tenant, Holder(cache), notes
        )
        questions = [tokenised_question(text, self.prompt, self.decoder) for text in WHOLE_DOCUMENT_QUESTIONS]
        prior = self._selector.prior(document, questions)
        document.holder.cache = replace(cache, prior=prior)
        return replace(document, construct_s=perf_counter() - start)

    def _check_length(self, text: str, name: str) -> None:
        """Refuse at once what cannot fit: counting the tokens of 100 MB would take minutes."""
        largest = (self.config.interval or INTERVALS[-1]) * (self.window // 2)
        if len(text) > _MOST_CHARS_PER_TOKEN * largest:
            raise CapacityError(
                f"The document {name!r} has {len(text):,} characters; with window={self.window:,} at most "
                f"{largest:,} tokens (some {4 * largest:,} characters) fit. Split it, or use a model with a larger "
                "window."
            )


def tokenised_question(text: str, prompt: RenderedPrompt, decoder: Decoder) -> Question:
    """A question in a template and a model's tokens; control tokens in it, and in what was told, are words.

    Raises:
        ConfigError: the question is empty.
    """
    if not text.strip():
        raise ConfigError("The question is empty.")
    rendered, start, stop = prompt.ask(text)
    told, words = (_plain_ids(decoder.literal_tokenizer, each) for each in (prompt.told, text))
    if told == _plain_ids(decoder.tokenizer, prompt.told) and words == _plain_ids(decoder.tokenizer, text):
        encoded = decoder.tokenizer(encodable(rendered), add_special_tokens=False, return_offsets_mapping=True)
        ids = encoded["input_ids"]
        places = [i for i, (a, b) in enumerate(encoded["offset_mapping"]) if b > start and a < stop]
        own = slice(places[0], places[-1] + 1)
    else:  # only here in parts: a tokenizer may join a word and the template's space before it
        before = told + _plain_ids(decoder.tokenizer, rendered[len(prompt.told) : start])
        ids = before + words + _plain_ids(decoder.tokenizer, rendered[stop:])
        own = slice(len(before), len(before) + len(words))
    return Question(text, torch.tensor(ids, dtype=torch.long, device=decoder.device), own)


def encodable(text: str) -> str:
    """A text with U+FFFD in the place of each lone surrogate, which no tokenizer takes; places stay as they are."""
    return _SURROGATES.sub("\ufffd", text)


def _plain_ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(encodable(text), add_special_tokens=False)["input_ids"]
    return ids


def _window(config: ACREConfig, decoder: Decoder) -> int:
    if config.window is None:
        return decoder.window
    if config.window > decoder.model_window:
        raise ConfigError(
            f"window={config.window:,} is more than the {decoder.model_window:,} positions that {decoder.name} was "
            f"made for. Use window={decoder.model_window} or less."
        )
    return config.window
