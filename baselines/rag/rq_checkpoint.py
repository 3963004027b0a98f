"""RQ-RAG's released checkpoint: a tree of searches, each begun by a special token. Knows no prompts for other models.

The tokens and the tree are those of the repository chanchimin/RQ-RAG: behind the question, and behind every evidence,
each of the three search tokens begins a query, and `[A_Response]` begins an answer; paths end after `depth` searches.
Differences: the chunks and hits of all baselines here stand where that repository asks a search engine, and queries are
decoded greedily. Its prompt of a single question has no system message, nor has ours; for its data sets it puts one
(`retrieval_lm/utils.py`), which `system_message` takes. Control tokens in what others wrote are words.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from acre_rag.answer import Answer, Source, Step, Usage
from acre_rag.baselines.base import Call, Held, Setting
from acre_rag.baselines.prompted import middle_truncated, say, text_ids, token_ids
from acre_rag.baselines.rag.confidence import CHOOSERS, Choice, Sure, answer_surely, scores_text
from acre_rag.baselines.rag.retrieval import Evidence, Indexed, RetrievalBaseline, timings
from acre_rag.baselines.rag.rewriting import SHORT
from acre_rag.baselines.rag.search import Search
from acre_rag.decoder import Decoder
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

_TITLE_TOKENS = 32  # of one hit, beside its text
_MARKS = 4  # around a query and its evidence


@dataclass(frozen=True)
class Path:
    """A branch of the tree.

    Attributes:
        ids: `[T]`, what the model has read and written so far.
        sources: what its searches found and it has read.
        notes: hits that did not fit.
        asked_tokens: of the prompt behind which the model wrote its last query.
    """

    ids: Tensor
    sources: tuple[Source, ...] = ()
    notes: tuple[str, ...] = ()
    asked_tokens: int = 0


class Marks(str):
    """A piece of a path that is ours: control tokens in it are what they are, in every other piece they are words."""


class RQCheckpoint(RetrievalBaseline):
    """The special-token tree.

    Args:
        setting: model (the checkpoint, or another with its tokens), window. The template is not used: the checkpoint
            knows its own only.
        search: the way of searching.
        depth: most searches on one path; the repository's default is 2, which is 13 answers and 12 searches.
        choose: how the answer is picked.
        system_message: put before the question; the repository has one for each of its data sets.
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
        choose: Choice = "confidence",
        system_message: str = "",
        **options: Any,
    ) -> None:
        if depth < 1:
            raise ConfigError(f"depth={depth} must be 1 or more.")
        self.check(setting)
        super().__init__(setting, search, **options)
        self.depth, self.choose, self.system_message = depth, choose, system_message

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
            ids = torch.cat([path.ids, token_ids(self.decoder, ANSWER)])
            ends.append(answer_surely(self.decoder, ids, ending, stopped=call.stopped, perplexity=self.choose == "ppl"))
            lengths.append(len(ids))
            trace.append(Step("answer", scores_text(ends[-1])))
        best = CHOOSERS[self.choose](ends)
        generated, path = ends[best].generated, paths[best]
        also_read = sum(lengths) - lengths[best] + sum(each.asked_tokens for each in paths)
        if call.on_text:
            call.on_text(generated.text)
        return Answer(
            text=generated.text,
            sources=_best_first(path.sources),
            usage=Usage(lengths[best], 0, 0, generated.n_tokens, also_read),
            timings=timings(
                documents, perf_counter() - start - generated.total_s, generated.total_s, generated.total_s
            ),
            finished=generated.finished,
            notes=path.notes,
            trace=tuple(trace),
        )

    def _grown(self, question: str, documents: Sequence[Held[Indexed]], call: Call) -> tuple[list[Path], list[Step]]:
        """All paths, shortest first, the one without a search among them."""
        root = Path(self._prompt_ids(question))
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

    def _prompt_ids(self, question: str) -> Tensor:
        tokenizer = self.decoder.tokenizer
        bos, eos = tokenizer.bos_token or "", tokenizer.eos_token or ""
        system = [Marks("<|system|>\n"), self.system_message, Marks(f"{eos}\n")] if self.system_message else []
        asked = [Marks("<|user|>\n"), question, Marks(f"{eos}\n<|assistant|>\n")]
        return piece_ids(self.decoder, [Marks(bos), *system, *asked])

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
        begun = torch.cat([path.ids, token_ids(self.decoder, SEARCHES[name])])
        query = say(self.decoder, begun, call, settings=replace(SHORT, stop=(END,))).text or question
        trace.append(Step(name, query))
        asked, _ = self._marked(SEARCHES[name], [Marks(" "), query], END, room=SHORT.max_new_tokens)
        found = self.retrieval.evidence(self.retrieval.find([query], documents, call), documents, room)
        read, left_out = self._marked(EVIDENCE, _formatted(found), EVIDENCE_END, room=room + self._titles)
        cut = (f"the middle {left_out:,} tokens of a search's evidence did not fit the window",) if left_out else ()
        return Path(
            torch.cat([path.ids, asked, read]),
            (*path.sources, *found.sources),
            (*path.notes, *found.notes, *cut),
            len(begun),
        )

    def _marked(self, opening: str, pieces: Sequence[str], closing: str, *, room: int) -> tuple[Tensor, int]:
        """Pieces between two of the checkpoint's tokens, at most `room` tokens of them, and how many were cut out."""
        ids = piece_ids(self.decoder, [Marks(opening), *pieces, Marks(closing)])
        inside = middle_truncated(ids[1:-1], room)
        return torch.cat([ids[:1], inside, ids[-1:]]), len(ids) - 2 - len(inside)

    @property
    def _titles(self) -> int:
        """Tokens kept free for the titles of one search's hits."""
        return _TITLE_TOKENS * self.retrieval.hits

    def _room(self, root: Path, call: Call) -> int:
        """Tokens of evidence that each search of the longest path may add, titles not counted.

        Raises:
            CapacityError: the window holds no tree of this depth.
        """
        beside = len(root.ids) + len(token_ids(self.decoder, ANSWER)) + call.settings.max_new_tokens
        beside += self.depth * (SHORT.max_new_tokens + self._titles + _MARKS)
        room = (self.setting.most_tokens - beside) // self.depth
        if room < 1:
            raise CapacityError(
                f"Question, queries and answers of depth={self.depth} need {beside:,} tokens beside the evidence, more "
                f"than window={self.setting.most_tokens:,}. Use a smaller depth or fewer new tokens."
            )
        return room


def piece_ids(decoder: Decoder, pieces: Sequence[str]) -> Tensor:
    """`[T]` of pieces one after another; control tokens count in `Marks` only."""
    foreign = "\n".join(piece for piece in pieces if not isinstance(piece, Marks))
    if torch.equal(text_ids(decoder, foreign), token_ids(decoder, foreign)):
        return token_ids(decoder, "".join(pieces))
    # Only here in parts: a tokenizer may join a word and the space or line before it.
    return torch.cat([(token_ids if isinstance(piece, Marks) else text_ids)(decoder, piece) for piece in pieces])


def _formatted(evidence: Evidence) -> list[str]:
    each = [
        [Marks("Title: "), source.document, Marks("\nText: "), source.text, Marks("\n")] for source in evidence.sources
    ]
    return [piece for pieces in each for piece in pieces]


def _best_first(sources: Sequence[Source]) -> tuple[Source, ...]:
    """Without repetition: a chunk that several searches found keeps its best score."""
    best = {(source.document, source.start): source for source in sorted(sources, key=lambda source: source.score)}
    return tuple(sorted(best.values(), key=lambda source: -source.score))
