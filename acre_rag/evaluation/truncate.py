"""Truncation as the long-context benchmarks do it; knows ids only."""

from collections.abc import Sequence

from acre_rag.errors import ConfigError


def middle_truncated(ids: Sequence[int], room: int) -> list[int]:
    """First half and last half of a text that is too long, because both ends may carry what matters.

    LongBench `pred.py` and InfiniteBench `eval_utils.py` cut the same way; with an odd room the first half is one
    longer here, where LongBench leaves one slot empty.

    Args:
        ids: tokens of the text.
        room: most tokens to keep.

    Raises:
        ConfigError: `room` is negative: the prompt around the text fills the window alone.
    """
    if room < 0:
        raise ConfigError(
            f"No room for the document: the window is {-room:,} tokens too small for the prompt and the answer alone. "
            "Use a larger window or a shorter answer."
        )
    if len(ids) <= room:
        return list(ids)
    last = room // 2
    return [*ids[: room - last], *ids[len(ids) - last :]]
