"""Questions to answers, on documents whose caches are at hand: select, refill, decode. Keeps nothing.

Runs on the worker's thread.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

from acre_rag.answer import Answer, Source, Timings, Usage
from acre_rag.cache import KV
from acre_rag.choose import Selection, no_room, refill_budget
from acre_rag.config import ACREConfig
from acre_rag.decoder import Decoder
from acre_rag.document import Document
from acre_rag.errors import CapacityError, ConfigError
from acre_rag.generate import Generated, GenerationSettings, decode
from acre_rag.prompts import RenderedPrompt
from acre_rag.question import Question
from acre_rag.reading import encodable, tokenised_question
from acre_rag.recompute import recompute
from acre_rag.refill import refill
from acre_rag.retrieve import Retriever, Span
from acre_rag.select import Selector
from acre_rag.sources import sources_of
from acre_rag.transfer import settle
from acre_rag.worker import Worker

NOTHING = Selection((), (), "none", ())
"""The selection of a prompt without documents."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A question whose working cache is ready."""

    ids: Tensor
    slots: KV
    documents: Sequence[Document] = ()
    selection: Selection = NOTHING
    sources: tuple[Source, ...] = ()
    select_s: float = 0.0
    refill_s: float = 0.0
    notes: tuple[str, ...] = ()

    def answer(self, generated: Generated) -> Answer:
        """The decoded text with its sources and costs."""
        pairs = zip(self.selection.blocks, self.documents, strict=True)
        refilled = sum(blocks.shape[-1] * document.interval for blocks, document in pairs)
        before = self.select_s + self.refill_s
        return Answer(
            text=generated.text,
            sources=self.sources,
            usage=Usage(
                prompt_tokens=len(self.ids),
                cached_tokens=len(self.slots),
                refilled_tokens=refilled,
                generated_tokens=generated.n_tokens,
            ),
            timings=Timings(
                construct_s=sum(document.construct_s for document in self.documents),
                select_s=self.select_s,
                refill_s=self.refill_s,
                first_token_s=before + generated.first_token_s,
                decode_s=generated.total_s - generated.first_token_s,
            ),
            scope=self.selection.scope,
            finished=generated.finished,
            notes=self.notes,
        )


@dataclass(frozen=True, kw_only=True)
class Asker:
    """Answers with one model and one set of question-time options.

    Attributes:
        decoder: the model.
        selector: chooses blocks.
        prompt: puts the question.
        config: options of the method.
        retriever: text retriever of the "retriever" and "hybrid" strategies.
        window: `W`.
    """

    decoder: Decoder
    selector: Selector
    prompt: RenderedPrompt
    config: ACREConfig
    retriever: Retriever
    window: int

    def question(self, text: str) -> Question:
        """A question in this template and these tokens."""
        return tokenised_question(encodable(text), self.prompt, self.decoder)

    def prepare(
        self, text: str, documents: Sequence[Document], settings: GenerationSettings, *, most_tokens: int | None = None
    ) -> Prepared:
        """Select and refill.

        Args:
            text: the question.
            documents: documents asked, their caches at hand.
            settings: how it will be decoded.
            most_tokens: refill at most this much, because memory is short; the answer says so.

        Raises:
            CapacityError: question, L1 and answer do not fit the window.
        """
        start = perf_counter()
        question = self.question(text)
        reserved = len(question.ids) + settings.max_new_tokens
        asked = documents
        retriever = _asked_once(self.retriever, self.decoder.worker)
        documents, notes = self._fitting(question, asked, reserved, retriever)
        budget = refill_budget(documents, window=self.window, reserved_tokens=reserved, config=self.config)
        notes = (*notes, *no_room(documents, budget_tokens=budget, config=self.config))
        if most_tokens is not None and most_tokens < budget:
            budget, notes = most_tokens, (*notes, f"memory was short: at most {most_tokens:,} tokens were refilled")
        selection = self.selector.select(
            question,
            documents,
            config=self.config,
            budget_tokens=budget,
            retriever=_leaving_out({each.id for each in asked if each not in documents}, retriever),
        )
        selected = perf_counter()
        slots = self._working_cache(documents, selection)
        settle(self.decoder.device)
        return Prepared(
            ids=question.ids,
            slots=slots,
            documents=documents,
            selection=selection,
            sources=sources_of(selection, documents),
            select_s=selected - start,
            refill_s=perf_counter() - selected,
            notes=(*notes, *(f"{d.id}: {note}" for d in documents for note in d.notes)),
        )

    def plain(self, prompt: str, settings: GenerationSettings) -> Prepared:
        """A prompt for the stock model alone, without documents.

        Raises:
            CapacityError: prompt and answer do not fit the model.
            ConfigError: the prompt is empty.
        """
        ids = self.decoder.tokenizer(encodable(prompt), add_special_tokens=False)["input_ids"]
        if not ids:
            raise ConfigError("The prompt is empty: there is nothing to complete.")
        if len(ids) + settings.max_new_tokens > self.decoder.model_window:
            raise CapacityError(
                f"Prompt ({len(ids):,} tokens) and answer ({settings.max_new_tokens:,}) need more than the "
                f"{self.decoder.model_window:,} positions of {self.decoder.name}. Put long text in as a document: "
                "ACRE.add(text)."
            )
        shape = (self.decoder.n_layers, self.decoder.n_kv_heads, 0, self.decoder.head_dim)
        nothing = torch.empty(shape, dtype=self.decoder.dtype, device=self.decoder.device)
        return Prepared(ids=torch.tensor(ids, dtype=torch.long, device=self.decoder.device), slots=KV(nothing, nothing))

    def decode(
        self,
        prepared: Sequence[Prepared],
        settings: GenerationSettings,
        *,
        stopped: Sequence[Callable[[], bool]] = (),
        on_text: Callable[[str], None] | None = None,
    ) -> list[Answer]:
        """Decode one batch of questions (see `generate.decode`)."""
        generated = decode(
            self.decoder,
            [each.slots for each in prepared],
            [each.ids for each in prepared],
            settings,
            on_text=on_text,
            stopped=stopped,
        )
        return [each.answer(result) for each, result in zip(prepared, generated, strict=True)]

    def _working_cache(self, documents: Sequence[Document], selection: Selection) -> KV:
        caches, l1_context = [document.cache for document in documents], self.config.l1_context
        if self.config.recompute:
            token_ids = [document.token_ids for document in documents]
            return recompute(self.decoder, caches, token_ids, selection.blocks, l1_context=l1_context)
        return refill(caches, selection.blocks, rope=self.decoder.rope, l1_context=l1_context)

    def _fitting(
        self, question: Question, documents: Sequence[Document], reserved: int, retriever: Retriever
    ) -> tuple[Sequence[Document], tuple[str, ...]]:
        """The documents, or the most promising of them when what stands of each does not all fit half of the window.

        L1 entries that do not stay while decoding (`l1_context=False`) take no place.
        """
        room = min(self.window // 2, self.window - len(documents[0].cache.prefix) - reserved)
        l1 = self.config.l1_context
        needed = [document.n_blocks * l1 + len(document.cache.tail) for document in documents]
        if len(documents) == 1 or sum(needed) <= room:
            return documents, ()
        chosen: list[int] = []
        order = self.selector.by_promise(question, documents, select=self.config.select, retriever=retriever)
        for i in order:
            if sum(needed[j] for j in [*chosen, i]) <= room or not chosen:
                chosen.append(i)
        kept = [documents[i] for i in sorted(chosen)]
        names = ", ".join(document.id for document in kept)
        return kept, (
            f"{len(documents)} documents need {sum(needed):,} places, more than half of window={self.window:,}: "
            f"a first pass chose {len(kept)} ({names})",
        )


def _asked_once(retriever: Retriever, worker: Worker) -> Retriever:
    """A retriever for one question: what it found for the first pass serves the choice, for asking may be dear."""
    found: list[Sequence[Span]] = []

    def retrieve(question: str, documents: Sequence[Document]) -> Sequence[Span]:
        if not found:
            with worker.calling():
                found.append(retriever(question, documents))
        return found[0]

    return retrieve


def _leaving_out(dropped: Collection[str], retriever: Retriever) -> Retriever:
    """A retriever whose spans of some documents are left out: it may search more than it is told of."""

    def retrieve(question: str, documents: Sequence[Document]) -> list[Span]:
        return [span for span in retriever(question, documents) if span.document not in dropped]

    return retrieve
