"""One row of a comparison: what a system is called and where it is made. Loads nothing."""

from dataclasses import dataclass
from typing import Any, Literal

Family = Literal["acre", "kv", "retrieval"]


@dataclass(frozen=True)
class System:
    """One row of a comparison.

    Attributes:
        name: as the command line calls it.
        title: as tables print it.
        family: which kind.
        place: `module:function` that makes it from a `Setting` and options; imported when needed.
        options: options of that function.
        about: one sentence for people.
    """

    name: str
    title: str
    family: Family
    place: str
    about: str
    options: tuple[tuple[str, Any], ...] = ()
