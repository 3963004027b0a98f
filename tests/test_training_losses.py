"""What is predicted from where, and the losses against their plain definitions."""

import pytest
import torch
from conftest import tiny_decoder
from torch.nn import functional

from acre_rag.errors import DocumentError
from acre_rag.prompts import SHORT_ANSWER, render
from acre_rag.proxies.learned import L1Parameters
from acre_rag.training.data.example import TrainingExample
from acre_rag.training.layout import reading
from acre_rag.training.lesson import Draw, Lesson, Teacher
from acre_rag.training.losses import stage1_targets, token_losses
from acre_rag.training.reader import NestedReader
from acre_rag.training.settings import TrainingSettings
from acre_rag.training.trainer import lesson_losses

TEXT = "".join(f"The ship number {i} sails on day {i * 7}. " for i in range(30))
ANSWER = "day 84"
EXAMPLE = TrainingExample(
    TEXT, "When does ship 12 sail?", ANSWER, ((TEXT.index(ANSWER), TEXT.index(ANSWER) + len(ANSWER)),), "ships"
)


def lesson(example: TrainingExample = EXAMPLE, *, n_tokens: int = 600, interval: int = 8, **settings: object) -> Lesson:
    values = {
        "stage": "stage2",
        "context": (n_tokens,),
        "stride": 64,
        "intervals": (interval,),
        "refill": 64,
    } | settings
    return Teacher(tiny_decoder(), TrainingSettings(**values)).lesson(example, Draw(interval, n_tokens))


@pytest.mark.parametrize("first_stride", [False, True])
def test_each_token_is_predicted_by_the_one_before_it_within_its_stride(first_stride: bool) -> None:
    """Spelled out token by token; the L1 token between two blocks predicts nothing and is predicted by nothing."""
    n_prefix, n_tokens, interval, per_stride = 3, 45, 4, 12
    layout = reading(n_prefix=n_prefix, n_tokens=n_tokens, interval=interval, stride=per_stride)
    ids = torch.arange(100, 100 + n_prefix + n_tokens)
    expected = []
    for token in range(n_tokens - 1):
        last_stride = (n_tokens // interval * interval - 1) // per_stride  # the tail is read with it
        stride, following = (min(t // per_stride, last_stride) for t in (token, token + 1))
        if stride == following and (first_stride or stride > 0):
            slot = n_prefix + token + min(token // interval, n_tokens // interval)
            expected.append((slot, 100 + n_prefix + token + 1))
    slots, targets = stage1_targets(layout, ids, first_stride=first_stride)
    assert list(zip(slots.tolist(), targets.tolist(), strict=True)) == expected
    assert not set(slots.tolist()) & set(layout.l1_slots.tolist())


def test_a_repeated_document_is_its_first_half_twice_and_the_second_time_in_pieces() -> None:
    once = lesson(stage="stage1", context=(1024,), n_tokens=1024, repeats=0.0)
    twice = lesson(stage="stage1", context=(1024,), n_tokens=1024, repeats=1.0)
    n_prefix = twice.layout.n_prefix
    first, second = twice.token_ids[n_prefix:].split(512)
    assert torch.equal(first, once.token_ids[n_prefix : n_prefix + 512])
    assert not torch.equal(first, second) and sorted(first.tolist()) == sorted(second.tolist())
    pieces = {tuple(piece.tolist()) for piece in first.split(128)}
    assert {tuple(piece.tolist()) for piece in second.split(128)} == pieces
    assert torch.equal(twice.token_ids, lesson(stage="stage1", context=(1024,), n_tokens=1024, repeats=1.0).token_ids)


def test_stage_two_can_go_on_with_the_loss_of_stage_one() -> None:
    decoder = tiny_decoder()
    settings = TrainingSettings(stage="stage2", context=(300,), stride=64, intervals=(8,), document_weight=0.5)
    asked = Teacher(decoder, settings).lesson(EXAMPLE, Draw(8, 300))
    assert asked.beside is not None
    reader = NestedReader(decoder, L1Parameters(decoder))
    answer, document = lesson_losses(reader, asked, settings)
    ids = asked.token_ids[: asked.layout.n_prefix + asked.layout.n_tokens]
    alone = reading(n_prefix=asked.layout.n_prefix, n_tokens=asked.layout.n_tokens, interval=8, stride=64)
    slots, targets = stage1_targets(alone, ids)
    losses = token_losses(decoder, reader(ids, alone)[slots], targets)
    assert float(document) == pytest.approx(0.5 * losses.mean().item(), rel=1e-4)
    [plain] = lesson_losses(reader, asked, TrainingSettings(stage="stage2", context=(300,), stride=64, intervals=(8,)))
    assert float(answer) == pytest.approx(float(plain), rel=1e-5)


def test_the_heads_loss_and_its_gradient_are_those_of_plain_cross_entropy() -> None:
    decoder = tiny_decoder()
    torch.manual_seed(0)
    hidden, targets = torch.randn(1100, 32, requires_grad=True), torch.randint(300, (1100,))
    weights = torch.rand(1100)
    plain = functional.cross_entropy(decoder.model.lm_head(hidden), targets, reduction="none")
    (expected,) = torch.autograd.grad((plain * weights).sum(), hidden)
    ours = token_losses(decoder, hidden, targets)
    (gradient,) = torch.autograd.grad((ours * weights).sum(), hidden)
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(gradient, expected)


# Stage 2


def test_only_the_answer_is_predicted_and_its_end() -> None:
    tokenizer = tiny_decoder().tokenizer
    made = lesson()
    assert tokenizer.decode(made.targets) == ANSWER + tokenizer.eos_token
    assert made.slots.tolist() == list(range(made.layout.n_slots - len(made.targets) - 1, made.layout.n_slots - 1))
    asked = render(SHORT_ANSWER, tokenizer).ask(EXAMPLE.question)[0]
    assert tokenizer.decode(made.token_ids).endswith(asked + asked + ANSWER + tokenizer.eos_token)


def test_the_question_is_first_read_over_l1_alone() -> None:
    made = lesson()
    *_, first, second = made.layout.steps
    exact = set(made.layout.token_slots[: made.layout.n_blocks * 8].tolist())
    assert not exact & set(first.seen.tolist())
    assert len(exact & set(second.seen.tolist())) >= 8
    place = slice(made.question.start - first.start, made.question.stop - first.start)
    asked_ids = made.token_ids[-len(made.targets) - 2 * (first.stop - first.start) :][place]
    assert tiny_decoder().tokenizer.decode(asked_ids) == EXAMPLE.question


@pytest.mark.parametrize("n_tokens", [2000, 600, 200, 100])
@pytest.mark.parametrize("interval", [4, 16])
def test_the_right_blocks_are_refilled_wherever_the_document_is_cut(n_tokens: int, interval: int) -> None:
    for name in ("a", "b", "c", "d"):
        made = lesson(TrainingExample(**vars(EXAMPLE) | {"id": name}), n_tokens=n_tokens, interval=interval)
        layout, document = made.layout, made.token_ids[made.layout.n_prefix :]
        assert layout.n_tokens <= n_tokens
        text = tiny_decoder().tokenizer.decode(
            torch.cat([document[b * interval : (b + 1) * interval] for b in range(made.gold[0], made.gold[-1] + 1)])
        )
        assert ANSWER in text and len(made.gold) <= len(ANSWER) // interval + 2
        seen = set(layout.steps[-1].seen.tolist())
        assert all(set(layout.token_slots[b * interval : (b + 1) * interval].tolist()) <= seen for b in made.gold)


def test_a_lesson_is_the_same_every_time() -> None:
    one, again = lesson(n_tokens=200), lesson(n_tokens=200)
    assert torch.equal(one.token_ids, again.token_ids) and one.gold == again.gold


def test_what_teaches_nothing_is_refused() -> None:
    with pytest.raises(DocumentError, match="no question"):
        lesson(TrainingExample(TEXT, None, None, (), "plain"))
    with pytest.raises(DocumentError, match="6 tokens, and a later stride to learn from takes 72"):
        lesson(TrainingExample("Short.", None, None, (), "short"), stage="stage1")
    with pytest.raises(DocumentError, match="6 tokens, and a block takes 8"):
        lesson(TrainingExample("Short.", "Q?", "A", (), "short"))


def test_gold_too_wide_for_the_window_is_passed_over() -> None:
    wide = TrainingExample(TEXT, "Q?", "A", ((0, 3), (900, 908)), "wide")
    settings = TrainingSettings(stage="stage2", context=(200,), stride=64, intervals=(8,), window=140)
    found, skipped = Teacher(tiny_decoder(), settings).lessons(iter([wide, EXAMPLE]), Draw(8, 200), n=1)
    assert len(found) == len(skipped) == 1 and "window=140" in skipped[0]


@pytest.mark.parametrize("interval", [1, 2, 3, 8, 40])
@pytest.mark.parametrize("stride", [40, 41, 64])
def test_the_least_tokens_teach_something_with_every_interval(interval: int, stride: int) -> None:
    settings = TrainingSettings(context=(200,), stride=stride, intervals=(interval,))
    ids = torch.arange(settings.least_tokens)
    layout = reading(n_prefix=0, n_tokens=len(ids), interval=interval, stride=stride)
    assert len(stage1_targets(layout, ids)[0]) > 0


def test_gold_spread_wider_than_the_step_lengthens_its_document() -> None:
    made = lesson(TrainingExample(TEXT, "Q?", "A", ((0, 3), (900, 908)), "far"), n_tokens=100)
    assert made.layout.n_tokens > 100 and made.gold[0] == 0 and made.gold[-1] == made.layout.n_blocks - 1


def test_checkpointing_and_the_retrieval_loss_go_together() -> None:
    decoder, made = tiny_decoder(), lesson(n_tokens=200)
    settings = TrainingSettings(stage="stage2", context=(200,), stride=64, intervals=(8,), retrieval_weight=0.5)
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        reader = NestedReader(decoder, L1Parameters(decoder, rank=2), checkpointing=checkpointing)
        losses = lesson_losses(reader, made, settings)
        losses.sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in reader.l1.parameters() if p.grad is not None]))
    NestedReader(decoder, L1Parameters(decoder, rank=2))  # off again: the model is shared with other tests
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[1], gradients[0])
