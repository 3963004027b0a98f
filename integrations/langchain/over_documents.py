"""What every component over documents has: the engine, which documents, whose, their metadata. Asks nothing."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Self

from langchain_core.documents import Document as LangChainDocument
from pydantic import ConfigDict, Field

from acre_rag import ACRE
from acre_rag.integrations.langchain.adding import aadd_documents, add_documents, as_documents
from acre_rag.integrations.langchain.calls import ALL
from acre_rag.integrations.langchain.options import KnownOptions
from acre_rag.integrations.reading import aread_text, read_text


class OverDocuments(KnownOptions):
    """Fields and constructors of a component over documents.

    Attributes:
        acre: the engine.
        documents: ids of the documents; "*" for all of the tenant's.
        tenant: whose documents.
        document_metadata: id to the metadata of the original document.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    acre: ACRE = Field(exclude=True, repr=False)
    documents: Sequence[str] | str = ALL
    tenant: str = ""
    document_metadata: Mapping[str, Mapping[str, Any]] = Field(default_factory=dict, repr=False)

    @classmethod
    def from_documents(
        cls,
        documents: Iterable[LangChainDocument],
        *,
        acre: ACRE,
        tenant: str = "",
        join_pages: bool = False,
        rebuild: bool = False,
        **fields: Any,
    ) -> Self:
        """Read documents; those that the engine already has are there at once.

        Args:
            documents: named by their `id`, else by their `source`, else by a digest of the text; blank ones are left
                out. Each is read into a cache of its own, so a loader that makes one document a page makes one cache a
                page.
            acre: the engine.
            tenant: whose documents.
            join_pages: join documents that name the same `source`; sources then say which page they stand on.
            rebuild: read a document anew when the engine's store has its cache damaged, or from another model or other
                options; else that is an error.
            fields: other fields.

        Raises:
            ConfigError: an unknown field; told before anything is read.
            DocumentError: all are blank, or an id names another text.
            CapacityError: one is too long for the engine's window.
            FingerprintError: the store has a cache of another model or of other options.
            CorruptCacheError: the store has a cache that is damaged.
        """
        cls.check_options(fields)
        add = partial(read_text, acre, tenant=tenant, rebuild=rebuild)
        added = add_documents(add, documents, join_pages=join_pages)
        return cls(acre=acre, tenant=tenant, documents=added.ids, document_metadata=added.metadata, **fields)

    @classmethod
    async def afrom_documents(
        cls,
        documents: Iterable[LangChainDocument],
        *,
        acre: ACRE,
        tenant: str = "",
        join_pages: bool = False,
        rebuild: bool = False,
        **fields: Any,
    ) -> Self:
        """`from_documents` on an event loop."""
        cls.check_options(fields)
        add = partial(aread_text, acre, tenant=tenant, rebuild=rebuild)
        added = await aadd_documents(add, documents, join_pages=join_pages)
        return cls(acre=acre, tenant=tenant, documents=added.ids, document_metadata=added.metadata, **fields)

    @classmethod
    def from_texts(
        cls,
        texts: Iterable[str],
        *,
        acre: ACRE,
        metadatas: Sequence[dict[str, Any]] | None = None,
        ids: Sequence[str] | None = None,
        **fields: Any,
    ) -> Self:
        """`from_documents` for plain texts."""
        return cls.from_documents(as_documents(texts, metadatas, ids), acre=acre, **fields)
