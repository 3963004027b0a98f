"""What each part of the method is worth (the paper's Figure 3): forms of ACRE that leave one out. Asks nobody."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from acre_rag.baselines.learned import UNTRAINED
from acre_rag.evaluation.forms import Form
from acre_rag.evaluation.rows import Row

SELECTION = (
    Form(name="acre"),
    Form(name="acre", options={"prior": False}),
    Form(name="acre", options={"heads": "mass"}),
    Form(name="acre", options={"heads": "none"}),
    Form(name="acre-paper", options={"granularity": "passages"}),
    Form(name="acre-paper"),
    Form(name="acre-refill"),
    Form(name="acre-l1"),
)
"""No training: as it is; without the prior; retrieval heads by their weight; all heads over L1, one choice for all
layers; each layer its own choice, of passages and (Eq. 15-17) of blocks; without L1 entries; with nothing else."""

VANILLA = Form(name="full")
"""The model without ACRE, as it is and after fine-tuning on the training data of an adapter."""


def training(adapters: Sequence[str]) -> list[Form]:
    """Learned L1 by how it was trained, with refilled passages and alone; the untrained copies come first.

    Args:
        adapters: files, in the order of their stages.
    """
    trained: list[Mapping[str, Any]] = [{"adapter": adapter} for adapter in (UNTRAINED, *adapters)]
    return [
        Form(name="acre-learned", options={**adapter, **more}) for adapter in trained for more in ({}, {"budget": 0})
    ]


def beside(rows: Sequence[Row], tuned: Sequence[Row]) -> list[Row]:
    """Rows of a model and of the same model fine-tuned, as systems of one comparison.

    Args:
        rows: of the model, at least one.
        tuned: of the fine-tuned model.
    """
    base = rows[0].run
    return [*rows, *(replace(row, run=replace(row.run, **_of(row, base.model, base.weights))) for row in tuned)]


def _of(row: Row, model: str, weights: str) -> dict[str, Any]:
    return {
        "system": f"{row.run.system},weights=fine-tuned",  # its folder's name would say nothing
        "options": {**row.run.options, "weights": "fine-tuned"},
        "model": model,
        "weights": weights,
    }
