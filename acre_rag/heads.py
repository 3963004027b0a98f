"""Retrieval heads of a model: which they are, their weights, and the file that says so. No tensors of documents.

A retrieval head is an attention head whose query for a question points at the passage that answers it. Their
un-rotated keys are kept at full resolution beside the pooled L1; `training/calibration.py` finds them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from acre_rag.decoder import Decoder
from acre_rag.errors import CalibrationError
from acre_rag.proxies.adapter import SHIPPED
from acre_rag.replace import replace_file

FORMAT = "acre-rag-heads/1"


@dataclass(frozen=True)
class Head:
    """One query head and its weight in the score."""

    layer: int
    head: int
    weight: float


@dataclass(frozen=True)
class RetrievalHeads:
    """The calibrated heads of one model.

    Attributes:
        heads: best first.
        model_digest: weights they were calibrated on.
        architecture: family and shape; a model of the same architecture but other weights (a fine-tune) may use them,
            without a word: telling the two apart takes a hash of all weights.
        facts: how they were found (data, counts, figures); for people.
    """

    heads: tuple[Head, ...]
    model_digest: str
    architecture: str
    facts: Mapping[str, Any] = field(default_factory=dict)

    def key_heads(self, decoder: Decoder) -> list[tuple[int, int]]:
        """Distinct (layer, kv head) pairs whose keys these heads read, in a fixed order."""
        group = decoder.n_heads // decoder.n_kv_heads
        return sorted({(head.layer, head.head // group) for head in self.heads})

    def rows(self, decoder: Decoder) -> list[tuple[Head, int]]:
        """Each head with the row of its keys in the order of `key_heads`."""
        group = decoder.n_heads // decoder.n_kv_heads
        order = {pair: row for row, pair in enumerate(self.key_heads(decoder))}
        return [(head, order[head.layer, head.head // group]) for head in self.heads]

    def save(self, path: Path) -> None:
        """Write as JSON, whole or not at all; its folder is made.

        Raises:
            CalibrationError: it cannot be written.
        """
        heads = [[head.layer, head.head, round(head.weight, 6)] for head in self.heads]
        record = {
            "format": FORMAT,
            "architecture": self.architecture,
            "model_digest": self.model_digest,
            "heads": heads,
            "facts": dict(self.facts),
        }
        try:
            replace_file(path, (json.dumps(record, indent=1) + "\n").encode())
        except OSError as error:
            raise CalibrationError(f"{path} cannot be written ({error.strerror}). Name another file.") from error


def load_heads(path: Path) -> RetrievalHeads:
    """Read a heads file.

    Raises:
        CalibrationError: missing, not JSON, or not of this format.
    """
    try:
        return _parse(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError) as error:
        raise CalibrationError(f"{path} is not a heads file ({error}). Make one with: acre calibrate") from error


def shipped_heads(decoder: Decoder) -> RetrievalHeads | None:
    """The heads that the package ships for this model (same weights first, then same architecture), if any."""
    folder = resources.files("acre_rag") / "data" / "heads"
    shipped = [_parse(file.read_text(encoding="utf-8")) for file in folder.iterdir() if file.name.endswith(".json")]
    fitting = [heads for heads in shipped if heads.architecture == decoder.architecture]
    if len(fitting) > 1:
        fitting.sort(key=lambda heads: heads.model_digest != decoder.digest)
    return fitting[0] if fitting else None


def beside(adapter: Path) -> Path:
    """Where the heads lie that were calibrated with an adapter: X.heads.json for X.safetensors and for a folder X."""
    return adapter.with_name(f"{adapter.name if adapter.is_dir() else adapter.stem}.heads.json")


def heads_beside(adapter: Path, decoder: Decoder) -> RetrievalHeads | None:
    """The heads that were saved with an adapter, if any.

    Raises:
        CalibrationError: damaged, or of another model; names the file.
    """
    path = beside(adapter)
    if str(adapter) == SHIPPED or not path.is_file():
        return None
    heads = load_heads(path)
    try:
        check_heads(heads, decoder)
    except CalibrationError as error:
        raise CalibrationError(f"{path}, saved with the adapter, does not fit: {error}") from error
    return heads


def check_heads(heads: RetrievalHeads, decoder: Decoder) -> None:
    """Refuse heads of another architecture.

    Raises:
        CalibrationError: states both architectures.
    """
    if heads.architecture != decoder.architecture:
        raise CalibrationError(
            f"These retrieval heads belong to {heads.architecture}, the model is {decoder.architecture}. "
            "Calibrate this model: acre calibrate --model MODEL --out FILE"
        )
    if any(h.layer >= decoder.n_layers or h.head >= decoder.n_heads or min(h.layer, h.head) < 0 for h in heads.heads):
        raise CalibrationError("The heads file names a layer or head that the model does not have. Calibrate again.")


def _parse(text: str) -> RetrievalHeads:
    record = json.loads(text)
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ValueError(f"its format is not {FORMAT!r}")
    heads = tuple(Head(int(layer), int(head), float(weight)) for layer, head, weight in record["heads"])
    if not heads:
        raise ValueError("it names no heads")
    return RetrievalHeads(heads, record["model_digest"], record["architecture"], record.get("facts", {}))
