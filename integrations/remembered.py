"""The long documents of chats, read once and kept while they are asked; knows no messages and no framework."""

import asyncio
import threading
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from acre_rag import ACRE, Document
from acre_rag.document import text_digest
from acre_rag.errors import DocumentError
from acre_rag.library import Library

_DIGITS = 32


class Remembered:
    """Documents at rest, until as many others were asked after them as their last asker allows.

    A text that is read again after it was forgotten gets a new name, so forgetting it never meets its next reader.

    Args:
        acre: the engine; not kept, so that what is filed under an engine does not keep it alive.
        tenant: keeps them apart from the user's own documents; what the engine's store has of it is taken over.
        most: how many of those that are taken over are kept until they are asked.
    """

    def __init__(self, acre: ACRE, *, tenant: str, most: int) -> None:
        self._tenant = tenant
        self._lock = threading.Lock()
        self._in_use: Counter[str] = Counter()
        self._n_forgotten = 0
        self._rested = OrderedDict.fromkeys(acre.documents_of(tenant), most)
        self._names = {name[:_DIGITS]: name for name in self._rested}

    @contextmanager
    def holding(self, acre: ACRE, text: str, *, most: int, timeout_s: float | None) -> Iterator[Document]:
        """The document, read by the engine if it is new; it is not forgotten inside the block.

        Args:
            acre: the engine, or one that shares its documents.
            text: the document.
            most: how many, this one included, are kept while nobody asks them.
            timeout_s: most seconds of waiting and reading.
        """
        name = self._take(text)
        try:
            yield acre.add(text, name, tenant=self._tenant, timeout_s=timeout_s)
        finally:
            for old in self._give(acre, name, most):
                with suppress(DocumentError):  # another process has removed it, or the user
                    acre.remove(old, tenant=self._tenant)

    @asynccontextmanager
    async def aholding(self, acre: ACRE, text: str, *, most: int, timeout_s: float | None) -> AsyncIterator[Document]:
        """`holding` on an event loop."""
        name = self._take(text)
        try:
            yield await acre.aadd(text, name, tenant=self._tenant, timeout_s=timeout_s)
        finally:
            for old in self._give(acre, name, most):
                with suppress(DocumentError):
                    await acre.aremove(old, tenant=self._tenant)

    def _take(self, text: str) -> str:
        digest = text_digest(text)[:_DIGITS]
        with self._lock:
            again = f"-{self._n_forgotten}" if self._n_forgotten else ""
            name = self._names.setdefault(digest, f"{digest}{again}")
            self._in_use[name] += 1
        return name

    def _give(self, acre: ACRE, name: str, most: int) -> list[str]:
        """Let a document rest; those to forget now."""
        with self._lock:
            self._in_use[name] -= 1
            if name in acre.documents_of(self._tenant):  # reading it may have failed
                self._rested[name] = most
                self._rested.move_to_end(name)
            idle = [each for each in reversed(self._rested) if not self._in_use[each]]
            old = [each for n_later, each in enumerate(idle) if n_later >= self._rested[each]]
            for each in old:
                del self._rested[each], self._in_use[each], self._names[each[:_DIGITS]]
            self._n_forgotten += len(old)
            return old


_KEPT: WeakKeyDictionary[Library, dict[str, Remembered]] = WeakKeyDictionary()
"""Chat models are made anew for every configuration, and engines by `using`: one place for those that share documents,
or one would forget what another asks."""
_KEPT_LOCK = threading.Lock()


@dataclass(frozen=True)
class Carried:
    """A long text that a chat carries.

    Attributes:
        acre: the engine that reads it.
        text: the text.
        tenant: whose it is, in the engine: apart from the user's own documents.
        most: such texts kept while nobody asks them.
    """

    acre: ACRE
    text: str
    tenant: str
    most: int

    def holding(self, timeout_s: float | None) -> AbstractContextManager[Document]:
        """The document, read if it is new; it is not forgotten inside the block."""
        return self._kept().holding(self.acre, self.text, most=self.most, timeout_s=timeout_s)

    @asynccontextmanager
    async def aholding(self, timeout_s: float | None) -> AsyncIterator[Document]:
        """`holding` on an event loop."""
        kept = await asyncio.to_thread(self._kept)  # the first look at a store takes its time
        async with kept.aholding(self.acre, self.text, most=self.most, timeout_s=timeout_s) as document:
            yield document

    def _kept(self) -> Remembered:
        with _KEPT_LOCK:
            kept = _KEPT.setdefault(self.acre.library, {})
            if self.tenant not in kept:
                kept[self.tenant] = Remembered(self.acre, tenant=self.tenant, most=self.most)
            return kept[self.tenant]
