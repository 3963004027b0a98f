"""One line per question: what a row holds, and what all rows of a run share. Knows no files and asks nobody."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

FORMAT = "acre-rag-rows/1"


@dataclass(frozen=True, kw_only=True)
class Run:
    """What all rows of one file share, and what a run must share with a file to go on with it.

    Attributes:
        system: label of the system with its options, as tables print it.
        name: name in the registry.
        options: all of its options, the registry's included; files by their names.
        dataset: its name.
        metric: how answers are scored.
        model: the model's name, without folders.
        weights: digest of the model's weights.
        dtype: the type it computes in.
        window: `W`, in tokens.
        template: digest of prompt template and chat format together.
        max_new_tokens: most tokens of an answer.
        stop: strings that end an answer.
        seed: of the sample and of whatever the system draws.
        documents: most documents of the sample; `None` for no limit.
        adapter, heads: digests of these files; empty for none.
        embedder: embedding model asked for; empty for the default.
        format: of the rows.
    """

    system: str
    name: str
    options: Mapping[str, Any]
    dataset: str
    metric: str
    model: str
    weights: str
    dtype: str
    window: int
    template: str
    max_new_tokens: int
    stop: Sequence[str]
    seed: int
    documents: int | None
    adapter: str = ""
    heads: str = ""
    embedder: str = ""
    format: str = FORMAT


@dataclass(frozen=True, kw_only=True)
class Row:
    """One question put to one system; or, without an item, that the system could not be made (`error` says why).

    Attributes:
        run: what the file's rows share.
        item: the question's id; `None` when the system could not be made.
        content: digest of document, question and gold answers.
        document: the document's id.
        document_tokens: its length in the model's tokens.
        question: the question.
        gold: accepted answers.
        answer: what the system said.
        score: 0 to 100 by `run.metric`; 0 for a failure.
        finished: whether the answer ended by itself, not at the limit of tokens.
        tokens: "prompt", "also_read", "cached", "refilled", "generated": fields of `Usage`.
        seconds: "read" (the document, once), "question" (all of this one), "first_token".
        memory: "peak_bytes" (of this question), "read_peak_bytes" (while its document was read; rows of earlier
            versions have none) and "kind"; see `acre_rag.evaluation.memory`.
        sources: spans "start", "end" with "score" (null where it is no finite number), best first; the first few with
            the beginning of their "text".
        trace: steps on the way, "name" and "text".
        notes: what the system said beside the answer.
        facts: what the system says of itself, e.g. which embedding model it found.
        error: "kind" and "message" of what was raised instead of an answer.
        where: versions, commit, machine, time.
    """

    run: Run
    item: str | None = None
    content: str = ""
    document: str = ""
    document_tokens: int = 0
    question: str = ""
    gold: Sequence[str] = ()
    answer: str = ""
    score: float = 0.0
    finished: bool = False
    tokens: Mapping[str, int] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    memory: Mapping[str, Any] = field(default_factory=dict)
    sources: Sequence[Mapping[str, Any]] = ()
    trace: Sequence[Mapping[str, str]] = ()
    notes: Sequence[str] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    error: Mapping[str, str] | None = None
    where: Mapping[str, Any] = field(default_factory=dict)

    @property
    def refused(self) -> bool:
        """Whether the system could not be made at all."""
        return self.item is None

    def to_line(self) -> bytes:
        """One line of JSON, ended."""
        return json.dumps(asdict(self), ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace") + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> "Row":
        """The row of a line.

        Raises:
            ValueError: not a row.
        """
        record = json.loads(line)
        if not isinstance(record, dict) or not isinstance(record.get("run"), dict):
            raise ValueError("not a row")
        if (found := record["run"].get("format")) != FORMAT:
            raise ValueError(f"format {found!r}, not {FORMAT!r}")
        known = {name.name for name in fields(cls)}
        if unknown := record.keys() - known:
            raise ValueError(f"unknown field {min(unknown)!r}")
        try:
            return cls(**{**record, "run": Run(**record["run"])})
        except TypeError as error:
            raise ValueError(str(error)) from error


def plain(run: Run) -> dict[str, Any]:
    """A run as it comes back from JSON."""
    loaded: dict[str, Any] = json.loads(json.dumps(asdict(run)))
    return loaded


def digest_of(*texts: str) -> str:
    """Short digest of several texts."""
    total = hashlib.sha256()
    for text in texts:
        raw = text.encode("utf-8", "surrogatepass")
        total.update(len(raw).to_bytes(8, "little") + raw)
    return total.hexdigest()[:16]
