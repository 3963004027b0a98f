"""Files, an engine and a terminal: what `acre ask` and `acre inspect` share. Knows no tensors."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import typer
from rich.console import Console
from rich.markup import escape

from acre_rag.answer import Answer
from acre_rag.config import ACREConfig
from acre_rag.document import Document
from acre_rag.engine import ACRE
from acre_rag.errors import AcreError, DocumentError
from acre_rag.extract import ExtractedText, extract
from acre_rag.generate import GenerationSettings
from acre_rag.options import EngineOptions
from acre_rag.plot import plot_selection
from acre_rag.progress import reading_progress, waiting
from acre_rag.reading import encodable
from acre_rag.show import show_cost, show_sources


@dataclass(frozen=True)
class Session:
    """Documents read from files, ready for questions.

    Attributes:
        acre: the engine; it keeps the caches warm.
        files: extracted text by document id.
        documents: in the order of the files; none stand for all that the store has.
        tenant: whose they are.
    """

    acre: ACRE
    files: dict[str, ExtractedText]
    documents: list[Document]
    tenant: str = ""

    @classmethod
    def open(
        cls,
        names: Sequence[str],
        *,
        engine: EngineOptions,
        config: ACREConfig,
        rebuild: bool = False,
    ) -> "Session":
        """Extract every file (so that a bad one is told before the model loads), load the model, read the texts.

        Args:
            names: files, or ids of stored documents; with a store and no name, all that it has.
            engine: model and store.
            config: options of the method.
            rebuild: read anew what the store has.
        """
        files: dict[str, ExtractedText] = {}
        stored = []
        for name in names:
            if engine.store and name != "-" and not _is_file(name):
                stored.append(name)
                continue
            file = extract(name)
            files[_unused(file.name, files)] = file
        acre = _load(engine, config)
        if not names and not acre.documents_of(engine.tenant) and not acre.library.left_out(engine.tenant):
            raise DocumentError(f"The store {engine.store} has no documents for this model and these options.")
        documents = [acre.get(id_, tenant=engine.tenant) for id_ in stored]
        for id_, file in files.items():
            with reading_progress(f"reading {id_}") as progress:
                documents.append(acre.add(file.text, id=id_, tenant=engine.tenant, rebuild=rebuild, progress=progress))
        return cls(acre, files, documents, engine.tenant)

    def answer(
        self, question: str, settings: GenerationSettings, *, as_json: bool, stream: bool, plot: Path | None
    ) -> None:
        """One question to standard output."""
        console = Console()
        if stream and not as_json:
            answer = self._streamed(question, settings, console)
        else:
            answer = self.acre.ask(question, self._asked, tenant=self.tenant, settings=settings)
        if as_json:
            record = answer.to_dict() | {"question": question}
            for source in record["sources"]:
                file = self.files.get(source["document"])  # none for a document that only the store knows
                source["page"] = file.page_at(source["start"]) if file else None
            typer.echo(encodable(json.dumps(record, ensure_ascii=False)))
        else:
            if not stream:
                console.print(answer.text, markup=False, highlight=False, soft_wrap=True)
            show_sources(console, answer, self.files)
            show_cost(console, answer)
            for note in answer.notes:
                console.print(f"  [yellow]{escape(note)}[/]", soft_wrap=True)
        if plot:
            chosen = self.acre.prepare(question, self._asked, tenant=self.tenant)
            plot_selection(question, chosen.selection, chosen.documents, plot, answer=answer.text)
            Console(stderr=True, soft_wrap=True).print(f"[dim]picture: {escape(str(plot))}[/]")

    def prompt(self, settings: GenerationSettings, *, plot: Path | None) -> None:
        """Questions until the end of input; the caches stay warm. Ctrl-C stops an answer, Ctrl-D leaves."""
        console = Console()
        console.print("[dim]Ask away; Ctrl-C stops an answer, Ctrl-D (or an empty line) leaves.[/]")
        while True:
            try:
                question = console.input("[bold]? [/]").strip()
            except EOFError:
                console.print()
                return
            if not question:
                return
            try:
                self.answer(question, settings, as_json=False, stream=True, plot=plot)
            except KeyboardInterrupt:
                console.print("\n[dim]stopped[/]")
            except AcreError as error:
                console.print(f"[red]{escape(str(error))}[/]")

    @property
    def _asked(self) -> list[Document] | None:
        """What the engine is told; asked for all, it leaves out what is damaged and says so."""
        return self.documents or None

    def _streamed(self, question: str, settings: GenerationSettings, console: Console) -> Answer:
        for piece in self.acre.stream(question, self._asked, tenant=self.tenant, settings=settings):
            if isinstance(piece, Answer):
                console.print()
                return piece
            console.print(piece, end="", markup=False, highlight=False)
        raise AssertionError("a stream ends with its Answer")


def _load(engine: EngineOptions, config: ACREConfig) -> ACRE:
    with waiting(f"loading {engine.model}"):
        acre = ACRE.from_pretrained(
            engine.model,
            adapter=engine.adapter,
            config=config,
            heads=engine.heads,
            device=engine.device,
            dtype=engine.dtype,
            attn_implementation=engine.attn,
            store=engine.store,
        )
    return acre


def _is_file(name: str) -> bool:
    try:
        return Path(name).exists()
    except (OSError, ValueError):
        return False


def _unused(name: str, taken: dict[str, ExtractedText]) -> str:
    """Two files of one name in different folders must stay apart."""
    number, unused = 2, name
    while unused in taken:
        unused, number = f"{name} ({number})", number + 1
    return unused
