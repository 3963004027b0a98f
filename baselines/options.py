"""Which options something takes, by its signature; others are refused by name. Knows no system."""

from collections.abc import Callable, Collection, Iterable
from inspect import Parameter, signature
from typing import Any, get_type_hints

from acre_rag.errors import ConfigError


def option_names(make: Callable[..., Any]) -> list[str]:
    """Keyword-only parameters, in order."""
    return [each.name for each in signature(make).parameters.values() if each.kind is Parameter.KEYWORD_ONLY]


def option_types(make: Callable[..., Any]) -> dict[str, Any]:
    """Keyword-only parameters, in order, with their types."""
    hints = get_type_hints(make)
    return {name: hints[name] for name in option_names(make)}


def check_options(name: str, given: Iterable[str], known: Collection[str]) -> None:
    """Refuse what nobody would take.

    Args:
        name: what the options are of, for the message.
        given: the options.
        known: those that it takes.

    Raises:
        ConfigError: one is not known.
    """
    if unknown := [option for option in given if option not in known]:
        raise ConfigError(f"{name} has no option {unknown[0]!r}. It has: {', '.join(known) or 'none'}.")
