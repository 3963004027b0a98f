"""ACRE for LlamaIndex: model, index, query and chat engine, retriever; and any other system. No method of its own."""

from acre_rag.errors import MissingExtraError

try:
    import llama_index.core as _core  # noqa: F401
except ImportError as error:
    raise MissingExtraError("llama-index-core", "llama-index", "acre_rag.integrations.llama_index") from error

from acre_rag.integrations.llama_index.chat_engine import ACREChatEngine
from acre_rag.integrations.llama_index.documents import join_pages
from acre_rag.integrations.llama_index.guide import guided_by
from acre_rag.integrations.llama_index.index import ACREIndex
from acre_rag.integrations.llama_index.llm import ACRELLM
from acre_rag.integrations.llama_index.query_engine import ACREQueryEngine
from acre_rag.integrations.llama_index.retriever import ACRERetriever
from acre_rag.integrations.llama_index.system import SystemQueryEngine

__all__ = [
    "ACRELLM",
    "ACREChatEngine",
    "ACREIndex",
    "ACREQueryEngine",
    "ACRERetriever",
    "SystemQueryEngine",
    "guided_by",
    "join_pages",
]
