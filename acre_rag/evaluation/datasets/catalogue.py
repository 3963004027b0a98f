"""Under which names the datasets are published, as files and on the hub; opens nothing."""

import zipfile
from pathlib import Path

from acre_rag.errors import EvaluationError
from acre_rag.evaluation.tasks import LONGBENCH, OWN_DATA, ULTRADOMAIN

_SUFFIXES = (".jsonl", ".jsonl.gz")


def _stems(name: str) -> tuple[str, ...]:
    """File names without suffix that a dataset may have, best first."""
    published = name.removeprefix("longbench_").removeprefix("ultradomain_")
    if name.startswith("ultradomain_") and published == "financial":
        published = "fin"
    alias = (f"longbench_{name}",) if name in LONGBENCH else ()
    return tuple(dict.fromkeys((name, published, *alias)))


def file_in(name: str, path: Path) -> tuple[Path, str | None]:
    """The file of a dataset, and its member where the file is a zip archive.

    Args:
        name: of the dataset.
        path: the file itself, or a folder that holds it or has it in `data/`.

    Raises:
        EvaluationError: not there.
    """
    if not path.exists():
        raise EvaluationError(f"{path} does not exist. Pass the file of {name}, or a folder that holds it.")
    if path.is_file():
        return path, _member(name, path) if path.suffix == ".zip" else None
    if name.partition(":")[0] in OWN_DATA:
        raise EvaluationError(f"{path} is a folder; for {name} pass the .jsonl or .jsonl.gz file itself.")
    tried = [f"{stem}{suffix}" for stem in _stems(name) for suffix in _SUFFIXES]
    found = [file for folder in (path, path / "data") for each in tried if (file := folder / each).is_file()]
    if not found:
        raise EvaluationError(f"{path} holds no file of {name}; looked for {', '.join(tried)}, also in data/.")
    return found[0], None


def _member(name: str, archive: Path) -> str:
    try:
        members = zipfile.ZipFile(archive).namelist()
    except (OSError, zipfile.BadZipFile) as error:
        raise EvaluationError(f"{archive} cannot be read as a zip archive ({error}); download it anew.") from error
    wanted = [f"{folder}{stem}.jsonl" for stem in _stems(name) for folder in ("data/", "")]
    for each in wanted:
        if each in members:
            return each
    raise EvaluationError(f"{archive} holds no file of {name}; looked for {', '.join(wanted)}.")


def hub_file(name: str) -> tuple[str, str, str | None]:
    """Dataset repository on the hub, its file, and the member where that is a zip archive.

    Raises:
        EvaluationError: the dataset is not published there in a form that we read.
    """
    published = _stems(name)[1:2] or (name,)
    if name.removeprefix("longbench_") in LONGBENCH:
        return "THUDM/LongBench", "data.zip", f"data/{name.removeprefix('longbench_')}.jsonl"
    if name == "longbook_qa_eng":
        return "xinrongzhang2022/InfiniteBench", "longbook_qa_eng.jsonl", None
    if name.removeprefix("ultradomain_") in ULTRADOMAIN:
        return "TommyChien/UltraDomain", f"{published[0]}.jsonl", None
    raise EvaluationError(f"{name} is not on the hub in a form that is read here; pass path=FILE_OR_FOLDER.")
