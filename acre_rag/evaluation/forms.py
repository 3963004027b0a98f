"""What is compared: a system with options, and which of them can share one reading of a document. Asks nobody.

ACRE's forms that differ only in what a question refills answer from the same caches: a document is read once for all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import groupby
from pathlib import Path
from typing import Any

from acre_rag.baselines.acre import CHOICE
from acre_rag.baselines.base import Pipeline, Setting
from acre_rag.baselines.registry import SYSTEMS, make_system, system_named
from acre_rag.config import ASKING_OPTIONS, ACREConfig
from acre_rag.engine import ACRE


@dataclass(frozen=True, kw_only=True)
class Form:
    """A system with options.

    Attributes:
        name: in the registry.
        options: beyond the registry's.

    Raises:
        ConfigError: no such system.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """A misspelt name is told before anything is loaded."""
        system_named(self.name)

    @property
    def label(self) -> str:
        """As files and tables call it: "acre", "acre,budget=512"."""
        return ",".join([self.name, *(f"{name}={value}" for name, value in _told(self.options).items())])

    def make(self, setting: Setting, shared: Pipeline | None) -> Pipeline:
        """The system; over the documents of `shared`, an engine of the same group, if there is one."""
        if not isinstance(shared, ACRE):
            return make_system(self.name, setting, **self.options)
        return shared.using(**{name: self.all_options.get(name, default) for name, default in _asking_defaults()})

    @property
    def all_options(self) -> dict[str, Any]:
        """The registry's and its own."""
        return {**dict(system_named(self.name).options), **self.options}

    @property
    def told_options(self) -> dict[str, Any]:
        """All options as rows tell them: an adapter by its name, without folders."""
        return _told(self.all_options)

    @property
    def adapter(self) -> Path | None:
        """The file of its own adapter, if it names one."""
        named = self.options.get("adapter")
        return Path(named) if named and Path(named).exists() else None

    @property
    def _reading(self) -> str:
        """The same for two forms that keep the same of a document."""
        system = system_named(self.name)
        if system.family != "acre":
            return self.label
        return repr((system.place, sorted((k, v) for k, v in self.all_options.items() if k not in ASKING_OPTIONS)))


def title_of(name: str, options: Mapping[str, Any]) -> str:
    """A system as people read it, with the options that are not its own; its name when the registry lacks it.

    Args:
        name: in the registry.
        options: all of its options.
    """
    system = SYSTEMS.get(name)
    own = dict(system.options) if system else {}
    extra = [f"{option} {value}" for option, value in options.items() if option not in own or own[option] != value]
    return ", ".join([system.title if system else name, *extra])


def grouped_by_reading(forms: Sequence[Form]) -> list[list[Form]]:
    """Forms that share one reading of a document, together; groups in the order of their first form."""
    first: dict[str, int] = {}
    for index, form in enumerate(forms):
        first.setdefault(form._reading, index)
    ordered = sorted(forms, key=lambda form: first[form._reading])
    return [list(group) for _, group in groupby(ordered, key=lambda form: form._reading)]


def _told(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _name_of(Path(value)) if name == "adapter" else value for name, value in options.items()}


def _name_of(adapter: Path) -> str:
    """Of a run's `adapter.safetensors` the run's folder: two stages must not have one name."""
    return adapter.parent.name if adapter.stem == "adapter" and adapter.parent.name else adapter.stem


def _asking_defaults() -> list[tuple[str, Any]]:
    defaults = {each.name: each.default for each in fields(ACREConfig) if each.name in ASKING_OPTIONS}
    return [*(defaults | {"select": CHOICE}).items()]
