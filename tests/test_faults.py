"""Kills, failing calls, changed bytes, hostile names and crowds: small here, in the nightly size in benchmarks/faults.py."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from acre_rag import ACRE

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks import faults
from benchmarks.damage import DAMAGE

pytestmark = pytest.mark.faults
NewEngine = Callable[..., ACRE]


@pytest.fixture
def new_engine() -> NewEngine:
    return faults.tiny_engine


def test_a_kill_while_saving_leaves_nothing_broken_and_nothing_behind(new_engine: NewEngine, tmp_path: Path) -> None:
    counts = faults.kills(new_engine, tmp_path, 25)
    assert counts["corrupt_loads"] == counts["leftovers"] == 0
    assert counts["remains_before_opening"] > 5, "the kills came too late to hurt"
    assert counts["documents_saved"] > 0, "the kills came too early to let anything be saved"


def test_every_failing_write_flush_and_rename_is_told_and_loses_nothing(new_engine: NewEngine, tmp_path: Path) -> None:
    counts = faults.failing_calls(new_engine, tmp_path)
    assert counts["leftovers"] == counts["lost"] == 0
    assert counts["failed_write"] >= 5 and counts["failed_fsync"] >= 6 and counts["failed_rename"] >= 1
    assert counts["clear_errors"] == counts["failed_write"] + counts["failed_fsync"] + counts["failed_rename"]
    assert counts["works_again"] == 1


def test_changed_bytes_never_give_another_answer(new_engine: NewEngine, tmp_path: Path) -> None:
    counts = faults.mutations(new_engine, tmp_path, 120)
    assert counts["wrong_answers"] == counts["unnamed_errors"] == counts["unseen_by_verify"] == 0
    assert counts["refused"] > 60
    assert all(counts[kind] for kind in DAMAGE)


def test_every_field_of_the_fingerprint_is_refused_by_name(new_engine: NewEngine, tmp_path: Path) -> None:
    counts = faults.fingerprints(new_engine, tmp_path)
    assert counts["missed"] == []
    assert counts["fields"] == 15


def test_a_crowd_under_eviction_gets_the_serial_answers(new_engine: NewEngine, tmp_path: Path) -> None:
    counts = faults.crowd(new_engine, tmp_path, threads=8, documents=4, questions=5)
    assert counts["asked"] == 40 and counts["wrong"] == 0
    assert counts["evictions"] > 10


def test_processes_share_a_store_without_a_wrong_answer(new_engine: NewEngine, tmp_path: Path) -> None:
    counts = faults.processes(new_engine, tmp_path, seconds=5)
    assert counts["wrong"] == counts["crashes"] == counts["leftovers"] == counts.get("other_errors", 0) == 0
    assert counts["answers"] > 10 and counts["removed"] > 0


def test_hostile_names_stay_inside_and_apart(new_engine: NewEngine, tmp_path: Path) -> None:
    counts: dict[str, Any] = faults.hostile(new_engine, tmp_path, 50)
    assert counts["found_again"] == counts["names"] == 50
    assert counts["outside"] == counts["links_in_store"] == 0
