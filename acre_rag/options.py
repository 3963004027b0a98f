"""The command line's shared options, each declared once, and groups of them that a command takes as one object.

`@grouped` lets a command take a group as one argument; on the command line each field is an option of its own.
"""

import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, cast, get_type_hints

import typer

from acre_rag.config import ACREConfig, Strategy
from acre_rag.config import Granularity as GranularityName

Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="'smollm2-135m' (built in), a folder, a .gguf file or a hub id.",
        envvar="ACRE_MODEL",
    ),
]
Adapter = Annotated[Path | None, typer.Option(help="Learned L1: an adapter file, a checkpoint, or 'shipped'.")]
Heads = Annotated[Path | None, typer.Option(help="Retrieval heads from `acre calibrate`.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, ...")]
DType = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
Attention = Annotated[str | None, typer.Option("--attn", help="eager, sdpa or flash_attention_2.")]
Window = Annotated[
    int | None, typer.Option(help="W: most keys a token attends to. Default: the model's own window, at most 32,768.")
]
Interval = Annotated[int | None, typer.Option(help="l: tokens per L1 entry. Default: chosen from the length.")]
Stride = Annotated[int | None, typer.Option(help="S: tokens read in one pass.")]
L2Bits = Annotated[int, typer.Option("--l2-bits", help="Bits of the exact layer: 16, 8 or 4.")]
Budget = Annotated[int, typer.Option(help="eta: most tokens refilled per question.")]
Select = Annotated[
    str,
    typer.Option(
        help="consensus, paper, retriever (BM25), hybrid, or auto: consensus where the model's retrieval heads are "
        "known, else retriever."
    ),
]
Granularity = Annotated[str, typer.Option(help="passages or blocks.")]
L1Context = Annotated[
    bool, typer.Option("--l1-context/--no-l1-context", help="Whether L1 entries stand between the refilled passages.")
]
Recompute = Annotated[
    bool, typer.Option("--recompute", help="Read refilled passages anew for each question, instead of from L2.")
]
Passages = Annotated[int, typer.Option(help="Most passages refilled per question.")]
MaxTokens = Annotated[int, typer.Option("--max-tokens", help="Most tokens of an answer.")]
Temperature = Annotated[float, typer.Option(help="0 is greedy.")]
Stop = Annotated[list[str] | None, typer.Option(help="String that ends the answer (repeatable).")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object per answer on standard output.")]
JsonOfDocuments = Annotated[bool, typer.Option("--json", help="One JSON object per document on standard output.")]
JsonOfFacts = Annotated[bool, typer.Option("--json", help="JSON on standard output, one object a line.")]
StoreFolder = Annotated[
    Path | None, typer.Option("--store", help="Folder that keeps documents for good.", envvar="ACRE_STORE")
]
Tenant = Annotated[str, typer.Option(help="Whose documents; those of others do not exist.")]


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """What model reads, and how."""

    model: Model = "smollm2-135m"
    adapter: Adapter = None
    heads: Heads = None
    device: Device = "auto"
    dtype: DType = "auto"
    attn: Attention = None
    window: Window = None
    interval: Interval = None
    stride: Stride = None
    l2_bits: L2Bits = 16
    store: StoreFolder = None
    tenant: Tenant = ""

    def config(self, **more: Any) -> ACREConfig:
        """The method's options."""
        return ACREConfig(window=self.window, interval=self.interval, stride=self.stride, l2_bits=self.l2_bits, **more)


@dataclass(frozen=True, kw_only=True)
class SelectOptions:
    """What a question refills."""

    budget: Budget = 4096
    select: Select = "auto"
    granularity: Granularity = "passages"
    passages: Passages = 2
    l1_context: L1Context = True
    recompute: Recompute = False

    def fields(self) -> dict[str, Any]:
        """As `ACREConfig` calls them; it refuses what is not one of its choices."""
        return {
            "budget": self.budget,
            "select": cast(Strategy, self.select),
            "granularity": cast(GranularityName, self.granularity),
            "max_passages": self.passages,
            "l1_context": self.l1_context,
            "recompute": self.recompute,
        }


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameters of a group's type are replaced by the group's fields."""
    parameters: list[inspect.Parameter] = []
    groups: dict[str, Any] = {}
    hints = get_type_hints(command, include_extras=True)
    for name, parameter in inspect.signature(command).parameters.items():
        if is_dataclass(hints[name]):
            groups[name] = hints[name]
            inner = get_type_hints(hints[name], include_extras=True)
            parameters += [
                inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=_default(f), annotation=inner[f.name])
                for f in fields(hints[name])
            ]
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[name]))

    @wraps(command)
    def run(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        command(**values)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _default(field: Field[Any]) -> Any:
    """A field's default in a signature's terms: an option without one is required."""
    return inspect.Parameter.empty if field.default is MISSING else field.default
