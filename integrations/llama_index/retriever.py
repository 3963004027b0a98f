"""ACRE's selection as a LlamaIndex retriever, for any other synthesiser or for a human; decodes nothing."""

from typing import Any

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks import CallbackManager
from llama_index.core.schema import NodeWithScore, QueryBundle

from acre_rag.integrations.llama_index.asking import Asking
from acre_rag.integrations.llama_index.nodes import source_nodes


class ACRERetriever(BaseRetriever):
    """The passages that a question would refill, as nodes, best first.

    Use `ACREIndex.as_retriever`.

    Args:
        asking: the documents and the options.
        callback_manager: LlamaIndex's.
        options: the other arguments of `BaseRetriever`.
    """

    def __init__(self, asking: Asking, *, callback_manager: CallbackManager | None = None, **options: Any) -> None:
        self.asking = asking
        super().__init__(callback_manager=callback_manager, **options)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        held = self.asking.chosen()
        return source_nodes(self.asking.retrieve(query_bundle.query_str, held), held) if held else []

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        held = self.asking.chosen()
        return source_nodes(await self.asking.aretrieve(query_bundle.query_str, held), held) if held else []
