"""RQ-RAG (arXiv 2404.00610) with any model: the question is refined by prompts, and what is found is read.

`mode="union"` reads the hits of all refinements together; `mode="tree"` answers once per kind of refinement and keeps
the best answer. The released checkpoint's own decoding is in `rq_checkpoint.py`.
"""

from collections.abc import Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any, Literal, get_args

import torch

from acre_rag.answer import Answer, Step, Usage
from acre_rag.baselines.base import Call, Held, Setting
from acre_rag.baselines.prompted import middle_truncated, text_ids, token_ids
from acre_rag.baselines.rag.confidence import CHOOSERS, Choice, Sure, answer_surely, scores_text
from acre_rag.baselines.rag.fused import Fusion
from acre_rag.baselines.rag.retrieval import (
    CHUNK_TOKENS,
    N_HITS,
    Evidence,
    Indexed,
    RetrievalBaseline,
    cut_notes,
    timings,
)
from acre_rag.baselines.rag.rewriting import Refined, refined, steps
from acre_rag.baselines.rag.rq_checkpoint import RQCheckpoint
from acre_rag.baselines.rag.search import Search
from acre_rag.baselines.rag.searches import dense_search
from acre_rag.errors import ConfigError
from acre_rag.reading import tokenised_question

Mode = Literal["union", "tree", "checkpoint"]


class RQRAG(RetrievalBaseline):
    """Prompted RQ-RAG.

    Args:
        setting: model, template, window.
        search: the way of searching.
        tree: answer per kind of refinement, instead of once.
        choose: how the tree's answer is picked.
        options: `hits` and `chunk_tokens` of `Retrieval`.
    """

    def __init__(
        self,
        setting: Setting,
        search: Search[Any],
        *,
        tree: bool = False,
        choose: Choice = "confidence",
        **options: Any,
    ) -> None:
        super().__init__(setting, search, **options)
        self.tree, self.choose = tree, choose

    def answer(self, question: str, documents: Sequence[Held[Indexed]], call: Call) -> Answer:
        """Refine, search, read, answer."""
        start = perf_counter()
        self.retrieval.room(question, call)  # refuses a question that fits no window before any work
        asked = refined(self.decoder, question, call)
        if self.tree:
            return self._best_branch(question, asked, documents, call, start)
        evidence = self._evidence(asked.every, question, documents, call)
        return self.retrieval.answer(
            question,
            documents,
            evidence,
            call,
            start=start,
            trace=steps(asked.queries),
            also_read_tokens=asked.prompt_tokens,
        )

    def _evidence(
        self, queries: Sequence[str], question: str, documents: Sequence[Held[Indexed]], call: Call
    ) -> Evidence:
        hits = self.retrieval.find(queries, documents, call)
        return self.retrieval.evidence(hits, documents, self.retrieval.room(question, call))

    def _best_branch(
        self,
        question: str,
        asked: Refined,
        documents: Sequence[Held[Indexed]],
        call: Call,
        start: float,
    ) -> Answer:
        """One answer per action, all decoded before one is chosen: it is handed on in one piece."""
        trace: list[Step] = []
        branches: list[tuple[Evidence, Sure, int]] = []
        for name, each in asked.queries.items():
            evidence, sure, n_tokens = self._branch(question, self._evidence(each, question, documents, call), call)
            branches.append((evidence, sure, n_tokens))
            trace += [
                *steps({name: each}),
                Step(f"{name}: answer", scores_text(sure)),
            ]
        evidence, sure, n_tokens = branches[CHOOSERS[self.choose]([sure for _, sure, _ in branches])]
        also_read = asked.prompt_tokens + sum(n for _, _, n in branches) - n_tokens
        if call.on_text:
            call.on_text(sure.generated.text)
        last_s = sure.generated.total_s  # the whole answer comes at once, when every branch is done
        return Answer(
            text=sure.generated.text,
            sources=evidence.sources,
            usage=Usage(n_tokens, 0, 0, sure.generated.n_tokens, also_read),
            timings=timings(documents, perf_counter() - start - last_s, last_s, last_s),
            finished=sure.generated.finished,
            notes=evidence.notes,
            trace=tuple(trace),
        )

    def _branch(self, question: str, evidence: Evidence, call: Call) -> tuple[Evidence, Sure, int]:
        """The evidence with a note of what was cut, the answer from it, and how many tokens were read for it."""
        call.check()
        room = self.retrieval.room(question, call)
        before, text = token_ids(self.decoder, self.prompt.prefix), text_ids(self.decoder, evidence.text)
        after = tokenised_question(question, self.prompt, self.decoder).ids
        kept = middle_truncated(text, room)
        ids = torch.cat([before, kept, after])
        read = replace(evidence, notes=(*evidence.notes, *cut_notes(len(text) - len(kept))))
        sure = answer_surely(self.decoder, ids, call.settings, stopped=call.stopped, perplexity=self.choose == "ppl")
        return read, sure, len(ids)


def make_rq_rag(
    setting: Setting,
    *,
    mode: Mode = "union",
    fusion: Fusion = "dense",
    choose: Choice = "confidence",
    depth: int | None = None,
    system_message: str | None = None,
    hits: int = N_HITS,
    chunk_tokens: int = CHUNK_TOKENS,
) -> RetrievalBaseline:
    """RQ-RAG in one of its forms.

    Args:
        setting: model, template, window, embedding model.
        mode: "union" or "tree" (prompted, any model), or "checkpoint" (the released model only).
        fusion: see `dense_search`.
        choose: how a tree's answer is chosen: "confidence" (the surest branch), "ppl" (the branch of the lowest
            perplexity) or "ensemble" (branches of the same answer add up their confidence).
        depth: most searches on one path of the checkpoint's tree, 2 by default; no other mode has one.
        system_message: what the checkpoint reads before the question, none by default; no other mode has one.
        hits: see `Retrieval`.
        chunk_tokens: see `Retrieval`.

    Raises:
        ConfigError: no such mode or choice, or the checkpoint's options in another mode.
        UnavailableError: the checkpoint mode with another model, or the embedding model is not on this machine.
    """
    if mode not in get_args(Mode):
        raise ConfigError(f"mode={mode!r} is unknown: choose one of {', '.join(get_args(Mode))}.")
    if choose not in get_args(Choice):
        raise ConfigError(f"choose={choose!r} is unknown: choose one of {', '.join(get_args(Choice))}.")
    own = {"depth": depth, "system_message": system_message}
    given: dict[str, Any] = {option: value for option, value in own.items() if value is not None}
    if given and mode != "checkpoint":
        option, value = next(iter(given.items()))
        raise ConfigError(
            f"{option}={value!r} means nothing with mode={mode!r}: leave it out, or use mode='checkpoint'."
        )
    options: dict[str, Any] = {"choose": choose, "hits": hits, "chunk_tokens": chunk_tokens}
    if mode == "checkpoint":
        RQCheckpoint.check(setting)  # before an embedding model is loaded for nothing
        return RQCheckpoint(setting, dense_search(setting, fusion), **given, **options)
    return RQRAG(setting, dense_search(setting, fusion), tree=mode == "tree", **options)
