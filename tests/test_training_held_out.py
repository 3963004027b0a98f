"""Memories of earlier strides against the stock model and the engine's construction."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import tiny_decoder
from torch import Tensor

from acre_rag.cache import KV
from acre_rag.construct import ReadingPlan, construct, to_transformers
from acre_rag.errors import ConfigError
from acre_rag.proxies import PooledProxy
from acre_rag.proxies.learned import L1Parameters
from acre_rag.training.data.example import TrainingExample
from acre_rag.training.held_out_loss import (
    after_another,
    alone,
    everything,
    last_stride,
    learned_loss,
    nothing,
    pooled,
    remembered_loss,
)
from acre_rag.training.lesson import Draw, Lesson, Teacher
from acre_rag.training.losses import next_token_loss
from acre_rag.training.settings import TrainingSettings

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.memory_content import of_other_books

STRIDE, INTERVAL = 32, 8


TEXT = "The lighthouse keeper counts every ship, and writes each one down."


def two_strides(text: str = TEXT) -> Lesson:
    settings = TrainingSettings(context=(64,), intervals=(INTERVAL,), stride=STRIDE)
    return Teacher(tiny_decoder(), settings).lesson(TrainingExample(text, None, None, (), "x"), Draw(INTERVAL, 64))


def losses_of(lesson: Lesson) -> list[float]:
    remembered = [remembered_loss(tiny_decoder(), memory, lesson) for memory in (everything, nothing, pooled)]
    return [*remembered, learned_loss(tiny_decoder(), L1Parameters(tiny_decoder()), lesson)]


def expected_loss(lesson: Lesson, read: Callable[[Tensor, Tensor], Tensor]) -> float:
    """Loss of the second stride's tokens but the first, from hidden states `[32, hidden]` of that stride."""
    prefix, document = lesson.token_ids.tensor_split([lesson.layout.n_prefix])
    with torch.no_grad():
        return float(next_token_loss(tiny_decoder(), read(prefix, document)[:-1], document[STRIDE + 1 :]))


def test_remembering_everything_is_the_stock_model() -> None:
    decoder, lesson = tiny_decoder(), two_strides()
    stock = expected_loss(lesson, lambda p, d: decoder.base(torch.cat([p, d])[None]).last_hidden_state[0, -STRIDE:])
    assert remembered_loss(decoder, everything, lesson) == pytest.approx(stock, abs=1e-5)


def test_remembering_nothing_is_the_stride_behind_the_prefix() -> None:
    decoder, lesson = tiny_decoder(), two_strides()
    stock = expected_loss(
        lesson, lambda p, d: decoder.base(torch.cat([p, d[STRIDE:]])[None]).last_hidden_state[0, -STRIDE:]
    )
    assert remembered_loss(decoder, nothing, lesson) == pytest.approx(stock, abs=1e-5)


def test_pooled_memory_is_the_pooled_l1_of_construction() -> None:
    decoder, lesson = tiny_decoder(), two_strides()

    def over_l1(prefix: Tensor, document: Tensor) -> Tensor:
        plan = ReadingPlan(window=512, interval=INTERVAL, stride=STRIDE)
        cache = construct(decoder, PooledProxy(), prefix_ids=prefix, token_ids=document[:STRIDE], plan=plan)
        seen = KV.cat([cache.prefix, cache.l1])
        past = to_transformers(KV(decoder.rope.rotate(seen.keys), seen.values))
        return decoder.base(document[None, STRIDE:], past_key_values=past, use_cache=True).last_hidden_state[0]

    assert remembered_loss(decoder, pooled, lesson) == pytest.approx(expected_loss(lesson, over_l1), abs=1e-5)


def test_all_memories_differ() -> None:
    losses = losses_of(two_strides())
    assert min(abs(a - b) for i, a in enumerate(losses) for b in losses[:i]) > 1e-3


def test_another_past_changes_what_every_memory_but_none_predicts() -> None:
    lesson, other = two_strides(), two_strides("Gulls circle over the harbour until the last boat has been unloaded.")
    own, swapped = losses_of(last_stride(lesson)), losses_of(after_another(lesson, other))
    assert own == losses_of(lesson), "of two strides, the later one is the last"
    assert swapped[1] == pytest.approx(own[1], abs=1e-6)
    assert all(abs(swapped[i] - own[i]) > 1e-4 for i in (0, 2, 3))


def test_the_last_stride_keeps_its_targets_behind_another_past() -> None:
    lesson, other = two_strides(), two_strides("Gulls circle over the harbour until the last boat has been unloaded.")
    swapped = after_another(lesson, other)
    prefix, n = lesson.layout.n_prefix, len(lesson.token_ids)
    assert torch.equal(swapped.token_ids[: prefix + STRIDE], other.token_ids[: prefix + STRIDE])
    assert torch.equal(swapped.token_ids[prefix + STRIDE :], lesson.token_ids[n - STRIDE :])
    assert torch.equal(swapped.targets, lesson.targets)


@pytest.mark.parametrize("text", [TEXT, TEXT[:-5]], ids=["whole blocks", "with a tail"])
def test_alone_is_remembering_nothing(text: str) -> None:
    decoder, lesson = tiny_decoder(), two_strides(text)
    read = alone(lesson)
    assert len(read.layout.steps) == 2, "prefix and one stride"
    assert torch.equal(read.targets, lesson.targets)
    assert remembered_loss(decoder, everything, read) == pytest.approx(
        remembered_loss(decoder, nothing, lesson), abs=1e-5
    )


def test_alone_an_adapter_gives_the_l1_tokens_of_the_stride_itself() -> None:
    decoder, lesson = tiny_decoder(), two_strides()
    l1 = L1Parameters(decoder)
    whole = learned_loss(decoder, l1, alone(lesson))
    assert abs(whole - remembered_loss(decoder, nothing, lesson)) > 1e-3
    assert abs(whole - learned_loss(decoder, l1, lesson)) > 1e-3


def test_documents_of_different_lengths_cannot_change_places() -> None:
    with pytest.raises(ConfigError, match="same length"):
        after_another(two_strides(), two_strides(TEXT[:-20]))


def test_another_past_is_of_another_book() -> None:
    assert of_other_books(["a:1", "a:7", "b:2", "c:3", "a:9"]) == [2, 2, 3, 4, 2]
    with pytest.raises(ConfigError, match="All 2 documents are of one book"):
        of_other_books(["a:1", "a:7"])
