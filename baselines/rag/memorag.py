"""MemoRAG (arXiv 2409.05591): a memory of the whole document gives clues, which are searched; what they find is read.

After the repository qhjqhj00/MemoRAG: memory recalls passages, asks more exact questions and drafts an answer; each of
them and the question is a query; their hits, with the draft behind them, are what the model answers from. Each document
has a memory of its own; clues of all documents asked are pooled.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

from acre_rag.answer import Answer
from acre_rag.baselines.base import Baseline, Call, Held, Setting
from acre_rag.baselines.prompted import token_ids
from acre_rag.baselines.rag.fused import Fusion
from acre_rag.baselines.rag.memories import MemoryKind, make_memory
from acre_rag.baselines.rag.memory import Memory, Ready
from acre_rag.baselines.rag.recall import Recalled, all_queries, recalled
from acre_rag.baselines.rag.retrieval import CHUNK_TOKENS, N_HITS, Indexed, Retrieval
from acre_rag.baselines.rag.search import Search
from acre_rag.baselines.rag.searches import dense_search
from acre_rag.construct import ProgressCallback
from acre_rag.errors import ConfigError
from acre_rag.generate import decode


@dataclass(frozen=True, eq=False)
class Remembered:
    """A document that can be searched and is remembered.

    Attributes:
        indexed: its chunks.
        memory: what `Memory.read` made of it.
    """

    indexed: Indexed
    memory: Any


class MemoRAG(Baseline[Remembered]):
    """Clues from memory, then retrieval.

    Args:
        setting: model, template, window.
        search: the way of searching.
        memory: where the clues come from.
        draft: whether the draft is read behind the evidence (it always searches).
        most_clues: most clues, and most surrogate questions, of a document; all by default, as in the repository.
        options: `hits` and `chunk_tokens` of `Retrieval`.

    Raises:
        ConfigError: `most_clues` or one of the options is below 1.
    """

    def __init__(
        self,
        setting: Setting,
        search: Search[Any],
        memory: Memory[Any],
        *,
        draft: bool = True,
        most_clues: int | None = None,
        **options: Any,
    ) -> None:
        if most_clues is not None and most_clues < 1:
            raise ConfigError(f"most_clues={most_clues} must be 1 or more, or left out for all.")
        super().__init__(setting)
        self.retrieval = Retrieval(setting, search, **options)
        self.memory, self.draft, self.most_clues = memory, draft, most_clues

    @property
    def facts(self) -> dict[str, str]:
        """Retriever, embedding model and memory, for result rows."""
        return {**self.retrieval.search.facts, "memory": self.memory.about}

    def read(self, text: str, progress: ProgressCallback) -> Remembered:
        """Chunks, their index, and the memory; progress is the memory's, which takes nearly all of the time."""
        indexed = self.retrieval.index(text, lambda _, total: progress(0, total))
        return Remembered(indexed, self.memory.read(text, progress))

    def answer(self, question: str, documents: Sequence[Held[Remembered]], call: Call) -> Answer:
        """Recall, search, read, answer."""
        start = perf_counter()
        self.retrieval.room(question, call)  # refuses a question that fits no window before any work
        tasks = [self.memory.tasks(document.state.memory, question) for document in documents]
        recollections = [self._recall(ready, call) for ready in tasks]
        searched = [_searchable(document) for document in documents]
        hits = self.retrieval.find(all_queries(question, recollections), searched, call)
        hint = _hint(recollections) if self.draft else ""
        beside = len(token_ids(self.decoder, f"\n\n{hint}")) if hint else 0
        evidence = self.retrieval.evidence(hits, searched, self.retrieval.room(question, call, beside_tokens=beside))
        answer = self.retrieval.answer(
            question,
            documents,
            evidence,
            call,
            start=start,
            trace=[step for each in recollections for step in each.steps],
            hint=hint,
            also_read_tokens=sum(len(each.ids) for ready in tasks for each in ready),
        )
        remarks = [note for document in documents for note in self.memory.notes(document.state.memory)]
        return replace(answer, notes=(*answer.notes, *dict.fromkeys(remarks)))

    def remove(self, document: str) -> None:
        """Forget a document, and its memory.

        Raises:
            DocumentError: there is none of that name.
        """
        [held] = self._find(document)
        self.memory.forget(held.state.memory)  # first: where that fails, the document is there to be removed again
        super().remove(document)

    def _recall(self, ready: Sequence[Ready], call: Call) -> Recalled:
        """What one document's memory says: all tasks as one batch."""
        call.check()
        said = decode(
            self.decoder,
            [each.slots for each in ready],
            [each.ids for each in ready],
            self.memory.speech,
            stopped=[call.stopped] * len(ready),
        )
        call.check()
        clues, questions, draft = (each.text for each in said)
        return recalled(clues, questions, draft, most=self.most_clues)


def _searchable(document: Held[Remembered]) -> Held[Indexed]:
    """The same document as the search knows it."""
    return Held(document.id, document.text, document.state.indexed, document.construct_s)


def _hint(recollections: Sequence[Recalled]) -> str:
    """The draft as the answering model reads it; several documents' drafts would contradict each other."""
    [only, *others] = recollections
    return f"A guess from memory, which may be wrong: {only.draft}" if only.draft and not others else ""


def make_memorag(
    setting: Setting,
    *,
    memory: MemoryKind = "gists",
    fusion: Fusion = "dense",
    memory_options: dict[str, Any] | None = None,
    draft: bool = True,
    most_clues: int | None = None,
    hits: int = N_HITS,
    chunk_tokens: int = CHUNK_TOKENS,
) -> MemoRAG:
    """MemoRAG with one of the memories.

    Args:
        setting: model, template, window, embedding model; the adapter for `memory="released"`.
        memory: "gists", "full", "acre" or "released"; see `make_memory`.
        fusion: see `dense_search`.
        memory_options: options of the memory: `recall_tokens`, and of "gists" `most`, `stretch_tokens`, `gist_tokens`.
        draft: see `MemoRAG`.
        most_clues: see `MemoRAG`.
        hits: see `Retrieval`.
        chunk_tokens: see `Retrieval`.

    Raises:
        ConfigError: no such memory, or it has no such option.
        UnavailableError: the released memory model without CUDA or weights; no such embedding model here.
    """
    made = make_memory(setting, memory, **memory_options or {})
    search = dense_search(setting, fusion)
    return MemoRAG(setting, search, made, draft=draft, most_clues=most_clues, hits=hits, chunk_tokens=chunk_tokens)
