"""One option of ACRE over several values, as the paper's Figure 4: forms to ask, and the curves of what they scored."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from acre_rag.baselines.registry import system_named
from acre_rag.config import ACREConfig
from acre_rag.errors import ConfigError
from acre_rag.evaluation.forms import Form, title_of
from acre_rag.evaluation.report import Cell, Comparison, compare, of_one_setting
from acre_rag.evaluation.rows import Row
from acre_rag.evaluation.statistics import Estimate

_ALL_PASSAGES = 100_000


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Systems, each with every value of one option.

    Attributes:
        option: "budget" (`eta`, tokens refilled), "interval" (`l`, tokens per L1 entry) or "passage_tokens".
        values: its values.
        systems: names of ACRE's forms in the registry.
        fixed: another option, where it is held at a value of its own.

    Raises:
        ConfigError: not an option to sweep, a value out of range, or not a form of ACRE.
    """

    option: str
    values: Sequence[int]
    systems: Sequence[str] = ("acre",)
    fixed: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Every mistake is told before a model is loaded."""
        if self.option not in OPTIONS:
            raise ConfigError(f"{self.option!r} cannot be swept; these can: {', '.join(OPTIONS)}.")
        if not self.values or len(set(self.values)) < len(self.values):
            raise ConfigError(f"A sweep needs values, each once, got {list(self.values)}.")
        rest = " and ".join(name for name in OPTIONS if name != self.option)
        if wrong := [name for name in self.fixed if name not in OPTIONS or name == self.option]:
            raise ConfigError(f"{wrong[0]!r} cannot be held while {self.option} is swept; {rest} can.")
        for value in self.values:
            ACREConfig(**{**self.fixed, self.option: value})  # type: ignore[arg-type]
        if others := [name for name in self.systems if system_named(name).family != "acre"]:
            raise ConfigError(f"{others[0]!r} has no {self.option}; only ACRE's forms do.")

    @property
    def forms(self) -> list[Form]:
        """What to ask: where the budget is told nothing else may bound what is refilled, so all passages may be."""
        more = {"max_passages": _ALL_PASSAGES} if "budget" in (self.option, *self.fixed) else {}
        return [
            Form(name=name, options={**self.fixed, self.option: value, **more})
            for name in self.systems
            for value in self.values
        ]

    def comparison(self, rows: Iterable[Row]) -> Comparison:
        """Findings from this sweep's rows among others, of one model; the first form is the baseline."""
        labels = [form.label for form in self.forms]
        own = [row for row in rows if row.run.system in labels]
        return of_one_setting(compare(own, baseline=labels[0]))

    def curves(self, comparison: Comparison) -> list[tuple[str, list[tuple[float, Estimate]]]]:
        """Title of each system with its average score at each value; values that failed everywhere are left out."""
        averages = {
            each.system: each.average for each in comparison.systems if any(map(_answered, each.cells.values()))
        }
        curves = []
        for name in self.systems:
            forms = [form for form in self.forms if form.name == name]
            points = [(form.options[self.option], averages.get(form.label)) for form in forms]
            curves.append((title_of(name, {}), [(value, score) for value, score in points if score is not None]))
        return curves


def _answered(cell: Cell) -> bool:
    return cell.failed < cell.n


OPTIONS = {
    "budget": "refill budget, tokens",
    "interval": "interval, tokens per L1 entry",
    "passage_tokens": "passage length, tokens",
}
"""What can be swept, and what to write below the picture."""

VALUES = {
    "budget": (0, 512, 1024, 2048, 4096),
    "interval": (8, 16, 32, 64, 128),
    "passage_tokens": (112, 225, 450, 900),
}
"""The values by default."""
