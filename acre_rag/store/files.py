"""Folders that appear and disappear whole, whatever dies in between. Knows nothing of what is in them.

A folder is written under tmp/ while its writer holds a lock file beside it, every file is flushed to the disk, and one
rename puts it in place. A writer that dies drops its lock, so that the next one who opens the store can tell its
remains from work in progress.
"""

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from filelock import FileLock, Timeout

_TMP = "tmp"
_LOCK = "lock"
_WAIT_S = 60.0


class Folders:
    """The folders of one store.

    Args:
        root: the store; made with mode 0700 when it is missing.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        make_dir(root)
        make_dir(root / _TMP)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """No folder appears or disappears inside the block, in any process. Held for moments only."""
        with FileLock(self.root / _LOCK, timeout=_WAIT_S, mode=0o600):
            yield

    @contextmanager
    def making(self, target: Path, *, replace: bool = False) -> Iterator[Path]:
        """A folder to fill; at the end of the block it is at `target`.

        Whatever goes wrong inside, `target` is as it was. What is there already stays: names are digests of contents,
        so it is the same, made by another process. With `replace` it makes room, once the new folder is whole.
        """
        made = self.root / _TMP / uuid4().hex
        guard = FileLock(f"{made}.{_LOCK}", mode=0o600)
        with self.locked():
            guard.acquire()
        try:
            make_dir(made)
            yield made
            sync_dir(made)
            with self.locked():
                make_dir(target.parent)
                self._put(made, target, replace=replace)
        finally:
            shutil.rmtree(made, ignore_errors=True)
            guard.release()
            Path(f"{made}.{_LOCK}").unlink(missing_ok=True)

    def _put(self, made: Path, target: Path, *, replace: bool) -> None:
        grave = self.root / _TMP / uuid4().hex
        old = os.path.lexists(target)
        if old and not replace:
            return
        if old:
            rename(target, grave)
        try:
            rename(made, target)
        except OSError:
            if old:
                rename(grave, target)
            raise
        sync_dir(target.parent)
        if old:
            _remove(grave)

    def delete(self, target: Path) -> None:
        """Make a folder disappear: at once for everyone, then byte by byte."""
        grave = self.root / _TMP / uuid4().hex
        with self.locked():
            if not os.path.lexists(target):
                return
            rename(target, grave)
        _remove(grave)

    def clean(self) -> int:
        """Remove what dead writers left; returns how many remains there were."""
        removed = 0
        with self.locked():
            remains = {Path(str(path).removesuffix(f".{_LOCK}")) for path in (self.root / _TMP).iterdir()}
            for path in sorted(remains):
                if _abandoned(path):
                    _remove(path)
                    Path(f"{path}.{_LOCK}").unlink(missing_ok=True)
                    removed += 1
        return removed


def write_file(path: Path, chunks: Iterable[bytes]) -> int:
    """Write a new file of mode 0600 and flush it to the disk; returns its bytes."""
    written = 0
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb", buffering=0) as file:
        for chunk in chunks:
            view = memoryview(chunk)
            while len(view):
                count = write(file.fileno(), view)
                view = view[count:]
                written += count
        fsync(file.fileno())
    return written


def sync_dir(path: Path) -> None:
    """Flush a folder's list of names to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fsync(descriptor)
    finally:
        os.close(descriptor)


def write(descriptor: int, data: memoryview) -> int:
    """One write; its own function so that a test can make the i-th one fail."""
    return os.write(descriptor, data)


def fsync(descriptor: int) -> None:
    """One flush; its own function so that a test can make the i-th one fail."""
    os.fsync(descriptor)


def rename(source: Path, target: Path) -> None:
    """One rename; its own function so that a test can make the i-th one fail."""
    os.rename(source, target)  # noqa: PTH104 - never replaces a file by accident, as Path.replace would


def _remove(path: Path) -> None:
    """A folder, or whatever stands in its place; a link is never followed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def make_dir(path: Path) -> None:
    """A folder of mode 0700, if it is not there."""
    if not path.is_dir():
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(OSError):
            path.chmod(0o700)  # mkdir's mode passes through the umask


def _abandoned(path: Path) -> bool:
    """Whether nobody holds the lock beside `path`."""
    guard = FileLock(f"{path}.{_LOCK}", mode=0o600)
    try:
        guard.acquire(blocking=False)
    except Timeout:
        return False
    guard.release()
    return True
