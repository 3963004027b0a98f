"""Where caches rest: device, host or disk, within byte budgets, least recently used first out. Knows no text.

A cache has a compact part (prefix, L1, tail, retrieval heads' keys, prior) and L2. On the device tier the compact part
is on the model's device; on the host tier it waits in host memory; on the disk tier only the store has it. L2 is in
host memory or mapped from the store, where a question reads just its chosen blocks. One lock
guards all moves; what a caller holds stays where it is.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any, Literal, TypeVar, cast

import torch

from acre_rag.cache import BiLayerCache
from acre_rag.document import Document
from acre_rag.errors import AcreError, CapacityError, DocumentError
from acre_rag.transfer import release_unused

Tier = Literal["device", "host", "disk"]
Reload = Callable[[], BiLayerCache]


@dataclass
class Statistics:
    """Counts since the engine was made.

    Attributes:
        hits: questions that found a document's compact part on the device.
        misses: questions that had to fetch it.
        evictions: compact parts and L2s that were moved to a slower tier, or dropped because the store has them.
        device_bytes: compact parts on the device now.
        host_bytes: L2 and waiting compact parts in host memory now.
        disk_bytes: L2 that is mapped from the store now.
    """

    hits: int = 0
    misses: int = 0
    evictions: int = 0
    device_bytes: int = 0
    host_bytes: int = 0
    disk_bytes: int = 0


@dataclass(eq=False)
class _Home:
    """One document's place: `resting` is its cache, compact part in host memory, while it is off the device."""

    document: Document
    reload: Reload | None
    resting: BiLayerCache | None = None
    pinned: bool = False
    used: int = 0

    @property
    def tier(self) -> Tier:
        return "device" if self.document.holder.cache else "host" if self.resting else "disk"

    @property
    def cache(self) -> BiLayerCache | None:
        return self.document.holder.cache or self.resting

    @property
    def device_bytes(self) -> int:
        return self.document.holder.cache.device_bytes if self.document.holder.cache else 0

    @property
    def host_bytes(self) -> int:
        waiting = self.resting.device_bytes if self.resting else 0
        return waiting + (self.cache.host_bytes if self.cache else 0)

    @property
    def disk_bytes(self) -> int:
        return self.cache.l2.n_bytes - self.cache.l2.host_bytes if self.cache else 0


Method = TypeVar("Method", bound=Callable[..., Any])


def _locked(method: Method) -> Method:
    """Run a method while no other thread changes the homes."""

    @wraps(method)
    def run(self: "Residency", *args: Any, **kwargs: Any) -> Any:
        with self._changing:
            return method(self, *args, **kwargs)

    return cast(Method, run)


class Residency:
    """Keeps caches within budgets.

    Args:
        device: the model's device.
        device_bytes: budget of compact parts on it; `None` for no limit.
        host_bytes: budget of host memory; `None` for no limit.
        poison: fill freed tensors with NaN, so that a test sees any use after release.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        device_bytes: int | None = None,
        host_bytes: int | None = None,
        poison: bool = False,
    ) -> None:
        self._device, self._device_budget, self._host_budget, self._poison = device, device_bytes, host_bytes, poison
        self._homes: dict[Document, _Home] = {}
        self._held: list[Document] = []
        self._clock = 0
        self._counts = Statistics()
        self._changing = threading.RLock()

    @property
    @_locked
    def statistics(self) -> Statistics:
        """Counts, and bytes of each tier as they are now."""
        homes = self._homes.values()
        return replace(
            self._counts,
            device_bytes=sum(home.device_bytes for home in homes),
            host_bytes=sum(home.host_bytes for home in homes),
            disk_bytes=sum(home.disk_bytes for home in homes),
        )

    @_locked
    def tier(self, document: Document) -> Tier:
        """Where a document's compact part is."""
        return self._home(document).tier

    @_locked
    def admit(self, document: Document, reload: Reload | None) -> None:
        """Take charge of a document; its holder may be filled (just read) or empty (it is in the store).

        Args:
            document: the document.
            reload: maps its cache from the store; `None` when the store does not have it.

        Raises:
            CapacityError: it does not fit the budgets; it is not kept.
            StoreError: room was to be made by a document that cannot be read from the store any more.
        """
        home = self._homes[document] = _Home(document, reload, used=self._tick())
        try:
            self._make_room(keep=[home])
        except AcreError:
            self.forget(document)
            raise

    @contextmanager
    def holding(self, documents: Sequence[Document]) -> Iterator[None]:
        """The documents' caches are on the device inside the block.

        Raises:
            CapacityError: together they do not fit the device's budget.
            DocumentError: one of them was removed.
        """
        self._hold(documents)
        try:
            yield
        finally:
            self._let_go(documents)

    @_locked
    def pin(self, document: Document, pinned: bool = True) -> None:
        """Keep a document on the device until it is unpinned."""
        home = self._home(document)
        if pinned:
            self._fetch(home)
        home.pinned = pinned

    @_locked
    def forget(self, document: Document) -> None:
        """Free everything of a document."""
        home = self._homes.pop(document, None)
        if home is None:
            return
        if home.cache:
            self._free(home.cache)
        home.document.holder.cache = home.resting = None

    @_locked
    def rest(self, document: Document) -> None:
        """Move a document to the slowest tier that has it.

        Raises:
            DocumentError: only memory has it.
        """
        home = self._home(document)
        if home.reload is None:
            raise DocumentError(
                f"{document.id!r} is not in a store, so releasing it would lose it. Give the engine a store=DIR, or "
                "remove it."
            )
        home.pinned = False
        self._to_disk(home)

    @_locked
    def free_idle(self) -> None:
        """Move everything that no question holds off the device; the first rung when memory runs out."""
        for home in self._idle():
            if home.reload:
                self._to_disk(home)
            else:
                self._to_host(home)
        release_unused(self._device)

    @_locked
    def _hold(self, documents: Sequence[Document]) -> None:
        homes = [self._home(document) for document in documents]
        self._held += documents
        try:
            for home in homes:
                home.used = self._tick()
                self._fetch(home)
            self._make_room(keep=homes)
        except BaseException:
            self._let_go(documents)
            raise

    @_locked
    def _let_go(self, documents: Sequence[Document]) -> None:
        for document in documents:
            self._held.remove(document)

    def _home(self, document: Document) -> _Home:
        if document not in self._homes:
            raise DocumentError(f"The document {document.id!r} was removed, here or by another process. Add it again.")
        return self._homes[document]

    def _tick(self) -> int:
        self._clock += 1
        return self._clock

    def _fetch(self, home: _Home) -> None:
        """Bring the compact part to the device."""
        if home.document.holder.cache:
            self._counts.hits += 1
            return
        self._counts.misses += 1
        if home.resting is None:
            assert home.reload is not None
            home.resting = home.reload()
        resting = home.resting
        moved = resting.to(self._device)  # when memory runs out here, the document stays where it is
        home.document.holder.cache, home.resting = moved, None
        self._free(resting, keep=moved)

    def _make_room(self, *, keep: Sequence[_Home]) -> None:
        """Evict least recently used documents until both budgets are met."""
        kept = set(keep)
        if self._device_budget is not None:
            for home in self._idle(kept):
                if self.statistics.device_bytes <= self._device_budget:
                    break
                if home.tier == "device":
                    self._to_host(home)
            self._check("device_bytes", self.statistics.device_bytes, self._device_budget)
        if self._host_budget is not None:
            for home in [*self._idle(kept), *keep]:
                if self.statistics.host_bytes <= self._host_budget:
                    break
                if home.reload and home.tier == "host":
                    self._to_disk(home)
                elif home.reload and home.host_bytes:
                    self._map_l2(home)
            self._check("host_bytes", self.statistics.host_bytes, self._host_budget)

    def _idle(self, keep: Iterable[_Home] = ()) -> list[_Home]:
        """Homes that may be moved, least recently used first."""
        busy = {*keep, *(self._homes[document] for document in self._held if document in self._homes)}
        return sorted((h for h in self._homes.values() if h not in busy and not h.pinned), key=lambda home: home.used)

    def _check(self, name: str, used: int, budget: int) -> None:
        if used > budget:
            raise CapacityError(
                f"The documents in use need {used:,} bytes, more than {name}={budget:,}. Raise the budget, ask fewer "
                "documents at once, unpin some, or give the engine a store=DIR so that idle ones can rest on disk."
            )

    def _to_host(self, home: _Home) -> None:
        cache = home.document.holder.cache
        if cache is None:
            return
        moved = cache.to(torch.device("cpu"))
        home.document.holder.cache, home.resting = None, moved
        self._free(cache, keep=moved)
        self._counts.evictions += 1

    def _to_disk(self, home: _Home) -> None:
        if home.cache is None:
            return
        self._free(home.cache)
        home.document.holder.cache = home.resting = None
        self._counts.evictions += 1

    def _map_l2(self, home: _Home) -> None:
        """Keep the compact part, leave L2 to the store."""
        cache = home.document.holder.cache
        assert cache is not None and home.reload is not None
        mapped = replace(cache, l2=home.reload().l2)
        self._free(cache, keep=mapped)
        home.document.holder.cache = mapped
        self._counts.evictions += 1

    def _free(self, cache: BiLayerCache, keep: BiLayerCache | None = None) -> None:
        """Nothing may use these tensors any more; in a test build they are poisoned."""
        if not self._poison:
            return
        kept = {tensor.untyped_storage().data_ptr() for tensor in (keep.tensors if keep else [])}
        with torch.inference_mode():
            for tensor in cache.tensors:
                if tensor.untyped_storage().data_ptr() not in kept:
                    tensor.fill_(float("nan") if tensor.is_floating_point() else 0)
