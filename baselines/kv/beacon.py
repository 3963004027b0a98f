"""Activation Beacon's form (arXiv 2401.03462): learned compact entries alone, nothing refilled. Knows no tensors.

It is ACRE's learned L1 with a budget of 0. Whose entries they are makes the difference: an adapter of `acre train`, or
a checkpoint whose tensors are named as the released Activation Beacon's. Each is a system of its own, so that no row of
results passes for the other.
"""

from pathlib import Path
from typing import Any

from acre_rag.baselines.acre import make_acre
from acre_rag.baselines.base import Setting
from acre_rag.engine import ACRE
from acre_rag.errors import UnavailableError
from acre_rag.proxies.checkpoint import open_safetensors


def make_beacon_form(setting: Setting, *, adapter: str | None = None, **options: Any) -> ACRE:
    """With an adapter of `acre train`.

    Args:
        setting: model, template, window, adapter.
        adapter: another adapter than the setting's.
        options: of `make_acre`, learned L1 among them.

    Raises:
        UnavailableError: no adapter fits this model, or it is a checkpoint of beacons.
    """
    if (named := adapter or setting.adapter) and _holds_beacons(Path(named)):
        raise UnavailableError(f"{named} is a checkpoint of beacons: ask for the system beacon-checkpoint.")
    return make_acre(setting, adapter=named, **options)


def make_beacon_checkpoint(setting: Setting, *, adapter: str | None = None, **options: Any) -> ACRE:
    """With a checkpoint of beacons. Arguments as in `make_beacon_form`.

    Raises:
        UnavailableError: none was named, or it holds no beacons.
        AdapterError: it belongs to another model, or is damaged.
    """
    named = adapter or setting.adapter
    if not named or not _holds_beacons(Path(named)):
        given = f"{named} holds none" if named else "no adapter was named"
        raise UnavailableError(
            f"beacon-checkpoint needs a checkpoint with the tensors of Activation Beacon (beacon_q_proj, ...), but "
            f"{given}. Name one with --adapter, or ask for the system beacon, which takes adapters of acre train."
        )
    return make_acre(setting, adapter=named, **options)


def _holds_beacons(path: Path) -> bool:
    """Whether a file, or one of a folder's, has tensors that are named as Activation Beacon's."""
    for file in [path] if path.is_file() else sorted(path.glob("*.safetensors")):
        with open_safetensors(file) as opened:
            if any("beacon_" in key for key in opened.keys()):  # noqa: SIM118 (not a mapping)
                return True
    return False
