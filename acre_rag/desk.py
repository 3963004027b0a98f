"""Tickets to answers: finds and holds the documents, batches, and walks down the ladder when memory is short.

Runs on the worker's thread; knows who waits, but no tensors.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, replace
from typing import TypeVar

from acre_rag.answer import Answer
from acre_rag.asking import Asker, Prepared
from acre_rag.document import Document
from acre_rag.errors import AcreError, CapacityError, CorruptCacheError, DocumentError, StoreError
from acre_rag.generate import GenerationSettings
from acre_rag.library import Library
from acre_rag.pressure import descend, halvings, out_of_memory
from acre_rag.streams import Pieces
from acre_rag.worker import Ticket

Documents = Sequence[Document | str] | Document | str | None
"""Documents or their ids; `None` for all of the tenant's."""

Outcome = Answer | BaseException
Told = TypeVar("Told", Answer, Prepared)


@dataclass(frozen=True)
class Asked:
    """What a caller wants.

    Attributes:
        text: a question, or a prompt for the model alone.
        documents: documents asked.
        tenant: whose.
        plain: whether `text` is a prompt.
    """

    text: str
    documents: Documents = None
    tenant: str = ""
    plain: bool = False


@dataclass(frozen=True, eq=False)
class Desk:
    """Serves one engine's callers.

    Attributes:
        library: the documents.
        asker: answers with them.
    """

    library: Library
    asker: Asker

    def answer(self, tickets: Sequence[Ticket], settings: GenerationSettings) -> list[Outcome]:
        """Answer several questions; one that fails does not fail the others."""
        documents: dict[Ticket, list[Document]] = {}
        failed: dict[Ticket, Outcome] = {}
        for ticket in tickets:
            try:
                documents[ticket] = self._documents(ticket)
            except Exception as error:  # whatever a caller passed is that caller's to hear of
                failed[ticket] = error
        answered: dict[Ticket, Outcome] | None = None
        try:
            answered = self._together(documents, settings)
        except Exception as error:  # a document of one of them cannot be held, or memory is short
            if not (isinstance(error, AcreError) or out_of_memory(error)):
                raise
        if answered is None:  # behind the handler: the error holds the failed batch's tensors as long as it lives
            answered = {ticket: self._alone(ticket, each, settings) for ticket, each in documents.items()}
        return [(failed | answered)[ticket] for ticket in tickets]

    def stream(self, ticket: Ticket, settings: GenerationSettings, pieces: Pieces) -> Answer:
        """Answer one question, handing on its sources and its text as they come."""
        return self._one(ticket, self._documents(ticket), settings, pieces)

    def select(self, asked: Asked, settings: GenerationSettings) -> Prepared:
        """Select and refill without decoding; nothing is read anew for it, which would cost most of an answer."""
        asker = replace(self.asker, config=replace(self.asker.config, recompute=False))

        def prepare(documents: list[Document]) -> Prepared:
            with self.library.residency.holding(documents):
                return replace(self, asker=asker)._prepared(asked, documents, settings, None)

        return self._from_the_rest(asked, self.library.find(asked.documents, asked.tenant), prepare)

    def _documents(self, ticket: Ticket) -> list[Document]:
        asked: Asked = ticket.payload
        return [] if asked.plain else self.library.find(asked.documents, asked.tenant)

    def _together(self, documents: dict[Ticket, list[Document]], settings: GenerationSettings) -> dict[Ticket, Outcome]:
        """One batch; a question that cannot be prepared is answered with its error."""
        every = list({document: None for each in documents.values() for document in each})
        with self.library.residency.holding(every):
            outcomes: dict[Ticket, Outcome] = {}
            prepared: dict[Ticket, Prepared] = {}
            for ticket, each in documents.items():
                try:
                    prepared[ticket] = self._prepare(ticket, each, settings, None)
                except Exception as error:  # a caller's own retriever may raise anything
                    if out_of_memory(error) or (isinstance(error, StoreError) and ticket.payload.documents is None):
                        raise
                    outcomes[ticket] = error
            return outcomes | self._decode(prepared, settings)

    def _alone(self, ticket: Ticket, documents: list[Document], settings: GenerationSettings) -> Outcome:
        try:
            return self._one(ticket, documents, settings, None)
        except (Exception, CancelledError) as error:
            return error

    def _one(
        self, ticket: Ticket, documents: list[Document], settings: GenerationSettings, pieces: Pieces | None
    ) -> Answer:
        def answer(rest: list[Document]) -> Answer:
            return self._with_less_and_less(ticket, rest, settings, pieces)

        return self._from_the_rest(ticket.payload, documents, answer)

    def _from_the_rest(self, asked: Asked, documents: list[Document], work: Callable[[list[Document]], Told]) -> Told:
        """Who asks all documents is served from those that can be read, and told of those that are damaged."""
        notes: tuple[str, ...] = ()
        while True:
            try:
                done: Told = work(documents)
                return replace(done, notes=(*done.notes, *notes))
            except (StoreError, DocumentError) as error:
                rest = self.library.unharmed(documents, asked.tenant, error)
                if asked.documents is not None or not rest or len(rest) == len(documents):
                    raise
                documents = rest
                if isinstance(error, CorruptCacheError):  # what another process removed is simply not there
                    notes = (*notes, f"left out: {error}")

    def _with_less_and_less(
        self, ticket: Ticket, documents: list[Document], settings: GenerationSettings, pieces: Pieces | None
    ) -> Answer:
        """One question: with everything, with idle documents freed, then with smaller and smaller refills."""
        begun: list[str] = []

        def pass_on(piece: str) -> None:
            begun.append(piece)
            if pieces:
                pieces.push(piece)

        def attempt(most_tokens: int | None) -> Answer:
            with self.library.residency.holding(documents):
                prepared = self._prepare(ticket, documents, settings, most_tokens)
                if pieces:
                    pieces.found(prepared.sources)
                try:
                    [outcome] = self._decode({ticket: prepared}, settings, pass_on if pieces else None).values()
                except (RuntimeError, MemoryError) as error:
                    if begun and out_of_memory(error):
                        raise CapacityError(
                            f"Out of memory in the middle of an answer ({error}). Ask again."
                        ) from error
                    raise
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

        def rungs() -> Iterator[Callable[[], Answer]]:
            yield lambda: attempt(None)
            yield lambda: attempt(None)
            largest = min(self.asker.config.budget, sum(each.n_blocks * each.interval for each in documents))
            smallest = max((document.interval for document in documents), default=1)
            for most in halvings(largest, smallest)[1:]:
                yield lambda most=most: attempt(most)  # type: ignore[misc]

        return descend(rungs(), purpose="answering", before=self.library.residency.free_idle)

    def _prepare(
        self, ticket: Ticket, documents: list[Document], settings: GenerationSettings, most_tokens: int | None
    ) -> Prepared:
        asked: Asked = ticket.payload
        if asked.plain:
            return self.asker.plain(asked.text, settings)
        return self._prepared(asked, documents, settings, most_tokens)

    def _prepared(
        self, asked: Asked, documents: list[Document], settings: GenerationSettings, most_tokens: int | None
    ) -> Prepared:
        """Selected and refilled; who asks all documents is told of those that could not be among them."""
        prepared = self.asker.prepare(asked.text, documents, settings, most_tokens=most_tokens)
        if asked.documents is not None:
            return prepared
        return replace(prepared, notes=(*prepared.notes, *self.library.left_out(asked.tenant)))

    def _decode(
        self,
        prepared: dict[Ticket, Prepared],
        settings: GenerationSettings,
        on_text: Callable[[str], None] | None = None,
    ) -> dict[Ticket, Outcome]:
        if not prepared:
            return {}
        answers = self.asker.decode(
            list(prepared.values()), settings, stopped=[ticket.stopped for ticket in prepared], on_text=on_text
        )
        return {ticket: _in_time(ticket, answer) for ticket, answer in zip(prepared, answers, strict=True)}


def _in_time(ticket: Ticket, answer: Answer) -> Outcome:
    """An answer that was stopped half-way is no answer."""
    try:
        ticket.check()
        return answer
    except (AcreError, CancelledError) as error:
        return error
