"""What each part of the method is worth (the paper's Figure 3): forms of ACRE that leave one out. Asks nobody."""

from collections.abc import Mapping, Sequence
from typing import Any

from acre_rag.baselines.acre import UNTRAINED
from acre_rag.evaluation.forms import Form

SELECTION = (
    Form(name="acre"),
    Form(name="acre", options={"prior": False}),
    Form(name="acre", options={"heads": "equal"}),
    Form(name="acre", options={"heads": "none"}),
    Form(name="acre-paper", options={"granularity": "passages"}),
    Form(name="acre-paper"),
    Form(name="acre-refill"),
    Form(name="acre-l1"),
)
"""No training: as it is; without the prior; retrieval heads alike; all heads over L1, one choice for all layers; each
layer its own choice, of passages and (Eq. 15-17) of blocks; without L1 entries; with nothing else."""

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
