"""One data set as every system meets it: the same sample, prompt, model, window. Asks nobody."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from acre_rag.baselines.base import Setting
from acre_rag.decoder import Decoder
from acre_rag.evaluation.circumstances import circumstances
from acre_rag.evaluation.forms import Form
from acre_rag.evaluation.item import EvalItem, sample
from acre_rag.evaluation.rows import Run, digest_of
from acre_rag.evaluation.ruler import RULER, questions
from acre_rag.evaluation.tasks import Task, task_of
from acre_rag.prompts import render

_MADE_QUESTIONS = 1000  # more than a run asks of one length


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is the same for every system of a run.

    Attributes:
        limit: most questions of each data set; `None` for all.
        documents: most documents of each data set; `None` for no limit.
        seed: of the sample and of whatever a system draws.
        window: `W`, in tokens; `None` takes the model's own.
        adapter: learned L1.
        heads: retrieval heads file.
        embedder: embedding model of dense retrieval.
        retry: ask again what failed in an earlier run.
    """

    limit: int | None = None
    documents: int | None = None
    seed: int = 0
    window: int | None = None
    adapter: Path | None = None
    heads: Path | None = None
    embedder: str | None = None
    retry: bool = False


@dataclass(frozen=True, kw_only=True)
class Board:
    """One data set as every system meets it.

    Attributes:
        task: prompt, limit of the answer, metric.
        items: the sample, grouped by document.
        setting: what every system is made from.
        options: of the run.
        where: versions, commit, machine.
        contents: digest of each item, by its id.
        lengths: tokens of the documents counted so far, by their ids.
    """

    task: Task
    items: Sequence[EvalItem]
    setting: Setting
    options: Options
    where: Mapping[str, Any]
    contents: Mapping[str, str]
    lengths: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, decoder: Decoder, dataset: str, items: Sequence[EvalItem], options: Options) -> "Board":
        """The sample of a data set and what every system gets with it.

        Raises:
            ConfigError: an option is out of range.
            EvaluationError: no such data set.
        """
        task = task_of(dataset)
        chosen = sample(
            items,
            limit=len(items) if options.limit is None else options.limit,
            seed=options.seed,
            documents=options.documents,
        )
        setting = Setting(
            decoder=decoder,
            template=task.template,
            window=options.window,
            seed=options.seed,
            embedder=options.embedder,
            adapter=str(options.adapter) if options.adapter else None,
            heads=str(options.heads) if options.heads else None,
            reserve_tokens=_most_asked(task, items, decoder, seed=options.seed),
        )
        contents = {item.id: digest_of(item.document, item.question, *item.answers) for item in chosen}
        return cls(
            task=task,
            items=chosen,
            setting=setting,
            options=options,
            where=circumstances(decoder.device),
            contents=contents,
        )

    def run_of(self, form: Form) -> Run:
        """What the rows of a system share."""
        decoder, task, options = self.setting.decoder, self.task, self.options
        prompt = render(task.template, decoder.tokenizer)
        return Run(
            system=form.label,
            name=form.name,
            options=form.told_options,
            dataset=task.name,
            metric=task.metric,
            model=Path(decoder.name).name,
            weights=decoder.digest[:16],
            dtype=str(decoder.dtype).removeprefix("torch."),
            window=self.setting.most_tokens,
            template=digest_of(prompt.prefix, prompt.ask("")[0]),
            max_new_tokens=task.max_new_tokens,
            stop=task.stop,
            seed=options.seed,
            documents=options.documents,
            adapter=_file_digest(form.adapter or options.adapter),
            heads=_file_digest(options.heads),
            embedder=Path(options.embedder).name if options.embedder else "",
        )

    def tokens_of(self, item: EvalItem) -> int:
        """The document's length in the model's tokens."""
        if item.document_id not in self.lengths:
            encoded = self.setting.decoder.literal_tokenizer(item.document, add_special_tokens=False, verbose=False)
            self.lengths[item.document_id] = len(encoded["input_ids"])
        return self.lengths[item.document_id]

    def now(self) -> dict[str, Any]:
        """Where, with what and when: `Row.where`."""
        return {**self.where, "time": datetime.now(UTC).isoformat(timespec="seconds")}


def _most_asked(task: Task, items: Sequence[EvalItem], decoder: Decoder, *, seed: int) -> int:
    """Tokens of the longest question with its answer: the room that systems which cut documents leave.

    Of all questions, not of the sample's: a run that is prolonged must not cut its documents elsewhere. Of made data
    there are as many as are asked for; a fixed number stands for all.
    """
    prompt = render(task.template, decoder.tokenizer)
    made = questions(task.name, count=_MADE_QUESTIONS, seed=seed) if task.name in RULER else []
    asked = {prompt.ask(question)[0] for question in (*made, *(item.question for item in items))}
    longest = max((len(decoder.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in asked), default=0)
    return longest + task.max_new_tokens


def _file_digest(path: Path | None) -> str:
    """Of a file, or of all files of a folder; empty for none. A missing file is the systems' to report."""
    if path is None:
        return ""
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    total = hashlib.sha256()
    for file in files:
        if file.is_file():
            total.update(hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()[:16]
