"""One way of asking an index's documents: which of them, with which options. Shared by query engine and retriever."""

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.vector_stores.types import MetadataFilters

from acre_rag import ACRE, Answer, GenerationSettings, Source
from acre_rag.config import ASKING_OPTIONS
from acre_rag.errors import ConfigError
from acre_rag.integrations.llama_index.guide import guided_by
from acre_rag.integrations.llama_index.shelf import Held, Shelf
from acre_rag.integrations.room import has_room
from acre_rag.streams import TextStream


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How an index is asked.

    Attributes:
        acre: the engine, with its question-time options.
        shelf: the documents.
        settings: how answers are decoded.
        filters: on the documents' metadata.
        doc_ids: the documents asked; all by default.
        timeout_s: most seconds of waiting and work.
    """

    acre: ACRE
    shelf: Shelf
    settings: GenerationSettings | None = None
    filters: MetadataFilters | None = None
    doc_ids: Sequence[str] | None = None
    timeout_s: float | None = None

    def chosen(self) -> list[Held]:
        """The documents asked."""
        return self.shelf.choose(self.filters, self.doc_ids)

    def ask(self, question: str, held: Sequence[Held]) -> Answer:
        """The engine's answer."""
        return self.acre.ask(question, _names(held), **self._call())

    async def aask(self, question: str, held: Sequence[Held]) -> Answer:
        """`ask` on an event loop."""
        return await self.acre.aask(question, _names(held), **self._call())

    def stream(self, question: str, held: Sequence[Held]) -> TextStream[Answer]:
        """The engine's answer, piece by piece."""
        return self.acre.stream(question, _names(held), **self._call())

    def retrieve(self, question: str, held: Sequence[Held]) -> tuple[Source, ...]:
        """The selection alone."""
        return self.acre.retrieve(question, _names(held), tenant=self.shelf.tenant)

    async def aretrieve(self, question: str, held: Sequence[Held]) -> tuple[Source, ...]:
        """`retrieve` on an event loop."""
        return await self.acre.aretrieve(question, _names(held), tenant=self.shelf.tenant)

    def has_room_for(self, question: str) -> bool:
        """Whether the window has room for a question and one passage beside the documents."""
        shelf = self.acre.documents_of(self.shelf.tenant)
        documents = [shelf[held.name] for held in self.chosen() if held.name in shelf]
        return has_room(self.acre, question, documents, self.settings)

    def _call(self) -> dict[str, Any]:
        return {"tenant": self.shelf.tenant, "settings": self.settings, "timeout_s": self.timeout_s}


def engine_with(
    shelf: Shelf, *, retriever: BaseRetriever | None = None, similarity_top_k: int | None = None, **options: Any
) -> ACRE:
    """The shelf's engine with other question-time options.

    Args:
        shelf: the documents.
        retriever: a LlamaIndex retriever that guides refilling; by default `select` asks it too (see `ACRE.using`).
        similarity_top_k: LlamaIndex's name for `max_passages`.
        options: see `ASKING_OPTIONS`; `None` leaves the engine's own.

    Raises:
        ConfigError: an unknown option, or a retriever that the strategy would not ask.
    """
    if unknown := options.keys() - set(ASKING_OPTIONS):
        raise ConfigError(_unknown(sorted(unknown)[0]))
    given = {name: value for name, value in options.items() if value is not None}
    if similarity_top_k is not None:
        given.setdefault("max_passages", similarity_top_k)
    if retriever is None:
        return shelf.acre.using(**given) if given else shelf.acre
    return shelf.acre.using(retriever=guided_by(retriever, shelf), **given)


def _unknown(name: str) -> str:
    """What to do instead."""
    there_are = ", ".join((*ASKING_OPTIONS, "similarity_top_k", "retriever", "filters", "doc_ids"))
    message = f"Unknown option {name!r}; there are: {there_are}."
    if name in signature(RetrieverQueryEngine.from_args).parameters:
        message += f" {name} is for another model that answers from the text of the passages: pass it with llm=..."
    return message


def _names(held: Sequence[Held]) -> list[str]:
    return [each.name for each in held]
