"""Random keys and values, and the filler line, of RULER-style tasks; knows nothing of where they are hidden."""

# ruff: noqa: SIM905 - words in rows are easier to read than quoted ones

import random
import string
import uuid
from collections.abc import Collection

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
"""RULER's filler."""

_ADJECTIVES = (
    "amber ancient arid bitter blithe brittle bronze calm candid cobalt coral crimson dapper dewy drowsy dusty "
    "eager earnest elfin faded feral fervent frosty gaudy gentle gilded glossy hardy hazel hollow humble ivory "
    "jaunty jovial keen lanky limpid lofty lucid mellow misty modest mottled nimble opal pallid pensive placid "
    "quaint quirky ragged rustic sable serene silken sturdy tawny tepid umber velvet wistful woven zany zesty "
).split()
_NOUNS = (
    "acorn anchor anvil badger barley basin beacon bobbin bramble candle canyon cobbler compass cricket dagger "
    "dahlia ember falcon fennel ferry fiddle gable garnet glacier goblet hammock harbor heron hinge inkwell "
    "jasmine juniper kettle ladder lantern lichen loom magpie mantle marble meadow nectar oriole otter paddle "
    "parsnip pebble pigeon plover quarry quiver raven ribbon saddle satchel sparrow thistle timber trellis turnip "
    "violin walnut willow zephyr "
).split()


def different(kind: str, n: int, rng: random.Random, taken: Collection[str] = ()) -> list[str]:
    """Different random texts, none of them taken.

    Args:
        kind: "words" (two, with a hyphen), "numbers" (seven digits), "uuids" or "variables" (five capitals).
        n: how many.
        rng: where they come from.
        taken: not these.
    """
    made: list[str] = []
    while len(made) < n:
        text = _random_text(kind, rng)
        made += [text] * (text not in made and text not in taken)
    return made


def _random_text(kind: str, rng: random.Random) -> str:
    if kind == "numbers":
        return str(rng.randrange(10**6, 10**7))
    if kind == "uuids":
        return str(uuid.UUID(int=rng.getrandbits(128), version=4))
    if kind == "variables":
        return "".join(rng.choices(string.ascii_uppercase, k=5))
    return f"{rng.choice(_ADJECTIVES)}-{rng.choice(_NOUNS)}"
