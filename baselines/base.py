"""The protocol of every system, ACRE included, and what all baselines share: documents, the model's thread, costs.

Knows nothing of any method. A baseline says how it reads a document and how it answers from what it has read.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Generic, Protocol, TypeVar

from acre_rag.answer import Answer, Source
from acre_rag.construct import ProgressCallback
from acre_rag.decoder import Decoder
from acre_rag.document import text_digest
from acre_rag.errors import ConfigError, DocumentError
from acre_rag.generate import GenerationSettings
from acre_rag.prompts import ANSWER, PromptTemplate, RenderedPrompt, render
from acre_rag.streams import Pieces, TextStream
from acre_rag.transfer import clock
from acre_rag.worker import Ticket

S = TypeVar("S")


class Pipeline(Protocol):
    """What any system can do; `acre_rag.ACRE` satisfies it as it is."""

    @property
    def documents(self) -> Mapping[str, Any]:
        """Documents by id."""

    def add(self, text: str, id: str | None = None, *, progress: ProgressCallback | None = None) -> Any:
        """Read a document once, whatever reading means for this system."""

    def ask(self, question: str, documents: Any = None, *, settings: GenerationSettings | None = None) -> Answer:
        """Answer one question about documents (their ids; all by default)."""

    async def aask(self, question: str, documents: Any = None, *, settings: GenerationSettings | None = None) -> Answer:
        """`ask` on an event loop."""

    def stream(
        self, question: str, documents: Any = None, *, settings: GenerationSettings | None = None
    ) -> TextStream[Answer]:
        """Pieces of text, then the whole `Answer`."""

    def remove(self, document: str) -> None:
        """Forget a document."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is the same for every system of a comparison.

    Attributes:
        decoder: the model.
        template: how documents and questions are put.
        window: `W`, most tokens the model attends to at once; `None` takes the model's own, at most 32768.
        seed: of whatever a system draws.
        embedder: embedding model of dense retrieval: a folder or hub name; `None` takes BGE-M3 when its weights are on
            the machine, else the small MiniLM of the `baselines` extra.
        adapter: learned L1, for the systems that need one.
        heads: retrieval heads file for ACRE; `None` takes the shipped ones.
        reserve_tokens: places of the window that systems which cut documents leave for question and answer; 0 where
            nobody knows what will be asked.
    """

    decoder: Decoder
    template: PromptTemplate = ANSWER
    window: int | None = None
    seed: int = 0
    embedder: str | None = None
    adapter: str | None = None
    heads: str | None = None
    reserve_tokens: int = 0

    def __post_init__(self) -> None:
        """A window must hold something, and no more than the model was made for.

        Raises:
            ConfigError: out of range.
        """
        if self.window is not None and not 64 <= self.window <= self.decoder.model_window:
            raise ConfigError(
                f"window={self.window:,} must be at least 64 and at most the {self.decoder.model_window:,} tokens "
                f"of {self.decoder.name}."
            )

    @property
    def most_tokens(self) -> int:
        """`W`."""
        return self.window or self.decoder.window


@dataclass(frozen=True, eq=False)
class Held(Generic[S]):
    """A document that a baseline has read.

    Attributes:
        id: its name.
        text: its text.
        state: what the baseline keeps of it: chunks and vectors, or a cache.
        construct_s: seconds that reading took.
    """

    id: str
    text: str
    state: S
    construct_s: float


@dataclass(frozen=True, eq=False)
class Call:
    """How one question is to be answered.

    Attributes:
        settings: how to decode.
        on_text: takes pieces of the final answer as they come; `None` when nobody listens.
        on_sources: takes the evidence before the first piece, by systems that have some.
        check: raises when the caller has lost interest; for work between two decodings.
        stopped: asked after every token; true stops the decoding.
    """

    settings: GenerationSettings
    on_text: Callable[[str], None] | None = None
    on_sources: Callable[[tuple[Source, ...]], None] = lambda sources: None
    check: Callable[[], None] = lambda: None
    stopped: Callable[[], bool] = lambda: False


class Baseline(ABC, Generic[S]):
    """A system beside ACRE. Its model work runs on the decoder's one thread, in line with everybody else's.

    Args:
        setting: what is the same for every system.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.decoder = setting.decoder
        self.prompt: RenderedPrompt = render(setting.template, setting.decoder.tokenizer)
        self._held: dict[str, Held[S]] = {}

    @abstractmethod
    def read(self, text: str, progress: ProgressCallback) -> S:
        """What is kept of a document; runs on the model's thread. `progress` takes (tokens done, tokens in all)."""

    @abstractmethod
    def answer(self, question: str, documents: Sequence[Held[S]], call: Call) -> Answer:
        """The answer from documents that were read; runs on the model's thread."""

    @property
    def documents(self) -> Mapping[str, Held[S]]:
        """Documents by id, in the order in which they were added; as they are now, whatever comes or goes later."""
        return MappingProxyType(dict(self._held))

    def add(self, text: str, id: str | None = None, *, progress: ProgressCallback | None = None) -> Held[S]:
        """Read a document.

        Raises:
            DocumentError: empty, or the id names another text.
            CapacityError: too long for this system.
        """
        name = id if id is not None else text_digest(text)[:12]
        if not text.strip():
            raise DocumentError(f"The document {name!r} is empty.")

        def work(tickets: Sequence[Ticket]) -> list[Held[S]]:
            if known := self._known(name, text):  # added by another caller while this one waited
                return [known]
            start = clock(self.decoder.device)

            def report(done: int, total: int) -> None:
                tickets[0].check()
                if progress:
                    progress(done, total)

            state = self.read(text, report)
            self._held[name] = Held(name, text, state, clock(self.decoder.device) - start)
            return [self._held[name]]

        held: Held[S] = self._known(name, text) or self._submit(Ticket(work)).result()
        return held

    def _known(self, name: str, text: str) -> Held[S] | None:
        known = self._held.get(name)
        if known is not None and known.text != text:
            raise DocumentError(f"A document named {name!r} with another text is there; remove it first.")
        return known

    def ask(
        self,
        question: str,
        documents: Sequence[str] | str | None = None,
        *,
        settings: GenerationSettings | None = None,
    ) -> Answer:
        """Answer one question.

        Args:
            question: the question.
            documents: ids; all by default.
            settings: how to decode.

        Raises:
            DocumentError: unknown or no documents.
            CapacityError: it does not fit the window.
        """
        answer: Answer = self._asked(question, documents, settings).result()
        return answer

    async def aask(
        self,
        question: str,
        documents: Sequence[str] | str | None = None,
        *,
        settings: GenerationSettings | None = None,
    ) -> Answer:
        """`ask` on an event loop."""
        answer: Answer = await self._asked(question, documents, settings).wait()
        return answer

    def stream(
        self,
        question: str,
        documents: Sequence[str] | str | None = None,
        *,
        settings: GenerationSettings | None = None,
    ) -> TextStream[Answer]:
        """Pieces of the final answer as they are decoded, then the whole `Answer`."""
        pieces = Pieces()
        return TextStream(self._asked(question, documents, settings, pieces), pieces)

    def remove(self, document: str) -> None:
        """Forget a document.

        Raises:
            DocumentError: there is none of that name.
        """
        self._find(document)
        del self._held[document]

    def _asked(
        self,
        question: str,
        documents: Sequence[str] | str | None,
        settings: GenerationSettings | None,
        pieces: Pieces | None = None,
    ) -> Ticket:
        found = self._find(documents)
        chosen = settings or GenerationSettings()

        def work(tickets: Sequence[Ticket]) -> list[Answer]:
            [ticket] = tickets
            call = Call(chosen, check=ticket.check, stopped=ticket.stopped)
            if pieces:
                call = replace(call, on_text=pieces.push, on_sources=pieces.found)
            answer = self.answer(question, found, call)
            ticket.check()
            if pieces and not pieces.sources.done():
                pieces.found(answer.sources)
            return [answer]

        return self._submit(Ticket(work))

    def _find(self, documents: Sequence[str] | str | None) -> list[Held[S]]:
        names = [documents] if isinstance(documents, str) else list(self._held if documents is None else documents)
        if not names:
            raise DocumentError("There is no document to ask: add one first.")
        if unknown := [name for name in names if name not in self._held]:
            raise DocumentError(f"No document named {unknown[0]!r}; there are: {', '.join(self._held) or 'none'}.")
        return [self._held[name] for name in names]

    def _submit(self, ticket: Ticket) -> Ticket:
        self.decoder.worker.submit([ticket])
        return ticket
