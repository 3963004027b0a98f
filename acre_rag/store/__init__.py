"""Documents on disk: folders that appear whole (files), manifests, shards of L2, and the store that joins them."""

from acre_rag.store.entry import Entry
from acre_rag.store.store import Store

__all__ = ["Entry", "Store"]
