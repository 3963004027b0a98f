"""Documents on disk, read once for good: save, find, remove (entry.py reads one back). Knows no model.

The format: docs/store.md. A tenant's documents are in a folder named by a digest of the tenant, each document in one
named by a digest of tenant, id, fingerprint and tokens. Nothing a user types becomes part of a path.
"""

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import torch as safetensors
from torch import Tensor

from acre_rag.document import Document, text_digest
from acre_rag.errors import CorruptCacheError, StoreError, StoreFormatError
from acre_rag.fingerprint import FORMAT, Fingerprint, fingerprint_digest
from acre_rag.store import manifest as manifests
from acre_rag.store.entry import COMPACT, PLACES, TEXT, Entry, entry_in, sha256
from acre_rag.store.files import Folders, make_dir, sync_dir, write_file
from acre_rag.store.formats import check_format
from acre_rag.store.manifest import Manifest, StoredFile
from acre_rag.store.shards import ShardWriter
from acre_rag.store.tensors import compact, places

_MARK = "acre-store.json"
_MARKED = json.dumps({"format": FORMAT}).encode("ascii") + b"\n"
_DOCUMENTS = "documents"


class Cleaned(NamedTuple):
    """What `Store.gc` did.

    Attributes:
        remains: of dead writers, removed.
        damaged: documents whose manifest cannot be used, removed.
        other_format: documents of another version of acre-rag, left alone.
    """

    remains: int
    damaged: int
    other_format: int


class Store:
    """A folder of documents that outlives the process, shared by any number of processes.

    Args:
        root: the folder; made when missing, refused when it holds something else.

    Raises:
        StoreError: not a store, or not to be read or written.
        StoreFormatError: a store of another version of acre-rag; nothing in it is touched.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root).expanduser().absolute()
        with self._clear_errors("open"):
            self._check_root()
            self._folders = Folders(self.root)
            make_dir(self.root / _DOCUMENTS)
            with self._folders.locked():
                if not (self.root / _MARK).is_file():
                    _mark(self.root)
            self._folders.clean()

    def save(
        self,
        document: Document,
        fingerprint: Fingerprint,
        token_ids: Tensor,
        *,
        model: str = "",
        replace: bool = False,
    ) -> Entry:
        """Write a document that has just been read: whole, or not at all.

        Args:
            document: the document, its cache on the device.
            fingerprint: what its cache depends on.
            token_ids: `[N]`, part of its folder's name.
            model: the model's name, for people.
            replace: put it in the place of the same document, which stays until this one is whole; otherwise what
                another process stored meanwhile is kept.

        Raises:
            StoreError: the disk is full or cannot be written; what was there is untouched.
        """
        target = self.folder(document.tenant, document.id, fingerprint, token_ids)
        with self._clear_errors(f"save {document.id!r} to"), self._folders.making(target, replace=replace) as folder:
            writer = ShardWriter(document.cache.l2, document.n_blocks)
            files = {}
            text = document.text.encode("utf-8", "surrogatepass")
            for name, raw in self._small_files(document, text):
                files[name] = StoredFile(bytes=write_file(folder / name, [raw]), sha256=sha256(raw))
            for name, raw in writer.files():
                files[name] = StoredFile(bytes=write_file(folder / name, [raw]), sha256="")
            manifest = Manifest(
                id=document.id,
                model=model,
                fingerprint=fingerprint,
                text_sha256=text_digest(document.text),
                n_tokens=document.n_tokens,
                construct_s=document.construct_s,
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                notes=document.notes,
                files=files,
                parts=writer.parts,
                group_blocks=writer.group_blocks,
                shards=tuple(writer.shards),
                digests={name: tuple(writer.digests[name]) for name in writer.parts},
            )
            write_file(folder / manifests.NAME, [manifest.dump()])
        return entry_in(target)

    def entries(self, tenant: str = "", *, damaged: Callable[[Path, str], None] | None = None) -> list[Entry]:
        """A tenant's documents, oldest first.

        Args:
            tenant: whose.
            damaged: called with the folder and the reason for every document whose manifest cannot be used, because
                it is damaged or of another format; such documents are left out.
        """
        found = []
        for folder in self._document_folders(tenant):
            try:
                found.append(entry_in(folder))
            except (CorruptCacheError, StoreFormatError) as error:
                if damaged:
                    damaged(folder, str(error))
            except StoreError:
                continue  # removed by another process in between
        return sorted(found, key=lambda entry: (entry.manifest.created, entry.id))

    def find(self, id: str, tenant: str = "") -> list[Entry]:
        """A tenant's documents of one id: one for each model and set of options it was read with."""
        return [entry for entry in self.entries(tenant) if entry.id == id]

    def entry_at(self, folder: Path) -> Entry | None:
        """The document in a folder that `name` gave; `None` when there is none.

        Raises:
            CorruptCacheError: there is one, and it is damaged.
            StoreFormatError: there is one, of another version.
        """
        return entry_in(folder) if os.path.lexists(folder) else None

    def remove(self, folder: Path) -> None:
        """Delete a document: at once for everyone who opens it later; mappings that are open stay valid."""
        with self._clear_errors("remove a document of"):
            self._folders.delete(folder)

    def gc(self, tenant: str | None = None) -> Cleaned:
        """Remove what dead writers left, and documents whose manifest is damaged; those of another format stay.

        Args:
            tenant: whose documents; every tenant's by default.
        """
        with self._clear_errors("clean"):
            remains = self._folders.clean()
            broken: list[Path] = []
            other_format = 0
            for folder in self._tenant_folders() if tenant is None else [self._tenant_folder(tenant)]:
                for path in _subfolders(folder):
                    try:
                        entry_in(path)
                    except StoreFormatError:
                        other_format += 1
                    except CorruptCacheError as error:
                        if not _may_pass(error):
                            broken.append(path)
                    except StoreError:
                        continue  # removed by another process in between
            for path in broken:
                self._folders.delete(path)
        return Cleaned(remains, len(broken), other_format)

    def _check_root(self) -> None:
        if self.root.exists() and not self.root.is_dir():
            raise StoreError(f"{self.root} is a file, not a folder. Name another place for the store.")
        if not self.root.is_dir():
            return
        if (self.root / _MARK).is_file():
            _check_mark(self.root)
            return
        strangers = {path.name for path in self.root.iterdir()} - {"tmp", "lock", _DOCUMENTS, _MARK, f"{_MARK}.new"}
        if strangers:
            raise StoreError(
                f"{self.root} is not a store: it holds {', '.join(sorted(strangers)[:3])}. Name an empty or a new "
                "folder."
            )

    def _tenant_folder(self, tenant: str) -> Path:
        return self.root / _DOCUMENTS / sha256(b"tenant\0" + tenant.encode("utf-8", "surrogatepass"))[:32]

    def _tenant_folders(self) -> list[Path]:
        return _subfolders(self.root / _DOCUMENTS)

    def _document_folders(self, tenant: str) -> list[Path]:
        return _subfolders(self._tenant_folder(tenant))

    def folder(self, tenant: str, id: str, fingerprint: Fingerprint, token_ids: Tensor) -> Path:
        """The folder of a document, there or not: digests alone, of everything that makes it this document."""
        total = hashlib.sha256()
        for part in (tenant, id, fingerprint_digest(fingerprint)):
            raw = part.encode("utf-8", "surrogatepass")
            total.update(len(raw).to_bytes(8, "little") + raw)
        total.update(token_ids.detach().cpu().to(torch.int64).numpy().tobytes())
        return self._tenant_folder(tenant) / total.hexdigest()

    def _small_files(self, document: Document, text: bytes) -> Iterator[tuple[str, bytes]]:
        yield TEXT, text
        yield PLACES, safetensors.save(places(document))
        yield COMPACT, safetensors.save(compact(document.cache))

    @contextmanager
    def _clear_errors(self, doing: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise StoreError(
                    f"Cannot {doing} the store {self.root}: the disk is full. Nothing that was there is lost. Free "
                    "some space (acre rm, acre gc), or use l2_bits=8 or 4, which need a half or a quarter."
                ) from error
            raise StoreError(
                f"Cannot {doing} the store {self.root}: {error.strerror or error}. Nothing that was there is lost."
            ) from error


def _may_pass(error: CorruptCacheError) -> bool:
    """Whether the disk refused to be read, which says nothing of what stands on it."""
    return isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, FileNotFoundError)


def _check_mark(root: Path) -> None:
    try:
        mark = json.loads((root / _MARK).read_bytes())
    except ValueError:
        mark = None
    found = mark.get("format") if isinstance(mark, dict) else None
    check_format(found, root)
    if found != FORMAT:
        raise StoreError(
            f"{root / _MARK} is damaged: it names no format of a store. If {root} is a store, remove that one file; it "
            "is written anew, and the documents stay."
        )


def _mark(root: Path) -> None:
    new = root / f"{_MARK}.new"
    new.unlink(missing_ok=True)
    write_file(new, [_MARKED])
    new.replace(root / _MARK)
    sync_dir(root)


def _subfolders(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir())
    except FileNotFoundError:
        return []
