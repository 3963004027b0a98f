"""The adapter that the package ships: found by the model's weights, and worth having on text it never saw."""

from pathlib import Path

import pytest
import torch
from conftest import tiny_decoder

from acre_rag.decoder import Decoder
from acre_rag.errors import AdapterError
from acre_rag.proxies.adapter import adapter_info, load_learned, shipped_adapter
from acre_rag.training.data.example import TrainingExample
from acre_rag.training.held_out_loss import after_another, last_stride, learned_loss, nothing, remembered_loss
from acre_rag.training.lesson import Draw, Teacher
from acre_rag.training.settings import TrainingSettings


def test_a_model_without_a_shipped_adapter_is_told_which_have_one() -> None:
    with pytest.raises(AdapterError, match="ships no adapter for 'tiny-llama'; it has: smollm2-135m"):
        load_learned("shipped", tiny_decoder())


@pytest.mark.model
def test_it_closes_part_of_the_gap_on_a_book_it_never_saw(smollm2: Decoder, alice: str) -> None:
    info = adapter_info(Path(shipped_adapter(smollm2)))
    assert info is not None and info.facts["steps"] == info.facts["settings"]["steps"]
    teacher = Teacher(smollm2, TrainingSettings(context=(1024,), intervals=(16,), stride=256))
    lesson, other = (
        teacher.lesson(TrainingExample(text, None, None, (), "alice"), Draw(16, 1024))
        for text in (alice[:6000], alice[60_000:66_000])
    )
    shipped = load_learned("shipped", smollm2)
    with torch.no_grad():
        without = remembered_loss(smollm2, nothing, last_stride(lesson))
        own = learned_loss(smollm2, shipped, last_stride(lesson))
        others = learned_loss(smollm2, shipped, after_another(lesson, other))
    assert own < without - 0.02
    assert own < others - 0.005, "most of the gain is that of any past (benchmarks/LOG.md), but not all of it"
