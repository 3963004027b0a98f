"""What an ACREIndex persists of itself: ids, no texts and no tensors.

Texts and metadata are in the docstore, caches in the engine's store; id and text name them (`documents.cache_name`).
"""

from dataclasses import dataclass, field
from typing import cast

from llama_index.core.data_structs.data_structs import IndexStruct
from llama_index.core.data_structs.registry import INDEX_STRUCT_TYPE_TO_INDEX_STRUCT_CLASS
from llama_index.core.data_structs.struct_type import IndexStructType

STRUCT_TYPE = cast(IndexStructType, "acre")
"""The framework's enumeration is closed; its registries and its JSON take any string."""


@dataclass
class ACREIndexStruct(IndexStruct):
    """The documents of an index.

    Attributes:
        nodes: node id in the docstore to the id of the document that it stands for.
        tenant: whose the documents are, in the engine.
    """

    nodes: dict[str, str] = field(default_factory=dict)
    tenant: str = ""

    @classmethod
    def get_type(cls) -> IndexStructType:
        """Key in both registries."""
        return STRUCT_TYPE


INDEX_STRUCT_TYPE_TO_INDEX_STRUCT_CLASS[STRUCT_TYPE] = ACREIndexStruct
