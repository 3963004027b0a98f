"""Where and with what a row was measured: machine, versions, commit. Knows no models and no data sets."""

import os
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # heavy: imported when it is needed
    import torch

_PACKAGE = Path(__file__).parent.parent


def circumstances(device: "torch.device | None" = None) -> dict[str, Any]:
    """Versions, commit (`None` where the package is not part of a git checkout), machine.

    Args:
        device: where the model computes; by default the first CUDA device, if there is one.
    """
    import torch

    used = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {
        "versions": {
            "python": platform.python_version(),
            "acre-rag": _version("acre-rag"),
            "torch": torch.__version__,
            "transformers": _version("transformers"),
        },
        "commit": commit(),
        "machine": f"{platform.machine()}, {processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "device": torch.cuda.get_device_name(used) if used.type == "cuda" else "",
    }


@cache
def commit() -> str | None:
    """Commit of the checkout that this package runs from, "+changes" when tracked files differ from it."""
    if not _git("ls-files", "--", "__init__.py"):  # a package inside somebody else's checkout is not of its commits
        return None
    return f"{_git('rev-parse', '--short=12', 'HEAD')}{'+changes' if _git('status', '--porcelain', '-uno') else ''}"


@cache
def processor() -> str:
    """The processor's name, as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown processor"


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=_PACKAGE, check=False)  # noqa: S603, S607 - fixed words; git from the user's PATH
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"
