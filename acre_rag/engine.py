"""ACRE: the public API. Puts the parts together; every part's own work lives in its own file."""

import hashlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from acre_rag.answer import Answer, Source, Timings, Usage
from acre_rag.blocks import Run, merge_runs
from acre_rag.cache import KV
from acre_rag.config import INTERVALS, ACREConfig, auto_interval
from acre_rag.construct import ProgressCallback, ReadingPlan, construct
from acre_rag.document import Document
from acre_rag.errors import CapacityError, ConfigError, DocumentError
from acre_rag.generate import Generated, GenerationSettings, decode, stream
from acre_rag.heads import RetrievalHeads, check_heads, load_heads, shipped_heads
from acre_rag.models import BUILTIN, Decoder, load_decoder
from acre_rag.passages import split_passages
from acre_rag.prompts import ANSWER, WHOLE_DOCUMENT_QUESTIONS, PromptTemplate, render
from acre_rag.proxies import LearnedProxy, PooledProxy, Proxy
from acre_rag.proxies.adapter import load_learned
from acre_rag.question import question_queries
from acre_rag.refill import refill
from acre_rag.retrieve import Retriever, bm25_retriever
from acre_rag.select import Question, Selection, Selector, refill_budget

_MAX_STRIDE = 2048
_MOST_CHARS_PER_TOKEN = 16


class ACRE:
    """Reads documents once, answers questions from them.

    Use `ACRE.from_pretrained`. Calls from several threads take turns.

    Args:
        decoder: a loaded model.
        proxy: what an L1 entry is; pooled (no training) by default.
        config: options of the method.
        heads: retrieval heads; `None` takes the shipped ones for this model, if any.
        template: how documents and questions are put to the model.
        retriever: text retriever of the "retriever" and "hybrid" strategies; BM25 by default.
    """

    def __init__(
        self,
        decoder: Decoder,
        *,
        proxy: Proxy | None = None,
        config: ACREConfig | None = None,
        heads: RetrievalHeads | None = None,
        template: PromptTemplate = ANSWER,
        retriever: Retriever = bm25_retriever,
    ) -> None:
        self.decoder = decoder
        self.proxy: Proxy = proxy or PooledProxy()
        self.config = config or ACREConfig()
        self.heads = heads or shipped_heads(decoder)
        if self.heads:
            check_heads(self.heads, decoder)
        self.window = _window(self.config, decoder)
        self.retriever = retriever
        self.documents: dict[str, Document] = {}
        self._prompt = render(template, decoder.tokenizer)
        self.prefix_ids = self._ids(self._prompt.prefix)
        self._selector = Selector(decoder, self.heads)
        self._turn = threading.RLock()

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path = BUILTIN,
        *,
        adapter: str | Path | None = None,
        config: ACREConfig | None = None,
        heads: str | Path | None = None,
        template: PromptTemplate = ANSWER,
        retriever: Retriever = bm25_retriever,
        device: str = "auto",
        dtype: str = "auto",
        attn_implementation: str | None = None,
    ) -> "ACRE":
        """Load a model, and an adapter if one is given.

        Args:
            model: "smollm2-135m" (built in), a local folder, a `.gguf` file or a hub id.
            adapter: learned L1: an adapter of `acre train`, or a checkpoint in the authors' layout.
            config: options of the method.
            heads: file of `acre calibrate`; the shipped one for this model by default.
            template: how documents and questions are put to the model.
            retriever: text retriever of the "retriever" and "hybrid" strategies.
            device: "auto", "cpu", "cuda", ...
            dtype: "auto", "float32", "bfloat16", "float16".
            attn_implementation: "eager", "sdpa", "flash_attention_2"; `None` lets transformers choose.

        Raises:
            ModelError: the model cannot be found, loaded or split.
            AdapterError: the adapter is damaged or belongs to another model.
            CalibrationError: the heads file does not fit.
        """
        decoder = load_decoder(model, device=device, dtype=dtype, attn_implementation=attn_implementation)
        return cls(
            decoder,
            proxy=LearnedProxy(load_learned(Path(adapter), decoder).to(decoder.dtype)) if adapter else None,
            config=config,
            heads=load_heads(Path(heads)) if heads else None,
            template=template,
            retriever=retriever,
        )

    def add(self, text: str, id: str | None = None, *, progress: ProgressCallback | None = None) -> Document:
        """Read a document once into a bi-layer cache.

        Args:
            text: the document.
            id: name for sources and for `documents=`; a digest of the text by default. Adding the same text under
                the same id again returns the document that is there.
            progress: called with (tokens read, tokens in all) after every stride.

        Raises:
            DocumentError: empty, or shorter than one token; or the id already names another text.
            CapacityError: too long for the window, whatever the interval.
        """
        name = id if id is not None else hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
        with self._turn:
            if (known := self.documents.get(name)) is not None:
                if known.text == text:
                    return known
                raise DocumentError(f"A document named {name!r} with another text is there; remove it first.")
            document = self._read(text, name, progress)
            self.documents[name] = document
            return document

    def remove(self, id: str) -> None:
        """Forget a document and free its cache.

        Raises:
            DocumentError: there is none of that name.
        """
        with self._turn:
            if self.documents.pop(id, None) is None:
                raise DocumentError(f"No document {id!r}; there are: {', '.join(self.documents) or 'none'}.")

    def ask(
        self,
        question: str,
        documents: Sequence[Document | str] | Document | str | None = None,
        *,
        settings: GenerationSettings | None = None,
    ) -> Answer:
        """Answer one question.

        Args:
            question: the question.
            documents: documents or their ids; all that were added by default.
            settings: how to decode.

        Raises:
            DocumentError: unknown or no documents.
            CapacityError: question, L1 and answer do not fit the window.
        """
        return self.ask_batch([question], documents, settings=settings)[0]

    def ask_batch(
        self,
        questions: Sequence[str],
        documents: Sequence[Document | str] | Document | str | None = None,
        *,
        settings: GenerationSettings | None = None,
    ) -> list[Answer]:
        """Answer several questions about the same documents, decoded as one batch. Arguments as in `ask`."""
        settings = settings or GenerationSettings()
        chosen = self._documents(documents)
        if not questions:
            return []
        with self._turn:
            prepared = [self._prepare(question, chosen, settings) for question in questions]
            generated = decode(self.decoder, [p.slots for p in prepared], [p.question.ids for p in prepared], settings)
            return [p.answer(result) for p, result in zip(prepared, generated, strict=True)]

    def stream(
        self,
        question: str,
        documents: Sequence[Document | str] | Document | str | None = None,
        *,
        settings: GenerationSettings | None = None,
    ) -> Iterator[str | Answer]:
        """Pieces of text as they are decoded, then the whole `Answer`. Closing the iterator stops the model."""
        settings = settings or GenerationSettings()
        chosen = self._documents(documents)
        with self._turn:
            prepared = self._prepare(question, chosen, settings)
            for piece in stream(self.decoder, prepared.slots, prepared.question.ids, settings):
                yield prepared.answer(piece) if isinstance(piece, Generated) else piece

    def select(self, question: str, documents: Sequence[Document | str] | Document | str | None = None) -> Selection:
        """What a question would refill, without decoding (for retrieval, heat maps and evaluation)."""
        with self._turn:
            return self._prepare(question, self._documents(documents), GenerationSettings()).selection

    def sources(self, selection: Selection, documents: Sequence[Document]) -> tuple[Source, ...]:
        """The text behind a selection, neighbouring blocks merged, best first."""
        found = []
        for index, document in enumerate(documents):
            scored = [(unit.blocks, score) for unit, score in selection.units if unit.document == index]
            for run in merge_runs(b for blocks, _ in scored for b in range(blocks.start, blocks.stop)):
                start, end = document.chars_of_blocks(run)
                score = max(score for blocks, score in scored if _overlap(blocks, run))
                found.append(Source(document.id, start, end, document.text[start:end], score))
        return tuple(sorted(found, key=lambda source: -source.score))

    def _read(self, text: str, name: str, progress: ProgressCallback | None) -> Document:
        if not text.strip():
            raise DocumentError(f"The document {name!r} is empty: there is nothing to read.")
        self._check_length(text, name)
        start = perf_counter()
        encoded = self.decoder.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        token_ids = torch.tensor(encoded["input_ids"], device=self.decoder.device)
        offsets = np.asarray(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2)
        plan = self.plan(len(token_ids))
        cache = construct(
            self.decoder,
            self.proxy,
            prefix_ids=self.prefix_ids,
            token_ids=token_ids,
            plan=plan,
            key_heads=self.heads.key_heads(self.decoder) if self.heads else (),
            progress=progress,
        )
        passages = split_passages(text, offsets, interval=plan.interval, passage_tokens=self.config.passage_tokens)
        document = Document(name, text, offsets, passages, cache, 0.0)
        document = self._selector.with_prior(document, [self.question(q) for q in WHOLE_DOCUMENT_QUESTIONS])
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

    def plan(self, n_tokens: int) -> ReadingPlan:
        """Interval and stride for a document of `n_tokens` (Eq. 17's consequence: the interval adapts)."""
        config = self.config
        interval = config.interval or auto_interval(n_tokens, self.window, config.min_interval)
        if n_tokens // interval > self.window // 2:
            raise CapacityError(
                f"The document has {n_tokens:,} tokens; at interval={interval} its {n_tokens // interval:,} L1 entries "
                f"would take more than half of window={self.window:,}. Use an interval of at least "
                f"{-(-n_tokens // (self.window // 2))}, a larger window, or leave the interval to be chosen."
            )
        stride = config.stride or min(_MAX_STRIDE, self.window // 4)
        return ReadingPlan(window=self.window, interval=interval, stride=max(interval, stride // interval * interval))

    def _prepare(self, text: str, documents: Sequence[Document], settings: GenerationSettings) -> "_Prepared":
        start = perf_counter()
        question = self.question(text)
        budget = refill_budget(
            documents,
            window=self.window,
            reserved_tokens=len(question.ids) + settings.max_new_tokens,
            config=self.config,
        )
        selection = self._selector.select(
            question, documents, config=self.config, budget_tokens=budget, retriever=self.retriever
        )
        selected = perf_counter()
        slots = refill(
            [document.cache for document in documents],
            selection.blocks,
            rope=self.decoder.rope,
            l1_context=self.config.l1_context,
        )
        refilled = perf_counter()
        return _Prepared(
            question=question,
            documents=documents,
            selection=selection,
            sources=self.sources(selection, documents),
            slots=slots,
            select_s=selected - start,
            refill_s=refilled - selected,
        )

    def question_queries(self, question: str, view: KV) -> Tensor:
        """Un-rotated queries `[L, H, T, D]` of a question's own words over `view` (for calibration and diagnosis)."""
        asked = self.question(question)
        return question_queries(self.decoder, view, asked.ids, own=asked.own)

    def question(self, text: str) -> Question:
        """A question in the template and tokens of this engine.

        Raises:
            ConfigError: the question is empty.
        """
        if not text.strip():
            raise ConfigError("The question is empty.")
        rendered, start, stop = self._prompt.ask(text)
        encoded = self.decoder.tokenizer(rendered, add_special_tokens=False, return_offsets_mapping=True)
        own = [i for i, (a, b) in enumerate(encoded["offset_mapping"]) if b > start and a < stop]
        ids = torch.tensor(encoded["input_ids"], device=self.decoder.device)
        return Question(text, ids, slice(own[0], own[-1] + 1))

    def _documents(self, documents: Sequence[Document | str] | Document | str | None) -> list[Document]:
        if documents is None:
            chosen = list(self.documents.values())
        else:
            several = [documents] if isinstance(documents, Document | str) else documents
            chosen = [self._known(each) if isinstance(each, str) else each for each in several]
        if not chosen:
            raise DocumentError("There is no document to ask: add one first with ACRE.add(text).")
        return chosen

    def _known(self, name: str) -> Document:
        if name not in self.documents:
            raise DocumentError(f"No document {name!r}; there are: {', '.join(self.documents) or 'none'}.")
        return self.documents[name]

    def _ids(self, text: str) -> Tensor:
        ids = self.decoder.tokenizer(text, add_special_tokens=False)["input_ids"]
        return torch.tensor(ids, dtype=torch.long, device=self.decoder.device)


@dataclass(frozen=True, kw_only=True)
class _Prepared:
    """A question whose working cache is ready."""

    question: Question
    documents: Sequence[Document]
    selection: Selection
    sources: tuple[Source, ...]
    slots: KV
    select_s: float
    refill_s: float

    def answer(self, generated: Generated) -> Answer:
        refilled = sum(
            blocks.shape[-1] * document.cache.interval
            for blocks, document in zip(self.selection.blocks, self.documents, strict=True)
        )
        before = self.select_s + self.refill_s
        return Answer(
            text=generated.text,
            sources=self.sources,
            usage=Usage(
                prompt_tokens=len(self.question.ids),
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
        )


def _window(config: ACREConfig, decoder: Decoder) -> int:
    if config.window is None:
        return decoder.window
    if config.window > decoder.model_window:
        raise ConfigError(
            f"window={config.window:,} is more than the {decoder.model_window:,} positions that {decoder.name} was "
            f"made for. Use window={decoder.model_window} or less."
        )
    return config.window


def _overlap(a: Run, b: Run) -> bool:
    return a.start < b.stop and b.start < a.stop
