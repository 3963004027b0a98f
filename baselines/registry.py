"""Every system of a comparison by name: what it is, and how it is made. Loads a system's code when it is made."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from acre_rag.baselines.acre import ACRE_SYSTEMS
from acre_rag.baselines.base import Pipeline, Setting
from acre_rag.baselines.kv.systems import KV_SYSTEMS
from acre_rag.baselines.rag.systems import RETRIEVAL_SYSTEMS
from acre_rag.baselines.system import System
from acre_rag.errors import ConfigError


def make_system(name: str, setting: Setting, **options: Any) -> Pipeline:
    """A system, ready for documents.

    Raises:
        ConfigError: no such system, or it has no such option.
        UnavailableError: it cannot run here (no CUDA, no weights).
        MissingExtraError: its packages are not installed.
    """
    system = system_named(name)
    module, function = system.place.split(":")
    make: Callable[..., Pipeline] = getattr(import_module(module), function)
    return make(setting, **{**dict(system.options), **options})


def system_named(name: str) -> System:
    """The system of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in SYSTEMS:
        raise ConfigError(f"No system is called {name!r}. There are: {', '.join(SYSTEMS)}.")
    return SYSTEMS[name]


SYSTEMS: dict[str, System] = {system.name: system for system in (*ACRE_SYSTEMS, *RETRIEVAL_SYSTEMS, *KV_SYSTEMS)}
"""Every system by name, ACRE's forms first."""
