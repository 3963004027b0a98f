"""ACRE for LangChain: a chat model, a retriever, question-answering Runnables. Knows no other framework.

from acre_rag.integrations.langchain import ACREDocumentQA, ACRERetriever, ChatACRE
"""

from acre_rag.errors import MissingExtraError

try:
    import langchain_core  # noqa: F401
except ImportError as error:
    raise MissingExtraError("langchain-core", "langchain", "acre_rag.integrations.langchain") from error

from acre_rag.integrations.langchain.chat import ChatACRE
from acre_rag.integrations.langchain.guide import RetrieverGuide
from acre_rag.integrations.langchain.history import condenser
from acre_rag.integrations.langchain.pages import join_pages
from acre_rag.integrations.langchain.qa import ACREDocumentQA
from acre_rag.integrations.langchain.retriever import ACRERetriever
from acre_rag.integrations.langchain.system import SystemQA

__all__ = ["ACREDocumentQA", "ACRERetriever", "ChatACRE", "RetrieverGuide", "SystemQA", "condenser", "join_pages"]
