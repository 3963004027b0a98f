"""The commands of comparisons: eval, compare, sweep, ablate. Options in, runs and reports out. Knows no method."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from acre_rag.errors import ConfigError, EvaluationError
from acre_rag.options import Adapter, Attention, Device, DType, Heads, Model, Window, grouped

if TYPE_CHECKING:  # torch is heavy: commands import it when they run
    from acre_rag.decoder import Decoder
    from acre_rag.evaluation.forms import Form
    from acre_rag.evaluation.item import EvalItem
    from acre_rag.evaluation.report import Comparison
    from acre_rag.evaluation.runner import Done

_RULER = "ruler_"

Data = Annotated[
    list[str],
    typer.Option(
        "--data",
        help="NAME=PATH of a data set (repeatable); NAME alone with --hub; ruler_TASK=4096,8192 makes needles of such "
        "lengths in tokens.",
    ),
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder of rows; a stopped run goes on there.")]


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What is the same for every system of a run."""

    model: Model = "smollm2-135m"
    limit: Annotated[int | None, typer.Option(help="Most questions of each data set.")] = 25
    documents: Annotated[int | None, typer.Option(help="Most documents of each data set. Default: any.")] = None
    seed: Annotated[int, typer.Option(help="Seed of the sample.")] = 0
    window: Window = None
    adapter: Adapter = None
    heads: Heads = None
    embedder: Annotated[str | None, typer.Option(help="Embedding model: a folder or name.")] = None
    device: Device = "auto"
    dtype: DType = "auto"
    attn: Attention = None
    hub: Annotated[bool, typer.Option("--hub", help="Fetch published data sets from the hub.")] = False
    retry: Annotated[bool, typer.Option("--retry", help="Ask again what failed before.")] = False

    def run(self, forms: "Sequence[Form]", data: list[str], out: Path) -> None:
        """Load data and model, ask, say a line for each system and data set."""
        from acre_rag.evaluation.board import Options
        from acre_rag.evaluation.runner import evaluate
        from acre_rag.models import load_decoder
        from acre_rag.progress import waiting

        named = _named(data)
        lengths = {name: _numbers(text, f"--data {name}") for name, text in named.items() if name.startswith(_RULER)}
        items = {name: _load(name, path, hub=self.hub) for name, path in named.items() if name not in lengths}
        with waiting(f"loading {self.model}"):
            decoder = load_decoder(self.model, device=self.device, dtype=self.dtype, attn_implementation=self.attn)
        items |= {name: self._made(name, wanted, decoder) for name, wanted in lengths.items()}
        names = ("limit", "documents", "seed", "window", "adapter", "heads", "embedder", "retry")
        chosen = Options(**{name: getattr(self, name) for name in names})
        with _resumable(out):
            evaluate(decoder, forms, items, out=out, options=chosen, report=_say)

    def _made(self, name: str, lengths: list[int], decoder: "Decoder") -> "list[EvalItem]":
        """RULER-style items, the limit spread over the lengths."""
        from acre_rag.evaluation.ruler import generate

        count = max(1, (25 if self.limit is None else self.limit) // len(lengths))
        return [
            item
            for tokens in lengths
            for item in generate(name, tokenizer=decoder.tokenizer, tokens=tokens, count=count, seed=self.seed)
        ]


def register(app: typer.Typer) -> None:
    """Add the commands to the main one."""
    app.command(name="eval")(grouped(evaluate))
    app.command()(compare)
    app.command()(grouped(sweep))
    app.command()(grouped(ablate))


def evaluate(
    data: Data,
    out: Out,
    run: RunOptions,
    systems: Annotated[
        str, typer.Option(help="Names of systems, with commas. Default: acre,acre-hybrid,bm25,rag,full.")
    ] = "",
    system: Annotated[
        list[str] | None,
        typer.Option("--system", help="NAME,OPTION=VALUE,... of one more system, with options (repeatable)."),
    ] = None,
) -> None:
    """Ask several systems the same questions; one row each, as JSON lines in --out.

    acre eval --systems acre,full --system rag,hits=10 --data squad_article=data/longqa_dev --limit 25 --out runs/first
    """
    from acre_rag.evaluation.naming import forms_named

    run.run(forms_named(_words(systems), system or ()), data, out)


def compare(
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER...", help="Folders of rows, from `acre eval`.")],
    baseline: Annotated[str, typer.Option(help="The system that the others are compared with.")] = "acre",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for comparison.md and comparison.html.")
    ] = None,
    questions: Annotated[int, typer.Option(help="Show so many questions side by side, the most telling first.")] = 0,
) -> None:
    """Compare what systems answered: scores, intervals, differences, costs; as tables, Markdown and a page."""
    from acre_rag.evaluation.report import compare as findings
    from acre_rag.evaluation.row_files import read_rows
    from acre_rag.evaluation.side_by_side import most_telling, show_question

    console = Console(highlight=False)
    comparisons = findings(read_rows(folders), baseline=baseline)
    for comparison in comparisons:
        _show(console, comparison)
        for asked in most_telling(comparison, questions):
            show_question(console, asked)
    if out:
        _write(comparisons, out)
        Console(stderr=True).print(f"written: {escape(str(out / 'comparison.html'))} and comparison.md")


def sweep(
    option: Annotated[
        str, typer.Argument(help="budget (tokens refilled), interval (tokens per L1 entry) or passage_tokens.")
    ],
    data: Data,
    out: Out,
    run: RunOptions,
    values: Annotated[str | None, typer.Option(help="Values, with commas. Default: as the paper's Figure 4.")] = None,
    systems: Annotated[str, typer.Option(help="Forms of ACRE, with commas.")] = "acre",
    fixed: Annotated[str | None, typer.Option(help="Another of these options at one value, as interval=8.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Picture of the curves (png, svg or pdf).")] = None,
) -> None:
    """Ask with several refill budgets, intervals or lengths of passages: a table, and a picture with --plot.

    acre sweep budget --values 0,512,1024,2048,4096 --data squad_article=data/longqa_dev --out runs/budget --plot b.svg
    """
    from acre_rag.evaluation import plots
    from acre_rag.evaluation.row_files import read_rows
    from acre_rag.evaluation.sweep import OPTIONS, VALUES, Sweep
    from acre_rag.plot import check_ending

    if plot:
        check_ending(plot)
    chosen = _numbers(values, "--values") if values is not None else VALUES.get(option, (0,))
    swept = Sweep(option=option, values=chosen, systems=_words(systems), fixed=_held(fixed))
    run.run(swept.forms, data, out)
    comparison = swept.comparison(read_rows([out]))
    _show(Console(highlight=False), comparison)
    if plot:
        plots.save(plots.sweep_plot(swept.curves(comparison), xlabel=OPTIONS[option]), plot)


def ablate(
    data: Data,
    out: Out,
    run: RunOptions,
    trained: Annotated[
        list[str] | None,
        typer.Option("--trained", help="Adapter to compare with the untrained copies (repeatable: one a stage)."),
    ] = None,
    fine_tuned: Annotated[
        str | None, typer.Option(help="Model of `acre train sft`: without ACRE, on the same questions.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Picture of the scores (png, svg or pdf).")] = None,
) -> None:
    """Leave out one part of ACRE at a time (the paper's Figure 3): prior, heads, layers, L1 entries, training.

    acre ablate --data squad_article=data/longqa_dev --trained shipped --trained run2/adapter.safetensors --out parts
    """
    from acre_rag.evaluation import plots
    from acre_rag.evaluation.ablation import SELECTION, VANILLA, beside, training
    from acre_rag.evaluation.report import compare as findings
    from acre_rag.evaluation.report import of_one_setting
    from acre_rag.evaluation.row_files import read_rows
    from acre_rag.plot import check_ending

    if plot:
        check_ending(plot)
    own, tuned = out / "parts", out / "fine-tuned"
    run.run([*SELECTION, *(training(trained) if trained else ()), VANILLA], data, own)
    if fine_tuned:
        replace(run, model=fine_tuned, adapter=None).run([VANILLA], data, tuned)
    rows = beside(read_rows([own]), read_rows([tuned]) if fine_tuned else [])
    comparison = of_one_setting(findings(rows, baseline="acre"))
    _show(Console(highlight=False), comparison)
    if plot:
        plots.save(plots.bars_by_dataset(comparison), plot)


def _show(console: Console, comparison: "Comparison") -> None:
    """Tables for people on a terminal, Markdown for a pipe."""
    from acre_rag.evaluation.sheets import heading, markdown, rich_table, said_of, sheets_of

    if not console.is_terminal:
        typer.echo(markdown(comparison))
        return
    console.print(f"[bold]{escape(heading(comparison))}[/]  [dim]{escape(comparison.machine)}[/]")
    for remark in comparison.remarks:
        console.print(f"[yellow]{escape(remark)}[/]")
    for sheet in sheets_of(comparison):
        console.print(rich_table(sheet))
    for line in said_of(comparison):
        console.print(f"[dim]{escape(line)}[/]")


def _write(comparisons: "Sequence[Comparison]", folder: Path) -> None:
    from acre_rag.evaluation.page import page
    from acre_rag.evaluation.sheets import markdown

    html = page(comparisons)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in (("comparison.md", "\n".join(map(markdown, comparisons))), ("comparison.html", html)):
            (folder / name).write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise EvaluationError(f"The report cannot be written to {folder} ({error}). Use a folder of yours.") from error


def _named(data: Sequence[str]) -> dict[str, str]:
    """`NAME=PATH` of every --data."""
    found: dict[str, str] = {}
    for each in data:
        name, _, path = each.partition("=")
        if name in found:
            raise ConfigError(f"--data {name} is given twice.")
        found[name] = path
    return found


def _load(name: str, path: str, **where: Any) -> "list[EvalItem]":
    from acre_rag.evaluation.datasets import load_dataset

    return load_dataset(name, path=Path(path).expanduser() if path else None, **where)


def _words(text: str) -> list[str]:
    return [word for each in text.split(",") if (word := each.strip())]


def _numbers(text: str, option: str) -> list[int]:
    words = _words(text)
    if not words or not all(word.isdecimal() for word in words):
        raise ConfigError(f"{option}={text!r} must be whole numbers with commas between them, as 512,1024.")
    return [int(word) for word in words]


def _held(fixed: str | None) -> dict[str, int]:
    """`NAME=VALUE`."""
    if fixed is None:
        return {}
    name, _, value = fixed.partition("=")
    return {name.strip(): _numbers(value, f"--fixed {name}")[0]}


def _say(done: "Done") -> None:
    """One line when a system is done with a data set."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    name = f"{done.dataset} · {done.form.label}"
    rows = [row for row in done.rows if not row.refused]
    if not rows:
        error = next((row.error for row in done.rows if row.error), {"kind": "nothing", "message": "no questions"})
        console.print(f"{name}: not run ({error['kind']}: {error['message']})")
        return
    failed = sum(row.error is not None for row in rows)
    seconds = [row.seconds["question"] for row in rows if "question" in row.seconds]
    console.print(
        f"{name}: {rows[0].run.metric} {sum(row.score for row in rows) / len(rows):.1f} over {len(rows)} questions "
        f"({done.asked} new, {failed} failed), {sum(seconds) / max(1, len(seconds)):.2f} s a question"
    )


@contextmanager
def _resumable(out: Path) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        Console(stderr=True).print(
            f"[bold red]acre:[/] interrupted; the answers so far are in {escape(str(out))}. The same command goes on "
            "from there.",
            highlight=False,
            soft_wrap=True,
        )
        raise typer.Exit(130) from None
