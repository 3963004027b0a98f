"""The command line's shared options, each declared once. No behaviour."""

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="'smollm2-135m' (built in), a folder, a .gguf file or a hub id.",
        envvar="ACRE_MODEL",
    ),
]
Adapter = Annotated[Path | None, typer.Option(help="Learned L1: an adapter file or a checkpoint.")]
Heads = Annotated[Path | None, typer.Option(help="Retrieval heads from `acre calibrate`.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, ...")]
DType = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
Attention = Annotated[str | None, typer.Option("--attn", help="eager, sdpa or flash_attention_2.")]
Window = Annotated[int | None, typer.Option(help="W: most keys a token attends to. Default: the model's own window.")]
Interval = Annotated[int | None, typer.Option(help="l: tokens per L1 entry. Default: chosen from the length.")]
Stride = Annotated[int | None, typer.Option(help="S: tokens read in one pass.")]
Budget = Annotated[int, typer.Option(help="eta: most tokens refilled per question.")]
Select = Annotated[str, typer.Option(help="consensus, paper, retriever (BM25) or hybrid.")]
Granularity = Annotated[str, typer.Option(help="passages or blocks.")]
Passages = Annotated[int, typer.Option(help="Most passages refilled per question.")]
MaxTokens = Annotated[int, typer.Option("--max-tokens", help="Most tokens of an answer.")]
Temperature = Annotated[float, typer.Option(help="0 is greedy.")]
Stop = Annotated[list[str] | None, typer.Option(help="String that ends the answer (repeatable).")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object per answer on standard output.")]
