"""Evaluation data from files or, when asked, from the hub; `load_dataset` finds them, its neighbours read them."""

from pathlib import Path

from acre_rag.errors import EvaluationError
from acre_rag.evaluation.datasets.catalogue import file_in, hub_file
from acre_rag.evaluation.datasets.formats import read_items
from acre_rag.evaluation.datasets.hub import download
from acre_rag.evaluation.item import EvalItem
from acre_rag.evaluation.tasks import task_of

__all__ = ["load_dataset"]


def load_dataset(name: str, *, path: Path | None = None, hub: bool = False) -> list[EvalItem]:
    """All questions of a dataset, in the file's order.

    Args:
        name: of the dataset, as `task_of` knows it. A user's own file is "own" (short answers), "own_choice" (options)
            or "own_long" (ROUGE-L), with ":NAME" to tell several apart; docs of the fields are in formats.py.
        path: the file (`.jsonl`, `.jsonl.gz`, LongBench's `data.zip`), or a folder that holds it under its published
            name.
        hub: download the published file from the hub when no path is given; nothing is downloaded otherwise.

    Raises:
        EvaluationError: unknown name, no such file, a damaged or incomplete line (named), no question at all, or the
            hub cannot be reached.
    """
    task = task_of(name)
    if name.startswith("ruler_"):
        raise EvaluationError(
            f"{name} is made, not loaded: acre_rag.evaluation.ruler.generate({name!r}, tokenizer=..., tokens=..., "
            "count=...)."
        )
    if path is not None:
        file, member = file_in(name, Path(path))
    elif hub:
        repository, filename, member = hub_file(name)
        file = download(repository, filename)
    else:
        raise EvaluationError(
            f"{name} needs its file: pass path=FILE_OR_FOLDER, or hub=True to download it where it is published."
        )
    return read_items(task, file, member)
