"""What all KV baselines share: a document's cache is built once and every question is decoded on a copy of it.

Knows no method. A method says how the cache is built, and, where it needs to, what a question does to its copy.
"""

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor
from transformers import Cache

from acre_rag.answer import Answer, Timings, Usage
from acre_rag.baselines.base import Baseline, Call, Held, Setting
from acre_rag.baselines.kv.prefill import copied
from acre_rag.baselines.prompted import middle_truncated, text_ids, token_ids
from acre_rag.construct import ProgressCallback
from acre_rag.errors import CapacityError, ConfigError
from acre_rag.generate import decode_on
from acre_rag.question import Question
from acre_rag.reading import tokenised_question

_RESERVED_TOKENS = 512


@dataclass(frozen=True, eq=False)
class Prefilled:
    """A document that was read.

    Attributes:
        cache: keys and values of prompt and document, one row; never changed.
        n_tokens: `N`, tokens of the document.
        left_out: tokens of the document's middle that did not fit and were not read.
    """

    cache: Cache
    n_tokens: int
    left_out: int

    @property
    def n_slots(self) -> int:
        """Slots of the cache, the prompt's among them."""
        return int(self.cache.get_seq_length())


class KVBaseline(Baseline[Prefilled]):
    """A cache per document. Several documents asked together are joined in order and read anew for that question.

    Args:
        setting: what is the same for every system.
        reserve_tokens: places of the window that reading leaves for question and answer; by default what the setting
            reserves, where that is unknown 512, at most a quarter of the window.

    Raises:
        ConfigError: nothing would be left for the document.
    """

    def __init__(self, setting: Setting, *, reserve_tokens: int | None = None) -> None:
        super().__init__(setting)
        window = setting.most_tokens
        usual = setting.reserve_tokens or min(_RESERVED_TOKENS, window // 4)
        self.reserve_tokens = usual if reserve_tokens is None else reserve_tokens
        self.prefix_ids = token_ids(self.decoder, self.prompt.prefix)
        if not 1 <= self.reserve_tokens < window - len(self.prefix_ids):
            raise ConfigError(
                f"reserve_tokens={self.reserve_tokens:,} must be at least 1 and leave room for a document beside the "
                f"prompt's {len(self.prefix_ids):,} tokens in window={window:,}."
            )

    @property
    def facts(self) -> dict[str, str]:
        """What a row of results should say about this system."""
        return {"window": str(self.setting.most_tokens), "reserve_tokens": str(self.reserve_tokens)}

    @property
    def most_read(self) -> int | None:
        """Most tokens of prompt and document that the method reads; `None` for any number."""
        return self.setting.most_tokens - self.reserve_tokens

    @abstractmethod
    def build(self, ids: Tensor, progress: ProgressCallback) -> Cache:
        """The cache of prompt and document, `ids [N]`; its keys rotated to contiguous positions from 0 on."""

    def working_cache(self, state: Prefilled, question: Question, call: Call) -> tuple[Cache, Tensor]:
        """A copy of the cache for one question, and the ids `[T]` of its prompt that are still to be read behind it."""
        return copied(state.cache), question.ids

    def attending(self, state: Prefilled) -> AbstractContextManager[None]:
        """How the model attends while it answers; as the stock model by default."""
        return nullcontext()

    def most_slots(self, state: Prefilled) -> int:
        """Most slots that the cache, the question and the answer may take together."""
        return self.setting.most_tokens

    def read(self, text: str, progress: ProgressCallback) -> Prefilled:
        """Prompt and document to a cache; the middle of a document that is too long is left out."""
        body = text_ids(self.decoder, text)
        most = self.most_read
        kept = body if most is None else middle_truncated(body, most - len(self.prefix_ids))
        with torch.inference_mode():
            cache = self.build(torch.cat([self.prefix_ids, kept]), progress)
        return Prefilled(cache, len(body), len(body) - len(kept))

    def answer(self, question: str, documents: Sequence[Held[Prefilled]], call: Call) -> Answer:
        """Decode on a copy of the document's cache.

        Raises:
            CapacityError: question and answer do not fit beside it.
        """
        start = perf_counter()
        asked = tokenised_question(question, self.prompt, self.decoder)
        state, notes = self._state(documents, call)
        self._check_room(state, len(asked.ids), call.settings.max_new_tokens)
        with torch.inference_mode(), self.attending(state):
            cache, ids = self.working_cache(state, asked, call)
            n_slots = int(cache.get_seq_length())
            n_read = len(asked.ids) - len(ids)  # of the prompt, in the cache already
            prepared_s = perf_counter() - start
            [generated] = decode_on(
                self.decoder,
                cache,
                ids[None],
                torch.ones(1, n_slots + len(ids), dtype=torch.long, device=self.decoder.device),
                call.settings,
                on_text=call.on_text,
                stopped=[call.stopped],
            )
        return Answer(
            text=generated.text,
            sources=(),
            usage=Usage(len(asked.ids), n_slots - n_read, 0, generated.n_tokens),
            timings=Timings(
                construct_s=sum(held.construct_s for held in documents),
                select_s=prepared_s,
                refill_s=0.0,
                first_token_s=prepared_s + generated.first_token_s,
                decode_s=generated.total_s - generated.first_token_s,
            ),
            scope="document",
            finished=generated.finished,
            notes=notes,
        )

    def _state(self, documents: Sequence[Held[Prefilled]], call: Call) -> tuple[Prefilled, tuple[str, ...]]:
        """What the question is asked of, and what the user should know of it."""
        notes = []
        if len(documents) == 1:
            state = documents[0].state
        else:
            state = self.read("\n\n".join(held.text for held in documents), lambda _done, _total: call.check())
            notes.append(f"{len(documents)} documents were joined and read anew for this question")
        if state.left_out:
            notes.append(
                f"{state.left_out:,} of {state.n_tokens:,} tokens, from the document's middle, did not fit "
                f"window={self.setting.most_tokens:,} and were not read"
            )
        return state, tuple(notes)

    def _check_room(self, state: Prefilled, n_question: int, n_answer: int) -> None:
        room = self.most_slots(state) - state.n_slots
        if n_question + n_answer > room:
            raise CapacityError(
                f"Question ({n_question:,} tokens) and answer ({n_answer:,}) need more than the {room:,} places that "
                f"the document leaves of {self.most_slots(state):,}. Ask for fewer new tokens, or read the documents "
                f"with reserve_tokens={n_question + n_answer} or more."
            )
