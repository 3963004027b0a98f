"""BGE-M3 through FlagEmbedding: dense vectors, token weights and token vectors in one pass. Knows no index."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from acre_rag.baselines.rag.embedder import normalised
from acre_rag.errors import MissingExtraError, UnavailableError
from acre_rag.models import quiet_loading

BGE_M3 = "BAAI/bge-m3"
_HEADS = ("sparse_linear.pt", "colbert_linear.pt")


@dataclass(frozen=True)
class Encoded:
    """What BGE-M3 makes of `n` texts.

    Attributes:
        dense: `[n, d]`, each of length 1.
        sparse: weight of each token, by its id as text.
        colbert: `[tokens, d]` of each text, each of length 1; empty if not asked for.
    """

    dense: NDArray[np.float32]
    sparse: list[dict[str, float]]
    colbert: list[NDArray[np.float32]]


class BGEM3:
    """BGE-M3 (arXiv 2402.03216) from a folder, in float32. It takes questions without an instruction.

    A text is read whole, up to the model's 8192 tokens (the library would cut at 512 of them).

    Args:
        folder: the model with its two heads.
        about: its name.
        device: where it computes.

    Raises:
        MissingExtraError: FlagEmbedding is not installed.
        UnavailableError: the folder does not hold the whole model.
    """

    def __init__(self, folder: Path, about: str, device: str) -> None:
        try:
            from FlagEmbedding import BGEM3FlagModel  # type: ignore[import-untyped]
        except ImportError:
            raise MissingExtraError("FlagEmbedding", "baselines", "BGE-M3") from None
        self.about = about
        self._lock = Lock()  # decoders with threads of their own may share it
        try:
            with quiet_loading():
                self._model = BGEM3FlagModel(str(folder), use_fp16=False, devices=device)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise UnavailableError(
                f"BGE-M3 in {folder} cannot be loaded ({error}). Fetch it anew: hf download {BGE_M3}"
            ) from error
        self._most_tokens = int(self._model.model.model.config.max_position_embeddings) - 2  # XLM-R counts from 2

    def embed(self, texts: Sequence[str], *, queries: bool = False) -> NDArray[np.float32]:
        """See `Embedder`."""
        return self._encode(texts, sparse=False, colbert=False).dense

    def encode(self, texts: Sequence[str], *, colbert: bool) -> Encoded:
        """Dense vectors and token weights; token vectors too where asked for."""
        return self._encode(texts, sparse=True, colbert=colbert)

    def sparse_score(self, query: Mapping[str, float], passage: Mapping[str, float]) -> float:
        """Sum over common tokens of the products of their weights."""
        return float(self._model.compute_lexical_matching_score(dict(query), dict(passage)))

    def colbert_score(self, query: NDArray[np.float32], passage: NDArray[np.float32]) -> float:
        """Mean over the query's tokens of the best similarity to any of the passage's."""
        return float(self._model.colbert_score(query, passage))

    def _encode(self, texts: Sequence[str], *, sparse: bool, colbert: bool) -> Encoded:
        with self._lock:
            found = self._model.encode(
                list(texts),
                max_length=self._most_tokens,
                batch_size=len(texts) + 1,  # more than there are: or it draws a progress bar
                return_dense=True,
                return_sparse=sparse,
                return_colbert_vecs=colbert,
            )
        return Encoded(
            normalised(np.asarray(found["dense_vecs"], dtype=np.float32)),
            [dict(each) for each in found["lexical_weights"] or ()],
            [np.asarray(each, dtype=np.float32) for each in found["colbert_vecs"] or ()],
        )


def is_bge_m3(folder: Path) -> bool:
    """Whether a folder holds BGE-M3 with its sparse and ColBERT heads."""
    return all((folder / name).is_file() for name in _HEADS)
