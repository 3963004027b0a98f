"""ACRERetriever: the passages that a question would refill, as LangChain documents. Decodes nothing."""

from collections.abc import Sequence
from typing import Any, ClassVar

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document as LangChainDocument
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import run_in_executor
from pydantic import Field

from acre_rag import Document, Source
from acre_rag.integrations.langchain.calls import Asked, afind_documents, find_documents
from acre_rag.integrations.langchain.options import at_once, paced
from acre_rag.integrations.langchain.over_documents import OverDocuments
from acre_rag.integrations.langchain.results import passage, places_of, source_documents


class ACRERetriever(OverDocuments, BaseRetriever):
    """Retrieves with the model's own attention: no index, no embedding model, any wording.

    Each document's metadata is the original's with `document_id`, `start`, `end` (characters) and `score`.

    Attributes:
        k: passages to return, best first; `None` returns exactly what a question would refill.
    """

    elsewhere: ClassVar[str] = " What a vector store takes as search_kwargs={'k': 4} is k=4 here."

    k: int | None = Field(default=None, ge=1)

    def batch(
        self,
        inputs: list[str],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[list[LangChainDocument]]:
        """Retrieve for several questions, some at a time: any number of them fits the model's line."""
        configs = paced(config, len(inputs), at_once(self.acre))
        return super().batch(inputs, configs, return_exceptions=return_exceptions, **kwargs)

    async def abatch(
        self,
        inputs: list[str],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[list[LangChainDocument]]:
        """`batch` on an event loop."""
        configs = paced(config, len(inputs), at_once(self.acre))
        return await super().abatch(inputs, configs, return_exceptions=return_exceptions, **kwargs)

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        k: int | None = None,
        documents: Asked = None,
    ) -> list[LangChainDocument]:
        found = find_documents(self.acre, self.documents if documents is None else documents, self.tenant)
        asked = found.documents
        if (most := k or self.k) is None:
            return self._refilled(self.acre.retrieve(query, asked, tenant=self.tenant), asked)
        return self._best(query, asked, most)

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        k: int | None = None,
        documents: Asked = None,
    ) -> list[LangChainDocument]:
        found = await afind_documents(self.acre, self.documents if documents is None else documents, self.tenant)
        asked = found.documents
        if (most := k or self.k) is None:
            return self._refilled(await self.acre.aretrieve(query, asked, tenant=self.tenant), asked)
        return await run_in_executor(None, self._best, query, asked, most)

    def _refilled(self, sources: Sequence[Source], asked: Sequence[Document]) -> list[LangChainDocument]:
        by_id = {document.id: document for document in asked}
        return source_documents(places_of(sources), by_id, self.document_metadata)

    def _best(self, query: str, asked: Sequence[Document], k: int) -> list[LangChainDocument]:
        """The `k` best passages, also beyond what the window could refill.

        A document shorter than one block has no passages and no score: it counts as one of average score.
        """
        prepared = self.acre.using(max_passages=k).prepare(query, asked, tenant=self.tenant)
        selection, documents = prepared.selection, prepared.documents
        complete = selection.scope == "document" or self.acre.config.select == "retriever"
        ranked = selection.units if complete else selection.unit_scores
        places = [(documents[unit.document], unit.start, unit.stop, score) for unit, score in ranked]
        places += [(document, 0, len(document.text), 0.0) for document in documents if not document.n_blocks]
        if not complete:
            places.sort(key=lambda place: -place[-1])
        return [passage(*place, self.document_metadata) for place in places[:k]]
