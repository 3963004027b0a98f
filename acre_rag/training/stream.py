"""Shards as an endless line of examples that can be entered anywhere; knows no model.

Every process reads the whole line and takes its share of each batch: text is cheap beside a forward pass, and the line
does not depend on how many processes there are.
"""

from collections.abc import Iterator
from pathlib import Path

from acre_rag.training.data.example import TrainingExample
from acre_rag.training.data.shards import ShardedExamples


class Shards:
    """Pass after pass over a folder of shards, each in an order of its own.

    Args:
        folder: made by `acre data build`.
        seed: of the order.

    Raises:
        TrainingDataError: no shards there, or they are damaged.
    """

    def __init__(self, folder: Path, *, seed: int = 0) -> None:
        self._examples = ShardedExamples(folder, seed=seed, passes=None)

    def starting_at(self, number: int) -> Iterator[TrainingExample]:
        """Examples `number`, `number + 1`, ... without end."""
        return iter(self._examples.skip(number))
