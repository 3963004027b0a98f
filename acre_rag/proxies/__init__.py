"""What an L1 entry is: pooled from its block (no training) or learned (the paper)."""

from acre_rag.proxies.base import Proxy
from acre_rag.proxies.learned import LearnedProxy
from acre_rag.proxies.pooled import PooledProxy

__all__ = ["LearnedProxy", "PooledProxy", "Proxy"]
