"""Searching: chunks cover the text, hits equal a brute-force search, what does not fit is left out by rank."""

import math
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import bm25s
import numpy as np
import pytest
import torch
from bm25s.stopwords import STOPWORDS_EN
from conftest import byte_tokenizer, tiny_decoder
from hypothesis import given, settings
from hypothesis import strategies as st
from rank_bm25 import BM25Okapi
from transformers import PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaModel

from acre_rag import retrieve
from acre_rag.baselines.base import Call, Held, Setting
from acre_rag.baselines.rag.bge_m3 import BGEM3
from acre_rag.baselines.rag.bm25 import BM25Search
from acre_rag.baselines.rag.chunks import split_chunks
from acre_rag.baselines.rag.dense import DenseSearch
from acre_rag.baselines.rag.embedder import Embedder, SentenceEmbedder
from acre_rag.baselines.rag.embedders import load_embedder
from acre_rag.baselines.rag.fused import FusedSearch
from acre_rag.baselines.rag.retrieval import Retrieval
from acre_rag.baselines.rag.search import Hit, union
from acre_rag.baselines.rag.searches import dense_search
from acre_rag.errors import ConfigError, UnavailableError
from acre_rag.generate import GenerationSettings
from acre_rag.retrieve import bm25_scores

ANIMALS = ["The owl hunts mice at night.", "A whale breathes air.", "Bees make honey in a hive.", "The owl sleeps."]
ROOMS = ["The kitchen has two windows.", "Honey stands on the kitchen shelf.", "Nobody sleeps in the attic at night."]
PUBLISHED = {"dense+sparse": (1.0, 0.3, 0.0), "all": (1.0, 0.3, 1.0)}
"""Weights of dense, sparse and ColBERT scores, as FlagEmbedding's `ensemble_score` has them."""
QUERIES = ["Who hunts at night?", "Where is the honey?", "zebra"]


@pytest.fixture(scope="module")
def minilm() -> Embedder:
    return load_embedder("minilm", "cpu")


@pytest.fixture(scope="module")
def bge_m3_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BGE-M3's architecture with tiny random weights, in its published layout."""
    folder = tmp_path_factory.mktemp("m3")
    torch.manual_seed(0)
    config = XLMRobertaConfig(
        vocab_size=300,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=1030,
        initializer_range=0.3,
    )
    XLMRobertaModel(config).save_pretrained(folder)
    names = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<pad>"}
    PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer().backend_tokenizer, **names).save_pretrained(folder)
    torch.save(torch.nn.Linear(32, 32).state_dict(), folder / "colbert_linear.pt")
    torch.save(torch.nn.Linear(32, 1).state_dict(), folder / "sparse_linear.pt")
    return folder


@pytest.fixture(scope="module")
def bge_m3(bge_m3_folder: Path) -> BGEM3:
    found = load_embedder(str(bge_m3_folder), "cpu")
    assert isinstance(found, BGEM3)
    return found


@given(st.text(st.sampled_from("ab ?.\n\té語"), max_size=400), st.integers(1, 60))
@settings(deadline=None, max_examples=60)
def test_chunks_lie_in_order_hold_everything_and_fit(text: str, most: int) -> None:
    chunks = split_chunks(text, byte_tokenizer(), most)
    ends = [0, *(chunk.stop for chunk in chunks)]
    for before, chunk in zip(ends, chunks, strict=False):
        assert before <= chunk.start < chunk.stop
        assert not text[before : chunk.start].strip()
        assert chunk.n_tokens == len(byte_tokenizer()(text[chunk.start : chunk.stop])["input_ids"])
        assert chunk.n_tokens <= most or chunk.stop - chunk.start == 1  # one character may be several bytes
    assert not text[ends[-1] :].strip()


def test_a_long_word_is_cut_and_an_empty_text_has_no_chunks() -> None:
    assert [chunk.n_tokens for chunk in split_chunks("a" * 100, byte_tokenizer(), 40)] == [40, 40, 20]
    assert split_chunks(" \n ", byte_tokenizer(), 40) == ()


def test_a_chunk_must_hold_something() -> None:
    with pytest.raises(ConfigError, match="chunk_tokens=0"):
        split_chunks("a", byte_tokenizer(), 0)


@pytest.mark.parametrize("query", QUERIES)
def test_bm25_hits_equal_the_formula(query: str) -> None:
    search = BM25Search()
    indexes = [search.index(texts, lambda _: None) for texts in (ANIMALS, ROOMS)]
    expected = _bm25(query, ANIMALS + ROOMS)
    hits = search.best(query, indexes, 4)
    places = [hit.chunk + (len(ANIMALS) if hit.document else 0) for hit in hits]
    assert places == sorted(range(7), key=lambda i: -round(expected[i], 6))[:4]
    np.testing.assert_allclose([hit.score for hit in hits], [expected[i] for i in places], rtol=1e-5)


def test_bm25_agrees_with_another_library_on_the_best_chunk() -> None:
    search = BM25Search()
    for query in QUERIES[:2]:
        [hit] = search.best(query, [search.index(ANIMALS + ROOMS, lambda _: None)], 1)
        scores = BM25Okapi([_words(text) for text in ANIMALS + ROOMS]).get_scores(_words(query))
        assert hit.chunk == int(np.argmax(scores))


@pytest.mark.parametrize(
    ("question", "texts"),
    [
        ("猫住在哪里？", ["猫住在旧磨坊里。", "狗在河边睡觉。"]),
        ("ネコはどこに住んでいますか", ["ネコは古い水車小屋に住んでいる。", "犬は川で眠る。"]),
        ("แมวอาศัยอยู่ที่ไหน", ["แมวอาศัยในโรงสีเก่า", "สุนัขนอนริมน้ำ"]),
        ("Where is Python言語 taught?", ["Die Python言語と文法.", "The river."]),
        ("고양이는 어디에", ["고양이는 방앗간에 산다", "개는 강가에서 잔다"]),
    ],
)
def test_bm25_finds_what_is_written_without_spaces(question: str, texts: list[str]) -> None:
    first, second = bm25_scores(question, texts)
    assert first > second >= 0


@given(st.text(st.sampled_from("abé 1-_.\n\té世Жא한3"), max_size=60))
def test_words_with_spaces_between_them_stay_as_the_library_finds_them(text: str) -> None:
    text = re.sub("世+", "世", text)  # a single such character stands where it stood
    assert retrieve._words([text]) == bm25s.tokenize([text], stopwords="en", show_progress=False, return_ids=False)


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("n_hits", [1, 3, 20])
def test_dense_hits_equal_cosines_of_everything(minilm: Embedder, query: str, n_hits: int) -> None:
    search = DenseSearch(minilm)
    indexes = [search.index(texts, lambda _: None) for texts in (ANIMALS, ROOMS)]
    vectors = np.concatenate([minilm.embed([text]) for text in ANIMALS + ROOMS])
    cosines = vectors @ minilm.embed([query], queries=True)[0]
    best = np.argsort(-cosines)[:n_hits]
    hits = search.best(query, indexes, n_hits)
    assert [hit.chunk + (len(ANIMALS) if hit.document else 0) for hit in hits] == best.tolist()
    np.testing.assert_allclose([hit.score for hit in hits], cosines[best], atol=1e-5)


def test_vectors_are_of_length_one_and_equal_sentence_transformers(minilm: SentenceEmbedder) -> None:
    vectors = minilm.embed(ANIMALS)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(vectors, minilm._model.encode(ANIMALS), atol=1e-5)


def test_all_of_a_long_text_counts_in_its_vector(minilm: SentenceEmbedder) -> None:
    filler = "The rain fell on the quiet town all day. " * 60
    with_end, without = filler + "A volcano erupted in Iceland.", filler
    windows = minilm.windows(with_end)
    assert len(windows) > 1 and "".join(windows) == with_end
    lengths = [len(minilm._model.tokenizer(window)["input_ids"]) for window in windows]
    assert max(lengths) <= minilm._model.max_seq_length
    assert max(lengths) - min(lengths) <= 2
    query = minilm.embed(["volcano eruption"])[0]
    assert minilm.embed([with_end])[0] @ query > minilm.embed([without])[0] @ query + 0.05
    expected = minilm._model.encode(windows, normalize_embeddings=True).mean(axis=0)
    np.testing.assert_allclose(minilm.embed([with_end])[0], expected / np.linalg.norm(expected), atol=1e-5)


@pytest.mark.parametrize("fusion", ["dense+sparse", "all"])
def test_fused_hits_equal_the_weighted_sum_of_everything(bge_m3: BGEM3, fusion: str) -> None:
    search = FusedSearch(bge_m3, fusion)
    indexes = [search.index(texts, lambda _: None) for texts in (ANIMALS, ROOMS)]
    dense_weight, sparse_weight, colbert_weight = PUBLISHED[fusion]
    for query in QUERIES:
        asked = bge_m3.encode([query], colbert=True)
        expected = []
        for text in ANIMALS + ROOMS:
            found = bge_m3.encode([text], colbert=True)
            dense = float(asked.dense[0] @ found.dense[0])
            sparse = sum(weight * found.sparse[0].get(token, 0.0) for token, weight in asked.sparse[0].items())
            colbert = float((asked.colbert[0] @ found.colbert[0].T).max(axis=1).mean())
            expected.append(dense_weight * dense + sparse_weight * sparse + colbert_weight * colbert)
        hits = search.best(query, indexes, 3)
        assert [h.chunk + (len(ANIMALS) if h.document else 0) for h in hits] == np.argsort(expected)[::-1][:3].tolist()
        np.testing.assert_allclose([h.score for h in hits], sorted(expected, reverse=True)[:3], rtol=2e-3)


def test_bge_m3_alone_is_the_librarys_own_score(bge_m3: BGEM3) -> None:
    pair = [(QUERIES[0], ANIMALS[0])]
    own = bge_m3._model.compute_score(pair, weights_for_different_modes=list(PUBLISHED["all"]))
    search = FusedSearch(bge_m3, "all")
    [hit] = search.best(QUERIES[0], [search.index(ANIMALS[:1], lambda _: None)], 1)
    # The library divides by the sum of the weights.
    assert hit.score == pytest.approx(own["colbert+sparse+dense"][0] * sum(PUBLISHED["all"]), rel=2e-3)


def test_all_of_a_long_text_counts_for_bge_m3_too(bge_m3: BGEM3) -> None:
    long = "a" * 700
    one, other = bge_m3.embed([long + "bcd", long + "xyz"])
    assert abs(float(one @ other) - 1) > 1e-6


HITS = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 5)), unique=True, max_size=6)


@given(st.lists(HITS, max_size=4))
def test_a_union_holds_each_hit_once_first_ranks_first(found: list[list[tuple[int, int]]]) -> None:
    lists = [[Hit(d, c, 10.0 - rank) for rank, (d, c) in enumerate(each)] for each in found]
    merged = union(lists)
    places = [(hit.document, hit.chunk) for hit in merged]
    assert len(set(places)) == len(places)
    best_rank = {place: min(each.index(place) for each in found if place in each) for place in places}
    assert set(places) == {place for each in found for place in each}
    assert [best_rank[place] for place in places] == sorted(best_rank.values())
    assert all(hit.score == 10.0 - best_rank[place] for hit, place in zip(merged, places, strict=True))


def _retrieval(window: int = 1024, **options: int) -> tuple[Retrieval, list[Held]]:
    retrieval = Retrieval(
        Setting(decoder=tiny_decoder(), window=window), BM25Search(), **{"chunk_tokens": 40, **options}
    )
    texts = {"animals": "\n\n".join(ANIMALS), "rooms": "\n\n".join(ROOMS)}
    return retrieval, [Held(name, text, retrieval.index(text, lambda *_: None), 0.0) for name, text in texts.items()]


def test_evidence_is_in_document_order_and_sources_best_first() -> None:
    retrieval, documents = _retrieval()
    hits = retrieval.find(["Where is the honey?"], documents, Call(GenerationSettings()))
    evidence = retrieval.evidence(hits, documents, 1000)
    places = [evidence.text.index(source.text) for source in evidence.sources]
    in_text = sorted(evidence.sources, key=lambda source: (source.document, source.start))
    assert sorted(places) == [evidence.text.index(source.text) for source in in_text]
    assert evidence.text == "\n\n".join(source.text for source in in_text)
    assert "honey" in evidence.sources[0].text.lower()
    scores = [source.score for source in evidence.sources]
    assert scores == sorted(scores, reverse=True)
    texts = {document.id: document.text for document in documents}
    assert all(texts[s.document][s.start : s.end] == s.text for s in evidence.sources)


@pytest.mark.parametrize("room", [1, 30, 60, 64, 65, 66, 100, 200])
def test_hits_that_do_not_fit_are_left_out_by_rank(room: int) -> None:
    retrieval, documents = _retrieval()
    hits = retrieval.find(["night honey kitchen"], documents, Call(GenerationSettings()))
    evidence = retrieval.evidence(hits, documents, room)
    fitting = [n for n in range(1, len(hits) + 1) if _tokens_of(hits[:n], documents) <= room]
    n = max(fitting, default=1)
    kept = {(documents[hit.document].id, documents[hit.document].state.chunks[hit.chunk].start) for hit in hits[:n]}
    assert {(source.document, source.start) for source in evidence.sources} == kept
    assert bool(evidence.notes) == (n < len(hits))
    if evidence.notes:
        assert f"{len(hits) - n} of {len(hits)} hits" in evidence.notes[0]


def test_hits_must_be_asked_for() -> None:
    with pytest.raises(ConfigError, match="hits=0"):
        _retrieval(hits=0)


def test_an_embedding_model_that_is_not_here_is_refused() -> None:
    with pytest.raises(UnavailableError, match=r"'nobody/nothing' is not on this machine.*hf download"):
        load_embedder("nobody/nothing", "cpu")
    with pytest.raises(UnavailableError, match="not on this machine"):
        load_embedder("../no/such/../folder", "cpu")


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="cannot be loaded as an embedding model"):
        load_embedder(str(tmp_path), "cpu")
    (tmp_path / "sparse_linear.pt").touch()
    (tmp_path / "colbert_linear.pt").touch()
    with pytest.raises(UnavailableError, match=r"BGE-M3 in .* cannot be loaded"):
        load_embedder(str(tmp_path), "cpu")


@pytest.fixture
def empty_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A hub cache without any model."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    yield


@pytest.mark.usefixtures("empty_hub")
def test_without_bge_m3_the_small_model_says_so() -> None:
    search = dense_search(Setting(decoder=tiny_decoder()))
    assert search.facts["embedder"] == "all-MiniLM-L6-v2 (BGE-M3 is not on this machine)"
    named = dense_search(Setting(decoder=tiny_decoder(), embedder="minilm"))
    assert named.facts["embedder"] == "all-MiniLM-L6-v2"
    with pytest.raises(UnavailableError, match="hf download BAAI/bge-m3"):
        dense_search(Setting(decoder=tiny_decoder(), embedder="bge-m3"))


@pytest.mark.usefixtures("empty_hub")
@pytest.mark.parametrize("name", [None, "bge-m3", "BAAI/bge-m3"])
def test_bge_m3_is_found_in_the_hub_cache(name: str | None, bge_m3_folder: Path, tmp_path: Path) -> None:
    cached = tmp_path / "models--BAAI--bge-m3"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("abc", encoding="utf-8")
    shutil.copytree(bge_m3_folder, cached / "snapshots" / "abc")
    search = dense_search(Setting(decoder=tiny_decoder(), embedder=name))
    assert isinstance(search, DenseSearch) and isinstance(search.embedder, BGEM3)
    assert search.facts["embedder"] == "BAAI/bge-m3"
    assert FusedSearch(search.embedder, "all").facts["embedder"] == "BAAI/bge-m3"


def test_a_fusion_needs_bge_m3() -> None:
    with pytest.raises(UnavailableError, match=r"BGE-M3's own scores, but the embedding model is all-MiniLM"):
        dense_search(Setting(decoder=tiny_decoder(), embedder="minilm"), "all")
    with pytest.raises(ConfigError, match="fusion='both'"):
        dense_search(Setting(decoder=tiny_decoder(), embedder="minilm"), "both")


def test_systems_share_one_embedding_model(minilm: Embedder) -> None:
    assert load_embedder("all-MiniLM-L6-v2", "cpu") is minilm


def _tokens_of(hits: list[Hit], documents: list[Held]) -> int:
    ordered = sorted(hits, key=lambda hit: (hit.document, hit.chunk))
    chunks = [(documents[hit.document], documents[hit.document].state.chunks[hit.chunk]) for hit in ordered]
    return len("\n\n".join(document.text[chunk.start : chunk.stop] for document, chunk in chunks).encode())


def _words(text: str) -> list[str]:
    """As bm25s tokenises: words of two letters or more, without its English stop words."""
    return [word for word in re.findall(r"\b\w\w+\b", text.lower()) if word not in STOPWORDS_EN]


def _bm25(query: str, texts: list[str]) -> list[float]:
    """Lucene's BM25 (k1 = 1.5, b = 0.75), bm25s's default, by the plain formula."""
    words = [_words(text) for text in texts]
    mean = sum(map(len, words)) / len(words)
    known = {word for each in words for word in each}
    scores = []
    for each in words:
        counts, score = Counter(each), 0.0
        for word in set(_words(query)) & known:
            holding = sum(word in other for other in words)
            idf = math.log(1 + (len(words) - holding + 0.5) / (holding + 0.5))
            score += idf * counts[word] / (counts[word] + 1.5 * (0.25 + 0.75 * len(each) / mean))
        scores.append(score)
    return scores
