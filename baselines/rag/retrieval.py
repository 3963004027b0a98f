"""What the retrieval systems share: chunks, hits, and the prompt's evidence within the window. Knows no search.

Chunks, window, template and generation settings are the same for all of them, so a comparison is one of the searches.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

from acre_rag.answer import Answer, Source, Step, Timings
from acre_rag.baselines.base import Baseline, Call, Held, Setting
from acre_rag.baselines.prompted import answer_from_text, room_for_text, text_ids, token_ids
from acre_rag.baselines.rag.chunks import Chunk, split_chunks
from acre_rag.baselines.rag.search import Hit, Search, union
from acre_rag.construct import ProgressCallback
from acre_rag.errors import ConfigError
from acre_rag.prompts import render
from acre_rag.reading import tokenised_question

CHUNK_TOKENS = 512
N_HITS = 5
"""The paper's settings of all retrieval baselines: 5 hits of 512-token chunks."""

_BETWEEN = "\n\n"
_BETWEEN_TOKENS = 2  # at most, in any tokenizer


@dataclass(frozen=True, eq=False)
class Indexed:
    """A document ready to be searched.

    Attributes:
        chunks: its chunks, in order.
        index: what the search made of them.
    """

    chunks: tuple[Chunk, ...]
    index: Any


@dataclass(frozen=True)
class Evidence:
    """The text that is read for an answer.

    Attributes:
        text: chunks in document order.
        sources: the same, best first.
        notes: what did not fit.
    """

    text: str
    sources: tuple[Source, ...]
    notes: tuple[str, ...]


class Retrieval:
    """Chunks, searches and reads.

    Args:
        setting: model, template, window.
        search: the way of searching.
        hits: chunks per query.
        chunk_tokens: most tokens of a chunk.

    Raises:
        ConfigError: `hits` is below 1.
    """

    def __init__(
        self, setting: Setting, search: Search[Any], *, hits: int = N_HITS, chunk_tokens: int = CHUNK_TOKENS
    ) -> None:
        if hits < 1:
            raise ConfigError(f"hits={hits} must be 1 or more.")
        self.search, self.hits, self.chunk_tokens = search, hits, chunk_tokens
        self._decoder, self._window = setting.decoder, setting.most_tokens
        self._prompt = render(setting.template, setting.decoder.tokenizer)

    def index(self, text: str, progress: ProgressCallback) -> Indexed:
        """Cut a document and index its chunks."""
        chunks = split_chunks(text, self._decoder.tokenizer, self.chunk_tokens)
        total = sum(chunk.n_tokens for chunk in chunks)
        progress(0, total)

        def done(n_chunks: int) -> None:
            progress(sum(chunk.n_tokens for chunk in chunks[:n_chunks]), total)

        return Indexed(chunks, self.search.index([text[chunk.start : chunk.stop] for chunk in chunks], done))

    def find(self, queries: Sequence[str], documents: Sequence[Held[Indexed]], call: Call) -> list[Hit]:
        """Hits of all queries; chunks of all documents compete."""
        indexes = [document.state.index for document in documents]
        found = []
        for query in queries:
            call.check()
            found.append(self.search.best(query, indexes, self.hits))
        return union(found)

    def room(self, question: str, call: Call, *, beside_tokens: int = 0) -> int:
        """Tokens of text that fit beside prompt, question and answer (and `beside_tokens` of anything else).

        Raises:
            CapacityError: none.
        """
        asked = tokenised_question(question, self._prompt, self._decoder).ids
        prompt = len(token_ids(self._decoder, self._prompt.prefix)) + len(asked)
        return room_for_text(prompt_tokens=prompt + beside_tokens, settings=call.settings, window=self._window)

    def evidence(self, hits: Sequence[Hit], documents: Sequence[Held[Indexed]], room: int) -> Evidence:
        """The text of the hits, in document order; those of the last ranks are left out where `room` is short."""
        kept = list(hits[: self._n_fitting(hits, documents, room)])
        while len(kept) > 1 and len(text_ids(self._decoder, _joined(kept, documents))) > room:
            kept.pop()
        sources = sorted((_source(hit, documents) for hit in kept), key=lambda source: -source.score)
        left_out = len(hits) - len(kept)
        notes = (f"{left_out} of {len(hits)} hits, the last in rank, did not fit the window",) if left_out else ()
        return Evidence(_joined(kept, documents), tuple(sources), notes)

    def answer(
        self,
        question: str,
        documents: Sequence[Held[Any]],
        evidence: Evidence,
        call: Call,
        *,
        start: float,
        trace: Sequence[Step] = (),
        hint: str = "",
        also_read_tokens: int = 0,
    ) -> Answer:
        """The model's answer from evidence.

        Args:
            question: the question.
            documents: what was asked.
            evidence: what is read.
            call: how to decode.
            start: `perf_counter()` when the question came; all until now counts as selecting.
            trace: steps on the way.
            hint: text read behind the evidence.
            also_read_tokens: tokens of prompts that were read on the way.
        """
        select_s = perf_counter() - start
        call.check()
        call.on_sources(evidence.sources)
        text = f"{evidence.text}{_BETWEEN}{hint}" if hint else evidence.text
        said = answer_from_text(self._decoder, self._prompt, text, question, call, window=self._window)
        generated = said.generated
        return Answer(
            text=generated.text,
            sources=evidence.sources,
            usage=replace(said.usage, also_read_tokens=also_read_tokens),
            timings=timings(documents, select_s, generated.first_token_s, generated.total_s),
            finished=generated.finished,
            notes=(*evidence.notes, *cut_notes(said.left_out)),
            trace=tuple(trace),
        )

    def _n_fitting(self, hits: Sequence[Hit], documents: Sequence[Held[Indexed]], room: int) -> int:
        """How many hits fit by their own lengths; the joined text may still be a token longer."""
        used = 0
        for n, hit in enumerate(hits):
            used += documents[hit.document].state.chunks[hit.chunk].n_tokens + (_BETWEEN_TOKENS if n else 0)
            if used > room:
                return max(n, 1)
        return len(hits)


class RetrievalBaseline(Baseline[Indexed]):
    """A system that keeps of a document its chunks and their index.

    Args:
        setting: model, template, window.
        search: the way of searching.
        options: `hits` and `chunk_tokens` of `Retrieval`.
    """

    def __init__(self, setting: Setting, search: Search[Any], **options: Any) -> None:
        super().__init__(setting)
        self.retrieval = Retrieval(setting, search, **options)

    @property
    def facts(self) -> dict[str, str]:
        """Retriever and embedding model, for result rows."""
        return self.retrieval.search.facts

    def read(self, text: str, progress: ProgressCallback) -> Indexed:
        """Chunks and their index."""
        return self.retrieval.index(text, progress)


def cut_notes(left_out: int) -> tuple[str, ...]:
    """What the user should know of `left_out` tokens of evidence; only a hit that stands alone is cut."""
    return (f"the middle {left_out:,} tokens of the only hit did not fit the window",) if left_out else ()


def timings(documents: Sequence[Held[Any]], select_s: float, first_token_s: float, total_s: float) -> Timings:
    """Seconds of an answer that was decoded in `total_s` after `select_s` of searching."""
    return Timings(
        construct_s=sum(document.construct_s for document in documents),
        select_s=select_s,
        refill_s=0.0,
        first_token_s=select_s + first_token_s,
        decode_s=total_s - first_token_s,
    )


def _joined(hits: Sequence[Hit], documents: Sequence[Held[Indexed]]) -> str:
    ordered = sorted(hits, key=lambda hit: (hit.document, hit.chunk))
    return _BETWEEN.join(_source(hit, documents).text for hit in ordered)


def _source(hit: Hit, documents: Sequence[Held[Indexed]]) -> Source:
    document = documents[hit.document]
    chunk = document.state.chunks[hit.chunk]
    return Source(document.id, chunk.start, chunk.stop, document.text[chunk.start : chunk.stop], hit.score)
