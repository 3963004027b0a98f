"""SystemQA: any system of a comparison as a LangChain Runnable; knows nothing of how a system finds or answers."""

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, ClassVar, NamedTuple, Self

from langchain_core.documents import Document as LangChainDocument
from langchain_core.messages import BaseMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import run_in_executor
from langchain_core.runnables.utils import AddableDict
from pydantic import BaseModel, Field, SkipValidation

from acre_rag import Answer, GenerationSettings
from acre_rag.baselines.base import Pipeline, Setting
from acre_rag.errors import ConfigError
from acre_rag.integrations.langchain.adding import add_documents
from acre_rag.integrations.langchain.calls import ALL, names_of
from acre_rag.integrations.langchain.messages import question_with_history
from acre_rag.integrations.langchain.qa_input import Given, SystemOutput
from acre_rag.integrations.langchain.results import Trimmer, source_document, usage_of
from acre_rag.integrations.langchain.runnable import AnsweringRunnable
from acre_rag.integrations.systems import model_name, pipeline_of

_AT_ONCE = 16
"""Questions of a batch that stand in the model's line at a time; more would only keep others out of it."""


class SystemQA(AnsweringRunnable):
    """Asks any system that `acre compare` knows, and any other `Pipeline`.

    Input as of `ACREDocumentQA`. Output the same with `metadata`: model, usage, timings, scope, notes, whether the
    model ended the answer, and `trace`: the steps on the way (sub-queries, clues, drafts). Streams give the input,
    pieces of the answer, and last the context and the metadata, which a system may only know then.

    Callbacks see a chain run, named after the system, with a retriever run (the context) in it.

    Attributes:
        pipeline: the system.
        documents: ids of the documents; "*" for all that the system holds.
        document_metadata: id to the metadata of the original document.
    """

    elsewhere: ClassVar[str] = " Options of the system itself go into system_options={...} of from_documents."

    pipeline: SkipValidation[Pipeline] = Field(exclude=True, repr=False)
    documents: Sequence[str] | str = ALL
    document_metadata: Mapping[str, Mapping[str, Any]] = Field(default_factory=dict, repr=False)

    @classmethod
    def from_documents(
        cls,
        documents: Iterable[LangChainDocument],
        *,
        system: str | Pipeline,
        setting: Setting | None = None,
        system_options: Mapping[str, Any] | None = None,
        join_pages: bool = False,
        **fields: Any,
    ) -> Self:
        """Read documents, whatever reading means for the system.

        Args:
            documents: named by their `id`, else by their `source`, else by a digest of the text; blank ones are left
                out.
            system: a name of `acre_rag.baselines.registry.SYSTEMS`, or a system that is there already.
            setting: model, template and window of a system that is made; the built-in model by default.
            system_options: options of a system that is made.
            join_pages: join documents that name the same `source`; sources then say which page they stand on.
            fields: other fields.

        Raises:
            ConfigError: no such system, option or field; told before anything is read.
            DocumentError: all documents are blank, or an id names another text.
            CapacityError: too long for this system.
            UnavailableError: it cannot run here.
            MissingExtraError: its packages are not installed.
        """
        cls.check_options(fields)
        pipeline = pipeline_of(system, setting, **(system_options or {}))
        added = add_documents(pipeline.add, documents, join_pages=join_pages)
        name = {"name": system} if isinstance(system, str) else {}
        return cls(pipeline=pipeline, documents=added.ids, document_metadata=added.metadata, **{**name, **fields})

    @classmethod
    async def afrom_documents(cls, documents: Iterable[LangChainDocument], **options: Any) -> Self:
        """`from_documents` on an event loop, with the same options."""
        return await run_in_executor(None, cls.from_documents, documents, **options)

    def get_output_schema(self, config: RunnableConfig | None = None) -> type[BaseModel]:
        """Output as servers declare it."""
        return SystemOutput

    def _found(self, given: Given, config: RunnableConfig, **options: Any) -> dict[str, Any]:
        call = self._call(given, self._messages(given, config), options)
        return self._told(self.pipeline.ask(call.question, call.documents, settings=call.settings))

    async def _afound(self, given: Given, config: RunnableConfig, **options: Any) -> dict[str, Any]:
        call = self._call(given, await self._amessages(given, config), options)
        return self._told(await self.pipeline.aask(call.question, call.documents, settings=call.settings))

    def _pieces(self, given: Given, config: RunnableConfig, **options: Any) -> Iterator[AddableDict]:
        call, trim = self._call(given, self._messages(given, config), options), Trimmer()
        with self.pipeline.stream(call.question, call.documents, settings=call.settings) as stream:
            for piece in stream:
                yield from self._said(piece, trim)

    async def _apieces(self, given: Given, config: RunnableConfig, **options: Any) -> AsyncIterator[AddableDict]:
        call, trim = self._call(given, await self._amessages(given, config), options), Trimmer()
        stream = self.pipeline.stream(call.question, call.documents, settings=call.settings)
        try:
            async for each in stream:
                for piece in self._said(each, trim):
                    yield piece
        finally:
            await stream.aclose()

    def _said(self, piece: str | Answer, trim: Trimmer) -> Iterator[AddableDict]:
        """What a piece of a system's stream says: some text, or at the end context and metadata."""
        if isinstance(piece, Answer):
            yield AddableDict(self._told(piece), answer="")
        elif text := trim(piece):
            yield AddableDict(answer=text)

    @property
    def _finder(self) -> str:
        return self.get_name()

    @property
    def _at_once(self) -> int:
        return _AT_ONCE

    def _call(self, given: Given, messages: list[BaseMessage], options: Mapping[str, Any]) -> "_Call":
        """What the system is asked.

        Raises:
            ConfigError: an option is unknown or out of range, or asks for a deadline.
        """
        settings, timeout_s = self.decoding(options)
        if timeout_s is not None:
            raise ConfigError(f"timeout={timeout_s:g}: a system has no deadlines; leave it out, or use ACREDocumentQA.")
        asked = self.documents if given.documents is None else given.documents
        documents = None if asked == ALL else names_of(asked, self.pipeline.documents)
        return _Call(question_with_history(messages, most=self.history_messages), documents, settings)

    def _told(self, answer: Answer) -> dict[str, Any]:
        """Context, answer and metadata, as the output has them."""
        return {
            "context": [source_document(source, self.document_metadata) for source in answer.sources],
            "answer": answer.text,
            "metadata": {
                "model": model_name(self.pipeline),
                "usage": usage_of(answer.usage),
                "timings": asdict(answer.timings),
                "scope": answer.scope,
                "finished": answer.finished,
                "notes": list(answer.notes),
                "trace": [asdict(step) for step in answer.trace],
            },
        }


class _Call(NamedTuple):
    """What a system is asked: `documents=None` asks all."""

    question: str
    documents: list[str] | None
    settings: GenerationSettings
