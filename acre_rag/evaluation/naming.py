"""Systems as a shell user names them, in the form that tables have: "acre,budget=512". Makes none of them."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from acre_rag.baselines.options import check_options
from acre_rag.baselines.registry import options_of, system_named
from acre_rag.config import ACREConfig
from acre_rag.errors import ConfigError
from acre_rag.evaluation.forms import Form

USUAL = ("acre", "acre-hybrid", "bm25", "rag", "full")
"""What is compared where nobody says what."""

_BOOLEANS = {"true": True, "false": False}


def forms_named(names: Sequence[str], texts: Sequence[str]) -> list[Form]:
    """What a run asks.

    Args:
        names: systems as the registry has them.
        texts: systems with options; see `form_of`.
    """
    chosen = names if names or texts else USUAL
    return [*(Form(name=name) for name in chosen), *map(form_of, texts)]


def form_of(text: str) -> Form:
    """A system with options, `NAME,OPTION=VALUE,...`; their names and values are checked before anything is loaded.

    Raises:
        ConfigError: no such system, it has no such option, or the option has no such value.
    """
    name, *given = (part.strip() for part in text.split(","))
    types = options_of(system_named(name).name)
    pairs = [part.partition("=") for part in given]
    if wrong := [option for option, equals, _ in pairs if not equals]:
        raise ConfigError(f"{wrong[0]!r} in --system {text} has no value: write it as {wrong[0] or 'OPTION'}=VALUE.")
    check_options(name, [option for option, _, _ in pairs], types)
    if len({option for option, _, _ in pairs}) < len(pairs):
        raise ConfigError(f"--system {text} names an option twice.")
    options = {option: _value(f"{name}: {option}", value, types[option]) for option, _, value in pairs}
    _check_ranges(options)
    return Form(name=name, options=options)


def _value(what: str, text: str, kind: Any) -> Any:
    """A value of an option's type, as its maker's signature has it."""
    kinds = [kind] if get_origin(kind) is Literal else list(get_args(kind) or (kind,))
    if NoneType in kinds and text == "None":
        return None
    if int in kinds and text.removeprefix("-").isdecimal():
        return int(text)
    if bool in kinds and text.lower() in _BOOLEANS:
        return _BOOLEANS[text.lower()]
    if str in kinds or text in get_args(kind):
        return text
    raise ConfigError(f"{what}={text!r} is not one of its values: {_choices(kind, kinds)}.")


def _choices(kind: Any, kinds: Sequence[Any]) -> str:
    if get_origin(kind) is Literal:
        return ", ".join(map(str, get_args(kind)))
    if bool in kinds:
        return "True, False"
    return "a whole number" if int in kinds else "it can be set in Python only"


def _check_ranges(options: Mapping[str, Any]) -> None:
    """Of ACRE's forms; baselines say theirs when they are made."""
    own = {field.name for field in fields(ACREConfig)}
    ACREConfig(**{name: value for name, value in options.items() if name in own})
