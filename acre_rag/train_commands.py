"""The commands `acre train stage1 | stage2 | sft` and `acre calibrate`: options in, a run, its figures out."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from acre_rag.errors import ConfigError
from acre_rag.options import Adapter, Device, DType, JsonOfFacts, Model, grouped

if TYPE_CHECKING:  # torch is heavy: commands import it when they run
    from acre_rag.training.settings import TrainingSettings

train = typer.Typer(help="Train learned L1 for a frozen model (the paper's two stages).", no_args_is_help=True)

Start = Annotated[Path | None, typer.Option(help="Adapter to begin with.")]


@dataclass(frozen=True, kw_only=True)
class SettingOptions:
    """Settings on the command line; each stands above that of the file."""

    model: Annotated[str | None, typer.Option("--model", "-m", help="The frozen model.", envvar="ACRE_MODEL")] = None
    dtype: Annotated[str | None, typer.Option(help="What the model computes in: auto, float32, bfloat16.")] = None
    steps: Annotated[int | None, typer.Option(help="Optimiser steps.")] = None
    batch: Annotated[int | None, typer.Option(help="Documents a step, over all processes.")] = None
    context: Annotated[list[int] | None, typer.Option(help="Tokens of a document (repeatable: one drawn a step).")] = (
        None
    )
    interval: Annotated[list[int] | None, typer.Option(help="Interval l (repeatable: one drawn a step).")] = None
    stride: Annotated[int | None, typer.Option(help="S: tokens read in one stride.")] = None
    window: Annotated[int | None, typer.Option(help="W; by default strides see earlier ones through L1 alone.")] = None
    rank: Annotated[
        int | None, typer.Option(help="Rank of the L1 projections; 0 is full rank. Default: that of --start, or 32.")
    ] = None
    learning_rate: Annotated[float | None, typer.Option("--learning-rate", "--lr", help="At its highest.")] = None
    schedule: Annotated[str | None, typer.Option(help="cosine or constant.")] = None
    retrieval_weight: Annotated[float | None, typer.Option(help="Stage 2: weight of the retrieval loss.")] = None
    repeats: Annotated[
        float | None, typer.Option(help="Stage 1: share of documents that repeat their first half in another order.")
    ] = None
    document_weight: Annotated[
        float | None, typer.Option(help="Stage 2: weight of stage 1's loss on the document.")
    ] = None
    checkpointing: Annotated[bool | None, typer.Option("--checkpointing", help="Recompute activations.")] = None
    shard: Annotated[
        bool | None, typer.Option("--shard", help="Share the model's layers out among the processes (FSDP).")
    ] = None
    save_every: Annotated[int | None, typer.Option(help="Steps between checkpoints.")] = None
    seed: Annotated[int | None, typer.Option(help="Of everything drawn.")] = None

    def settings(self, stage: str, config: Path | None) -> "TrainingSettings":
        """The file's settings with these above them."""
        from acre_rag.training.settings import read_settings

        changes = {field.name: getattr(self, field.name) for field in fields(self)}
        changes["intervals"] = changes.pop("interval")
        return read_settings(config, stage=stage, **changes)


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What a run of any stage reads and where it writes."""

    data: Annotated[Path, typer.Option(help="Folder of texts (.txt, .txt.gz), or of shards from `acre data build`.")]
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for checkpoint, adapter.safetensors, training.json.")]
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="Settings (TOML): a file, or a shipped name.")
    ] = None
    device: Device = "auto"
    tracker: Annotated[list[str] | None, typer.Option("--tracker", help="tensorboard, wandb, ... (repeatable).")] = None
    as_json: JsonOfFacts = False


def register(app: typer.Typer) -> None:
    """Add the commands to the main one."""
    app.add_typer(train, name="train")
    app.command()(calibrate)


@train.command()
@grouped
def stage1(run: RunOptions, options: SettingOptions, start: Start = None) -> None:
    """Next-token loss on later strides, given the L1 entries of earlier ones (Eq. 20).

    The same command again goes on from the last checkpoint. On several processes: accelerate launch -m acre_rag.cli
    train stage1 ... (data parallel; with --shard also FSDP: each holds its part of the frozen model's layers).
    """
    _train("stage1", run, options, start)


@train.command()
@grouped
def stage2(run: RunOptions, options: SettingOptions, start: Start = None) -> None:
    """Loss on answers, read over L1 entries and refilled blocks (Eq. 21); begin with the adapter of stage 1."""
    _train("stage2", run, options, start)


@train.command()
@grouped
def sft(run: RunOptions, options: SettingOptions) -> None:
    """Fine-tune the vanilla model on the data of stage 2, for comparison: answers behind whole documents, no L1.

    Leaves a whole model in OUT/model, for --model.
    """
    _train("sft", run, options, None)


def _train(stage: str, run: RunOptions, options: SettingOptions, start: Path | None) -> None:
    from acre_rag.training.run import run_training

    settings = options.settings(stage, run.config)
    with _progress(settings.steps) as on_step:
        trained = run_training(
            settings,
            data=run.data,
            out=run.out,
            start=start,
            device=run.device,
            trackers=tuple(run.tracker or ()),
            on_step=on_step,
        )
    if run.as_json:
        typer.echo(json.dumps({"adapter": str(trained.adapter), "steps": trained.steps, "loss": trained.loss}))
    else:
        Console().print(f"{trained.steps} steps, loss {trained.loss:.3f}; written to {trained.adapter}")


@contextmanager
def _progress(total: int) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A bar on a terminal, a line a step in a log."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        yield lambda record: console.print(_line(record, total))
        return
    columns = (TextColumn("training"), BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("loading", total=total)
        yield lambda record: progress.update(task, completed=record["step"], description=_line(record, total))


_BESIDE = ("retrieval", "document")  # losses beside the first


def _line(record: Mapping[str, Any], total: int) -> str:
    beside = "".join(f", {name} {record[f'{name}_loss']:.3f}" for name in _BESIDE if f"{name}_loss" in record)
    skipped = f", {record['skipped']} examples passed over" if "skipped" in record else ""
    return (
        f"step {record['step']}/{total}, loss {record['loss']:.3f}{beside}, l = {record['interval']}, "
        f"{record['seconds']:.1f} s{skipped}"
    )


def calibrate(
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Heads file to write. Default: beside --adapter, found there.")
    ] = None,
    model: Model = "smollm2-135m",
    adapter: Adapter = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(help="QA pairs as .jsonl or .jsonl.gz: context, question, answers (repeatable)."),
    ] = None,
    questions: Annotated[int, typer.Option(help="Questions to calibrate on.")] = 120,
    n_heads: Annotated[int, typer.Option("--heads", help="Most heads to keep.")] = 6,
    seed: Annotated[int, typer.Option(help="Seed of the sample.")] = 0,
    device: Device = "auto",
    dtype: DType = "auto",
) -> None:
    """Find a model's retrieval heads on synthetic needles, and on your QA pairs if given; minutes on a CPU.

    Also tells what passage size and how many prior questions find most, at as many refilled tokens.
    """
    from acre_rag.heads import beside
    from acre_rag.models import load_decoder
    from acre_rag.progress import waiting
    from acre_rag.proxies import LearnedProxy
    from acre_rag.proxies.adapter import SHIPPED, load_learned
    from acre_rag.training.calibration import calibrate as find_heads

    if out is None:
        if adapter is None or str(adapter) == SHIPPED:
            raise ConfigError(
                "Name the heads file to write (--out), or an adapter's file to write it beside (--adapter)."
            )
        out = beside(adapter)
    with waiting(f"loading {model}"):
        decoder = load_decoder(model, device=device, dtype=dtype)
        proxy = LearnedProxy(load_learned(adapter, decoder).to(decoder.dtype)) if adapter else None
    heads = find_heads(
        decoder, proxy=proxy, data=data or [], n_questions=questions, n_heads=n_heads, seed=seed, report=_reporter()
    )
    heads.save(out)
    console = Console()
    console.print(f"{len(heads.heads)} retrieval heads of {model} written to {out}")
    facts = dict(heads.facts)
    for variants in (facts.pop("by_passage_tokens"), facts.pop("by_prior_questions")):
        console.print(_table(variants))
    console.print_json(json.dumps(facts))


def _table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A column a key."""
    table = Table(*(name.replace("_", " ") for name in rows[0]), box=None)
    for row in rows:
        table.add_row(*map(str, row.values()))
    return table


def _reporter() -> Callable[[str], None]:
    """Lines of progress on a terminal, silence elsewhere."""
    if not sys.stderr.isatty():
        return lambda line: None
    console = Console(stderr=True)
    return lambda line: console.print(f"[dim]{line}[/]")
