"""ACRE: the public API. Puts the parts together and sends work to the model's one thread; no method of its own."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from logging import getLogger
from pathlib import Path
from typing import Any

from torch import Tensor

from acre_rag.answer import Answer, Source
from acre_rag.asking import Asker, Prepared
from acre_rag.cache import KV
from acre_rag.choose import Selection
from acre_rag.config import ASKS_A_RETRIEVER, READING_OPTIONS, ACREConfig
from acre_rag.construct import ProgressCallback, ReadingPlan
from acre_rag.decoder import Decoder
from acre_rag.desk import Asked, Desk, Documents
from acre_rag.document import Document
from acre_rag.errors import ConfigError
from acre_rag.fingerprint import Fingerprint, engine_fingerprint
from acre_rag.generate import GenerationSettings
from acre_rag.heads import RetrievalHeads, check_heads, heads_beside, load_heads, shipped_heads
from acre_rag.library import Library
from acre_rag.models import BUILTIN, load_decoder
from acre_rag.prompts import ANSWER, PromptTemplate, RenderedPrompt, render
from acre_rag.proxies import LearnedProxy, PooledProxy, Proxy
from acre_rag.proxies.adapter import load_learned
from acre_rag.question import Question, question_queries
from acre_rag.reading import Reader
from acre_rag.residency import Residency, Statistics
from acre_rag.retrieve import Retriever, bm25_retriever
from acre_rag.select import Selector
from acre_rag.sources import sources_of
from acre_rag.store import Store
from acre_rag.streams import Pieces, TextStream
from acre_rag.worker import Ticket

_logger = getLogger(__name__)


class ACRE:
    """Reads documents once, answers questions from them.

    Use `ACRE.from_pretrained`. Every method may be called from any thread; the methods that begin with `a`, and `async
    for` over `stream`, never block an event loop. The model runs on one thread: calls wait in line, and questions that
    wait together are decoded as one batch. (In a 16-bit type a batch rounds otherwise than a single question, and may
    word an answer otherwise; `decoder.worker.max_batch = 1` decodes each alone.)

    Every call takes `tenant`: documents of one tenant do not exist for another. `timeout_s` bounds waiting and work;
    past it the work is stopped and `DeadlineError` raised. `BusyError` is raised at once when too many calls wait.

    Args:
        decoder: a loaded model.
        proxy: what an L1 entry is; pooled (no training) by default.
        config: options of the method.
        heads: retrieval heads; `None` takes the shipped ones for this model, if any.
        template: how documents and questions are put to the model.
        retriever: text retriever of the "retriever" and "hybrid" strategies; BM25 by default.
        store: folder that keeps documents for good; made when missing. Documents stored there earlier, by this model
            with these options, are there again at once.
        device_bytes: most bytes of compact caches on the device; `None` for no limit.
        host_bytes: most bytes of caches in host memory; `None` for no limit.
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
        store: str | Path | None = None,
        device_bytes: int | None = None,
        host_bytes: int | None = None,
    ) -> None:
        self.decoder = decoder
        self.heads = heads or shipped_heads(decoder)
        self.retriever = retriever
        self.config = self._settled(config or ACREConfig())
        if self.heads:
            check_heads(self.heads, decoder)
        self.template = template
        self._selector = Selector(decoder, self.heads)
        prompt = render(template, decoder.tokenizer)
        self._reader = Reader(
            decoder,
            proxy=proxy or PooledProxy(),
            heads=self.heads,
            config=self.config,
            prompt=prompt,
            selector=self._selector,
        )
        self._library = Library(
            self._reader,
            Residency(decoder.device, device_bytes=device_bytes, host_bytes=host_bytes),
            Store(store) if store is not None else None,
            self.fingerprint if store is not None else None,
        )
        self._desk = Desk(self._library, self._new_asker(prompt))

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path = BUILTIN,
        *,
        adapter: str | Path | None = None,
        heads: str | Path | None = None,
        device: str = "auto",
        dtype: str = "auto",
        attn_implementation: str | None = None,
        **options: Any,
    ) -> "ACRE":
        """Load a model, and an adapter if one is given.

        Args:
            model: "smollm2-135m" (built in), a local folder, a `.gguf` file or a hub id.
            adapter: learned L1: an adapter of `acre train`, a checkpoint in the authors' layout, or "shipped".
            heads: file of `acre calibrate`; by default the one saved with the adapter, else the shipped one for this
                model.
            device: "auto", "cpu", "cuda", ...
            dtype: "auto", "float32", "bfloat16", "float16".
            attn_implementation: "eager", "sdpa", "flash_attention_2"; `None` lets transformers choose.
            options: the other arguments of `ACRE`: config, template, retriever, store, ...

        Raises:
            ModelError: the model cannot be found, loaded or split.
            AdapterError: the adapter is damaged or belongs to another model.
            CalibrationError: the heads file does not fit.
        """
        decoder = load_decoder(model, device=device, dtype=dtype, attn_implementation=attn_implementation)
        acre = cls(
            decoder,
            proxy=LearnedProxy(load_learned(adapter, decoder).to(decoder.dtype)) if adapter else None,
            heads=_heads(heads, adapter, decoder),
            **options,
        )
        if acre.heads is None:
            _logger.warning(
                "No retrieval heads are known for %s: BM25 chooses the passages. Find them once with: "
                "acre calibrate --model MODEL --out heads.json",
                model,
            )
        return acre

    def using(
        self, *, template: PromptTemplate | None = None, retriever: Retriever | None = None, **options: Any
    ) -> "ACRE":
        """The same engine, documents included, that asks with other options.

        Args:
            template: another way to put the question; what stands before the document is in the caches and must stay.
            retriever: another text retriever; without `select` a strategy is chosen that asks it.
            options: fields of `ACREConfig` that do not change what was read (`config.ASKING_OPTIONS`).

        Raises:
            ConfigError: the option would need the documents to be read anew, or the strategy asks no retriever.
        """
        if fixed := [name for name in READING_OPTIONS if name in options]:
            raise ConfigError(f"{', '.join(fixed)} decide how documents are read; make a new engine for another value.")
        other = copy.copy(self)
        if retriever is not None:
            other.retriever = retriever
            options.setdefault("select", self.config.select if self.config.select in ASKS_A_RETRIEVER else "auto")
        other.config = other._settled(replace(self.config, **options))
        if retriever is not None and other.config.select not in ASKS_A_RETRIEVER:
            raise ConfigError(
                f"select={other.config.select!r} asks no retriever: use 'hybrid' or 'retriever', or pass none."
            )
        other.template = template or self.template
        other._desk = Desk(self._library, other._new_asker(render(other.template, self.decoder.tokenizer)))
        if other._desk.asker.prompt.prefix != self._desk.asker.prompt.prefix:
            raise ConfigError(
                "This template changes what stands before the document, which the caches hold. Make a new engine with "
                "it, or change only the text after the document."
            )
        return other

    @property
    def window(self) -> int:
        """`W`, in tokens."""
        return self._reader.window

    @property
    def prefix_ids(self) -> Tensor:
        """`[P]`, the template before every document."""
        return self._reader.prefix_ids

    @property
    def documents(self) -> Mapping[str, Document]:
        """Documents of the default tenant by id; see `documents_of`."""
        return self.documents_of("")

    @property
    def statistics(self) -> Statistics:
        """Hits, misses, evictions, and bytes of each tier."""
        return self._library.residency.statistics

    @property
    def library(self) -> Library:
        """The documents of every tenant; the engines that `using` makes share it."""
        return self._library

    def documents_of(self, tenant: str) -> Mapping[str, Document]:
        """A tenant's documents by id."""
        return self._library.shelf(tenant)

    def add(
        self,
        text: str,
        id: str | None = None,
        *,
        tenant: str = "",
        rebuild: bool = False,
        progress: ProgressCallback | None = None,
        timeout_s: float | None = None,
    ) -> Document:
        """Read a document once into a bi-layer cache.

        Args:
            text: the document.
            id: name for sources and for `documents=`; a digest of the text by default. Adding the same text under
                the same id again returns the document that is there.
            tenant: whose it is.
            rebuild: read it anew, in place of a cache that is damaged or was built by another model or other options.
            progress: called with (tokens read, tokens in all) after every stride, on the model's thread.
            timeout_s: most seconds of waiting and reading.

        Raises:
            DocumentError: empty; or the id already names another text.
            CapacityError: too long for the window, whatever the interval; or no memory.
            FingerprintError: its stored cache was built by another model or with other options; names the fields.
            CorruptCacheError: its stored cache is damaged.
            StoreError: it cannot be stored; nothing that was there is lost.
        """
        document: Document = self._submit_add(text, id, tenant, rebuild, progress, timeout_s).result()
        return document

    async def aadd(
        self,
        text: str,
        id: str | None = None,
        *,
        tenant: str = "",
        rebuild: bool = False,
        progress: ProgressCallback | None = None,
        timeout_s: float | None = None,
    ) -> Document:
        """`add` on an event loop."""
        document: Document = await self._submit_add(text, id, tenant, rebuild, progress, timeout_s).wait()
        return document

    def get(self, id: str, *, tenant: str = "") -> Document:
        """A document by its id, also one that another process stored after this engine began.

        Raises:
            DocumentError: there is none of that name.
            FingerprintError: it was stored by another model or with other options.
            CorruptCacheError: it is stored, but damaged.
        """
        document: Document = self._run(lambda: self._library.get(id, tenant))
        return document

    def find(self, documents: Documents = None, *, tenant: str = "") -> list[Document]:
        """The documents that a question would be put to; all of the tenant's by default, as far as they are whole.

        Raises:
            DocumentError: unknown, or none at all; says what is wrong where all are damaged.
            FingerprintError: as `get`.
            CorruptCacheError: as `get`.
        """
        found: list[Document] = self._run(lambda: self._library.find(documents, tenant))
        return found

    @contextmanager
    def holding(self, documents: Sequence[Document]) -> Iterator[None]:
        """The documents' caches are on the device inside the block (for looking at `Document.cache`)."""
        with self._library.residency.holding(documents):
            yield

    def remove(self, document: Document | str, *, tenant: str = "") -> None:
        """Forget a document and free its cache, everywhere.

        Args:
            document: by its id, also what other models or options stored of it goes, and what is damaged.
            tenant: whose it is.

        Raises:
            DocumentError: there is none of that name.
        """
        self._run(lambda: self._library.remove(document, tenant))

    async def aremove(self, document: Document | str, *, tenant: str = "") -> None:
        """`remove` on an event loop."""
        await self._submit(lambda: self._library.remove(document, tenant)).wait()

    def release(self, document: Document | str, *, tenant: str = "") -> None:
        """Free a stored document's memory; the next question brings it back from the store.

        Raises:
            DocumentError: unknown, or only memory has it.
        """
        self._run(lambda: self._library.release(document, tenant))

    def pin(self, document: Document | str, pinned: bool = True, *, tenant: str = "") -> None:
        """Keep a document on the device whatever the budgets, until it is unpinned (`pinned=False`)."""
        self._run(lambda: self._library.residency.pin(self._library.get(document, tenant), pinned))

    def ask(
        self,
        question: str,
        documents: Documents = None,
        *,
        tenant: str = "",
        settings: GenerationSettings | None = None,
        timeout_s: float | None = None,
    ) -> Answer:
        """Answer one question.

        Args:
            question: the question.
            documents: documents or their ids; all of the tenant's by default.
            tenant: whose documents.
            settings: how to decode.
            timeout_s: most seconds of waiting and answering.

        Raises:
            DocumentError: unknown or no documents.
            CapacityError: question, L1 and answer do not fit the window; or no memory.
        """
        return self.ask_batch([question], documents, tenant=tenant, settings=settings, timeout_s=timeout_s)[0]

    async def aask(
        self,
        question: str,
        documents: Documents = None,
        *,
        tenant: str = "",
        settings: GenerationSettings | None = None,
        timeout_s: float | None = None,
    ) -> Answer:
        """`ask` on an event loop."""
        [ticket] = self._submit_asked([Asked(question, documents, tenant)], settings, timeout_s)
        answer: Answer = await ticket.wait()
        return answer

    def ask_batch(
        self,
        questions: Sequence[str],
        documents: Documents = None,
        *,
        tenant: str = "",
        settings: GenerationSettings | None = None,
        timeout_s: float | None = None,
    ) -> list[Answer]:
        """Answer any number of questions about the same documents, a batch at a time; other callers' go between.

        Arguments as in `ask`; `timeout_s` bounds the whole. When one question fails, the rest are not asked.
        """
        asked = [Asked(question, documents, tenant) for question in questions]
        return self.decoder.worker.results(self._tickets(asked, settings, timeout_s))

    def stream(
        self,
        question: str,
        documents: Documents = None,
        *,
        tenant: str = "",
        settings: GenerationSettings | None = None,
        timeout_s: float | None = None,
    ) -> TextStream[Answer]:
        """Pieces of text as they are decoded, then the whole `Answer`; for `for` and for `async for`.

        Closing the stream stops the model at its next token.
        """
        return self._submit_stream(Asked(question, documents, tenant), settings, timeout_s)

    def complete(
        self, prompt: str, *, settings: GenerationSettings | None = None, timeout_s: float | None = None
    ) -> Answer:
        """What the stock model says after a prompt: no documents, no template.

        Raises:
            CapacityError: prompt and answer do not fit the model.
            ConfigError: the prompt is empty.
        """
        [ticket] = self._submit_asked([Asked(prompt, plain=True)], settings, timeout_s)
        answer: Answer = ticket.result()
        return answer

    async def acomplete(
        self, prompt: str, *, settings: GenerationSettings | None = None, timeout_s: float | None = None
    ) -> Answer:
        """`complete` on an event loop."""
        [ticket] = self._submit_asked([Asked(prompt, plain=True)], settings, timeout_s)
        answer: Answer = await ticket.wait()
        return answer

    def stream_complete(
        self, prompt: str, *, settings: GenerationSettings | None = None, timeout_s: float | None = None
    ) -> TextStream[Answer]:
        """`complete` piece by piece, as `stream`."""
        return self._submit_stream(Asked(prompt, plain=True), settings, timeout_s)

    def select(self, question: str, documents: Documents = None, *, tenant: str = "") -> Selection:
        """What a question would refill, without decoding; see `prepare` when a first pass may choose documents."""
        return self.prepare(question, documents, tenant=tenant).selection

    def prepare(self, question: str, documents: Documents = None, *, tenant: str = "") -> Prepared:
        """Selection, sources and the documents that were really asked, without decoding (for heat maps, evaluation).

        The working cache has the passages as L2 keeps them, with `recompute` too.
        """
        prepared: Prepared = self._run(lambda: self._select(Asked(question, documents, tenant)))
        return prepared

    async def aprepare(self, question: str, documents: Documents = None, *, tenant: str = "") -> Prepared:
        """`prepare` on an event loop."""
        prepared: Prepared = await self._submit(lambda: self._select(Asked(question, documents, tenant))).wait()
        return prepared

    def retrieve(self, question: str, documents: Documents = None, *, tenant: str = "") -> tuple[Source, ...]:
        """The passages that a question would refill, best first, without decoding."""
        return self.prepare(question, documents, tenant=tenant).sources

    async def aretrieve(self, question: str, documents: Documents = None, *, tenant: str = "") -> tuple[Source, ...]:
        """`retrieve` on an event loop."""
        return (await self.aprepare(question, documents, tenant=tenant)).sources

    def sources(self, selection: Selection, documents: Sequence[Document]) -> tuple[Source, ...]:
        """The text behind a selection, neighbouring blocks merged, best first."""
        return sources_of(selection, documents)

    def plan(self, n_tokens: int) -> ReadingPlan:
        """Interval and stride for a document of `n_tokens`."""
        return self._reader.plan(n_tokens)

    def question(self, text: str) -> Question:
        """A question in the template and tokens of this engine."""
        return self._desk.asker.question(text)

    def question_queries(self, question: str, view: KV) -> Tensor:
        """Un-rotated queries `[L, H, T, D]` of a question's own words over `view` (for calibration and diagnosis)."""
        asked = self.question(question)
        queries: Tensor = self._run(lambda: question_queries(self.decoder, view, asked.ids, own=asked.own))
        return queries

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """What the caches of this engine depend on; a store refuses caches of any other."""
        reader = self._reader
        return engine_fingerprint(
            self.decoder, proxy=reader.proxy, heads=self.heads, config=self.config, prompt=reader.prompt
        )

    def _settled(self, config: ACREConfig) -> ACREConfig:
        own = self.retriever is not bm25_retriever
        return config.settled(heads_known=self.heads is not None, own_retriever=own)

    def _new_asker(self, prompt: RenderedPrompt) -> Asker:
        return Asker(
            decoder=self.decoder,
            selector=self._selector,
            prompt=prompt,
            config=self.config,
            retriever=self.retriever,
            window=self.window,
        )

    def _select(self, asked: Asked) -> Prepared:
        return self._desk.select(asked, GenerationSettings())

    def _submit_add(
        self,
        text: str,
        id: str | None,
        tenant: str,
        rebuild: bool,
        progress: ProgressCallback | None,
        timeout_s: float | None,
    ) -> Ticket:
        def work(tickets: Sequence[Ticket]) -> list[Document]:
            [ticket] = tickets

            def report(done: int, total: int) -> None:
                ticket.check()  # nobody waits any more: stop at this stride
                if progress:
                    progress(done, total)

            return [self._library.add(text, id, tenant, report, rebuild=rebuild)]

        return self._in_line([Ticket(work, timeout_s=timeout_s)])[0]

    def _submit_asked(
        self, asked: Sequence[Asked], settings: GenerationSettings | None, timeout_s: float | None
    ) -> list[Ticket]:
        return self._in_line(self._tickets(asked, settings, timeout_s))

    def _tickets(
        self, asked: Sequence[Asked], settings: GenerationSettings | None, timeout_s: float | None
    ) -> list[Ticket]:
        chosen, desk = settings or GenerationSettings(), self._desk
        # A seeded sample must not depend on who else asks at the same time.
        group = (desk, chosen) if chosen.temperature == 0 or chosen.seed is None else None

        def work(tickets: Sequence[Ticket]) -> list[Any]:
            return list(desk.answer(tickets, chosen))

        return [Ticket(work, each, group=group, timeout_s=timeout_s) for each in asked]

    def _submit_stream(
        self, asked: Asked, settings: GenerationSettings | None, timeout_s: float | None
    ) -> TextStream[Answer]:
        chosen, desk, pieces = settings or GenerationSettings(), self._desk, Pieces()

        def work(tickets: Sequence[Ticket]) -> list[Answer]:
            return [desk.stream(tickets[0], chosen, pieces)]

        [ticket] = self._in_line([Ticket(work, asked, timeout_s=timeout_s)])
        return TextStream(ticket, pieces)

    def _in_line(self, tickets: list[Ticket]) -> list[Ticket]:
        self.decoder.worker.submit(tickets)
        return tickets

    def _submit(self, work: Callable[[], Any]) -> Ticket:
        return self._in_line([Ticket(lambda _: [work()])])[0]

    def _run(self, work: Callable[[], Any]) -> Any:
        return self._submit(work).result()


def _heads(named: str | Path | None, adapter: str | Path | None, decoder: Decoder) -> RetrievalHeads | None:
    if named:
        return load_heads(Path(named))
    return heads_beside(Path(adapter), decoder) if adapter else None
