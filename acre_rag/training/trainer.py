"""The training loop over Accelerate: steps, gradients, checkpoints. Knows neither files of data nor the command line.

What a step draws depends on its number alone, never on a generator's state: that is why every process agrees, and why
a run that was killed goes on exactly where its last checkpoint stands.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol, cast

import torch
from accelerate import Accelerator, DistributedType  # type: ignore[import-untyped]
from torch import Tensor, nn
from transformers import get_scheduler

from acre_rag.decoder import Decoder
from acre_rag.errors import AdapterError, ConfigError
from acre_rag.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from acre_rag.training.data.example import TrainingExample
from acre_rag.training.lesson import Draw, Lesson, Teacher
from acre_rag.training.losses import RetrievalWatch, next_token_loss
from acre_rag.training.reader import NestedReader
from acre_rag.training.settings import TrainingSettings
from acre_rag.training.sft import PlainReader
from acre_rag.training.sharding import shard_layers

logger = logging.getLogger(__name__)
Record = Mapping[str, Any]
CHECKPOINT = "checkpoint.safetensors"


class Examples(Protocol):
    """An endless line of examples that can be entered anywhere."""

    def starting_at(self, number: int) -> Iterator[TrainingExample]:
        """Examples `number`, `number + 1`, ..."""
        ...


class Trainer:
    """Trains the parameters of a reader.

    Args:
        reader: what is trained.
        settings: of the run.
        examples: what it is trained on; read by every process, which takes its share of each batch.
        accelerator: processes and devices; one process by default.
        out: folder of the checkpoint; `None` keeps none.
        data_digest: identifies the examples: a checkpoint goes on only with the same.
        base_digest: identifies the frozen weights, where the reader has changed them; by default the decoder's.
        start_digest: identifies the adapter that training began with.
        on_step: called on the main process with each step's record.

    Raises:
        ConfigError: a batch that the processes cannot share evenly; a window too small for what is read; a way of
            sharding, a precision or an accumulation of gradients that the launch asks for and that is not supported.
    """

    def __init__(
        self,
        reader: NestedReader | PlainReader,
        settings: TrainingSettings,
        examples: Examples,
        *,
        accelerator: Accelerator | None = None,
        out: Path | None = None,
        data_digest: str = "",
        base_digest: str = "",
        start_digest: str = "",
        on_step: Callable[[Record], None] = lambda record: None,
    ) -> None:
        self._accelerator = accelerator or Accelerator(cpu=reader.decoder.device.type == "cpu", mixed_precision="no")
        _check_processes(self._accelerator, settings)
        _check_gradients(self._accelerator)
        self._settings, self._examples, self._on_step = settings, examples, on_step
        self._reader = reader
        self._teacher = Teacher(reader.decoder, settings)
        self._teacher.check_window()
        self._checkpoint = out / CHECKPOINT if out else None
        self._run = {k: v for k, v in settings.to_dict().items() if k not in ("save_every", "shard")}
        self._run |= {"data": data_digest, "base": base_digest or reader.decoder.digest, "start": start_digest}
        self._optimizer = torch.optim.AdamW(_groups(reader, settings), lr=settings.learning_rate, betas=(0.9, 0.95))
        self._schedule: Any = get_scheduler(
            "cosine" if settings.schedule == "cosine" else "constant_with_warmup",
            self._optimizer,
            num_warmup_steps=settings.warmup_steps + 1,
            num_training_steps=settings.steps + 1,
        )
        if settings.shard:
            shard_layers(reader.decoder, n_processes=self._accelerator.num_processes)
        self._model = self._accelerator.prepare(reader)

    def train(self, *, steps: int | None = None) -> Progress:
        """Go on from the checkpoint, or from the beginning, to the end.

        Args:
            steps: stop (with a checkpoint) after so many steps of the whole run; the schedule stays that of
                `settings.steps`.

        Raises:
            AdapterError: the checkpoint is damaged or of another run.
            DocumentError: of the examples of one step, hardly any teaches anything.
        """
        progress = self._load()
        examples = self._examples.starting_at(progress.step * self._settings.batch + progress.n_skipped)
        last = min(steps or self._settings.steps, self._settings.steps)
        while progress.step < last:
            start = perf_counter()
            record = self._step(progress.step, examples)
            seconds = perf_counter() - start
            record |= {"seconds": round(seconds, 3)}
            progress = Progress(progress.step + 1, progress.seconds + seconds, (*progress.curve, record))
            if progress.step % self._settings.save_every == 0 or progress.step == last:
                self._save(progress)
            if self._accelerator.is_main_process:
                self._on_step(record)
        return progress

    def _step(self, step: int, examples: Iterator[TrainingExample]) -> dict[str, Any]:
        """One optimiser step over a batch; each process takes every `n`-th lesson.

        All of them make all lessons, so that they agree on what is passed over.
        """
        accelerator = self._accelerator
        draw = Draw.of(self._settings, step)
        batch, skipped = self._teacher.lessons(examples, draw, n=self._settings.batch)
        if accelerator.is_main_process:
            for reason in skipped:
                logger.warning("Step %d passes over an example: %s", step + 1, reason)
        mine = batch[accelerator.process_index :: accelerator.num_processes]
        parts: list[Tensor] = []
        for number, lesson in enumerate(mine, 1):
            with nullcontext() if number == len(mine) else accelerator.no_sync(self._model):
                losses = lesson_losses(self._model, lesson, self._settings)
                accelerator.backward(losses.sum() / len(mine))
            parts.append(losses.detach())
        norm = accelerator.clip_grad_norm_(self._reader.parameters(), self._settings.max_grad_norm)
        rate = self._rate(step)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self._optimizer.zero_grad()
        means = accelerator.reduce(torch.stack(parts).mean(dim=0), reduction="mean").tolist()
        _check_finite(means, step, norm)
        return {
            "step": step + 1,
            **dict(zip(loss_names(self._settings), means, strict=True)),
            **({"skipped": len(skipped)} if skipped else {}),
            "interval": draw.interval,
            "tokens": draw.n_tokens * self._settings.batch,
            "learning_rate": rate,
            "gradient_norm": float(norm),
        }

    def _rate(self, step: int) -> float:
        """Learning rate of a step: from its number alone; the first step's is above zero."""
        factor: float = self._schedule.lr_lambdas[0](step + 1)
        return self._settings.learning_rate * factor

    def _load(self) -> Progress:
        if self._checkpoint is None:
            return Progress(0, 0.0, ())
        return load_checkpoint(
            self._checkpoint, parameters=self._reader.trained, optimizer=self._optimizer, run=self._run
        )

    def _save(self, progress: Progress) -> None:
        if self._checkpoint is None or not self._accelerator.is_main_process:
            return
        save_checkpoint(
            self._checkpoint,
            parameters=self._reader.trained,
            optimizer=self._optimizer,
            run=self._run,
            progress=progress,
        )


def lesson_losses(model: nn.Module, lesson: Lesson, settings: TrainingSettings) -> Tensor:
    """The weighted losses of one lesson, named by `loss_names`; their sum is what training makes small.

    Args:
        model: a reader, wrapped or not.
        lesson: what is read, asked and predicted.
        settings: for the weights.
    """
    reader = cast(NestedReader | PlainReader, getattr(model, "module", model))
    watch = None
    if settings.retrieval_weight and lesson.question and lesson.gold:
        watch = RetrievalWatch(reader.decoder, lesson.layout, lesson.question)
    hidden: Tensor = model(lesson.token_ids, lesson.layout, watch=watch)
    losses = [_predicted(reader.decoder, hidden, lesson.slots, lesson.targets)]
    if settings.retrieval_weight:
        retrieval = watch.loss(lesson.gold) if watch else losses[0].new_zeros(())
        losses.append(settings.retrieval_weight * retrieval)
    if settings.document_weight:
        document = losses[0].new_zeros(())
        if lesson.beside and len(lesson.beside[0]):  # a document of one stride has no later one
            document = _predicted(reader.decoder, hidden, *lesson.beside)
        losses.append(settings.document_weight * document)
    return torch.stack(losses)


def loss_names(settings: TrainingSettings) -> list[str]:
    """What a step's record calls its losses."""
    beside = {"retrieval_loss": settings.retrieval_weight, "document_loss": settings.document_weight}
    return ["loss", *(name for name, weight in beside.items() if weight)]


def _predicted(decoder: Decoder, hidden: Tensor, slots: Tensor, targets: Tensor) -> Tensor:
    return next_token_loss(decoder, hidden[slots.to(hidden.device)], targets)


def _groups(reader: NestedReader | PlainReader, settings: TrainingSettings) -> list[dict[str, Any]]:
    """Weight decay is for projections; it would pull the one embedding and the biases to nothing."""
    trained = [weight for weight in reader.trained.parameters() if weight.requires_grad]
    return [
        {"params": [weight for weight in trained if weight.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [weight for weight in trained if weight.dim() == 1], "weight_decay": 0.0},
    ]


def _check_processes(accelerator: Accelerator, settings: TrainingSettings) -> None:
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        raise ConfigError(
            f"{accelerator.distributed_type.value} would shard what is trained, a few MB, and leave each process the "
            "whole frozen model. Launch with plain data parallelism (accelerate launch --multi_gpu, or torchrun), and "
            "use shard=true (--shard) to share the frozen model's layers out."
        )
    if settings.shard and accelerator.num_processes == 1:
        raise ConfigError("shard=true shares layers out among processes, and this launch has one: use shard=false.")
    if settings.batch % accelerator.num_processes:
        raise ConfigError(
            f"batch={settings.batch} cannot be shared by {accelerator.num_processes} processes: use a multiple."
        )


def _check_gradients(accelerator: Accelerator) -> None:
    """What Accelerate takes from its environment must not change what is learned without a word."""
    if accelerator.gradient_accumulation_steps != 1:
        raise ConfigError(
            f"gradient_accumulation_steps={accelerator.gradient_accumulation_steps} of Accelerate would divide every "
            "gradient: a step here takes its whole batch, one document after another. Use batch=..., and unset "
            "ACCELERATE_GRADIENT_ACCUMULATION_STEPS."
        )
    if accelerator.mixed_precision != "no":
        raise ConfigError(
            f"mixed_precision={accelerator.mixed_precision!r} of Accelerate would change the precision of L1 and its "
            "losses: use dtype=... for the frozen model, and mixed_precision='no'."
        )


def _check_finite(means: list[float], step: int, norm: Tensor) -> None:
    if not all(math.isfinite(value) for value in [*means, float(norm)]):
        raise AdapterError(
            f"Step {step + 1} has loss {means} and gradient norm {float(norm)}: training has diverged. Lower the "
            "learning rate; the last checkpoint is whole."
        )
