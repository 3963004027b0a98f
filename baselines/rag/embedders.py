"""Which embedding model a name means, and where on this machine it is. Downloads nothing, embeds nothing."""

from pathlib import Path
from threading import Lock
from weakref import WeakValueDictionary

from acre_rag.baselines.rag.bge_m3 import BGE_M3, BGEM3, is_bge_m3
from acre_rag.baselines.rag.embedder import MINILM, Embedder, SentenceEmbedder, minilm_folder
from acre_rag.errors import UnavailableError

_BUILT_IN = {"minilm", MINILM.lower(), f"sentence-transformers/{MINILM}".lower()}
# Systems of one comparison share a model; it is freed with the last of them.
_loaded: WeakValueDictionary[tuple[Path, str, str], BGEM3 | SentenceEmbedder] = WeakValueDictionary()
_loading = Lock()


def load_embedder(name: str | None, device: str) -> Embedder:
    """An embedding model by name.

    Args:
        name: "minilm" (built in), "bge-m3", a local folder, or a hub name that is in the local cache; `None` takes
            BGE-M3 when it is on the machine, else MiniLM.
        device: where it computes.

    Raises:
        UnavailableError: it is not on this machine, or cannot be loaded.
        MissingExtraError: a package is not installed.
    """
    if name is None:
        folder = cached_folder(BGE_M3)
        if folder is not None and is_bge_m3(folder):
            return _shared(folder, BGE_M3, device)
        return _shared(minilm_folder(), f"{MINILM} (BGE-M3 is not on this machine)", device)
    if name.lower() in _BUILT_IN:
        return _shared(minilm_folder(), MINILM, device)
    if name.lower() == "bge-m3":
        name = BGE_M3
    folder = Path(name) if Path(name).is_dir() else cached_folder(name)
    if folder is None:
        raise UnavailableError(
            f"The embedding model {name!r} is not on this machine: there is no such folder, and the local hub cache "
            f"does not hold it. Nothing is downloaded unasked: run 'hf download {name}' first, or leave the embedder "
            f"out for the built-in {MINILM}."
        )
    return _shared(folder, name, device)


def cached_folder(name: str) -> Path | None:
    """Where the local hub cache has a model; `None` where it has not."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def _shared(folder: Path, about: str, device: str) -> BGEM3 | SentenceEmbedder:
    key = (folder.resolve(), about, device)
    with _loading:
        found = _loaded.get(key)
        if found is None:
            found = BGEM3(folder, about, device) if is_bge_m3(folder) else SentenceEmbedder(folder, about, device)
            _loaded[key] = found
        return found
