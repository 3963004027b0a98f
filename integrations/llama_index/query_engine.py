"""ACRE as a LlamaIndex query engine: a question to a Response with its sources; finds and decodes nothing itself."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from llama_index.core.callbacks import CallbackManager
from llama_index.core.prompts.mixin import PromptDictType
from llama_index.core.schema import Document, NodeWithScore, QueryBundle, TransformComponent
from llama_index.core.storage.storage_context import StorageContext

from acre_rag import ACRE, Answer
from acre_rag.errors import ConfigError
from acre_rag.integrations.llama_index.answering import AnsweringEngine
from acre_rag.integrations.llama_index.asking import Asking
from acre_rag.integrations.llama_index.nodes import source_nodes
from acre_rag.integrations.llama_index.prompts import QUESTION_TEMPLATE, as_llama_index, from_llama_index
from acre_rag.integrations.llama_index.shelf import Held
from acre_rag.streams import TextStream


class ACREQueryEngine(AnsweringEngine[Asking]):
    """Answers from documents that were read once.

    A response's `source_nodes` are the refilled passages; its `metadata` holds tokens, seconds, scope and notes, and
    the digest of every text that was asked. While streaming, the sources are those of the selection; once the stream
    has ended they, and the metadata, are the answer's own.

    Use `ACREQueryEngine.from_documents` or `ACREIndex.as_query_engine`.

    Args:
        asking: the documents and the options.
        streaming: answer with a `StreamingResponse`, from `aquery` with an `AsyncStreamingResponse`.
        callback_manager: LlamaIndex's.
    """

    @classmethod
    def from_documents(
        cls,
        documents: Sequence[Document],
        *,
        acre: ACRE | str | None = None,
        tenant: str = "",
        join_pages: bool = False,
        rebuild: bool = False,
        transformations: list[TransformComponent] | None = None,
        storage_context: StorageContext | None = None,
        show_progress: bool = False,
        callback_manager: CallbackManager | None = None,
        **options: Any,
    ) -> "ACREQueryEngine":
        """Read documents and ask them.

        Args:
            documents: each is read into a cache of its own, so a reader that makes one Document a page makes one cache
                a page; see `join_pages`.
            acre: an engine, or the name of a model; the built-in one by default.
            tenant: whose the documents are, in the engine.
            join_pages: join Documents that name the same file.
            rebuild: as of `ACREIndex`.
            transformations: applied to the Documents first; they must not split them.
            storage_context: where texts and metadata are kept.
            show_progress: whether to show progress bars.
            callback_manager: LlamaIndex's.
            options: those of `ACREIndex.as_query_engine`; mistakes are told before anything is read.

        Raises:
            ConfigError: an unknown option, or another model to answer.
            CapacityError: a document is too long for the engine's window.
            FingerprintError: the engine's store has a cache of another model or of other options (see `rebuild`).
        """
        from acre_rag.integrations.llama_index.index import ACREIndex, engine_of

        if options.pop("llm", None) is not None:
            raise ConfigError(
                "An ACREQueryEngine answers with the engine's own model. For another one: "
                "ACREIndex.from_documents(documents, acre=...).as_query_engine(llm=...)."
            )
        reader = engine_of(acre)
        ACREIndex([], acre=reader, tenant=tenant).as_query_engine(**options)
        index = ACREIndex.from_documents(
            documents,
            storage_context=storage_context,
            show_progress=show_progress,
            callback_manager=callback_manager,
            transformations=transformations,
            acre=reader,
            tenant=tenant,
            join_pages=join_pages,
            rebuild=rebuild,
        )
        engine = index.as_query_engine(**options)
        assert isinstance(engine, cls)
        return engine

    def with_streaming(self, streaming: bool) -> "ACREQueryEngine":
        """The same engine that answers as a whole, or piece by piece."""
        return ACREQueryEngine(self.asking, streaming=streaming, callback_manager=self.callback_manager)

    def after_words(self, words: str) -> "ACREQueryEngine":
        """The same engine that tells the model something before it puts the question.

        The words are read with the question, but are not part of it: the question alone chooses the passages. Control
        tokens in them are words.
        """
        template = self.asking.acre.template
        acre = self.asking.acre.using(template=replace(template, told=words + template.told))
        return ACREQueryEngine(
            replace(self.asking, acre=acre), streaming=self.streaming, callback_manager=self.callback_manager
        )

    @property
    def model(self) -> str:
        """What the user called the model."""
        return self.asking.acre.decoder.name

    def retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        """The passages that a question would refill, without an answer."""
        held = self.asking.chosen()
        return source_nodes(self.asking.retrieve(query_bundle.query_str, held), held) if held else []

    async def aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        """`retrieve` on an event loop."""
        held = self.asking.chosen()
        return source_nodes(await self.asking.aretrieve(query_bundle.query_str, held), held) if held else []

    def _get_prompts(self) -> PromptDictType:
        return {QUESTION_TEMPLATE: as_llama_index(self.asking.acre.template.after)}

    def _update_prompts(self, prompts: PromptDictType) -> None:
        if unknown := [key for key in prompts if key != QUESTION_TEMPLATE]:
            raise ConfigError(f"No prompt {unknown[0]!r} here; there is: {QUESTION_TEMPLATE!r}.")
        if QUESTION_TEMPLATE in prompts:
            after = from_llama_index(prompts[QUESTION_TEMPLATE])
            template = replace(self.asking.acre.template, after=after)
            self.asking = replace(self.asking, acre=self.asking.acre.using(template=template))

    def _first_nodes(self, stream: TextStream[Answer], held: Sequence[Held]) -> list[NodeWithScore]:
        """A response names its sources before the first piece of text."""
        return source_nodes(stream.sources, held)

    async def _afirst_nodes(self, stream: TextStream[Answer], held: Sequence[Held]) -> list[NodeWithScore]:
        return source_nodes(await stream.asources(), held)
