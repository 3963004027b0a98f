"""Whether the framework's own makers know an option: they swallow any other in silence. Makes nothing."""

from collections.abc import Callable, Collection, Mapping
from inspect import Parameter, signature
from typing import Any

from acre_rag.errors import ConfigError


def options_of(
    make: Callable[..., Any], options: Mapping[str, Any], *, given: Collection[str], besides: Collection[str] = ()
) -> dict[str, Any]:
    """Options to make something with. `verbose` goes to whoever has it; nobody else is disturbed by it.

    Args:
        make: a class or a function.
        options: what the user passed.
        given: arguments of `make` that are not the user's.
        besides: options that the user may pass and that others have taken already; for the message.

    Raises:
        ConfigError: an option that `make` does not know.
    """
    parameters = signature(make).parameters.values()
    names = [each.name for each in parameters if each.kind != Parameter.VAR_KEYWORD and each.name not in given]
    chosen = {name: value for name, value in options.items() if name in names or name != "verbose"}
    if unknown := sorted(chosen.keys() - set(names)):
        there_are = ", ".join(dict.fromkeys((*names, *besides)))
        raise ConfigError(f"{unknown[0]!r} is no option of {make.__qualname__}; there are: {there_are}.")
    return chosen
