"""Every system of a comparison by name: what it is, and how it is made. Loads a system's code when it is made."""

from collections.abc import Callable
from importlib import import_module
from inspect import Parameter, signature
from typing import Any, get_type_hints

from acre_rag.baselines.acre import ACRE_SYSTEMS, make_acre
from acre_rag.baselines.base import Pipeline, Setting
from acre_rag.baselines.kv.systems import KV_SYSTEMS
from acre_rag.baselines.options import check_options, option_types
from acre_rag.baselines.rag.systems import RETRIEVAL_SYSTEMS
from acre_rag.baselines.system import System
from acre_rag.config import ACREConfig
from acre_rag.errors import ConfigError


def make_system(name: str, setting: Setting, **options: Any) -> Pipeline:
    """A system, ready for documents.

    Raises:
        ConfigError: no such system, or it has no such option.
        UnavailableError: it cannot run here (no CUDA, no weights).
        MissingExtraError: its packages are not installed.
    """
    system = system_named(name)
    check_options(name, options, options_of(name))
    return _maker(system)(setting, **{**dict(system.options), **options})


def options_of(name: str) -> dict[str, Any]:
    """Options of a system with their types: its maker's; one that takes any more is a form of ACRE and passes them on.

    Raises:
        ConfigError: no such system.
    """
    make = _maker(system_named(name))
    known = option_types(make)
    if any(each.kind is Parameter.VAR_KEYWORD for each in signature(make).parameters.values()):
        known |= option_types(make_acre)
        known |= {of: kind for of, kind in get_type_hints(ACREConfig).items() if of != "window"}  # the setting's
    return known


def _maker(system: System) -> Callable[..., Pipeline]:
    module, function = system.place.split(":")
    make: Callable[..., Pipeline] = getattr(import_module(module), function)
    return make


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
