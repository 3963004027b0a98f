"""One engine with other question-time options, the same object for the same options. Asks nothing itself.

Questions are batched by engine: components that were configured alike have to share one.
"""

from collections import OrderedDict
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

from langchain_core.retrievers import BaseRetriever

from acre_rag import ACRE
from acre_rag.integrations.langchain.guide import RetrieverGuide

_MOST = 16
_MADE: WeakKeyDictionary[ACRE, OrderedDict[Any, ACRE]] = WeakKeyDictionary()
"""The engines made last, for each engine; an engine made keeps its retriever alive."""
_LOCK = Lock()


def engine_with(acre: ACRE, *, retriever: BaseRetriever | None = None, **options: Any) -> ACRE:
    """The engine that asks with these options.

    Args:
        acre: the engine with the documents.
        retriever: guides refilling; by default `select` asks it too (see `ACRE.using`).
        options: question-time fields of `ACREConfig`; `None` leaves the engine's own.

    Raises:
        ConfigError: an option is out of range, or the strategy would not ask the retriever.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if not given and retriever is None:
        return acre
    # The engine made keeps the retriever alive, so its identity is not given to another one.
    key = (*sorted(given.items()), id(retriever))
    with _LOCK:
        made = _MADE.setdefault(acre, OrderedDict())
        if key not in made:
            made[key] = acre.using(retriever=RetrieverGuide(retriever) if retriever else None, **given)
        made.move_to_end(key)
        while len(made) > _MOST:
            made.popitem(last=False)
        return made[key]
