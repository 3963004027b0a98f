"""ACREIndex keeps LlamaIndex's contract of an index: each change touches one cache, and storage brings it all back."""

import asyncio
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_decoder
from llama_index.core import (
    Document,
    MockEmbedding,
    Settings,
    SimpleDirectoryReader,
    StorageContext,
    VectorStoreIndex,
    load_index_from_storage,
    load_indices_from_storage,
)
from llama_index.core.llms import MockLLM
from llama_index.core.node_parser import TokenTextSplitter
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import BaseNode, TextNode, TransformComponent
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters

from acre_rag import ACRE, ACREConfig, GenerationSettings
from acre_rag.errors import AcreError, CapacityError, ConfigError, DocumentError, FingerprintError
from acre_rag.integrations.llama_index import ACREIndex, ACREQueryEngine, join_pages

EIGHT = GenerationSettings(max_new_tokens=8)
QUESTION = "Which number is it?"
CONFIG = ACREConfig(window=512, interval=8, stride=64, passage_tokens=32, max_passages=2, select="consensus")


def text(seed: int, sections: int = 8) -> str:
    return "".join(f"Section {i}. The number of it is {i * 7 + seed}.\n\n" for i in range(sections))


def document(name: str, seed: int, **metadata: Any) -> Document:
    return Document(text=text(seed), id_=name, metadata={"name": name, **metadata})


@pytest.fixture
def documents() -> list[Document]:
    return [document(name, seed) for seed, name in enumerate("abc")]


@pytest.fixture
def index(tiny_acre: ACRE, documents: list[Document]) -> ACREIndex:
    return ACREIndex.from_documents(documents, acre=tiny_acre)


def answer(index: ACREIndex, *doc_ids: str) -> str:
    engine = index.as_query_engine(settings=EIGHT, doc_ids=list(doc_ids) or None)
    return str(engine.query(QUESTION))


def held(index: ACREIndex) -> dict[str, Any]:
    """The engine's own objects: the same object means the same cache."""
    shelf = index.acre.documents
    return {ref_doc_id: shelf[name] for ref_doc_id, name in index.cache_names().items()}


Change = Callable[[ACREIndex, str, Any], Any]


def now(index: ACREIndex, name: str, argument: Any, **options: Any) -> Any:
    return getattr(index, name)(argument, **options)


def later(index: ACREIndex, name: str, argument: Any, **options: Any) -> Any:
    return asyncio.run(getattr(index, f"a{name}")(argument, **options))


both_ways = pytest.mark.parametrize("change", [now, later], ids=["sync", "async"])


def test_each_document_is_read_whole_into_its_own_cache(index: ACREIndex, documents: list[Document]) -> None:
    assert {name: each.text for name, each in held(index).items()} == {d.id_: d.text for d in documents}
    assert set(index.acre.documents) == set(index.cache_names().values())
    assert answer(index, "b") == index.acre.ask(QUESTION, index.cache_names()["b"], settings=EIGHT).text


@pytest.mark.parametrize("transformations", [None, []], ids=["none", "empty"])
def test_no_splitter_comes_in_by_default(tiny_acre: ACRE, transformations: Any) -> None:
    long = Document(text=text(0, sections=40), id_="long")
    Settings.transformations = [TokenTextSplitter(chunk_size=64, chunk_overlap=0)]
    try:
        index = ACREIndex.from_documents([long], acre=tiny_acre, transformations=transformations)
        index.insert(Document(text=text(1, sections=40), id_="longer"))
    finally:
        Settings.transformations = None  # type: ignore[assignment]
    assert [each.text for each in held(index).values()] == [long.text, text(1, sections=40)]


def test_a_splitter_is_refused_before_anything_is_read(tiny_acre: ACRE) -> None:
    splitter = TokenTextSplitter(chunk_size=64, chunk_overlap=0)
    with pytest.raises(DocumentError, match="several nodes"):
        ACREIndex.from_documents([Document(text=text(0, 40))], acre=tiny_acre, transformations=[splitter])
    assert not tiny_acre.documents


def test_other_transformations_see_the_documents_first(tiny_acre: ACRE) -> None:
    class Shout(TransformComponent):
        def __call__(self, nodes: list[BaseNode], **_: Any) -> list[BaseNode]:
            for node in nodes:
                node.set_content(node.get_content().upper())
                node.metadata["loud"] = True
            return nodes

    index = ACREIndex.from_documents([document("a", 0)], acre=tiny_acre, transformations=[Shout()])
    index.insert(document("b", 1))
    assert [each.text for each in held(index).values()] == [text(0).upper(), text(1).upper()]
    loud = MetadataFilters(filters=[MetadataFilter(key="loud", value=1)])
    assert len(index.as_retriever(filters=loud).retrieve(QUESTION)) == 2


def test_blank_documents_are_left_out(tiny_acre: ACRE, caplog: pytest.LogCaptureFixture) -> None:
    scan = Document(text=" \n", id_="blank", metadata={"file_name": "scan.pdf"})
    index = ACREIndex.from_documents([document("a", 0), scan], acre=tiny_acre)
    assert "no text in it" in caplog.text and "scan.pdf" in caplog.text
    with pytest.raises(DocumentError, match="no text in scan.pdf, blank"):
        ACREIndex.from_documents([scan, Document(text="", id_="blank")], acre=tiny_acre)
    assert list(index.cache_names()) == ["a"]
    assert index.refresh_ref_docs([scan]) == [False]


def test_metadata_is_no_part_of_the_text(tiny_acre: ACRE) -> None:
    index = ACREIndex.from_documents([document("a", 0, secret="xyzzy")], acre=tiny_acre)
    assert held(index)["a"].text == text(0)


@both_ways
def test_an_inserted_document_is_asked_and_no_other_is_touched(index: ACREIndex, change: Change) -> None:
    before = held(index)
    change(index, "insert", document("d", 9))
    after = held(index)
    assert list(after) == ["a", "b", "c", "d"] and all(after[name] is each for name, each in before.items())
    fresh = ACREIndex.from_documents([document("d", 9)], acre=ACRE(index.acre.decoder, config=CONFIG))
    assert answer(index, "d") == answer(fresh)


@both_ways
def test_a_deleted_document_leaves_the_engine_and_no_other_is_touched(index: ACREIndex, change: Change) -> None:
    before = held(index)
    change(index, "delete_ref_doc", "b")
    assert held(index) == {"a": before["a"], "c": before["c"]}
    assert set(index.acre.documents) == set(index.cache_names().values())
    assert set(index.ref_doc_info) == {"a", "c"}
    with pytest.raises(DocumentError, match="'b'"):
        answer(index, "b")
    change(index, "delete_ref_doc", "nobody")  # the framework logs it
    change(index, "insert", document("b", 1))
    assert set(held(index)) == {"a", "b", "c"}


@both_ways
def test_a_new_text_under_a_known_id_is_read_anew_and_no_other(index: ACREIndex, change: Change) -> None:
    before, old = held(index), answer(index, "b")
    change(index, "update_ref_doc", document("b", 50))
    after = held(index)
    assert after["b"].text == text(50) and after["a"] is before["a"] and after["c"] is before["c"]
    assert len(index.acre.documents) == 3
    fresh = ACREIndex.from_documents([document("b", 50)], acre=ACRE(index.acre.decoder, config=CONFIG))
    assert answer(index, "b") == answer(fresh) != old


@both_ways
def test_new_metadata_is_seen_and_nothing_is_read_anew(index: ACREIndex, change: Change) -> None:
    before = held(index)
    change(index, "update_ref_doc", document("b", 1, lang="en"))
    assert held(index) == before
    english = MetadataFilters(filters=[MetadataFilter(key="lang", value="en")])
    assert {each.node.ref_doc_id for each in index.as_retriever(filters=english).retrieve(QUESTION)} == {"b"}
    assert index.ref_doc_info["b"].metadata == {"name": "b", "lang": "en"}


@both_ways
def test_refreshing_reads_only_what_changed(index: ACREIndex, change: Change) -> None:
    before = held(index)
    changed = change(index, "refresh_ref_docs", [document("a", 0), document("b", 60), document("d", 4)])
    assert changed == [False, True, True]
    after = held(index)
    assert after["a"] is before["a"] and after["c"] is before["c"]
    assert after["b"].text == text(60) and after["d"].text == text(4)
    assert change(index, "refresh_ref_docs", [document("b", 60)]) == [False]


@both_ways
def test_refreshing_brings_back_a_deleted_document_that_the_docstore_still_knows(
    index: ACREIndex, change: Change
) -> None:
    change(index, "delete_ref_doc", "b")
    assert change(index, "refresh_ref_docs", [document("b", 1)]) == [True]
    assert held(index)["b"].text == text(1)


@both_ways
def test_what_cannot_be_read_changes_nothing(index: ACREIndex, change: Change, tmp_path: Path) -> None:
    before, said = held(index), answer(index, "b")
    for name in ("update_ref_doc", "insert"):
        with pytest.raises(CapacityError):
            change(index, name, Document(text=text(0, sections=400), id_="b"))
    assert held(index) == before and answer(index, "b") == said
    index.storage_context.persist(tmp_path)
    again = load_index_from_storage(StorageContext.from_defaults(persist_dir=str(tmp_path)), acre=index.acre)
    assert again.cache_names() == index.cache_names()


@both_ways
def test_when_one_of_several_cannot_be_read_those_before_it_are_in(
    index: ACREIndex, change: Change, tmp_path: Path
) -> None:
    nodes = [TextNode(text=each, id_=name) for name, each in (("d", text(3)), ("e", text(0, 400)), ("f", text(5)))]
    with pytest.raises(CapacityError):
        change(index, "insert_nodes", nodes)
    assert set(index.ref_doc_info) == {"a", "b", "c", "d"} and index.ref_doc_info["d"].node_ids == ["d"]
    index.storage_context.persist(tmp_path)
    again = load_index_from_storage(StorageContext.from_defaults(persist_dir=str(tmp_path)), acre=index.acre)
    assert again.cache_names() == index.cache_names()
    change(index, "delete_ref_doc", "d")
    assert len(index.acre.documents) == 3


@both_ways
def test_a_text_that_became_blank_is_forgotten(index: ACREIndex, change: Change) -> None:
    change(index, "update_ref_doc", Document(text=" ", id_="b"))
    assert set(held(index)) == {"a", "c"} and len(index.acre.documents) == 2


def test_a_build_that_fails_leaves_nothing_behind(tiny_acre: ACRE) -> None:
    kept = ACREIndex.from_documents([document("a", 0)], acre=tiny_acre)
    with pytest.raises(CapacityError):
        ACREIndex.from_documents([document("a", 0), document("b", 1), Document(text=text(0, 400))], acre=tiny_acre)
    assert set(tiny_acre.documents) == set(kept.cache_names().values())


def test_any_order_of_changes_ends_like_a_fresh_index(tiny_acre: ACRE) -> None:
    dice = random.Random(0)
    index = ACREIndex.from_documents([], acre=tiny_acre)
    wanted: dict[str, Document] = {}
    for _ in range(40):
        name, each = dice.choice("abcd"), document("x", dice.randrange(3), lang=dice.choice(["en", "de"]))
        each.id_ = name
        way = dice.choice([now, later])
        match dice.choice(["insert", "update_ref_doc", "refresh_ref_docs", "delete_ref_doc"]):
            case "delete_ref_doc" if name in wanted:
                way(index, "delete_ref_doc", name, delete_from_docstore=dice.random() < 0.5)
                del wanted[name]
            case "refresh_ref_docs":
                way(index, "refresh_ref_docs", [each])
                wanted[name] = each
            case "update_ref_doc" | "insert" as kind:
                way(index, kind, each)
                wanted[name] = each
            case _:
                continue
    assert wanted
    assert {name: each.text for name, each in held(index).items()} == {n: d.text for n, d in wanted.items()}
    assert set(tiny_acre.documents) == set(index.cache_names().values())
    assert {name: info.metadata for name, info in index.ref_doc_info.items()} == {
        n: d.metadata for n, d in wanted.items()
    }
    for name, each in wanted.items():
        fresh = ACREIndex.from_documents([each], acre=ACRE(tiny_acre.decoder, config=CONFIG))
        assert answer(index, name) == answer(fresh)


# Storage


def reload(index: ACREIndex, folder: Path, acre: ACRE, **options: Any) -> ACREIndex:
    index.storage_context.persist(folder)
    loaded = load_index_from_storage(StorageContext.from_defaults(persist_dir=str(folder)), acre=acre, **options)
    assert isinstance(loaded, ACREIndex)
    return loaded


def test_storage_brings_the_index_back(index: ACREIndex, tmp_path: Path) -> None:
    index.update_ref_doc(document("b", 50, lang="en"))
    index.delete_ref_doc("c")
    again = reload(index, tmp_path, ACRE(index.acre.decoder, config=CONFIG))
    assert again.cache_names() == index.cache_names() and again.index_id == index.index_id
    assert answer(again) == answer(index) and answer(again, "b") == answer(index, "b")
    again.insert(document("d", 3))
    again.delete_ref_doc("a")
    assert set(held(again)) == {"b", "d"}
    once_more = reload(again, tmp_path / "2", ACRE(index.acre.decoder, config=CONFIG))
    assert answer(once_more) == answer(again)


def test_storage_holds_ids_texts_and_metadata_and_no_tensors(index: ACREIndex, tmp_path: Path) -> None:
    index.storage_context.persist(tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json"}
    assert sum(path.stat().st_size for path in files) < 20_000
    [struct] = json.loads((tmp_path / "index_store.json").read_text())["index_store/data"].values()
    assert struct["__type__"] == "acre" and set(json.loads(struct["__data__"])["nodes"].values()) == {"a", "b", "c"}


def test_the_engines_store_keeps_the_caches_over_a_restart(documents: list[Document], tmp_path: Path) -> None:
    def engine() -> ACRE:
        return ACRE(tiny_decoder(), config=CONFIG, store=tmp_path / "store")

    index = ACREIndex.from_documents(documents, acre=engine())
    said = answer(index, "b")
    restarted = engine()
    n_forwards = []
    handle = restarted.decoder.attentions[0].register_forward_pre_hook(lambda *_: n_forwards.append(1))
    again = reload(index, tmp_path / "index", restarted)
    handle.remove()
    assert not n_forwards, "nothing is read anew"
    assert answer(again, "b") == said
    again.delete_ref_doc("a")
    assert set(engine().documents) == set(again.cache_names().values()), "deleted from the store too"


def test_a_readers_drawn_ids_find_the_caches_of_an_earlier_start(tmp_path: Path, forwards: list[int]) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in ("one", "two"):
        (folder / f"{name}.txt").write_text(text(len(name) + (name == "two")), encoding="utf-8")

    def start() -> ACREIndex:
        acre = ACRE(tiny_decoder(), config=CONFIG, store=tmp_path / "store")
        return ACREIndex.from_documents([*SimpleDirectoryReader(folder).load_data(), Document(text=text(7))], acre=acre)

    first = start()
    assert forwards and sorted(name.split("@")[0] for name in first.acre.documents) == [
        "document",
        "one.txt",
        "two.txt",
    ]
    forwards.clear()
    again = start()
    assert not forwards and set(again.acre.documents) == set(first.acre.documents)
    assert not set(again.ref_doc_info) & set(first.ref_doc_info), "the ids themselves stay the framework's"
    (folder / "two.txt").write_text(text(9), encoding="utf-8")
    assert len(set(start().acre.documents) - set(first.acre.documents)) == 1, "a changed file is another version"


def test_the_same_text_twice_is_two_documents(tiny_acre: ACRE) -> None:
    twins = [Document(text=text(1)), Document(text=text(1))]
    index = ACREIndex.from_documents(twins, acre=tiny_acre)
    assert len(set(index.cache_names().values())) == 2 == len(tiny_acre.documents)
    index.delete_ref_doc(twins[0].id_)
    index.update_ref_doc(Document(text=text(1), id_=twins[1].id_, metadata={"new": "metadata"}))
    [kept] = index.as_retriever().retrieve(QUESTION)[:1]
    assert kept.node.ref_doc_id == twins[1].id_ and kept.node.metadata == {"new": "metadata"}
    assert set(tiny_acre.documents) == set(index.cache_names().values())


def test_caches_of_other_options_are_refused_or_built_anew(documents: list[Document], tmp_path: Path) -> None:
    index = ACREIndex.from_documents(documents, acre=ACRE(tiny_decoder(), config=CONFIG, store=tmp_path / "store"))
    wider = ACREConfig(window=512, interval=16, stride=64, passage_tokens=32, max_passages=2, select="consensus")
    with pytest.raises(FingerprintError, match="interval"):
        reload(index, tmp_path / "index", ACRE(tiny_decoder(), config=wider, store=tmp_path / "store"))
    again = reload(
        index, tmp_path / "index", ACRE(tiny_decoder(), config=wider, store=tmp_path / "store"), rebuild=True
    )
    asyncio.run(again.ainsert(document("d", 4)))
    fresh = ACREIndex.from_documents([*documents, document("d", 4)], acre=ACRE(tiny_decoder(), config=wider))
    assert answer(again, "b") == answer(fresh, "b")


def test_several_indexes_in_one_storage_are_told_apart(tiny_acre: ACRE, tmp_path: Path) -> None:
    storage = StorageContext.from_defaults()
    indexes = []
    for name in "ab":
        index = ACREIndex.from_documents([document(name, ord(name))], acre=tiny_acre, storage_context=storage)
        index.set_index_id(f"index-{name}")
        indexes.append(index)
    storage.persist(tmp_path)
    again = load_indices_from_storage(StorageContext.from_defaults(persist_dir=str(tmp_path)), acre=tiny_acre)
    assert {each.index_id: list(each.cache_names()) for each in again} == {"index-a": ["a"], "index-b": ["b"]}  # type: ignore[attr-defined]


def test_storage_without_an_engine_or_without_the_text_is_an_error(index: ACREIndex, tmp_path: Path) -> None:
    index.storage_context.persist(tmp_path)
    with pytest.raises(ConfigError, match="load_index_from_storage"):
        load_index_from_storage(StorageContext.from_defaults(persist_dir=str(tmp_path)))
    (tmp_path / "docstore.json").write_text("{}")
    with pytest.raises(DocumentError, match="docstore"):
        load_index_from_storage(StorageContext.from_defaults(persist_dir=str(tmp_path)), acre=index.acre)


def test_a_tenants_documents_do_not_exist_for_another(tiny_acre: ACRE, tmp_path: Path) -> None:
    mine = ACREIndex.from_documents([document("a", 0)], acre=tiny_acre, tenant="me")
    yours = ACREIndex.from_documents([document("a", 0), document("b", 1)], acre=tiny_acre, tenant="you")
    mine.delete_ref_doc("a")
    assert len(tiny_acre.documents_of("you")) == 2 and not tiny_acre.documents and not tiny_acre.documents_of("me")
    again = reload(yours, tmp_path, ACRE(tiny_acre.decoder, config=CONFIG))
    assert list(again.acre.documents_of("you")) == list(yours.cache_names().values())
    assert answer(again, "a") == answer(yours, "a")


@both_ways
def test_another_index_in_the_same_docstore_keeps_its_nodes(tiny_acre: ACRE, change: Change) -> None:
    storage = StorageContext.from_defaults()
    both = [document("a", 0), document("b", 1)]
    options = {"storage_context": storage, "transformations": [TokenTextSplitter(chunk_size=64, chunk_overlap=0)]}
    vectors = VectorStoreIndex.from_documents(both, embed_model=MockEmbedding(4), store_nodes_override=True, **options)
    index = ACREIndex.from_documents(both, acre=tiny_acre, storage_context=storage)
    theirs = set(vectors.index_struct.nodes_dict.values())
    assert len(theirs) > 2
    change(index, "update_ref_doc", document("b", 50))
    change(index, "delete_ref_doc", "a")
    assert theirs <= set(storage.docstore.docs) and list(index.cache_names()) == ["b"]


@both_ways
def test_two_indexes_keep_different_texts_of_one_id_apart_in_one_storage(
    tiny_acre: ACRE, change: Change, tmp_path: Path
) -> None:
    storage = StorageContext.from_defaults()
    mine, yours = (
        ACREIndex.from_documents([document("a", seed)], acre=tiny_acre, tenant=tenant, storage_context=storage)
        for seed, tenant in ((0, "me"), (1, "you"))
    )
    assert change(mine, "refresh_ref_docs", [document("a", 1)]) == [True]  # what only the other has is news here
    assert change(yours, "refresh_ref_docs", [document("a", 1)]) == [False]
    change(mine, "update_ref_doc", document("a", 0, secret="mine"))
    assert yours.ref_doc_info["a"].metadata == {"name": "a"}
    storage.persist(tmp_path)
    again = load_indices_from_storage(StorageContext.from_defaults(persist_dir=str(tmp_path)), acre=tiny_acre)
    names = {each.index_id: each.cache_names() for each in again}  # type: ignore[attr-defined]
    assert (
        names == {mine.index_id: mine.cache_names(), yours.index_id: yours.cache_names()}
        and mine.cache_names() != yours.cache_names()
    )
    change(mine, "delete_ref_doc", "a", delete_from_docstore=True)
    assert [node.text for node in storage.docstore.docs.values()] == [text(1)]  # type: ignore[attr-defined]


# Nodes, pages, forms


def test_nodes_can_be_indexed_directly(tiny_acre: ACRE) -> None:
    index = ACREIndex([TextNode(text=text(0), id_="n1"), TextNode(text=text(1), id_="n2")], acre=tiny_acre)
    assert list(index.cache_names()) == ["n1", "n2"]
    nodes = index.as_retriever(doc_ids=["n2"]).retrieve(QUESTION)
    assert {each.node.ref_doc_id for each in nodes} == {"n2"}
    index.delete_nodes(["n1"], delete_from_docstore=True)
    assert list(index.cache_names()) == ["n2"]
    asyncio.run(index.adelete_nodes(["n2"], delete_from_docstore=True))
    assert not tiny_acre.documents and not index.docstore.docs


def pages(*texts: str, file: str = "file.pdf") -> list[Document]:
    return [
        Document(text=each, metadata={"file_path": file, "page_label": str(n), "size": 9})
        for n, each in enumerate(texts, 1)
    ]


def test_pages_of_one_file_are_joined_and_their_sources_name_the_page(tiny_acre: ACRE) -> None:
    parts = pages(text(0), text(1), text(2))
    loose = Document(text=text(3), id_="loose")
    joined = join_pages([parts[0], loose, *parts[1:]])
    assert [each.id_ for each in joined] == ["file.pdf", "loose"] and joined[1] is loose
    assert joined[0].text == "\n\n".join(text(i) for i in range(3))
    index = ACREIndex.from_documents([*parts, loose], acre=tiny_acre, join_pages=True)
    assert list(index.cache_names()) == ["file.pdf", "loose"]
    starts = joined[0].metadata["page_starts"]
    assert [joined[0].text[start : start + len(text(0))] for start in starts] == [text(i) for i in range(3)]
    retriever = index.as_retriever(doc_ids=["file.pdf"], max_passages=20)
    nodes = [each.node for each in retriever.retrieve(QUESTION)]
    labels = set()
    for node in nodes:
        own = [
            str(n)
            for n, start in enumerate(starts, 1)
            if start < node.end_char_idx and start + len(text(0)) + 2 > node.start_char_idx
        ]
        assert node.metadata["page_label"] == (own[0] if len(own) == 1 else f"{own[0]}-{own[-1]}")
        assert node.metadata["size"] == 9 and "page_starts" not in node.metadata
        labels.add(node.metadata["page_label"])
    assert labels


def test_without_joining_every_page_is_a_document(tiny_acre: ACRE) -> None:
    parts = pages(text(0), text(1))
    index = ACREIndex.from_documents(parts, acre=tiny_acre)
    assert len(index.cache_names()) == 2
    nodes = index.as_retriever(doc_ids=[parts[1].id_]).retrieve(QUESTION)
    assert {each.node.metadata["page_label"] for each in nodes} == {"2"}


def test_joining_keeps_files_apart_and_only_what_pages_share() -> None:
    one, two = pages("x", "y"), pages("z", file="other.pdf")
    joined = join_pages([one[0], two[0], one[1]])
    assert [each.id_ for each in joined] == ["file.pdf", two[0].id_]
    assert {"file_path", "size"} < joined[0].metadata.keys() and "page_label" not in joined[0].metadata
    assert "page_starts" in joined[0].excluded_llm_metadata_keys


def test_the_forms_of_asking_come_from_the_index(index: ACREIndex) -> None:
    assert isinstance(index.as_query_engine(), ACREQueryEngine)
    other = index.as_query_engine(llm=MockLLM(), similarity_top_k=1)
    assert isinstance(other, RetrieverQueryEngine)
    assert text(0)[:20] in str(other.query(QUESTION)) or "Section" in str(other.query(QUESTION))
    assert len(index.as_retriever(similarity_top_k=1).retrieve(QUESTION)) == 1


@pytest.mark.parametrize("options", [{"top_k": 3}, {"window": 128}, {"settings": {"max_tokens": 3}}])
def test_an_unknown_option_is_refused(index: ACREIndex, options: dict[str, Any]) -> None:
    with pytest.raises(AcreError):
        index.as_query_engine(**options)


def test_a_model_can_be_named_instead_of_an_engine(monkeypatch: pytest.MonkeyPatch, tiny_acre: ACRE) -> None:
    asked: list[Any] = []

    def load(**options: Any) -> ACRE:
        asked.append(options)
        return tiny_acre

    monkeypatch.setattr(ACRE, "from_pretrained", load)
    for model in (None, "a-model"):
        ACREIndex.from_documents([document("a", 0)], acre=model)
    assert asked == [{}, {"model": "a-model"}]
