"""Downloads one file of a dataset from the hub; only ever called when the user asked for it."""

from pathlib import Path

from acre_rag.errors import EvaluationError


def download(repository: str, filename: str) -> Path:
    """The file in the hub's own cache, downloaded when it is not there yet.

    Args:
        repository: of a dataset, "OWNER/NAME".
        filename: in it.

    Raises:
        EvaluationError: no connection, offline mode, or no such file.
    """
    from huggingface_hub import hf_hub_download  # slow to import, and most runs read files

    try:
        return Path(hf_hub_download(repository, filename, repo_type="dataset"))
    except Exception as error:  # the client lets its HTTP library's errors through, and that differs by release
        raise EvaluationError(
            f"{filename} of {repository} cannot be downloaded ({type(error).__name__}: {str(error).splitlines()[0]}). "
            f"Connect, or fetch https://huggingface.co/datasets/{repository} elsewhere and pass path=FILE."
        ) from error
