"""SelfExtend (arXiv 2401.01325) as a system: which group a document needs, and how long it may be.

Knows no tensor of the attention itself (two_rotations.py). No library runs on transformers 5, so the method is ours.
"""

from contextlib import AbstractContextManager, nullcontext

from torch import Tensor
from transformers import Cache, DynamicCache

from acre_rag.baselines.base import Setting
from acre_rag.baselines.kv.base import KVBaseline, Prefilled
from acre_rag.baselines.kv.prefill import prefill
from acre_rag.baselines.kv.two_rotations import TwoRotations, TwoRotationsLayer, self_extended
from acre_rag.construct import ProgressCallback
from acre_rag.errors import ConfigError, UnsupportedModelError

_GROUPS = (1, 2, 4, 8, 16)


class SelfExtend(KVBaseline):
    """All slots are kept; beyond the neighbour window, tokens share positions in groups, so that none is unknown.

    Unless `group` is given, each document takes the smallest of 1 (the stock model, for all that fits the window), 2,
    4, 8 and 16 at which positions stay within two thirds of the window, as the authors advise. The middle of a document
    that is too long for 16 is left out.

    Args:
        setting: what is the same for every system.
        neighbours: `w`, most recent tokens at their true distance; by default a quarter of the window, at most 1024
            (the authors' choice for a window of 4096).
        group: `g`, tokens that share a position; `None` chooses for each document.
        reserve_tokens: see `KVBaseline`.

    Raises:
        ConfigError: an option is out of range.
        UnsupportedModelError: the model's rotation changes with the length.
    """

    def __init__(
        self,
        setting: Setting,
        *,
        neighbours: int | None = None,
        group: int | None = None,
        reserve_tokens: int | None = None,
    ) -> None:
        super().__init__(setting, reserve_tokens=reserve_tokens)
        window = setting.most_tokens
        self.neighbours = min(1024, window // 4) if neighbours is None else neighbours
        self.group = group
        if not 1 <= self.neighbours <= window // 2:
            raise ConfigError(f"neighbours={self.neighbours:,} must be from 1 to half of window={window:,}.")
        if group is not None and not 1 <= group <= self.neighbours:
            raise ConfigError(f"group={group} must be from 1 to the {self.neighbours:,} neighbours.")
        rope = getattr(self.decoder.model.config, "rope_parameters", None) or {}
        if rope.get("rope_type") == "dynamic":
            raise UnsupportedModelError(
                f"{self.decoder.name} scales its rotation 'dynamically', with the length read so far; SelfExtend needs "
                "one rotation for all lengths. Use full context, which this model extends by itself."
            )

    @property
    def facts(self) -> dict[str, str]:
        """Neighbours and group."""
        return super().facts | {"neighbours": str(self.neighbours), "group": str(self.group or "by length")}

    @property
    def most_read(self) -> int:
        """What the largest group reaches."""
        return self._reach(self.group or _GROUPS[-1]) - self.reserve_tokens

    def build(self, ids: Tensor, progress: ProgressCallback) -> Cache:
        """`N` slots, each key at both rotations; those of the stock model where no group is needed."""
        n_tokens = len(ids) + self.reserve_tokens
        group = self.group or next(group for group in _GROUPS if n_tokens <= self._reach(group))
        if group == 1:
            return prefill(self.decoder, ids, progress, cache=DynamicCache())
        rotations = TwoRotations(self.decoder, neighbours=self.neighbours, group=group)
        cache = Cache(layers=[TwoRotationsLayer(rotations) for _ in range(self.decoder.n_layers)])
        with self_extended(self.decoder, rotations):
            return prefill(self.decoder, ids, progress, cache=cache)

    def attending(self, state: Prefilled) -> AbstractContextManager[None]:
        """By both rotations, where the document was read so."""
        layer = state.cache.layers[0]
        return self_extended(self.decoder, layer.rotations) if isinstance(layer, TwoRotationsLayer) else nullcontext()

    def most_slots(self, state: Prefilled) -> int:
        """As many as its group reaches."""
        layer = state.cache.layers[0]
        return self._reach(layer.rotations.group if isinstance(layer, TwoRotationsLayer) else 1)

    def _reach(self, group: int) -> int:
        """Most tokens whose positions are known to the model (at `g = 1`), or within two thirds of its window."""
        window = self.setting.most_tokens
        if group == 1:
            return window
        return self.neighbours + (2 * window // 3 - self.neighbours) * group


def make_self_extend(
    setting: Setting, *, neighbours: int | None = None, group: int | None = None, reserve_tokens: int | None = None
) -> SelfExtend:
    """SelfExtend. Arguments as in the class."""
    return SelfExtend(setting, neighbours=neighbours, group=group, reserve_tokens=reserve_tokens)
