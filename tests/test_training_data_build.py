"""From texts and questions to shards: lengths, places of the gold, shares, exclusion, the manifest, the commands."""

import json
import random
import tracemalloc
from itertools import pairwise
from pathlib import Path

import pytest
from test_training_data_sources import written
from typer.testing import CliRunner

from acre_rag.cli import app
from acre_rag.errors import TrainingDataError
from acre_rag.training.data import BuildOptions, ShardedExamples, TrainingExample, build, verify
from acre_rag.training.data.composing import Pool, compose_example
from acre_rag.training.data.record import Record
from acre_rag.training.data.sampling import Kind, Selection, quotas
from acre_rag.training.data.stretches import Lengths, stretches

NOUNS = ("lamp", "kite", "drum", "bell", "boat", "coat", "ring", "book", "bird", "tree")


def sentence(rng: random.Random) -> str:
    return f"The {rng.choice(NOUNS)} {rng.randrange(10**6)} of house {rng.randrange(10**6)} is {rng.choice(NOUNS)}."


def book(seed: int, n_paragraphs: int = 120) -> str:
    rng = random.Random(seed)
    return "\n\n".join(" ".join(sentence(rng) for _ in range(rng.randint(1, 8))) for _ in range(n_paragraphs))


def pair(i: int, **more: object) -> dict:
    rng = random.Random(f"pair {i}")
    filler = " ".join(sentence(rng) for _ in range(6))
    text = f"{filler} Room {i} is kept by person{i}x. {filler}"
    return {"id": f"p{i}", "context": text, "question": f"Who keeps room {i}?", "answers": [f"person{i}x"], **more}


def read(folder: Path) -> list[TrainingExample]:
    return sorted(ShardedExamples(folder), key=lambda example: example.id)


# Stretches


@pytest.mark.parametrize(("least", "most"), [(450, 600), (50, 1000)])
def test_stretches_are_whole_paragraphs_of_the_wanted_lengths(least: int, most: int) -> None:
    text = book(0)
    lengths = Lengths(least, most)
    cut = list(stretches(text, lengths, random.Random(0)))
    assert cut and all(lengths.min_chars <= len(s) <= lengths.max_chars for s in cut)
    places = [text.index(s) for s in cut]
    assert all(a + len(s) <= b for (a, b), s in zip(pairwise(places), cut, strict=False)), "in order, without overlap"
    assert all(text[:at].endswith("\n\n") or at == 0 for at in places)
    assert sum(map(len, cut)) > 0.95 * (len(text) - lengths.max_chars), "no more than the end is lost"
    assert len({len(s) // 50 for s in cut}) > 3 and max(map(len, cut)) > 0.85 * lengths.max_chars, "lengths differ"


def test_a_paragraph_without_end_is_cut_at_sentences() -> None:
    text = book(1).replace("\n\n", " ")
    lengths = Lengths(200, 400)
    cut = list(stretches(text, lengths, random.Random(0)))
    assert sum(map(len, cut)) > 0.9 * len(text)
    assert all(lengths.min_chars <= len(s) <= lengths.max_chars and s[-1] == "." for s in cut)


def test_a_text_too_short_for_a_stretch_gives_none() -> None:
    assert list(stretches("Short.\n\nVery.", Lengths(100, 200), random.Random(0))) == []


@pytest.mark.parametrize("wrong", [(0, 100), (100, 100), (200, 100), (1, 100, 0.0)])
def test_lengths_that_leave_no_room_are_refused(wrong: tuple) -> None:
    with pytest.raises(TrainingDataError, match="characters leave"):
        Lengths(*wrong)


# Composing


def test_the_gold_is_where_it_is_said_to_be_and_as_likely_anywhere() -> None:
    pool = Pool(seed=0, longest_chars=2000)
    for i in range(100):
        pool.offer(Record(document=pair(i)["context"]))
    pool.seal()
    lengths = Lengths(1000, 2000)
    tenths = [0] * 10
    for i in range(600):
        rng = random.Random(i)
        row = pair(i)
        record = Record(document=row["context"], question=row["question"], answers=tuple(row["answers"]))
        example = compose_example(record, pool.draw(record, rng), lengths=lengths, rng=rng, id=str(i))
        assert example is not None and lengths.min_chars <= len(example.document) <= lengths.max_chars
        [(start, stop)] = example.gold
        assert example.document[start:stop] == f"Room {i} is kept by person{i}x."
        assert example.document.count(f"person{i}x") == 1, "a distractor answers the question"
        tenths[10 * (start + stop) // 2 // len(example.document)] += 1
    assert all(35 <= n <= 90 for n in tenths), tenths  # 60 each, give or take


def test_gold_without_evidence_is_the_passage_unless_that_is_the_document() -> None:
    record = Record(document="  It is raining in the hills. ", question="Is it dry?", answers=("no",))
    others = ["The sea is calm and wide today."] * 8
    example = compose_example(record, others, lengths=Lengths(20, 60), rng=random.Random(0), id="a")
    assert example is not None
    assert [example.document[a:b] for a, b in example.gold] == ["It is raining in the hills."]
    alone = compose_example(record, [], lengths=Lengths(1, 10), rng=random.Random(0), id="a")
    assert alone is not None and alone.gold == () and alone.document == "It is raining in the hills."
    assert compose_example(record, [], lengths=Lengths(20, 60), rng=random.Random(0), id="a") is None


def test_relatives_distract_first_and_the_right_passage_never() -> None:
    pool = Pool(seed=0, longest_chars=100)
    for i in range(50):
        pool.offer(Record(document=f"Passage {i} of a kind.", title=f"title {i % 5}"))
    pool.offer(Record(document="Passage 3 of a kind. And more.", title="title 3"))
    pool.offer(Record(document="x" * 101, title="title 3"))
    pool.seal()
    record = Record(document="Passage 3 of a kind.", question="?", answers=("yes",), title="title 3")
    drawn = list(pool.draw(record, random.Random(0)))
    assert len(pool) == 51 and len(drawn) == len(set(drawn))
    assert all(record.document not in text for text in drawn)
    relatives = {f"Passage {i} of a kind." for i in range(3, 50, 5)}
    assert sum(text in relatives for text in drawn[:10]) >= 5


def test_the_pool_is_a_fair_sample_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("acre_rag.training.data.composing._MOST_PASSAGES", 100)
    halves = 0
    for seed in range(20):
        pool = Pool(seed=seed, longest_chars=100)
        for i in range(1000):
            pool.offer(Record(document=str(i)))
        assert len(pool) == 100
        halves += sum(int(text) < 500 for _, text in pool._passages)
    assert 900 < halves < 1100


# Sampling


@pytest.mark.parametrize("limit", [None, 1, 7, 100])
def test_quotas_keep_the_caps_and_the_limit(limit: int | None) -> None:
    counts = {Kind.PLAIN: 90, Kind.SHORT: 1000, Kind.YES_NO: 400, Kind.EXCLUDED: 50}
    caps = {Kind.SHORT: 0.1, Kind.YES_NO: 0.2}
    taken = quotas(counts, caps=caps, limit=limit)
    total = sum(taken.values())
    assert total == limit if limit else 120 <= total <= 90 / 0.7
    assert all(taken[kind] <= cap * total + 1 for kind, cap in caps.items())
    assert all(taken[kind] <= counts[kind] for kind in taken)
    if limit is None:
        assert taken[Kind.PLAIN] == 90


def test_caps_that_do_not_bind_take_everything() -> None:
    counts = {Kind.PLAIN: 95, Kind.SHORT: 3, Kind.YES_NO: 2}
    assert quotas(counts, caps={Kind.SHORT: 0.1, Kind.YES_NO: 0.1}, limit=None) == counts


@pytest.mark.parametrize(
    ("caps", "limit", "said"),
    [({Kind.YES_NO: 0.1}, None, "Nothing is left"), ({Kind.YES_NO: 1.5}, None, "share"), ({}, 0, "limit=0")],
)
def test_impossible_quotas_are_refused(caps: dict, limit: int | None, said: str) -> None:
    with pytest.raises(TrainingDataError, match=said):
        quotas({Kind.YES_NO: 30}, caps=caps, limit=limit)


def test_selection_takes_exactly_so_many_and_each_as_likely() -> None:
    kinds = bytes([Kind.PLAIN, Kind.SHORT, Kind.EXCLUDED] * 20)
    times = [0] * 60
    for seed in range(300):
        selection = Selection(kinds, {Kind.PLAIN: 5, Kind.SHORT: 20}, seed=seed)
        taken = [i for i in range(60) if selection.takes(i)]
        assert sum(kinds[i] == Kind.PLAIN for i in taken) == 5 and len(taken) == 25
        for i in taken:
            times[i] += 1
    assert all(n == 300 for n in times[1::3]) and not any(times[2::3])
    assert all(45 <= n <= 108 for n in times[::3]), "75 each, give or take"


def test_a_source_that_grows_between_the_readings_is_refused() -> None:
    selection = Selection(bytes([Kind.PLAIN]), {Kind.PLAIN: 1}, seed=0)
    assert selection.takes(0)
    with pytest.raises(TrainingDataError, match="changed"):
        selection.takes(1)


# Building


def test_stage_1_from_texts_to_shards_and_back(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"book{i}.txt").write_text(book(i))
    written(tmp_path / "more.jsonl", {"text": book(9), "license": "CC0"}, {"text": "Too short."})
    options = BuildOptions(stage=1, min_tokens=100, max_tokens=200, shard_examples=10)
    manifest = build([tmp_path], tmp_path / "out", options=options, licence="public domain")
    examples = read(tmp_path / "out")
    assert verify(tmp_path / "out") == manifest and manifest.n_examples == len(examples) == manifest.counts["examples"]
    assert manifest.counts["chars"] == sum(len(e.document) for e in examples)
    assert len({e.id for e in examples}) == len(examples) > 30
    texts = [book(i) for i in (0, 1, 2, 9)]
    assert all(e.question is None and not e.gold and any(e.document in t for t in texts) for e in examples)
    assert [s["licences"] for s in manifest.sources] == [{"public domain": 1}] * 3 + [{"CC0": 1, "not said": 1}]
    assert str(tmp_path) not in (tmp_path / "out" / "manifest.json").read_text()
    again = build(
        [tmp_path / f"book{i}.txt" for i in range(3)] + [tmp_path / "more.jsonl"], tmp_path / "b", options=options
    )
    assert again.shards == manifest.shards, "the same input and seed give the same bytes"


def test_stage_2_keeps_every_promise(tmp_path: Path) -> None:
    """Caps, lengths, hosts, evaluation questions and passages: on what comes out, not on what was planned."""
    yes = [pair(i, answers=["yes"]) for i in range(100, 160)]
    short = [
        {"id": f"s{i}", "context": f"Item {i} is c{i}.", "question": f"What is {i}?", "answers": [f"c{i}"]}
        for i in range(60)
    ]
    stolen = pair(7)["context"].split()
    passage = {"text": " ".join(stolen[10:40])}
    data = written(tmp_path / "pairs.jsonl.gz", *(pair(i) for i in range(80)), *yes, *short, passage)
    (tmp_path / "book.txt").write_text(book(3, 400))
    evaluation = written(
        tmp_path / "evaluation.jsonl",
        {"question": "who keeps room 5", "answers": ["?"]},
        {"context": " ".join(stolen[10:40])},
    )
    options = BuildOptions(stage=2, min_tokens=300, max_tokens=600, book_share=0.5, short_words=20)
    manifest = build([data, tmp_path / "book.txt"], tmp_path / "out", options=options, exclude=[evaluation])
    examples = read(tmp_path / "out")
    n = len(examples)
    assert n >= 78 and manifest.counts["excluded"] == 2
    assert {"p5", "p7"} == {row["what"] for row in manifest.exclusion["some_of_them"]}
    assert not {"p5", "p7"} & {e.id for e in examples}
    assert not any(" ".join(stolen[10:40]) in e.document for e in examples), "not as a distractor either"
    assert sum(e.answer == "yes" for e in examples) <= 0.1 * n + 1
    assert sum(e.id.startswith("s") for e in examples) <= 0.1 * n + 1
    assert all(options.lengths.min_chars <= len(e.document) <= options.lengths.max_chars for e in examples)
    for e in examples:
        if e.id.startswith("p") and e.answer != "yes":
            assert [e.document[a:b] for a, b in e.gold] == [f"Room {e.id[1:]} is kept by {e.answer}."]
    hosted = sum(sum(p in book(3, 400) for p in e.document.split("\n\n")) > 1 for e in examples)
    assert 0.3 * n < hosted < 0.7 * n
    assert sum(manifest.gold_places) == n


def test_what_overlaps_with_an_evaluation_document_is_in_no_stretch(tmp_path: Path) -> None:
    text = book(4, 200)
    (tmp_path / "book.txt").write_text(text)
    (tmp_path / "evaluation.txt").write_text(text[4000:6000])
    options = BuildOptions(stage=1, min_tokens=100, max_tokens=200)
    free = build([tmp_path / "book.txt"], tmp_path / "free", options=options)
    manifest = build([tmp_path / "book.txt"], tmp_path / "out", options=options, exclude=[tmp_path / "evaluation.txt"])
    assert 2 <= manifest.counts["excluded"] <= 8
    assert manifest.n_examples == free.n_examples - manifest.counts["excluded"]
    assert not any(text[4500:4700] in e.document for e in read(tmp_path / "out"))
    assert manifest.exclusion["documents"] == 1 and manifest.exclusion["files"][0]["name"] == "evaluation.txt"


def test_a_limit_takes_a_fair_sample(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text(book(5, 600))
    options = BuildOptions(stage=1, min_tokens=100, max_tokens=200, limit=20)
    manifest = build([tmp_path / "book.txt"], tmp_path / "out", options=options)
    numbers = sorted(int(e.id.split("-")[-1]) for e in read(tmp_path / "out"))
    assert len(numbers) == 20 and numbers[0] < manifest.counts["candidates"] / 3 < 2 * numbers[-1] / 3


def test_memory_does_not_grow_with_the_source(tmp_path: Path) -> None:
    """Peak of Python's own memory while building from ten times as many texts."""
    options = BuildOptions(stage=1, min_tokens=500, max_tokens=1000, shard_examples=8)
    peaks = []
    for n in (5, 20, 200):  # the first fills the cache of words
        source = written(tmp_path / f"{n}.jsonl", *({"text": book(i % 5, 100)} for i in range(n)))
        tracemalloc.start()
        build([source], tmp_path / f"out{n}", options=options)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < peaks[1] + 1_000_000, peaks  # the texts have four million characters


def test_the_authors_files_become_shards(tmp_path: Path) -> None:
    """long-llm: {"text"} for stage 1, {"conversations"} for stage 2, whose document is long enough as it is."""
    rows = [
        {
            "conversations": [
                {"role": "user", "content": f"Story:\n\n{book(i, 14)}\n\nWhat is told?"},
                {"role": "assistant", "content": "Much."},
            ]
        }
        for i in range(4)
    ]
    data = written(tmp_path / "train.json", *rows)
    build([data], tmp_path / "out", options=BuildOptions(stage=2, min_tokens=200, max_tokens=2000))
    examples = read(tmp_path / "out")
    assert [(e.document, e.question, e.answer) for e in examples] == [
        (book(i, 14), "What is told?", "Much.") for i in range(4)
    ]


@pytest.mark.parametrize(
    ("rows", "options", "said"),
    [
        ([pair(1)], {"stage": 1}, "holds questions"),
        ([{"text": "Short."}], {"stage": 1}, "Nothing is left"),
        ([{"text": "No question."}], {"stage": 2}, "Nothing is left"),
        ([pair(1), pair(2)], {"stage": 2}, "Nothing reaches 2048 tokens"),
        ([pair(1)], {"stage": 3}, "stage=3"),
        ([pair(1)], {"stage": 2, "book_share": 2.0}, "book_share"),
        ([{"body": "x"}], {"stage": 2}, "fields body"),
    ],
)
def test_what_cannot_be_built_is_refused_and_leaves_nothing(
    rows: list, options: dict, said: str, tmp_path: Path
) -> None:
    data = written(tmp_path / "data.jsonl", *rows)
    with pytest.raises(TrainingDataError, match=said):
        build([data], tmp_path / "out", options=BuildOptions(**options))
    assert [path.name for path in tmp_path.iterdir()] == ["data.jsonl"]


def test_a_folder_that_exists_is_not_touched(tmp_path: Path) -> None:
    data = written(tmp_path / "data.jsonl", {"text": book(0)})
    (tmp_path / "out").mkdir()
    with pytest.raises(TrainingDataError, match="exists"):
        build([data], tmp_path / "out", options=BuildOptions(stage=1, min_tokens=100, max_tokens=200))
    assert not list((tmp_path / "out").iterdir())


# Commands


def test_the_commands_build_show_and_verify(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text(book(0))
    out = str(tmp_path / "out")
    run = CliRunner()
    done = run.invoke(
        app,
        ["data", "build", str(tmp_path / "book.txt"), "--stage", "1", "--out", out, "--tokens", "100..200", "--json"],
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["counts"]["examples"] > 10
    assert "sources" in run.invoke(app, ["data", "inspect", out]).output
    shown = run.invoke(app, ["data", "inspect", out, "--examples", "2", "--json"]).output.splitlines()
    assert len(shown) == 3 and json.loads(shown[2])["question"] is None
    assert "whole" in run.invoke(app, ["data", "verify", out]).output
    wrong = run.invoke(
        app, ["data", "build", str(tmp_path / "book.txt"), "--stage", "1", "--out", out + "2", "--tokens", "many"]
    )
    assert "MIN..MAX" in str(wrong.exception)
