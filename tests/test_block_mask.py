"""The block mask of training on GPUs: torch's own, without the mask of all pairs; and copies moved in one go."""

import pytest
import torch
from conftest import tiny_decoder
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask

from acre_rag.training import nested_attention
from acre_rag.training.layout import Layout, reading
from acre_rag.training.nested_attention import _Flex

LAYOUTS = {
    "distant, a tail": reading(n_prefix=5, n_tokens=1500, interval=8, stride=256, window=700),
    "strides seen through L1 alone, whole blocks": reading(n_prefix=0, n_tokens=1024, interval=8, stride=256),
    "everything stays recent": reading(n_prefix=3, n_tokens=400, interval=4, stride=200, window=2048),
    "asked": reading(n_prefix=0, n_tokens=700, interval=16, stride=128).asking(9).asking(150, refilled=[1, 30]),
    "shorter than a block": reading(n_prefix=2, n_tokens=5, interval=8, stride=16),
}
TENSORS = [
    f"{full}{kind}_{what}" for full in ("", "full_") for kind in ("kv", "q") for what in ("num_blocks", "indices")
]


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> Layout:
    return LAYOUTS[request.param]


def test_it_is_what_torch_makes_of_all_pairs(layout: Layout) -> None:
    flex = _Flex(tiny_decoder(), layout)
    ours = flex._block_mask
    n_keys = len(flex._step_of_key)

    def visible(batch: Tensor, head: Tensor, q: Tensor, key: Tensor) -> Tensor:
        return flex.visible(batch, head, q, key)

    theirs = create_block_mask(visible, None, None, layout.n_slots, n_keys, device="cpu")
    assert (ours.seq_lengths, ours.BLOCK_SIZE) == (theirs.seq_lengths, theirs.BLOCK_SIZE)
    for name in TENSORS:
        a, b = getattr(ours, name), getattr(theirs, name)
        assert a.dtype == b.dtype and torch.equal(a, b), name


def test_layouts_of_these_tests_have_blocks_of_every_kind() -> None:
    masks = [_Flex(tiny_decoder(), layout)._block_mask for layout in LAYOUTS.values()]
    assert any(mask.full_kv_num_blocks.any() for mask in masks) and any(mask.sparsity() > 30 for mask in masks)


def test_no_more_than_one_row_of_blocks_is_looked_at_at_once(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    real = _Flex.visible

    def watched(self: _Flex, batch: object, head: object, q: Tensor, key: Tensor) -> Tensor:
        rows.append(len(q) if q.dim() else 0)
        return real(self, batch, head, q, key)

    monkeypatch.setattr(_Flex, "visible", watched)
    assert _Flex(tiny_decoder(), layout)._block_mask is not None
    assert sum(rows) == layout.n_slots and max(rows) <= 128


def attended(way: str, layout: Layout) -> Tensor:
    """The last hidden states of the tiny model over any slots, `[T, hidden]`."""
    decoder = tiny_decoder("qwen3")
    ids = torch.randint(3, 250, (1, layout.n_slots), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), nested_attention.nested_attention(decoder, layout, way=way) as options:
        hidden: Tensor = decoder.base(input_ids=ids, use_cache=False, **options).last_hidden_state[0]
    return hidden


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_attention_under_it_is_that_of_the_steps(layout: Layout) -> None:
    torch.testing.assert_close(attended("flex", layout), attended("strided", layout), atol=1e-4, rtol=0)


@pytest.mark.parametrize("way", ["dense", pytest.param("flex", marks=pytest.mark.filterwarnings("ignore:flex_att"))])
def test_all_copies_of_a_layer_are_moved_in_one_go(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layout, calls = LAYOUTS["distant, a tail"], []
    real = nested_attention.rotated
    monkeypatch.setattr(nested_attention, "rotated", lambda x, *by: calls.append(x.shape[2]) or real(x, *by))
    attended(way, layout)
    assert calls == [sum(step.n_moved for step in layout.steps)] * tiny_decoder("qwen3").n_layers
