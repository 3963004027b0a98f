"""The commands of a store: build, list, verify, rm, gc. Options in, store calls, rendered results out."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from acre_rag.errors import ConfigError, CorruptCacheError, DocumentError
from acre_rag.options import EngineOptions, JsonOfDocuments, Tenant, grouped

if TYPE_CHECKING:  # torch is heavy: commands import it when they run
    from acre_rag.store import Store

StoreFolder = Annotated[Path, typer.Option("--store", help="The store's folder.", envvar="ACRE_STORE")]


def register(app: typer.Typer) -> None:
    """Add the commands to the main one."""
    app.command()(grouped(build))
    app.command(name="list")(list_documents)
    app.command()(verify)
    app.command()(rm)
    app.command()(gc)


def build(
    files: Annotated[list[str], typer.Argument(metavar="FILE...")],
    engine: EngineOptions,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Read anew what is stored already.")] = False,
    as_json: JsonOfDocuments = False,
) -> None:
    """Read files into a store, once for good: later questions need neither the files nor the time."""
    from acre_rag.session import Session
    from acre_rag.show import human_bytes
    from acre_rag.store import Store

    if engine.store is None:
        raise ConfigError("acre build needs a store: --store DIR (or the environment variable ACRE_STORE).")
    session = Session.open(files, engine=engine, config=engine.config(), rebuild=rebuild)
    stored = {entry.id: entry for entry in Store(engine.store).entries(engine.tenant)}
    for document in session.documents:
        n_bytes = stored[document.id].manifest.n_bytes
        if as_json:
            record = {"document": document.id, "tokens": document.n_tokens, "bytes": n_bytes}
            typer.echo(json.dumps(record | {"construct_s": round(document.construct_s, 3)}))
        else:
            Console().print(
                f"{escape(document.id)}: {document.n_tokens:,} tokens, {human_bytes(n_bytes)}, read in "
                f"{document.construct_s:.1f} s",
                highlight=False,
            )


def list_documents(store: StoreFolder, tenant: Tenant = "", as_json: JsonOfDocuments = False) -> None:
    """Show what a store has."""
    from acre_rag.show import human_bytes

    damaged: list[str] = []
    entries = _existing(store).entries(tenant, damaged=lambda folder, reason: damaged.append(reason))
    table = Table("document", "tokens", "size", "model", "interval", "stored", header_style="bold")
    for entry in entries:
        manifest, fingerprint = entry.manifest, entry.manifest.fingerprint
        if as_json:
            record = {
                "document": entry.id,
                "tokens": manifest.n_tokens,
                "bytes": manifest.n_bytes,
                "model": manifest.model,
                "interval": fingerprint["interval"],
                "created": manifest.created,
                "folder": entry.folder.name,
            }
            typer.echo(json.dumps(record))
            continue
        table.add_row(
            escape(entry.id),
            f"{manifest.n_tokens:,}",
            human_bytes(manifest.n_bytes),
            escape(Path(manifest.model).name),
            str(fingerprint["interval"]),
            manifest.created,
        )
    if not as_json:
        Console().print(table if entries else "The store has no documents.")
    for reason in damaged:
        Console(stderr=True).print(f"[yellow]{escape(reason)}[/]")


def verify(
    store: StoreFolder,
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID...]", help="All documents by default.")] = None,
    tenant: Tenant = "",
) -> None:
    """Read every byte of stored documents and compare it with its digest; exit code 1 if one is damaged."""
    from acre_rag.progress import waiting

    found = _existing(store)
    problems: list[str] = []
    entries = found.entries(tenant, damaged=lambda folder, reason: problems.append(reason))
    wanted = [entry for entry in entries if not ids or entry.id in ids]
    _all_known(ids or [], [entry.id for entry in entries])
    for entry in wanted:
        try:
            with waiting(f"verifying {entry.id}"):
                entry.verify()
            Console().print(f"{escape(entry.id)}: whole", highlight=False)
        except CorruptCacheError as error:
            problems.append(str(error))
    if problems:
        raise CorruptCacheError("\n".join(problems))


def rm(
    ids: Annotated[list[str], typer.Argument(metavar="ID...")],
    store: StoreFolder,
    tenant: Tenant = "",
) -> None:
    """Delete documents from a store."""
    found = _existing(store)
    entries = found.entries(tenant)
    _all_known(ids, [entry.id for entry in entries])
    for entry in entries:
        if entry.id in ids:
            found.remove(entry.folder)
            Console().print(f"{escape(entry.id)}: removed", highlight=False)


def gc(store: StoreFolder) -> None:
    """Remove what interrupted processes left, and documents whose manifest is damaged; those of other formats stay.

    It reads manifests alone: damage inside a document is what `acre verify` finds.
    """
    cleaned = _existing(store).gc()
    Console().print(
        f"{cleaned.remains} remains of interrupted processes and {cleaned.damaged} documents with a damaged manifest "
        "removed; only manifests were looked at, acre verify reads every byte",
        soft_wrap=True,
    )
    if cleaned.other_format:
        Console().print(f"{cleaned.other_format} documents of another store format left as they were")


def _existing(folder: Path) -> "Store":
    from acre_rag.store import Store

    if not folder.is_dir():
        raise DocumentError(f"There is no store at {folder}. Make one with: acre build FILE... --store {folder}")
    return Store(folder)


def _all_known(wanted: list[str], known: list[str]) -> None:
    if unknown := [id_ for id_ in wanted if id_ not in known]:
        raise DocumentError(f"The store has no document {unknown[0]!r}; it has: {', '.join(known) or 'none'}.")
