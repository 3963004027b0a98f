"""Retrieval heads: files, refusals, and finding them."""

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_decoder
from typer.testing import CliRunner

from acre_rag import ACRE, ACREConfig, Document
from acre_rag.cli import app
from acre_rag.decoder import Decoder
from acre_rag.errors import CalibrationError, ConfigError, TrainingDataError
from acre_rag.heads import Head, RetrievalHeads, beside, check_heads, heads_beside, load_heads, shipped_heads
from acre_rag.models import load_decoder
from acre_rag.proxies import Proxy
from acre_rag.proxies.adapter import save_adapter
from acre_rag.retrieve import Span
from acre_rag.training import calibration
from acre_rag.training.calibration import calibrate, choose_heads
from acre_rag.training.choices import N_PRIORS, choices
from acre_rag.training.data import located
from acre_rag.training.data.located import LocatedDocument, LocatedQuestion, compose, needles
from acre_rag.training.data.record import Record
from acre_rag.training.data.source import load_pairs
from acre_rag.training.masses import PASSAGE_TOKENS, SIZES, Attended, attended, head_masses
from acre_rag.training.run import begin
from acre_rag.training.settings import TrainingSettings

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.beyond_window import NEEDLES


def heads_of(decoder: Decoder, *heads: tuple[int, int]) -> RetrievalHeads:
    return RetrievalHeads(tuple(Head(a, b, 1 / len(heads)) for a, b in heads), decoder.digest, decoder.architecture)


def test_a_file_comes_back_as_it_was_saved(tiny: Decoder, tmp_path: Path) -> None:
    heads = heads_of(tiny, (1, 2), (0, 3))
    heads.save(tmp_path / "heads.json")
    loaded = load_heads(tmp_path / "heads.json")
    assert loaded.heads == heads.heads and loaded.model_digest == tiny.digest
    assert loaded.key_heads(tiny) == [(0, 1), (1, 1)]  # four query heads share two kv heads
    assert [(h.layer, row) for h, row in loaded.rows(tiny)] == [(1, 1), (0, 0)]
    acre = ACRE(tiny, heads=loaded)
    assert acre.add("The drum is in room one. " * 8).cache.head_keys.shape[0] == 2


def test_heads_are_written_into_a_new_folder_and_a_refusal_has_a_name(tiny: Decoder, tmp_path: Path) -> None:
    """They took minutes to find."""
    heads = heads_of(tiny, (1, 2))
    heads.save(tmp_path / "new" / "deeper" / "heads.json")
    assert load_heads(tmp_path / "new" / "deeper" / "heads.json").heads == heads.heads
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(CalibrationError, match=r"file/heads.json cannot be written"):
        heads.save(tmp_path / "file" / "heads.json")


@pytest.mark.parametrize(
    "content",
    ["", "not json", "[]", "{}", '{"format": "acre-rag-heads/9", "heads": []}', '{"format": "acre-rag-heads/1"}'],
)
def test_a_damaged_file_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "heads.json"
    path.write_text(content)
    with pytest.raises(CalibrationError, match="acre calibrate"):
        load_heads(path)


def test_heads_of_another_model_are_refused(tiny: Decoder) -> None:
    other = tiny_decoder("qwen2")
    with pytest.raises(CalibrationError, match=r"llama-3x4x2x8.*qwen2-3x4x2x8"):
        check_heads(heads_of(tiny, (0, 0)), other)
    with pytest.raises(CalibrationError, match="does not have"):
        check_heads(heads_of(tiny, (7, 0)), tiny)
    assert shipped_heads(tiny) is None


@pytest.mark.model
def test_the_shipped_heads_point_at_the_right_passage(smollm2: Decoder, alice: str) -> None:
    """On a document that calibration never saw, the best shipped head puts more on the right passage than most heads."""
    shipped = shipped_heads(smollm2)
    assert shipped is not None and shipped.model_digest == smollm2.digest
    text = alice[:9000]
    place = text.index("golden key")
    question = LocatedQuestion("What did Alice find on the glass table?", place, place + 10)
    [(mass, gold)] = head_masses(smollm2, LocatedDocument(text, (question,)))
    right = mass[:, gold].max(axis=1)
    best = shipped.heads[0]
    assert right[best.layer * smollm2.n_heads + best.head] > np.quantile(right, 0.95)
    assert right[best.layer * smollm2.n_heads + best.head] > 0.05


def test_calibration_finds_the_head_that_was_planted(tiny: Decoder) -> None:
    """Twelve heads, one of which points at the right passage."""
    rng = np.random.default_rng(0)
    measured = []
    for _ in range(30):
        gold = int(rng.integers(10))
        mass = rng.normal(0, 0.02, (12, 10)).astype(np.float32)
        mass[7, gold] += 0.4
        measured.append((mass, [gold]))
    heads, facts = choose_heads(measured, tiny, 3)
    assert (heads[0].layer, heads[0].head) == (1, 3)
    assert facts["recall_at_1"] > 0.9
    with pytest.raises(CalibrationError, match="no retrieval heads"):
        choose_heads([(np.zeros((12, 10), np.float32), [0])] * 10, tiny, 3)


def test_heads_that_cannot_be_told_apart_are_all_kept(tiny: Decoder) -> None:
    """Three equally noisy heads; the best single one or pair on these questions is luck."""
    rng = np.random.default_rng(1)
    measured = []
    for _ in range(60):
        gold = int(rng.integers(10))
        mass = rng.normal(0, 0.2, (12, 10)).astype(np.float32)
        mass[[2, 5, 9], gold] += 0.4
        measured.append((mass, [gold]))
    heads, _ = choose_heads(measured, tiny, 3)
    assert {h.layer * 4 + h.head for h in heads} == {2, 5, 9}


def test_calibration_runs_from_pairs_to_a_file(tiny: Decoder, tmp_path: Path) -> None:
    """The whole way on a tiny random model: it may well have no such heads, and then says so."""
    pairs = tmp_path / "pairs.jsonl"
    rows = [
        {
            "title": f"t{i % 3}",
            "context": f"The {w} of house {i} is kept in room {i + 2} by the old man.",
            "question": f"Where is the {w} of house {i}?",
            "answers": [f"room {i + 2}"],
        }
        for i, w in enumerate(["lamp", "kite", "drum", "bell"] * 8)
    ]
    pairs.write_text("\n".join(map(json.dumps, rows)))
    decoder = tiny_decoder("llama")
    try:
        heads = calibrate(decoder, data=[pairs], n_questions=12, n_heads=2)
    except CalibrationError as error:
        assert "no retrieval heads" in str(error)
    else:
        assert 1 <= len(heads.heads) <= 2 and heads.facts["data"] == ["pairs.jsonl", "needles"]


# Passage size and prior


def planted(n_questions: int, *, found_at: set[int], prior: float = 0.0, seed: int = 0) -> list[Attended]:
    """Head 7 of 12 points at the right passage of these sizes; elsewhere it points at another.

    All content-free questions put `prior` on the first two passages, and so does every question.
    """
    rng = np.random.default_rng(seed)
    asked = []
    for _ in range(n_questions):
        masses, priors, gold, refilled = {}, {}, {}, {}
        for size in SIZES:
            n = 5400 // size
            right, place = 2 + rng.choice(n - 2, size=2, replace=False)
            masses[size] = rng.uniform(0, 0.01, (12, n)).astype(np.float32)
            priors[size] = np.zeros((N_PRIORS, 12, n), np.float32)
            masses[size][7, right if size in found_at else place] += 0.4
            masses[size][:, :2] += prior
            priors[size][:, :, :2] = prior
            gold[size], refilled[size] = [int(right)], np.full(n, size)
        asked.append(Attended(masses, priors, gold, refilled))
    return asked


def row(rows: list[dict], **wanted: int) -> dict:
    [found] = [each for each in rows if wanted.items() <= each.items()]
    return found


def test_a_passage_size_that_finds_more_at_as_many_tokens_is_chosen() -> None:
    half = planted(15, found_at=set(SIZES)) + planted(15, found_at={225, 900}, seed=1)
    facts = choices(half, [7])
    assert (facts["passage_tokens"], facts["max_passages"]) in {(225, 4), (900, 1)}
    rows = facts["by_passage_tokens"]
    assert [(each["passage_tokens"], each["max_passages"]) for each in rows] == [(225, 4), (300, 3), (450, 2), (900, 1)]
    assert {each["refilled_tokens"] for each in rows} == {900}
    usual = row(rows, passage_tokens=PASSAGE_TOKENS)
    assert (usual["difference"], usual["standard_error"]) == (0, 0)
    assert row(rows, passage_tokens=225)["difference"] > 2 * row(rows, passage_tokens=225)["standard_error"] > 0


def test_a_passage_size_that_is_no_better_than_chance_is_not_chosen() -> None:
    """One question of thirty more is within a standard error."""
    asked = planted(29, found_at=set(SIZES)) + planted(1, found_at={225}, seed=1)
    facts = choices(asked, [7])
    assert (facts["passage_tokens"], facts["max_passages"]) == (PASSAGE_TOKENS, 2)


def test_recall_is_told_for_fewer_prior_questions_and_for_none() -> None:
    """Every head looks at the opening, whatever is asked; head 7 does so more than at what is right."""
    facts = choices(planted(20, found_at=set(SIZES), prior=0.6), [7])
    rows = facts["by_prior_questions"]
    assert [each["prior_questions"] for each in rows] == [0, 4, N_PRIORS]
    assert facts["prior_questions"] == N_PRIORS
    assert row(rows, prior_questions=N_PRIORS)["recall"] == row(rows, prior_questions=4)["recall"] == 1
    assert (row(rows, prior_questions=0)["recall"], row(rows, prior_questions=0)["difference"]) == (0, -1)


def test_every_size_sums_the_same_attention(tiny: Decoder) -> None:
    """Read once: shares of all passages sum to one at most, whatever their size, and the usual size is as it was."""
    text = "The lamp of house one stands in room two. " * 60
    document = LocatedDocument(text, (LocatedQuestion("Where is the lamp?", 30, 40),))
    [each], [usual] = attended(tiny, document), head_masses(tiny, document)
    for size in SIZES:
        n = len(each.refilled[size])
        assert each.masses[size].shape == (12, n) and each.priors[size].shape == (N_PRIORS, 12, n)
        assert each.masses[size].sum(axis=1) == pytest.approx(1, abs=0.05)
    assert len(each.refilled[225]) > len(each.refilled[450]) > len(each.refilled[900])
    mass, gold = each.measured()
    assert gold == usual[1] == [0]
    assert np.array_equal(mass, usual[0])
    without, _ = each.measured(prior_step=None)
    assert np.array_equal(without, each.masses[PASSAGE_TOKENS])
    fourth, _ = each.measured(prior_step=4)
    assert np.allclose(fourth, without - each.priors[PASSAGE_TOKENS][[0, 4, 8, 12]].mean(axis=0))


# Heads that are saved with an adapter


@pytest.fixture
def adapted(tmp_path: Path) -> tuple[Path, Path]:
    """A model's folder, and an adapter for it."""
    decoder = tiny_decoder()
    decoder.model.save_pretrained(tmp_path / "model")
    decoder.tokenizer.save_pretrained(tmp_path / "model")
    loaded = load_decoder(tmp_path / "model", device="cpu", dtype="float32")
    adapter = tmp_path / "mine.safetensors"
    save_adapter(begin(loaded, TrainingSettings(rank=2)), adapter, decoder=loaded, intervals=(8, 16))
    return tmp_path / "model", adapter


def test_heads_are_calibrated_with_an_adapter_saved_beside_it_and_found_there(
    adapted: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, adapter = adapted
    proxies = []

    def measured(decoder: Decoder, document: LocatedDocument, *, proxy: Proxy) -> list[Attended]:
        proxies.append(proxy.name)
        return planted(5, found_at=set(SIZES), seed=len(proxies))

    monkeypatch.setattr(calibration, "attended", measured)
    command = ["calibrate", "--model", str(model), "--device", "cpu", "--questions", "16"]
    done = CliRunner().invoke(app, [*command, "--adapter", str(adapter)])
    assert done.exit_code == 0, done.output
    assert set(proxies) == {"learned"}
    assert {"passage", "prior", "recall", "difference"} <= set(done.output.split())
    saved = load_heads(adapter.with_name("mine.heads.json"))
    assert (saved.heads[0].layer, saved.heads[0].head) == (1, 3) and saved.facts["l1"] == "learned"
    assert len(saved.facts["by_passage_tokens"]) == len(SIZES)

    loaded = ACRE.from_pretrained(model, adapter=adapter, device="cpu", dtype="float32")
    assert loaded.heads == saved
    assert ACRE.from_pretrained(model, device="cpu", dtype="float32").heads is None
    other = adapter.with_name("other.json")
    RetrievalHeads((Head(0, 0, 1.0),), saved.model_digest, saved.architecture).save(other)
    named = ACRE.from_pretrained(model, adapter=adapter, heads=other, device="cpu", dtype="float32")
    assert named.heads is not None and named.heads.heads == (Head(0, 0, 1.0),)

    replace(saved, architecture="phi3-9").save(adapter.with_name("mine.heads.json"))
    with pytest.raises(CalibrationError, match=r"mine\.heads\.json, saved with the adapter.*belong to phi3-9"):
        ACRE.from_pretrained(model, adapter=adapter, device="cpu", dtype="float32")


def test_the_shipped_adapter_keeps_the_shipped_heads(
    tiny: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("shipped.heads.json").write_text("whatever lies in the folder")
    assert heads_beside(Path("shipped"), tiny) is None
    folder = tmp_path / "v1.5"
    folder.mkdir()
    assert beside(folder) == tmp_path / "v1.5.heads.json"
    for options in ([], ["--adapter", "shipped"]):
        done = CliRunner().invoke(app, ["calibrate", *options])
        assert isinstance(done.exception, ConfigError) and "--out" in str(done.exception)


@pytest.mark.parametrize("content", ["", "{", '{"question": "no context?"}', "[1]"])
def test_unusable_pairs_are_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(content)
    with pytest.raises(TrainingDataError, match=str(path)):
        load_pairs(path)


def test_composed_questions_point_at_their_answers() -> None:
    pairs = [
        Record(
            title=f"t{i % 4}",
            document=f"Context {i} says that item {i} is colour {i * 7}.",
            question=f"Colour of {i}?",
            answers=(f"colour {i * 7}",),
        )
        for i in range(50)
    ] + [Record(document="Yes it is.", question="Is it?", answers=("yes",))]
    documents = compose(pairs, n_questions=20, seed=3)
    for document in documents:
        for item in document.questions:
            assert document.text[item.start : item.stop].startswith("colour ")
        assert all(item.question != "Is it?" for item in document.questions)
    assert compose(pairs, n_questions=20, seed=3) == documents


def test_calibration_says_that_it_used_needles(tiny: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = tmp_path / "pairs.jsonl"
    rows = [{"context": f"Lamp {i} is red.", "question": f"Which is lamp {i}?", "answers": ["red"]} for i in range(20)]
    pairs.write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.setattr(calibration, "attended", lambda decoder, document, **_: [])
    monkeypatch.setattr(calibration, "choose_heads", lambda *_: ((Head(0, 0, 1.0),), {}))
    monkeypatch.setattr(calibration, "choices", lambda *_: {})
    assert calibrate(tiny, data=[pairs], n_questions=12).facts["data"] == ["pairs.jsonl", "needles"]
    assert calibrate(tiny, n_questions=12).facts["data"] == ["needles"]


_FUNCTION_WORDS = {"the", "a", "of", "in", "is", "was", "by", "to", "at", "what", "which", "who", "does", "for"}


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower())) - _FUNCTION_WORDS


def test_needles_that_measure_are_none_that_heads_were_calibrated_on() -> None:
    measured = words(" ".join(text for needle in NEEDLES for text in needle))
    templates = words(" ".join(text for thing in located._THINGS for text in thing))
    assert not measured & templates
    assert not measured & words(" ".join(located._PLACES + located._NAMES))
    assert all(expected in sentence for sentence, _, expected in NEEDLES)


def test_needles_stand_where_they_are_said_to(tiny: Decoder) -> None:
    for document in needles(n_questions=12, seed=1):
        for item in document.questions:
            place = item.question.rstrip("?").split()
            assert any(word in document.text[item.start : item.stop] for word in place if word[0].isupper())


@pytest.mark.parametrize("wrong", [{"n_heads": 0}, {"n_questions": 3}])
def test_absurd_calibration_options_are_refused(wrong: dict, tiny: Decoder) -> None:
    with pytest.raises(CalibrationError):
        calibrate(tiny, **wrong)


def test_a_retriever_of_your_own_is_asked_unless_told_otherwise(tiny: Decoder) -> None:
    heads = RetrievalHeads(heads=(Head(0, 0, 1.0),), model_digest=tiny.digest, architecture=tiny.architecture)

    def finds_nothing(question: str, documents: Sequence[Document]) -> list[Span]:
        return []

    known, unknown = ACRE(tiny, heads=heads), ACRE(tiny)
    assert ACRE(tiny, heads=heads, retriever=finds_nothing).config.select == "hybrid"
    assert known.using(retriever=finds_nothing).config.select == "hybrid"
    assert known.using(select="retriever").using(retriever=finds_nothing).config.select == "retriever"
    assert unknown.using(retriever=finds_nothing).config.select == "retriever"
    assert known.config.select == "consensus"  # the first engine is left alone
    with pytest.raises(ConfigError, match="'paper' asks no retriever: use 'hybrid'"):
        known.using(select="paper", retriever=finds_nothing)


def test_without_known_heads_the_text_chooses_unless_told_otherwise(
    tiny: Decoder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    heads = RetrievalHeads(heads=(Head(0, 0, 1.0),), model_digest=tiny.digest, architecture=tiny.architecture)
    assert ACRE(tiny).config.select == ACRE(tiny).using(select="auto").config.select == "retriever"
    assert ACRE(tiny, heads=heads).config.select == "consensus"
    assert ACRE(tiny, config=ACREConfig(select="consensus")).config.select == "consensus"
    assert not caplog.records
    tiny.model.save_pretrained(tmp_path)
    tiny.tokenizer.save_pretrained(tmp_path)
    ACRE.from_pretrained(tmp_path)
    assert "acre calibrate" in caplog.text
