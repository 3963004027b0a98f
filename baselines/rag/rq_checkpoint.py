"""RQ-RAG's released checkpoint: a tree of searches, each begun by a special token. Knows no prompts for other models.

The tokens and the tree are those of the repository chanchimin/RQ-RAG: behind the question, and behind every evidence,
each of the three search tokens begins a query, and `[A_Response]` begins an answer; paths end after `depth` searches.
Differences: the chunks and hits of all baselines here stand where that repository asks a search engine, queries are
decoded greedily, and the system message is ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

from acre_rag.answer import Answer, Source, Step, Usage
from acre_rag.baselines.base import Call, Held, Setting
from acre_rag.baselines.prompted import room_for_text, say, token_ids
from acre_rag.baselines.rag.confidence import Chooser, Sure, answer_surely, most_confident
from acre_rag.baselines.rag.retrieval import Evidence, Indexed, RetrievalBaseline, timings
from acre_rag.baselines.rag.rewriting import SHORT
from acre_rag.baselines.rag.search import Search
from acre_rag.errors import CapacityError, ConfigError, UnavailableError

CHECKPOINT = "zorowin123/rq_rag_llama2_7B"
SEARCHES = {
    "rewrite": "[S_Rewritten_Query]",
    "decompose": "[S_Decomposed_Query]",
    "disambiguate": "[S_Disambiguated_Query]",
}
ANSWER, END = "[A_Response]", "[EOS]"
EVIDENCE, EVIDENCE_END = "[R_Evidences]", "[/R_Evidences]"
TOKENS = (*SEARCHES.values(), ANSWER, END, EVIDENCE, EVIDENCE_END)

_SYSTEM = "Find out what is needed to answer the question, then answer it briefly."
_TITLE_TOKENS = 32  # of one hit, beside its text


@dataclass(frozen=True)
class Path:
    """A branch of the tree.

    Attributes:
        text: what the model has read and written so far.
        sources: what its searches found and it has read.
        notes: hits that did not fit.
    """

    text: str
    sources: tuple[Source, ...] = ()
    notes: tuple[str, ...] = ()


class RQCheckpoint(RetrievalBaseline):
    """The special-token tree.

    Args:
        setting: model (the checkpoint, or another with its tokens), window. The template is not used: the checkpoint
            knows its own only.
        search: the way of searching.
        depth: most searches on one path; the repository's default is 2, which is 13 answers and 12 searches.
        choose: picks the answer.
        options: `hits` and `chunk_tokens` of `Retrieval`.

    Raises:
        ConfigError: `depth` is below 1.
        UnavailableError: the model has no such tokens.
    """

    def __init__(
        self,
        setting: Setting,
        search: Search[Any],
        *,
        depth: int = 2,
        choose: Chooser = most_confident,
        **options: Any,
    ) -> None:
        if depth < 1:
            raise ConfigError(f"depth={depth} must be 1 or more.")
        self.check(setting)
        super().__init__(setting, search, **options)
        self.depth, self.choose = depth, choose

    @staticmethod
    def check(setting: Setting) -> None:
        """Refuse a model that was not trained on the tokens.

        Raises:
            UnavailableError: its tokenizer lacks some.
        """
        known = setting.decoder.tokenizer.get_vocab()
        if missing := [token for token in TOKENS if token not in known]:
            raise UnavailableError(
                f"mode='checkpoint' needs a model trained on RQ-RAG's tokens; {setting.decoder.name} lacks "
                f"{', '.join(missing)}. Load {CHECKPOINT}, or use mode='union' or 'tree' with any model."
            )

    def answer(self, question: str, documents: Sequence[Held[Indexed]], call: Call) -> Answer:
        """Grow the tree, answer on every path, keep the best answer."""
        start = perf_counter()
        paths, trace = self._grown(question, documents, call)
        ending = replace(call.settings, stop=(*call.settings.stop, END))
        ends: list[Sure] = []
        lengths: list[int] = []
        for path in paths:
            call.check()
            ids = token_ids(self.decoder, path.text + ANSWER)
            room_for_text(prompt_tokens=len(ids), settings=ending, window=self.setting.most_tokens)
            ends.append(answer_surely(self.decoder, ids, ending, stopped=call.stopped))
            lengths.append(len(ids))
            trace.append(Step("answer", f"{ends[-1].generated.text} (confidence {ends[-1].confidence:.2f})"))
        best = self.choose(ends)
        generated, path = ends[best].generated, paths[best]
        if call.on_text:
            call.on_text(generated.text)
        return Answer(
            text=generated.text,
            sources=_best_first(path.sources),
            usage=Usage(lengths[best], 0, 0, generated.n_tokens, sum(lengths) - lengths[best]),
            timings=timings(
                documents, perf_counter() - start - generated.total_s, generated.total_s, generated.total_s
            ),
            finished=generated.finished,
            notes=path.notes,
            trace=tuple(trace),
        )

    def _grown(self, question: str, documents: Sequence[Held[Indexed]], call: Call) -> tuple[list[Path], list[Step]]:
        """All paths, shortest first, the one without a search among them."""
        tokenizer = self.decoder.tokenizer
        bos, eos = tokenizer.bos_token or "", tokenizer.eos_token or ""
        root = Path(f"{bos}<|system|>\n{_SYSTEM}{eos}\n<|user|>\n{question}{eos}\n<|assistant|>\n")
        room = self._room(root, call)
        paths, trace, level = [root], list[Step](), [root]
        for _ in range(self.depth):
            level = [
                self._searched(path, name, question, documents, room, call, trace)
                for path in level
                for name in SEARCHES
            ]
            paths += level
        return paths, trace

    def _searched(
        self,
        path: Path,
        name: str,
        question: str,
        documents: Sequence[Held[Indexed]],
        room: int,
        call: Call,
        trace: list[Step],
    ) -> Path:
        """A path with one more search behind it; the question itself is searched where the model gives no query."""
        begun = path.text + SEARCHES[name]
        query = say(self.decoder, begun, call, settings=replace(SHORT, stop=(END,))).text or question
        trace.append(Step(name, query))
        hits = self.retrieval.find([query], documents, call)
        evidence = self.retrieval.evidence(hits, documents, room)
        text = f"{begun} {query}{END}{EVIDENCE}{_formatted(evidence)}{EVIDENCE_END}"
        return Path(text, (*path.sources, *evidence.sources), (*path.notes, *evidence.notes))

    def _room(self, root: Path, call: Call) -> int:
        """Tokens of evidence that each search of the longest path may add.

        Raises:
            CapacityError: the window holds no tree of this depth.
        """
        beside = len(token_ids(self.decoder, root.text)) + call.settings.max_new_tokens + len(TOKENS)
        beside += self.depth * (SHORT.max_new_tokens + _TITLE_TOKENS * self.retrieval.hits)
        room = (self.setting.most_tokens - beside) // self.depth
        if room < 1:
            raise CapacityError(
                f"Question, queries and answers of depth={self.depth} need {beside:,} tokens beside the evidence, more "
                f"than window={self.setting.most_tokens:,}. Use a smaller depth or fewer new tokens."
            )
        return room


def _formatted(evidence: Evidence) -> str:
    return "".join(f"Title: {source.document}\nText: {source.text}\n" for source in evidence.sources)


def _best_first(sources: Sequence[Source]) -> tuple[Source, ...]:
    """Without repetition: a chunk that several searches found keeps its best score."""
    best = {(source.document, source.start): source for source in sorted(sources, key=lambda source: source.score)}
    return tuple(sorted(best.values(), key=lambda source: -source.score))
