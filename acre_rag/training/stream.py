"""Shards as an endless line of examples that can be entered anywhere; knows no model."""

from collections.abc import Iterator
from pathlib import Path

from acre_rag.errors import TrainingDataError
from acre_rag.training.data.example import TrainingExample
from acre_rag.training.data.shards import ShardedExamples


class Shards:
    """Pass after pass over a folder of shards, each in an order of its own.

    Every process reads the whole line and takes its share of each batch: text is cheap beside a forward pass, and the
    line does not depend on how many processes there are.

    Args:
        folder: made by `acre data build`.
        seed: of the order.
    """

    def __init__(self, folder: Path, *, seed: int = 0) -> None:
        self._folder, self._seed = folder, seed

    def starting_at(self, number: int) -> Iterator[TrainingExample]:
        """Examples `number`, `number + 1`, ... without end.

        Raises:
            TrainingDataError: the shards hold nothing.
        """
        per_pass = len(ShardedExamples(self._folder, seed=self._seed))
        if not per_pass:
            raise TrainingDataError(f"The shards in {self._folder} hold no example. Build them anew.")
        passes, behind = divmod(number, per_pass)
        while True:
            yield from ShardedExamples(self._folder, seed=self._seed + passes).skip(behind)
            passes, behind = passes + 1, 0
