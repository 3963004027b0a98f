"""What the methods of kvpress share: a budget of slots, and the refusal of models that do not fit. Knows no method."""

from acre_rag.baselines.base import Setting
from acre_rag.baselines.kv.base import KVBaseline
from acre_rag.baselines.kv.pressing import check_press_fits, kvpress_version
from acre_rag.config import ACREConfig
from acre_rag.errors import ConfigError


class Pressed(KVBaseline):
    """A cache of at most `kept_tokens` slots.

    Args:
        setting: what is the same for every system.
        kept_tokens: the budget, slots of each layer and head; by default ACRE's refill budget (`eta`, 4096), at most
            half of the window.
        always_kept: slots that the method never drops; the budget must be larger.
        reserve_tokens: see `KVBaseline`.

    Raises:
        ConfigError: the budget is out of range.
        MissingExtraError: kvpress is not installed.
        UnsupportedModelError: kvpress does not fit the model.
    """

    def __init__(
        self, setting: Setting, *, kept_tokens: int | None, always_kept: int, reserve_tokens: int | None
    ) -> None:
        super().__init__(setting, reserve_tokens=reserve_tokens)
        check_press_fits(self.decoder)
        window = setting.most_tokens
        self.kept_tokens = min(ACREConfig().budget, window // 2) if kept_tokens is None else kept_tokens
        most = window - self.reserve_tokens
        if not always_kept < self.kept_tokens <= most:
            raise ConfigError(
                f"kept_tokens={self.kept_tokens:,} must be more than the {always_kept:,} slots that are never dropped, "
                f"and at most the {most:,} that window={window:,} leaves beside question and answer."
            )

    @property
    def facts(self) -> dict[str, str]:
        """Library and budget."""
        return super().facts | {"library": kvpress_version(), "kept_tokens": str(self.kept_tokens)}
