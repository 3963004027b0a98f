"""An index of documents that are read whole, one cache each; keeps no tensors and answers nothing itself."""

from collections.abc import Callable, Sequence
from typing import Any

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.callbacks import CallbackManager
from llama_index.core.chat_engine import CondensePlusContextChatEngine, ContextChatEngine, SimpleChatEngine
from llama_index.core.chat_engine.types import BaseChatEngine, ChatMode
from llama_index.core.indices.registry import INDEX_STRUCT_TYPE_TO_INDEX_CLASS
from llama_index.core.llms.llm import LLM
from llama_index.core.llms.utils import LLMType, resolve_llm
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import Document, TransformComponent
from llama_index.core.storage.storage_context import StorageContext

from acre_rag import ACRE, GenerationSettings
from acre_rag.config import ASKING_OPTIONS
from acre_rag.errors import ConfigError
from acre_rag.integrations.llama_index.asking import Asking, engine_with
from acre_rag.integrations.llama_index.chat_engine import ACREChatEngine
from acre_rag.integrations.llama_index.documents import join_pages as pages_joined
from acre_rag.integrations.llama_index.documents import refuse_blanks
from acre_rag.integrations.llama_index.llm import ACRELLM
from acre_rag.integrations.llama_index.names import options_of
from acre_rag.integrations.llama_index.prompts import QUESTION_TEMPLATE
from acre_rag.integrations.llama_index.query_engine import ACREQueryEngine
from acre_rag.integrations.llama_index.retriever import ACRERetriever
from acre_rag.integrations.llama_index.struct import STRUCT_TYPE
from acre_rag.integrations.llama_index.upkeep import WholeDocumentIndex, never_splitting

_CHOOSING = ("filters", "doc_ids", "retriever", "similarity_top_k", *ASKING_OPTIONS)
_QUERYING = (*_CHOOSING, "settings", "timeout_s")
_CHATS_OVER_PASSAGES: dict[ChatMode, Callable[..., BaseChatEngine]] = {
    ChatMode.CONTEXT: ContextChatEngine.from_defaults,
    ChatMode.CONDENSE_PLUS_CONTEXT: CondensePlusContextChatEngine.from_defaults,
}


class ACREIndex(WholeDocumentIndex):
    """Documents in an ACRE engine, under LlamaIndex's ids.

    Each Document is read whole into one cache, named by the Document and its text: changing a text reads that document
    anew and no other; changing its metadata reads nothing. A reader that makes one Document a page therefore
    makes one cache a page; `join_pages` joins them first.

    `storage_context.persist` keeps ids, texts and metadata; caches outlive a restart in the engine's own store
    (`ACRE(..., store=folder)`), and are built anew where it has none. Readers draw new ids at every start; a document
    with such an id goes by its file's name and its text, so its cache is found again all the same.

    Indexes on one engine that hold the same document (by its id, or by file and text where that was drawn) share its
    cache, and deleting it from one deletes it from the engine: give each its own `tenant` to keep them apart.

    Args:
        nodes: whole documents as nodes; usually `ACREIndex.from_documents` is the way.
        acre: the engine that reads and answers.
        tenant: whose the documents are, in the engine; a loaded index remembers its own.
        rebuild: read a document anew when the engine's store has its cache damaged, or from another model or other
            options; else that is an error.
        index_struct: of an index that was stored; `load_index_from_storage(storage_context, acre=...)` passes it.
        transformations: applied to every Document that is inserted; they must not split it.
        show_progress: whether to show progress bars.
        options: the other arguments of `BaseIndex`.

    Raises:
        ConfigError: no engine.
        DocumentError: several nodes of one document; or a stored text is missing.
        FingerprintError: the engine's store has a cache of another model or of other options (see `rebuild`).
    """

    @classmethod
    def from_documents(
        cls,
        documents: Sequence[Document],
        storage_context: StorageContext | None = None,
        show_progress: bool = False,
        callback_manager: CallbackManager | None = None,
        transformations: list[TransformComponent] | None = None,
        *,
        acre: ACRE | str | None = None,
        tenant: str = "",
        join_pages: bool = False,
        **options: Any,
    ) -> "ACREIndex":
        """Read documents, each whole.

        Args:
            documents: the documents; blank ones are left out with a warning.
            storage_context: where texts and metadata are kept.
            show_progress: whether to show progress bars.
            callback_manager: LlamaIndex's.
            transformations: applied to the Documents first; they must not split them.
            acre: an engine, or the name of a model; the built-in one by default.
            tenant: whose the documents are, in the engine.
            join_pages: join Documents that name the same file (see `documents.join_pages`).
            options: the other arguments of `ACREIndex`.

        Raises:
            DocumentError: a transformation split a document, or all of them are blank.
            CapacityError: a document is too long for the engine's window.
        """
        refuse_blanks(documents)
        return super().from_documents(
            pages_joined(documents) if join_pages else documents,
            storage_context=storage_context,
            show_progress=show_progress,
            callback_manager=callback_manager,
            transformations=never_splitting(transformations),
            acre=engine_of(acre),
            tenant=tenant,
            **options,
        )

    def as_retriever(self, **options: Any) -> ACRERetriever:
        """The selection alone, as nodes.

        Args:
            options: filters (`MetadataFilters`) and doc_ids choose the documents; retriever (any of LlamaIndex) guides
                the choice of passages; select, granularity, budget, max_passages (or similarity_top_k), l1_context,
                recompute are the engine's.

        Raises:
            ConfigError: an unknown option.
        """
        object_map = {"object_map": self._object_map} if self._object_map else {}
        return ACRERetriever(self._asking(options), callback_manager=self._callback_manager, **object_map)

    def as_query_engine(self, llm: LLMType | None = None, **options: Any) -> BaseQueryEngine:
        """Answers from the caches; with another `llm`, that one answers from the text of ACRE's passages.

        Args:
            llm: answers instead of ACRE.
            options: those of `as_retriever`, and streaming; settings (`GenerationSettings`), timeout_s and
                question_template (see `ACREQueryEngine.update_prompts`), or with an `llm` instead of these three those
                of `RetrieverQueryEngine.from_args`.

        Raises:
            ConfigError: an unknown option.
        """
        if llm is not None:
            choosing = {name: options.pop(name) for name in _CHOOSING if name in options}
            answering = options_of(
                RetrieverQueryEngine.from_args, options, given=("retriever", "llm"), besides=_CHOOSING
            )
            other = resolve_llm(llm, callback_manager=self._callback_manager)
            return RetrieverQueryEngine.from_args(self.as_retriever(**choosing), llm=other, **answering)
        streaming, template = options.pop("streaming", False), options.pop(QUESTION_TEMPLATE, None)
        engine = ACREQueryEngine(self._asking(options), streaming=streaming, callback_manager=self._callback_manager)
        if template is not None:
            engine.update_prompts({QUESTION_TEMPLATE: template})
        return engine

    def as_chat_engine(
        self, chat_mode: ChatMode = ChatMode.BEST, llm: LLMType | None = None, **options: Any
    ) -> BaseChatEngine:
        """A conversation about the documents.

        Args:
            chat_mode: "best" puts the conversation so far with the question and answers from the caches;
                "condense_question" has the model rewrite the question first, then answers from the caches; "context"
                and "condense_plus_context" put the text of ACRE's passages into an ordinary chat; "simple" is a chat
                without documents.
            llm: rewrites questions, or chats; this engine's model by default. In mode "best" there is nothing for it to
                do.
            options: those of `as_query_engine` and of the chat engine (system_prompt, memory, chat_history and more).

        Raises:
            ConfigError: an unknown option, or an `llm` in mode "best".
            ValueError: an unknown mode.
        """
        mode = ChatMode(chat_mode)
        if llm is not None and mode == ChatMode.BEST:
            raise ConfigError(
                "In mode 'best' the engine's own model answers and nobody asks another llm. Leave it out, have it "
                "rewrite questions (chat_mode='condense_question'), or have it answer from ACRE's passages ('context', "
                "'condense_plus_context')."
            )
        other: LLM = resolve_llm(llm, callback_manager=self._callback_manager) if llm else ACRELLM(acre=self.acre)
        if mode in (ChatMode.BEST, ChatMode.CONDENSE_QUESTION):
            names = (*_QUERYING, QUESTION_TEMPLATE)
            querying = {name: options.pop(name) for name in names if name in options}
            talking = options_of(ACREChatEngine, options, given=("query_engine", "llm", "condense"), besides=names)
            engine = self.as_query_engine(**querying)
            assert isinstance(engine, ACREQueryEngine)
            return ACREChatEngine(engine, llm=other, condense=mode == ChatMode.CONDENSE_QUESTION, **talking)
        if mode == ChatMode.SIMPLE:
            talking = options_of(SimpleChatEngine.from_defaults, options, given=("llm",))
            return SimpleChatEngine.from_defaults(llm=other, **talking)
        choosing = {name: options.pop(name) for name in _CHOOSING if name in options}
        if (make := _CHATS_OVER_PASSAGES.get(mode)) is not None:
            talking = options_of(make, options, given=("retriever", "llm"), besides=_CHOOSING)
            return make(retriever=self.as_retriever(**choosing), llm=other, **talking)
        return super().as_chat_engine(mode, llm=other)  # refuses the deprecated modes in the framework's own words

    def _asking(self, options: dict[str, Any]) -> Asking:
        own = {name: options.pop(name) for name in ("filters", "doc_ids", "settings", "timeout_s") if name in options}
        settings = own.get("settings")
        if settings is not None and not isinstance(settings, GenerationSettings):
            raise ConfigError(f"settings must be GenerationSettings, got {type(settings).__name__}.")
        return Asking(acre=engine_with(self._shelf, **options), shelf=self._shelf, **own)


def engine_of(acre: ACRE | str | None) -> ACRE:
    """An engine, by itself or by the name of its model; the built-in one by default."""
    return acre if isinstance(acre, ACRE) else ACRE.from_pretrained(**({"model": acre} if acre else {}))


INDEX_STRUCT_TYPE_TO_INDEX_CLASS[STRUCT_TYPE] = ACREIndex
