"""The commands of training data: acre data build, inspect, verify. Options in, one call, rendered results out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from acre_rag.errors import ConfigError
from acre_rag.options import JsonOfFacts

if TYPE_CHECKING:  # torch is heavy: commands import it when they run
    from acre_rag.training.data.manifest import Manifest

_CHARS_SHOWN = 600
Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="Made by `acre data build`.")]


def register(app: typer.Typer) -> None:
    """Add the commands, under `acre data`."""
    data = typer.Typer(help="Training data: from texts and questions to shards.", no_args_is_help=True)
    data.command()(build)
    data.command()(inspect)
    data.command()(verify)
    app.add_typer(data, name="data")


def build(
    sources: Annotated[
        list[Path],
        typer.Argument(metavar="SOURCE...", help="Texts and JSON lines (gzipped or not), or folders of them."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to make.")],
    stage: Annotated[int, typer.Option(help="1: documents alone. 2: questions about documents.")],
    tokens: Annotated[str, typer.Option(help="MIN..MAX tokens of a document, estimated.")] = "2048..4096",
    chars_per_token: Annotated[float, typer.Option(help="What the estimate divides by.")] = 4.3,
    limit: Annotated[int | None, typer.Option(help="Most examples; a fair sample of what there is.")] = None,
    exclude: Annotated[
        list[Path] | None, typer.Option(help="Evaluation files or folders to keep out (repeatable).")
    ] = None,
    threshold: Annotated[float, typer.Option(help="Share of 9-word shingles from which a text is kept out.")] = 0.08,
    yes_no_share: Annotated[float, typer.Option(help="Most examples answered by yes or no.")] = 0.1,
    short_share: Annotated[float, typer.Option(help="Most examples with a short passage.")] = 0.1,
    short_words: Annotated[int, typer.Option(help="A passage of fewer words is short.")] = 50,
    book_share: Annotated[float, typer.Option(help="Examples put into long texts, not among passages.")] = 0.3,
    shard_examples: Annotated[int, typer.Option(help="Most examples of a file.")] = 256,
    licence: Annotated[str, typer.Option(help="Of texts for which no manifest.jsonl beside them gives one.")] = "",
    seed: Annotated[int, typer.Option(help="Of every draw.")] = 0,
    as_json: JsonOfFacts = False,
) -> None:
    """Make training shards: acre data build books/ --stage 1 --out shards/stage1 --exclude evaluation/

    Texts: .txt, .md, and all else that acre reads. JSON lines: context, question, answers; context, input, output;
    text; conversations.
    """
    from acre_rag.training.data.build import build as build_shards
    from acre_rag.training.data.options import BuildOptions

    least, most = _range(tokens)
    options = BuildOptions(
        stage=stage,
        min_tokens=least,
        max_tokens=most,
        chars_per_token=chars_per_token,
        limit=limit,
        seed=seed,
        threshold=threshold,
        yes_no_share=yes_no_share,
        short_share=short_share,
        short_words=short_words,
        book_share=book_share,
        shard_examples=shard_examples,
    )
    manifest = build_shards(sources, out, options=options, exclude=exclude or [], licence=licence, report=_reporter())
    _show(manifest, as_json=as_json)


def inspect(
    folder: Folder,
    examples: Annotated[int, typer.Option(help="How many examples to show.")] = 1,
    seed: Annotated[int, typer.Option(help="Which ones.")] = 0,
    as_json: JsonOfFacts = False,
) -> None:
    """Show what a folder of shards holds, and a few of its examples."""
    from itertools import islice

    from acre_rag.training.data.shards import ShardedExamples

    held = ShardedExamples(folder, seed=seed)
    _show(held.manifest, as_json=as_json)
    for example in islice(held, examples):
        evidence = [example.document[start:stop] for start, stop in example.gold]
        if as_json:
            record = {"id": example.id, "chars": len(example.document), "question": example.question}
            typer.echo(json.dumps(record | {"answer": example.answer, "gold": example.gold, "evidence": evidence}))
            continue
        lines = [f"[bold]{escape(example.id)}[/], {len(example.document):,} characters"]
        if example.question is None:
            lines.append(escape(example.document[:_CHARS_SHOWN]) + " ...")
        else:
            lines += [f"Q: {escape(example.question)}", f"A: {escape(str(example.answer))}"]
            lines += [f"at {a:,}: {escape(t)}" for (a, _), t in zip(example.gold, evidence, strict=True)]
        Console().print("\n".join(lines), highlight=False)


def verify(folder: Folder) -> None:
    """Read every byte of a folder of shards and compare it with its digest; exit code 1 if anything is damaged."""
    from acre_rag.progress import waiting
    from acre_rag.training.data.shards import verify as verify_shards

    with waiting(f"verifying {folder}"):
        manifest = verify_shards(folder)
    Console().print(f"{len(manifest.shards)} shards, {manifest.n_examples:,} examples: whole", highlight=False)


def _range(tokens: str) -> tuple[int, int]:
    least, dots, most = tokens.partition("..")
    if not dots or not least.strip().isdecimal() or not most.strip().isdecimal():
        raise ConfigError(f"--tokens {tokens!r} must be MIN..MAX, for example 2048..4096.")
    return int(least), int(most)


def _show(manifest: "Manifest", *, as_json: bool) -> None:
    if as_json:
        facts: dict[str, Any] = {"stage": manifest.stage, "digest": manifest.digest, "shards": len(manifest.shards)}
        typer.echo(json.dumps(facts | {"counts": manifest.counts, "gold_places": manifest.gold_places}))
        return
    table = Table("", "", show_header=False)
    rows: dict[str, Any] = {"stage": manifest.stage, "shards": len(manifest.shards), **manifest.counts}
    for name, value in rows.items():
        table.add_row(name.replace("_", " "), f"{value:,}")
    table.add_row("sources", ", ".join(escape(source["name"]) for source in manifest.sources[:5]) + _more(manifest))
    if manifest.exclusion:
        against = f"{manifest.exclusion['documents']:,} documents, {manifest.exclusion['questions']:,} questions"
        table.add_row("kept apart from", against)
    if manifest.gold_places:
        table.add_row("gold in each tenth", " ".join(map(str, manifest.gold_places)))
    table.add_row("digest", manifest.digest)
    Console().print(table)


def _more(manifest: "Manifest") -> str:
    return f" and {len(manifest.sources) - 5:,} more" if len(manifest.sources) > 5 else ""


def _reporter() -> Callable[[str], None]:
    """Lines of progress on a terminal, silence elsewhere."""
    console = Console(stderr=True)
    return (lambda line: console.print(f"[dim]{escape(line)}[/]")) if console.is_terminal else (lambda line: None)
