"""The settings of a training run: read from a TOML file, validated once, written beside what was trained."""

import tomllib
from dataclasses import asdict, dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

from acre_rag.config import INTERVALS
from acre_rag.errors import ConfigError
from acre_rag.models import BUILTIN
from acre_rag.proxies.start import START_TEXT

STAGES = ("stage1", "stage2", "sft")
SCHEDULES = ("cosine", "constant")
DEFAULT_RANK = 32
_SHIPPED = resources.files("acre_rag") / "data" / "training"


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """One run. Lengths in tokens.

    Attributes:
        stage: "stage1" (Eq. 20), "stage2" (Eq. 21), or "sft" (the vanilla model on the data of stage 2).
        model: as `load_decoder` takes it.
        dtype: what the frozen model computes in; L1 parameters and their optimiser are float32.
        steps: optimiser steps.
        batch: documents a step, over all processes.
        context: lengths that a step's documents may have; one is drawn for each step.
        intervals: intervals `l`; one is drawn for each step.
        stride: `S`.
        window: `W`; `None` for the narrowest (a stride sees of earlier ones their L1 entries alone).
        rank: of the L1 projections; 0 for full rank, as in the paper; `None` for that of the adapter that training
            begins with, and `DEFAULT_RANK` without one.
        start_text: the L1 token's embedding begins as the mean of this text's; "" for the end-of-text token's.
        learning_rate: at its highest.
        schedule: after the warm-up: "cosine" to zero, or "constant".
        warmup_steps: from zero to `learning_rate`.
        weight_decay: of the projections.
        max_grad_norm: gradients are scaled down to this norm.
        repeats: stage 1: share of documents whose second half is the first in another order, which only a memory of
            the first can continue; beyond the paper, 0 for none.
        first_stride: whether stage 1 counts the first stride, which sees no earlier L1.
        refill: stage 2: tokens refilled beside the right blocks, from blocks drawn at random.
        retrieval_weight: stage 2: weight of the loss that pulls the question's attention to the right blocks' L1
            entries; beyond the paper, 0 for none.
        document_weight: stage 2: weight of stage 1's loss on the example's document, so that what was learnt there
            stays; beyond the paper, 0 for none.
        held_out: files of a folder of texts that are never trained on.
        reading: "parallel" or "sequential".
        checkpointing: recompute activations.
        shard: share the frozen model's layers out among the processes (FSDP), instead of each holding all of them.
        save_every: steps between checkpoints.
        seed: of everything drawn.

    Raises:
        ConfigError: an option is out of range.
    """

    stage: str = "stage1"
    model: str = BUILTIN
    dtype: str = "auto"
    steps: int = 200
    batch: int = 1
    context: tuple[int, ...] = (2048,)
    intervals: tuple[int, ...] = INTERVALS
    stride: int = 512
    window: int | None = None
    rank: int | None = None
    start_text: str = START_TEXT
    learning_rate: float = 1e-3
    schedule: str = "cosine"
    warmup_steps: int = 5
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    repeats: float = 0.0
    first_stride: bool = False
    refill: int = 512
    retrieval_weight: float = 0.0
    document_weight: float = 0.0
    held_out: int = 8
    reading: str = "parallel"
    checkpointing: bool = False
    shard: bool = False
    save_every: int = 25
    seed: int = 0

    def __post_init__(self) -> None:
        """Check what would fail only after minutes."""
        if self.stage not in STAGES or self.schedule not in SCHEDULES:
            raise ConfigError(
                f"stage={self.stage!r} with schedule={self.schedule!r}: choose a stage of {', '.join(STAGES)} and a "
                f"schedule of {', '.join(SCHEDULES)}."
            )
        low = {"steps": 1, "batch": 1, "stride": 2, "rank": 0, "warmup_steps": 0, "save_every": 1, "held_out": 0}
        for name, least in low.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name}={value} is too small: use {least} or more.")
        if not self.intervals or not self.context or min(self.intervals) < 1:
            raise ConfigError(f"intervals={self.intervals}, context={self.context}: name at least one of each.")
        if self.stride < max(self.intervals):
            raise ConfigError(
                f"stride={self.stride} is smaller than the largest interval {max(self.intervals)}: no block fits it. "
                "Use a larger stride or smaller intervals."
            )
        if self.stage == "stage1" and min(self.context) < self.least_tokens:
            raise ConfigError(
                f"context={min(self.context)} has no later stride to learn from with every interval: a stride of "
                f"{self.stride} and a block of {max(self.intervals)} take {self.least_tokens} tokens. Use longer "
                "documents, a smaller stride, smaller intervals, or first_stride=true."
            )
        if self.stage == "stage2" and min(self.context) < max(self.intervals):
            raise ConfigError(
                f"context={min(self.context)} is shorter than the interval {max(self.intervals)}: such a document has "
                "no block, and nothing is learned from it. Use longer documents or smaller intervals."
            )
        if self.retrieval_weight and self.reading == "sequential":
            raise ConfigError(
                f"retrieval_weight={self.retrieval_weight} needs reading='parallel': a loop of steps shows nobody its "
                "queries and keys."
            )
        if self.shard and (self.stage == "sft" or self.reading == "sequential"):
            raise ConfigError(
                f"shard=true with stage={self.stage!r}, reading={self.reading!r}: layers can be shared out where they "
                "stay as they are and every process runs them equally often. Use stage1 or stage2 with "
                "reading='parallel', or shard=false."
            )
        if not 0 <= self.repeats <= 1:
            raise ConfigError(f"repeats={self.repeats} must lie between 0 and 1: it is a share of the documents.")
        if not 0 < self.learning_rate < 1:
            raise ConfigError(f"learning_rate={self.learning_rate} must lie between 0 and 1.")

    @property
    def new_rank(self) -> int:
        """Rank of what is made anew."""
        return DEFAULT_RANK if self.rank is None else self.rank

    @property
    def least_tokens(self) -> int:
        """Tokens from which stage 1 learns something, whatever interval a step draws.

        A document's last stride takes up what is less than a block, so a second one begins with a whole block; and
        something is predicted within it only from two tokens on.
        """
        return 2 if self.first_stride else self.stride + max(2, *self.intervals)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def read_settings(path: Path | None, **changes: Any) -> TrainingSettings:
    """Settings of a TOML file, with options that stand above it.

    Args:
        path: the file, or the name of one that the package ships ("smollm2-stage1"); `None` for the defaults.
        changes: settings by name; `None` leaves the file's.

    Raises:
        ConfigError: missing, not TOML, an unknown name, or a value out of range.
    """
    known = {field.name for field in fields(TrainingSettings)}
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = tomllib.loads(_text(path))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(
                f"{path} cannot be read as a settings file ({error}). Give a TOML file, or one of: "
                f"{', '.join(shipped_settings())}."
            ) from error
    if unknown := sorted(set(values) - known):
        raise ConfigError(
            f"{path} has settings that do not exist: {', '.join(unknown)}. Known: {', '.join(sorted(known))}."
        )
    values |= {name: value for name, value in changes.items() if value is not None}
    return TrainingSettings(**{name: _typed(name, value) for name, value in values.items()})


def shipped_settings() -> list[str]:
    """Names of the settings that the package ships, one for each published run."""
    return sorted(file.name.removesuffix(".toml") for file in _SHIPPED.iterdir() if file.name.endswith(".toml"))


def _text(path: Path) -> str:
    shipped = _SHIPPED / f"{path}.toml"
    is_name = len(path.parts) == 1 and not path.exists() and shipped.is_file()
    return shipped.read_text(encoding="utf-8") if is_name else path.read_text(encoding="utf-8")


def _typed(name: str, value: Any) -> Any:
    """TOML has lists, and whole numbers where a fraction is meant.

    Raises:
        ConfigError: a value of the wrong kind.
    """
    default = getattr(TrainingSettings(), name)
    if isinstance(default, float) and type(value) is int:
        return float(value)
    if isinstance(default, tuple) and isinstance(value, list) and all(type(each) is int for each in value):
        return tuple(value)
    if type(value) is (int if default is None else type(default)):
        return value
    wanted = "a whole number" if default is None else f"it as in {name}={default!r}"
    raise ConfigError(f"{name}={value!r} is of the wrong kind: give {wanted}.")
