"""One stored document read back: its text, its places, its cache, every byte checked. Knows no folders but its own."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor

from acre_rag.cache import BiLayerCache
from acre_rag.document import Document, Holder
from acre_rag.errors import CorruptCacheError, StoreError, StoreFormatError
from acre_rag.l2 import L2
from acre_rag.quantise import codec_of
from acre_rag.store import manifest as manifests
from acre_rag.store.manifest import Manifest
from acre_rag.store.shards import MappedShards
from acre_rag.store.tensors import compact_cache, passages_of

TEXT, PLACES, COMPACT = "text.txt", "places.safetensors", "compact.safetensors"
"""The small files of a document; L2's shards are named by the manifest."""


@dataclass(frozen=True)
class Entry:
    """One stored document: its folder and what its manifest says."""

    folder: Path
    manifest: Manifest

    @property
    def id(self) -> str:
        """The user's name for it."""
        return self.manifest.id

    def document(self, tenant: str = "") -> Document:
        """A document's text and places, without its cache.

        Raises:
            CorruptCacheError: damaged; names the file.
        """
        text = self._verified(TEXT)
        tensors = self._tensors(PLACES, {"token_ids", "offsets", "passages"})
        shapes, n = (tensors["token_ids"].shape, tensors["offsets"].shape), self.manifest.n_tokens
        if sha256(text) != self.manifest.text_sha256 or shapes != ((n,), (n, 2)):
            self._damaged("text and token places do not belong together")
        return Document(
            id=self.id,
            text=text.decode("utf-8", "surrogatepass"),
            token_ids=tensors["token_ids"].numpy(),
            offsets=tensors["offsets"].numpy(),
            passages=passages_of(tensors),
            interval=int(self.manifest.fingerprint["interval"]),
            construct_s=self.manifest.construct_s,
            tenant=tenant,
            holder=Holder(),
            notes=self.manifest.notes,
        )

    def cache(self) -> BiLayerCache:
        """A document's cache: the compact part in host memory, L2 mapped.

        Raises:
            CorruptCacheError: damaged; names the file. Blocks of L2 are checked when they are first read.
        """
        tensors = self._tensors(COMPACT, {"head_keys", "l1.keys"})
        manifest = self.manifest
        try:
            l2 = self._l2()
            return compact_cache(
                tensors, interval=int(manifest.fingerprint["interval"]), n_tokens=manifest.n_tokens, l2=l2
            )
        except (KeyError, TypeError) as error:
            self._damaged(f"{COMPACT} lacks {error}")

    def reload(self) -> BiLayerCache:
        """Its cache as the folder has it now: another process may have built the document anew since.

        Raises:
            StoreError: another process removed it.
            CorruptCacheError: damaged; names the file.
        """
        if not self.folder.exists():
            raise self._removed()
        return entry_in(self.folder).cache()

    def verify(self) -> None:
        """Read and check every byte.

        Raises:
            CorruptCacheError: names the first damaged file.
        """
        self.document()
        self.cache()
        self._shards().check_all()
        strangers = {path.name for path in self.folder.iterdir()} - self.manifest.files.keys() - {manifests.NAME}
        if strangers:
            self._damaged(f"it holds files of others: {', '.join(sorted(strangers))}")

    def _tensors(self, name: str, needed: set[str]) -> dict[str, Tensor]:
        raw = self._verified(name)
        try:
            tensors = safetensors.load(raw)
        except (SafetensorError, ValueError) as error:
            self._damaged(f"{name} cannot be read ({error})")
        if not needed <= tensors.keys():
            self._damaged(f"{name} lacks {', '.join(sorted(needed - tensors.keys()))}")
        return tensors

    def _verified(self, name: str) -> bytes:
        """A whole file whose digest is right."""
        path, expected = self.folder / name, self.manifest.files.get(name)
        try:
            raw = b"" if path.is_symlink() else path.read_bytes()
        except OSError as error:
            if not self.folder.exists():
                raise self._removed() from error
            self._damaged(f"{name} cannot be read ({error.strerror})")
        if expected is None or sha256(raw) != expected.sha256:
            self._damaged(f"{name} was changed")
        return raw

    def _l2(self) -> L2:
        dtype = getattr(torch, str(self.manifest.fingerprint["dtype"]))
        bits = int(self.manifest.fingerprint["l2_bits"])
        plain = "blocks" in self.manifest.parts  # a document shorter than one block has nothing to quantise
        return L2(self._shards().rows(), codec_of(16 if plain else bits), dtype)

    def _shards(self) -> MappedShards:
        return MappedShards(self.folder, self.manifest, lambda reason: self._damaged(reason))

    def _removed(self) -> StoreError:
        return StoreError(
            f"The stored document {self.id!r} was removed by another process. Add it again: acre build FILE, or "
            "ACRE.add(text, id)."
        )

    def _damaged(self, reason: str) -> NoReturn:
        raise CorruptCacheError(
            f"The stored cache of {self.id!r} is damaged: {reason} (in {self.folder}). Build it again: "
            "acre build FILE --rebuild, or ACRE.add(text, id, rebuild=True).",
            self.folder,
        )


def entry_in(folder: Path) -> Entry:
    """The document in a folder.

    Raises:
        CorruptCacheError: its manifest cannot be used.
        StoreFormatError: another version of acre-rag wrote it.
        StoreError: another process removed it.
    """
    path = folder / manifests.NAME
    if folder.is_symlink() or path.is_symlink():
        raise CorruptCacheError(f"{folder} is a link, which no store makes. Remove it: acre gc.", folder)
    try:
        return Entry(folder, manifests.parse(path.read_bytes(), folder))
    except FileNotFoundError as error:
        if not folder.exists():
            raise StoreError(f"The document in {folder.name[:12]}… was removed by another process.") from error
        raise CorruptCacheError(_no_manifest(folder, "it is missing"), folder) from error
    except StoreFormatError:
        raise
    except (OSError, ValueError) as error:
        raise CorruptCacheError(_no_manifest(folder, str(error)), folder) from error


def _no_manifest(folder: Path, reason: str) -> str:
    return (
        f"The manifest of a stored document cannot be used: {reason} (in {folder}). Build the document again "
        "(rebuild=True), or remove such remains: acre gc."
    )


def sha256(raw: bytes) -> str:
    """Hexadecimal digest."""
    return hashlib.sha256(raw).hexdigest()
