"""Every KV system end to end with the built-in model, on some 1,000 tokens of the book that the package ships."""

from collections.abc import Callable

import pytest

from acre_rag.baselines.base import Setting
from acre_rag.baselines.kv.base import KVBaseline
from acre_rag.baselines.prompted import token_ids
from acre_rag.baselines.registry import make_system
from acre_rag.decoder import Decoder
from acre_rag.generate import GenerationSettings

pytestmark = pytest.mark.model

SHORT = GenerationSettings(max_new_tokens=8)
QUESTION = "What did the Rabbit take out of its waistcoat-pocket?"
N_CHARS = 4_000  # some 1,000 tokens


@pytest.fixture(scope="module")
def say(smollm2: Decoder, alice: str) -> Callable[..., tuple[KVBaseline, list[str], int]]:
    """Makes a system, reads the book's beginning, asks; gives its answers and what it attended to."""
    start = alice.index("Alice was beginning")

    def run(name: str, **options: int) -> tuple[KVBaseline, list[str], int]:
        system = make_system(name, Setting(decoder=smollm2), **options)
        assert isinstance(system, KVBaseline)
        system.add(alice[start : start + N_CHARS])
        answers = [system.ask(QUESTION, settings=SHORT) for _ in range(2)]
        usage = answers[0].usage
        return system, [answer.text for answer in answers], usage.cached_tokens + usage.prompt_tokens

    return run


@pytest.fixture(scope="module")
def full(say: Callable[..., tuple[KVBaseline, list[str], int]]) -> tuple[KVBaseline, list[str], int]:
    """Full context on the same text."""
    return say("full")


def test_full_context_answers(full: tuple[KVBaseline, list[str], int]) -> None:
    _, answers, attended = full
    assert 800 < attended < 1300
    assert "Rabbit" in answers[0]


@pytest.mark.parametrize(
    ("name", "options", "slots"),
    [
        ("streaming-llm", {"kept_tokens": 256}, 256),
        ("snapkv", {"kept_tokens": 256}, 256),
        ("finch", {"kept_tokens": 256}, 256),
        ("kivi", {}, None),
        ("self-extend", {"neighbours": 256, "group": 2}, None),
        ("offload", {}, None),
    ],
)
def test_every_other_system_answers_in_words(
    name: str,
    options: dict[str, int],
    slots: int | None,
    say: Callable[..., tuple[KVBaseline, list[str], int]],
    full: tuple[KVBaseline, list[str], int],
) -> None:
    system, answers, attended = say(name, **options)
    assert answers[0] == answers[1], name
    assert len(answers[0].split()) > 2 and answers[0].isascii()
    asked = len(token_ids(system.decoder, system.prompt.ask(QUESTION)[0]))
    assert attended == (slots + asked if slots else full[2])
    if name == "offload":
        assert answers[0] == full[1][0]
