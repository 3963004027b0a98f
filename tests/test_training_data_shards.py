"""Shards are read in an order that the seed alone decides, each example once, and nothing damaged is read."""

import json
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
from torch.utils.data import DataLoader

from acre_rag.errors import TrainingDataError
from acre_rag.store.files import write_file
from acre_rag.training.data import ShardedExamples, TrainingExample, verify
from acre_rag.training.data.manifest import NAME, Manifest, load_manifest
from acre_rag.training.data.writer import ShardWriter, new_folder

N = 103


def example(i: int, **more: object) -> TrainingExample:
    fields = {
        "document": f"Document\r {i}\u2028 ends.",
        "question": "Which?",
        "answer": str(i),
        "gold": ((0, 8),),
        "id": str(i),
    }
    return TrainingExample(**fields | more)


def make(folder: Path, *examples: TrainingExample, shard_examples: int = 10) -> Path:
    with new_folder(folder) as made:
        writer = ShardWriter(made, shard_examples=shard_examples)
        for each in examples:
            writer.add(each)
        writer.flush()
        facts = {
            "stage": 2,
            "created": "",
            "options": {},
            "sources": [],
            "counts": {},
            "exclusion": {},
            "gold_places": [],
        }
        write_file(made / NAME, [Manifest(**facts, shards=writer.shards).dump()])
    return folder


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return make(tmp_path / "shards", *map(example, range(N)))


def ids(examples: object) -> list[int]:
    return [int(each.id) for each in examples]


def test_examples_come_back_as_they_were_written(shards: Path) -> None:
    assert sorted(ShardedExamples(shards), key=lambda e: int(e.id)) == [example(i) for i in range(N)]
    assert len(ShardedExamples(shards)) == N and verify(shards).n_examples == N


def test_the_order_is_the_seeds_and_well_mixed(shards: Path) -> None:
    first = ids(ShardedExamples(shards, seed=1))
    assert first == ids(ShardedExamples(shards, seed=1)) != ids(ShardedExamples(shards, seed=2))
    assert Counter(first) == Counter(range(N))
    neighbours = sum(abs(a - b) == 1 for a, b in zip(first, first[1:], strict=False))
    assert neighbours < 10


def test_passes_differ_and_may_never_end(shards: Path) -> None:
    both = ids(ShardedExamples(shards, passes=2))
    assert len(both) == len(ShardedExamples(shards, passes=2)) == 2 * N
    assert Counter(both[:N]) == Counter(both[N:]) and both[:N] != both[N:]
    endless = ShardedExamples(shards, passes=None)
    assert ids(islice(endless, 3 * N))[: 2 * N] == both
    with pytest.raises(TypeError):
        len(endless)


@pytest.mark.parametrize("n", [0, 1, 41, N - 1, N, N + 7, 2 * N])
def test_skipping_gives_the_rest_of_the_same_order(n: int, shards: Path) -> None:
    whole = ShardedExamples(shards, seed=3, passes=2)
    assert ids(whole.skip(n)) == ids(whole)[n:]
    assert ids(whole.skip(n // 2).skip(n - n // 2)) == ids(whole)[n:]
    assert len(whole.skip(n)) == 2 * N - n


def test_skipping_opens_no_shard_that_it_does_not_need(shards: Path) -> None:
    """The shards of the first group are gone; who resumes behind it never notices."""
    whole = ShardedExamples(shards, buffer_shards=2)
    order = ids(whole)
    for i in {number // 10 for number in order[:20]}:
        (shards / f"shard-{i:05d}.jsonl.gz").unlink()
    assert ids(whole.skip(20)) == order[20:]
    with pytest.raises(TrainingDataError, match="cannot be read"):
        ids(whole.skip(19))


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_ranks_together_read_what_one_process_reads(world_size: int, shards: Path) -> None:
    """In turns, so that a step of all ranks has the examples of one process's step of as many."""
    alone = ids(ShardedExamples(shards, seed=5, passes=2))
    ranks = [ids(ShardedExamples(shards, seed=5, rank=r, world_size=world_size, passes=2)) for r in range(world_size)]
    each = N // world_size
    assert all(len(rank) == 2 * each for rank in ranks)
    together = [number for turn in zip(*ranks, strict=True) for number in turn]
    assert together == alone[: each * world_size] + alone[N : N + each * world_size]


@pytest.mark.parametrize("skipped", [0, 13])
def test_workers_share_the_examples_of_their_rank(skipped: int, shards: Path) -> None:
    data = ShardedExamples(shards, rank=1, world_size=2).skip(skipped)
    loaded = DataLoader(data, batch_size=None, num_workers=2)
    assert Counter(ids(loaded)) == Counter(ids(data))


def test_equal_examples_give_equal_bytes(tmp_path: Path) -> None:
    first, second = (make(tmp_path / name, *map(example, range(30))) for name in "ab")
    assert load_manifest(first).digest == load_manifest(second).digest
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes()
        if path.suffix == ".gz":
            assert path.read_bytes()[4:8] == bytes(4), "the time of writing is in the header"


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "swapped"])
def test_a_damaged_shard_is_named(damage: str, shards: Path) -> None:
    path, other = shards / "shard-00003.jsonl.gz", shards / "shard-00004.jsonl.gz"
    data = path.read_bytes()
    path.unlink()
    if damage == "flip":
        path.write_bytes(data[:50] + bytes([data[50] ^ 1]) + data[51:])
    elif damage == "cut":
        path.write_bytes(data[:-9])
    elif damage == "swapped":
        path.write_bytes(other.read_bytes())
    for reading in (lambda: verify(shards), lambda: list(ShardedExamples(shards))):
        with pytest.raises(TrainingDataError, match=r"shard-00003.*acre data build"):
            reading()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m | {"stage": 1}, "digest"),
        (lambda m: m | {"format": "acre-rag-shards/9"}, "shards/9"),
        (lambda m: [m], "None"),
    ],
)
def test_a_changed_manifest_is_refused(change: object, said: str, shards: Path) -> None:
    path = shards / NAME
    record = json.loads(path.read_text())
    path.write_text(json.dumps(change(record)))
    with pytest.raises(TrainingDataError, match=said):
        ShardedExamples(shards)


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff", b"[" * 100_000])
def test_what_is_no_folder_of_shards_is_refused(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / NAME).write_bytes(content)
    with pytest.raises(TrainingDataError, match="acre data build"):
        ShardedExamples(tmp_path)


def test_a_manifest_cannot_name_files_elsewhere(tmp_path: Path, shards: Path) -> None:
    manifest = load_manifest(shards)
    wrong = manifest.shards[0].__class__(file="../secret.gz", examples=1, bytes=1, sha256="")
    changed = Manifest(**{f: getattr(manifest, f) for f in manifest.__dataclass_fields__} | {"shards": [wrong]})
    (shards / NAME).write_bytes(changed.dump())
    with pytest.raises(TrainingDataError, match="not a file of this folder"):
        load_manifest(shards)


@pytest.mark.parametrize("wrong", [{"gold": ((0, 99),)}, {"gold": ((5, 5),)}, {"question": None}])
def test_examples_that_contradict_themselves_do_not_verify(wrong: dict, tmp_path: Path) -> None:
    with pytest.raises(TrainingDataError, match="'4'"):
        verify(make(tmp_path / "out", example(3), example(4, **wrong)))


def test_too_few_examples_and_absurd_ranks_are_refused(tmp_path: Path) -> None:
    folder = make(tmp_path / "out", example(0))
    with pytest.raises(TrainingDataError, match="too few for 2 processes"):
        ShardedExamples(folder, world_size=2)
    for wrong in ({"rank": 1}, {"rank": -1}, {"passes": 0}, {"buffer_shards": 0}):
        with pytest.raises(TrainingDataError):
            ShardedExamples(folder, **wrong)


def test_an_interrupted_build_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "out") as made:
        ShardWriter(made, shard_examples=1).add(example(0))
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
