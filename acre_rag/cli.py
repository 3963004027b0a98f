"""The command `acre`: options in, engine calls, rendered results out. No method of its own.

Exit codes: 0 done, 1 a document, model or machine problem, 2 wrong usage, 130 interrupted.
"""

import json
import logging
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from acre_rag import data_commands, evaluation_commands, options, store_commands, train_commands
from acre_rag.errors import AcreError, ConfigError, DocumentError
from acre_rag.options import EngineOptions, SelectOptions, grouped


class _Commands(TyperGroup):
    """All commands. What typer would end by itself, in silence or with a code of its own, is ended here."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was named."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            _fail("Interrupted; nothing half-made is left behind.", 130)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(141)


app = typer.Typer(
    cls=_Commands,
    help="Read long documents once, ask many questions, see where each answer stands.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
store_commands.register(app)
data_commands.register(app)
train_commands.register(app)
evaluation_commands.register(app)
stdout = Console()
stderr = Console(stderr=True)


def _tell_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"acre {metadata.version('acre-rag')}")
        raise typer.Exit


@app.callback()
def all_commands(
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of `acre` itself; its help is the app's."""


def main() -> None:
    """Entry point: errors become messages and exit codes."""
    logging.getLogger("pypdf").setLevel(logging.ERROR)
    with _exit_codes():
        app()


@contextmanager
def _exit_codes() -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        _fail(str(error), 2)
    except AcreError as error:
        _fail(str(error), 1)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "memory" not in str(error).lower():
            raise
        _fail(
            "Out of memory. Use a smaller --window or --stride, a larger --interval, or a smaller model. "
            f"({str(error).splitlines()[0] if str(error) else 'no details'})",
            1,
        )


def _fail(message: str, code: int) -> None:
    stderr.print("[bold red]acre:[/] ", end="")
    stderr.print(message, markup=False, highlight=False, soft_wrap=True)
    sys.exit(code)


@app.command()
@grouped
def ask(
    engine: EngineOptions,
    selecting: SelectOptions,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FILE... [QUESTION]", help="Files ('-' is standard input) or ids in the store, then a question."
        ),
    ] = None,
    question: Annotated[str | None, typer.Option("--question", "-q", help="The question, instead of last.")] = None,
    max_tokens: options.MaxTokens = 128,
    temperature: options.Temperature = 0.0,
    stop: options.Stop = None,
    plot: Annotated[Path | None, typer.Option(help="Draw where the question attended (png, svg or pdf).")] = None,
    stream: Annotated[bool, typer.Option("--stream/--no-stream", help="Show the answer as it is decoded.")] = False,
    as_json: options.Json = False,
) -> None:
    """Ask questions of files: acre ask book.txt "Who is the thief?"; without a question, a prompt opens.

    With --store, files are read once for good; without a file, every document in the store is asked.
    """
    from acre_rag.generate import GenerationSettings
    from acre_rag.plot import check_picture
    from acre_rag.session import Session

    if plot:
        check_picture(plot)
    names, question = _split(arguments or [], question, stored=_stored(engine))
    if question is not None and not question.strip():
        raise ConfigError("The question is empty.")
    if question is None and (as_json or "-" in names or not sys.stdin.isatty()):
        raise ConfigError("No question given, and there is no terminal to ask for one: put it last, or use -q.")
    config = engine.config(**selecting.fields())
    settings = GenerationSettings(max_new_tokens=max_tokens, temperature=temperature, stop=tuple(stop or ()))
    session = Session.open(names, engine=engine, config=config)
    if question is not None:
        session.answer(question, settings, as_json=as_json, stream=stream, plot=plot)
    else:
        session.prompt(settings, plot=plot)


@app.command()
@grouped
def inspect(
    files: Annotated[list[str], typer.Argument(metavar="FILE...")],
    engine: EngineOptions,
    as_json: options.JsonOfDocuments = False,
) -> None:
    """Read files and show their caches: entries and bytes of L1 and L2, the interval chosen, seconds."""
    from acre_rag.session import Session
    from acre_rag.show import cache_facts, show_cache

    session = Session.open(files, engine=engine, config=engine.config())
    for document in session.documents:
        with session.acre.holding([document]):
            if as_json:
                typer.echo(json.dumps(cache_facts(document)))
            else:
                show_cache(stdout, document)


@app.command()
def demo(
    as_json: options.Json = False,
    plot: Annotated[Path | None, typer.Option(help="Draw where the first question attended (png, svg or pdf).")] = None,
) -> None:
    """Read a whole book with the built-in model and answer questions from it, beside the stock model."""
    from acre_rag.demo import run_demo
    from acre_rag.plot import check_picture

    if plot:
        check_picture(plot)
    run_demo(stdout, as_json=as_json, plot=plot)


def _stored(engine: EngineOptions) -> frozenset[str] | None:
    """Ids of the store's documents; `None` without a store."""
    from acre_rag.store import Store

    if engine.store is None:
        return None
    entries = Store(engine.store).entries(engine.tenant) if engine.store.is_dir() else []
    return frozenset(entry.id for entry in entries)


def _split(
    arguments: Sequence[str], question: str | None, *, stored: Collection[str] | None
) -> tuple[list[str], str | None]:
    """Documents and question: the last argument is the question unless it is, or looks like, a file, or is stored."""
    names = list(arguments)
    if not names and stored is None:
        raise ConfigError(
            "Nothing to ask: name files (acre ask FILE... [QUESTION]), or a store of documents (--store)."
        )
    if not names or question is not None:
        return names, question
    last = names[-1]
    named = " " not in last.strip() and bool(Path(last).suffix) and not last.endswith("?")
    is_file = last == "-" or named or os.path.exists(last)  # noqa: PTH110 - Path.exists raises on a long question
    if is_file or last in (stored or ()):
        return names, None
    if len(names) > 1 or stored is not None:
        return names[:-1], last
    if " " in last or last.endswith("?"):
        raise DocumentError(f"{last!r} is a question, but no file is given: acre ask FILE... {last!r}")
    return names, None


if __name__ == "__main__":
    main()
