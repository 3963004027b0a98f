"""The long documents of chats, read once and kept while they are asked; knows no messages and no framework."""

import threading
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from acre_rag import ACRE, Document
from acre_rag.document import text_digest

_DIGITS = 32


class Remembered:
    """At most `most` documents at rest; the one that was asked longest ago is forgotten first.

    A text that is read again after it was forgotten gets a new name, so forgetting it never meets its next reader.

    Args:
        acre: the engine; not kept, so that what is filed under an engine does not keep it alive.
        tenant: keeps them apart from the user's own documents; what the engine's store has of it is taken over.
        most: documents kept while nobody asks them.
    """

    def __init__(self, acre: ACRE, *, tenant: str, most: int) -> None:
        self._tenant, self._most = tenant, most
        self._lock = threading.Lock()
        self._in_use: Counter[str] = Counter()
        self._n_forgotten = 0
        self._rested: OrderedDict[str, None] = OrderedDict.fromkeys(acre.documents_of(tenant))
        self._names = {name[:_DIGITS]: name for name in self._rested}

    @contextmanager
    def holding(self, acre: ACRE, text: str, timeout_s: float | None) -> Iterator[Document]:
        """The document, read by the engine if it is new; it is not forgotten inside the block."""
        name = self._take(text)
        try:
            yield acre.add(text, name, tenant=self._tenant, timeout_s=timeout_s)
        finally:
            for old in self._give(acre, name):
                acre.remove(old, tenant=self._tenant)

    @asynccontextmanager
    async def aholding(self, acre: ACRE, text: str, timeout_s: float | None) -> AsyncIterator[Document]:
        """`holding` on an event loop."""
        name = self._take(text)
        try:
            yield await acre.aadd(text, name, tenant=self._tenant, timeout_s=timeout_s)
        finally:
            for old in self._give(acre, name):
                await acre.aremove(old, tenant=self._tenant)

    def _take(self, text: str) -> str:
        digest = text_digest(text)[:_DIGITS]
        with self._lock:
            again = f"-{self._n_forgotten}" if self._n_forgotten else ""
            name = self._names.setdefault(digest, f"{digest}{again}")
            self._in_use[name] += 1
        return name

    def _give(self, acre: ACRE, name: str) -> list[str]:
        """Let a document rest; those to forget now."""
        with self._lock:
            self._in_use[name] -= 1
            if name in acre.documents_of(self._tenant):  # reading it may have failed
                self._rested[name] = None
                self._rested.move_to_end(name)
            idle = [each for each in self._rested if not self._in_use[each]]
            old = idle[: max(0, len(idle) - self._most)]
            for each in old:
                del self._rested[each], self._in_use[each], self._names[each[:_DIGITS]]
            self._n_forgotten += len(old)
            return old
