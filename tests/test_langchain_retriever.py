"""ACRERetriever, other retrievers that guide refilling, and documents on their way in; on a tiny random model."""

import asyncio
import gc
import logging
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document as LangChainDocument
from langchain_core.retrievers import BaseRetriever
from langchain_core.tools import create_retriever_tool
from langchain_text_splitters import RecursiveCharacterTextSplitter

from acre_rag import ACRE, ACREConfig
from acre_rag.decoder import Decoder
from acre_rag.errors import ConfigError, DocumentError, FingerprintError
from acre_rag.integrations.langchain import ACREDocumentQA, ACRERetriever, RetrieverGuide, join_pages
from acre_rag.retrieve import Span

NAMES = ["fox", "owl", "hare", "mole", "wren", "toad", "lynx", "crow", "seal", "newt"]
ZOO = "\n\n".join(f"The {name} of the zoo keeps the number {i * 7}." for i, name in enumerate(NAMES * 2))
PARK = "\n\n".join(f"In the park, the {name} waits at gate {i}." for i, name in enumerate(NAMES * 2))
QUESTION = "Which number does the mole keep?"


class Scripted(BaseRetriever):
    """Returns what it was told to."""

    found: list[LangChainDocument]

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun
    ) -> list[LangChainDocument]:
        return self.found


@pytest.fixture
def retriever(tiny_acre: ACRE) -> ACRERetriever:
    documents = [
        LangChainDocument(ZOO, id="zoo", metadata={"year": 1999}),
        LangChainDocument(PARK, metadata={"source": "park.txt"}),
    ]
    return ACRERetriever.from_documents(documents, acre=tiny_acre)


def test_it_returns_what_a_question_would_refill(retriever: ACRERetriever, tiny_acre: ACRE) -> None:
    expected = tiny_acre.ask(QUESTION, ["zoo", "park.txt"]).sources
    for found in (retriever.invoke(QUESTION), asyncio.run(retriever.ainvoke(QUESTION))):
        assert [
            (each.metadata["document_id"], each.metadata["start"], each.metadata["end"], each.metadata["score"])
            for each in found
        ] == [(source.document, source.start, source.end, source.score) for source in expected]
        assert [each.page_content for each in found] == [source.text for source in expected]


def test_a_document_is_asked_by_itself_whatever_named_it(tiny_acre: ACRE) -> None:
    pages = [LangChainDocument(f"{i}. {PARK}", metadata={"source": "book.pdf"}) for i in range(2)]
    several = [LangChainDocument(ZOO, id="zoo"), LangChainDocument(PARK, metadata={"source": "park"}), *pages]
    retriever = ACRERetriever.from_documents(
        [*several, nameless := LangChainDocument("No name. " * 30)], acre=tiny_acre
    )
    for name, document in zip(retriever.documents, [*several, nameless], strict=True):
        assert {each.metadata["document_id"] for each in retriever.invoke(QUESTION, documents=document)} == {name}
    with pytest.raises(DocumentError, match="No document '[0-9a-f]{12}'"):
        retriever.invoke(QUESTION, documents=LangChainDocument("never read"))


def test_the_originals_metadata_comes_along(retriever: ACRERetriever) -> None:
    [zoo] = retriever.invoke(QUESTION, documents="zoo", k=1)
    assert zoo.metadata["year"] == 1999 and zoo.metadata["document_id"] == "zoo"
    assert zoo.page_content == ZOO[zoo.metadata["start"] : zoo.metadata["end"]]
    [park] = retriever.invoke(QUESTION, documents=["park.txt"], k=1)
    assert park.metadata["source"] == "park.txt"


@pytest.mark.parametrize("k", [1, 4, 9])
def test_k_passages_come_best_first_also_beyond_the_window(retriever: ACRERetriever, k: int) -> None:
    for found in (retriever.invoke(QUESTION, k=k), asyncio.run(retriever.ainvoke(QUESTION, k=k))):
        assert len(found) == k == len({each.id for each in found})
        scores = [each.metadata["score"] for each in found]
        assert scores == sorted(scores, reverse=True)


def test_k_passages_are_also_found_among_more_documents_than_fit_the_window(tiny_acre: ACRE) -> None:
    texts = [f"{ZOO} {i}" for i in range(8)]
    found = ACRERetriever.from_texts(texts, acre=tiny_acre, ids=[f"zoo {i}" for i in range(8)], k=3).invoke(QUESTION)
    assert len(found) == 3
    for each in found:
        document = tiny_acre.documents[each.metadata["document_id"]]
        assert each.page_content == document.text[each.metadata["start"] : each.metadata["end"]]


@pytest.mark.parametrize("select", ["consensus", "retriever"])
def test_a_document_shorter_than_one_block_is_a_passage_of_its_own(tiny_acre: ACRE, select: str) -> None:
    acre = tiny_acre.using(select=select)
    retriever = ACRERetriever.from_texts([ZOO, "A wren."], acre=acre, ids=["zoo", "wren"])
    for found in (retriever.invoke(QUESTION), retriever.invoke(QUESTION, k=40)):
        [wren] = [each for each in found if each.metadata["document_id"] == "wren"]
        assert (wren.page_content, wren.metadata["score"]) == ("A wren.", 0.0)
        scores = [each.metadata["score"] for each in found]
        assert scores == sorted(scores, reverse=True)
    assert [each.page_content for each in retriever.invoke(QUESTION, documents="wren", k=2)] == ["A wren."]


def test_it_is_a_tool_for_agents(retriever: ACRERetriever) -> None:
    tool = create_retriever_tool(retriever, "zoo", "Finds animals.")
    assert tool.invoke({"query": QUESTION}) == "\n\n".join(each.page_content for each in retriever.invoke(QUESTION))


def test_documents_of_one_tenant_do_not_exist_for_another(tiny_acre: ACRE) -> None:
    ACRERetriever.from_texts([ZOO], acre=tiny_acre, ids=["zoo"], tenant="ann")
    with pytest.raises(DocumentError):
        ACRERetriever(acre=tiny_acre, tenant="bob").invoke(QUESTION)


def test_documents_are_named_by_id_else_by_their_own_source_else_by_their_text(tiny_acre: ACRE) -> None:
    pages = [
        LangChainDocument("Page one of a book.", metadata={"source": "book.pdf"}),
        LangChainDocument("Page two of a book.", metadata={"source": "book.pdf"}),
        LangChainDocument("A letter to a friend.", metadata={"source": "letter.txt"}),
        LangChainDocument("A note to a friend.", id="note", metadata={"source": "note.txt"}),
    ]
    found = ACRERetriever.from_documents(pages, acre=tiny_acre)
    assert found.documents[2:] == ["letter.txt", "note"]
    assert len(set(found.documents)) == 4 and "book.pdf" not in found.documents
    assert [found.document_metadata[id]["source"] for id in found.documents] == [
        page.metadata["source"] for page in pages
    ]


def pages(*texts: str, **metadata: Any) -> list[LangChainDocument]:
    """As `PyPDFLoader` makes them."""
    return [
        LangChainDocument(text, metadata={"source": "book.pdf", "page": n, "total_pages": len(texts), **metadata})
        for n, text in enumerate(texts)
    ]


def test_a_blank_page_is_left_out_and_told(tiny_acre: ACRE, caplog: pytest.LogCaptureFixture) -> None:
    parts = pages(ZOO, " \n", PARK)
    for found in (
        ACRERetriever.from_documents(parts, acre=tiny_acre),
        asyncio.run(ACRERetriever.afrom_documents(parts, acre=tiny_acre)),
    ):
        assert [found.document_metadata[id]["page"] for id in found.documents] == [0, 2]
    assert "1 of 3 documents are blank" in caplog.text
    with pytest.raises(DocumentError, match="All of the 2 documents are blank.*Scanned"):
        ACRERetriever.from_documents(pages("", " "), acre=tiny_acre)


def test_pages_of_one_source_are_joined_and_passages_name_the_page(tiny_acre: ACRE) -> None:
    sentences = [f"The {name} of the zoo keeps the number {i * 7}." for i, name in enumerate(NAMES)]
    parts = pages(*sentences[:4], "", *sentences[4:])
    loose = LangChainDocument(PARK, metadata={"title": "Park"})
    joined = join_pages([parts[0], loose, *parts[1:]])
    assert joined[0].id == "book.pdf" and joined[1] is loose and len(joined) == 2
    retriever = ACRERetriever.from_documents([*parts, loose], acre=tiny_acre, join_pages=True, k=20)
    assert retriever.documents[0] == "book.pdf" and len(retriever.documents) == 2
    starts = [joined[0].page_content.index(sentence) for sentence in sentences]
    numbers = [0, 1, 2, 3, 5, 6, 7, 8, 9, 10]
    found = retriever.invoke(QUESTION, documents="book.pdf")
    assert found
    for each in found:
        own = [
            number
            for number, start, sentence in zip(numbers, starts, sentences, strict=True)
            if start < each.metadata["end"] and each.metadata["start"] < start + len(sentence)
        ]
        assert each.metadata["page"] == own[0]
        assert each.metadata["page_label"] == (str(own[0] + 1) if len(own) == 1 else f"{own[0] + 1}-{own[-1] + 1}")
        assert each.metadata["total_pages"] == 11 and "page_starts" not in each.metadata
    assert "page" not in retriever.invoke(QUESTION, documents=retriever.documents[1])[0].metadata


def test_a_page_keeps_the_label_that_its_file_gives_it() -> None:
    [one] = join_pages(pages("x", "y", page_label="iv"))
    assert one.metadata["page_labels"] == ["iv", "iv"] and one.metadata["page_numbers"] == [0, 1]
    [alone] = join_pages(pages("x"))
    assert alone.metadata == {"source": "book.pdf", "page": 0, "total_pages": 1}


def test_the_same_documents_again_are_not_read_again(tiny_acre: ACRE) -> None:
    documents = [LangChainDocument(ZOO, id="zoo")]
    ACRERetriever.from_documents(documents, acre=tiny_acre)
    read = tiny_acre.documents["zoo"]
    again = asyncio.run(ACRERetriever.afrom_documents(documents * 2, acre=tiny_acre))
    assert tiny_acre.documents["zoo"] is read and again.documents == ["zoo"]
    with pytest.raises(DocumentError, match="another text"):
        ACRERetriever.from_texts([PARK], acre=tiny_acre, ids=["zoo"])


def test_caches_of_other_options_are_refused_or_built_anew(tiny: Decoder, tmp_path: Path) -> None:
    def engine(interval: int) -> ACRE:
        return ACRE(
            tiny, config=ACREConfig(window=512, interval=interval, stride=64, select="consensus"), store=tmp_path
        )

    documents = [LangChainDocument(ZOO, id="zoo"), LangChainDocument(PARK, id="park")]
    ACRERetriever.from_documents(documents, acre=engine(8))
    with pytest.raises(FingerprintError, match="interval"):
        ACRERetriever.from_documents(documents, acre=engine(16))
    with pytest.raises(FingerprintError, match="interval"):
        asyncio.run(ACREDocumentQA.afrom_documents(documents, acre=engine(16)))
    one = ACRERetriever.from_documents(documents[:1], acre=engine(16), rebuild=True)
    other = asyncio.run(ACREDocumentQA.afrom_documents(documents, acre=one.acre, rebuild=True))
    assert {each.interval for each in other.acre.documents.values()} == {16}


MOLE = "The mole of the zoo keeps the number 21."
AT = ZOO.index(MOLE)


@pytest.mark.parametrize(
    ("passage", "span"),
    [
        (LangChainDocument(MOLE), ("zoo", AT, AT + len(MOLE))),
        (LangChainDocument(f"  {MOLE.replace(' ', chr(10), 1)} "), ("zoo", AT, AT + len(MOLE))),
        (
            LangChainDocument("zoo", metadata={"start_index": ZOO.rindex("zoo"), "source": "zoo"}),
            ("zoo", ZOO.rindex("zoo"), ZOO.rindex("zoo") + 3),
        ),
        (
            LangChainDocument("zoo", metadata={"start_index": ZOO.rindex("zoo")}),
            ("zoo", ZOO.rindex("zoo"), ZOO.rindex("zoo") + 3),
        ),
        (LangChainDocument("A summary.", metadata={"document_id": "zoo", "start": 5, "end": 40}), ("zoo", 5, 40)),
        (LangChainDocument("gate 3", id="park"), ("park", PARK.index("gate 3"), PARK.index("gate 3") + 6)),
    ],
    ids=["by its text", "by its words", "by id and start", "by start alone", "by id and range", "by id and text"],
)
def test_a_passage_is_found_where_it_stands(
    tiny_acre: ACRE, passage: LangChainDocument, span: tuple[str, int, int]
) -> None:
    documents = [tiny_acre.add(ZOO, id="zoo"), tiny_acre.add(PARK, id="park")]
    assert RetrieverGuide(Scripted(found=[passage]))(QUESTION, documents) == [Span(*span, 1.0)]


@pytest.mark.parametrize(
    "passage",
    [
        LangChainDocument("A wholly different text.", metadata={"start_index": 3}),
        LangChainDocument("A summary.", metadata={"document_id": "zoo", "start": 5, "end": 10**6}),
        LangChainDocument(" "),
    ],
    ids=["another text", "a range beyond the end", "nothing"],
)
def test_a_passage_of_no_document_guides_nothing_and_is_told(
    tiny_acre: ACRE, passage: LangChainDocument, caplog: pytest.LogCaptureFixture
) -> None:
    documents = [tiny_acre.add(ZOO, id="zoo")]
    with caplog.at_level(logging.WARNING):
        assert RetrieverGuide(Scripted(found=[passage]))(QUESTION, documents) == []
    assert "None of the 1 passages of Scripted stands in the documents asked" in caplog.text


def test_rank_counts_not_score() -> None:
    found = [LangChainDocument("a", metadata={"score": 0.1}), LangChainDocument("b", metadata={"score": 9.0})]

    class Read:
        id, text = "x", "a b"

    assert [span.score for span in RetrieverGuide(Scripted(found=found))("?", [Read()])] == [1.0, 0.5]  # type: ignore[list-item]


@pytest.mark.parametrize("select", ["retriever", "hybrid"])
def test_any_langchain_retriever_guides_refilling(tiny_acre: ACRE, select: str) -> None:
    splitter = RecursiveCharacterTextSplitter(chunk_size=45, chunk_overlap=0, add_start_index=True)
    chunks = splitter.split_documents([LangChainDocument(ZOO, metadata={"source": "zoo"})])
    guide = Scripted(found=[chunk for chunk in chunks if "mole" in chunk.page_content])
    options: dict[str, Any] = {"acre": tiny_acre, "ids": ["zoo"], "select": select, "max_tokens": 4}
    context = ACREDocumentQA.from_texts([ZOO], retriever=guide, **options).invoke(QUESTION)["context"]
    assert "mole" in context[0].page_content
    other = Scripted(found=[chunk for chunk in chunks if "seal" in chunk.page_content])
    context = ACREDocumentQA.from_texts([ZOO], retriever=other, **options).invoke(QUESTION)["context"]
    assert "seal" in context[0].page_content


def test_with_a_retriever_the_strategy_asks_it(tiny_acre: ACRE) -> None:
    guide = Scripted(found=[LangChainDocument(MOLE)])
    tiny_acre.add(ZOO, id="zoo")
    context = ACREDocumentQA(acre=tiny_acre, retriever=guide, max_tokens=4).invoke(QUESTION)["context"]
    expected = tiny_acre.using(select="retriever", retriever=RetrieverGuide(guide)).retrieve(QUESTION)
    assert [each.page_content for each in context] == [source.text for source in expected]
    with pytest.raises(ConfigError, match="'consensus' asks no retriever: use 'hybrid'"):
        ACREDocumentQA(acre=tiny_acre, retriever=guide, select="consensus").invoke(QUESTION)


def test_acres_own_retriever_may_guide_the_same_engine(tiny_acre: ACRE) -> None:
    own = ACRERetriever.from_texts([ZOO], acre=tiny_acre, ids=["zoo"], k=2)
    qa = ACREDocumentQA(acre=tiny_acre, select="retriever", retriever=own, max_tokens=4)
    context = qa.invoke(QUESTION)["context"]
    best = own.invoke(QUESTION)[0].metadata
    assert any(
        each.metadata["start"] <= best["start"] + 8 and best["end"] - 8 <= each.metadata["end"] for each in context
    )


def test_a_batch_longer_than_the_line_is_paced_not_refused(tiny_acre: ACRE, monkeypatch: pytest.MonkeyPatch) -> None:
    own = ACRERetriever.from_texts([ZOO], acre=tiny_acre, ids=["zoo"])
    worker = tiny_acre.decoder.worker
    monkeypatch.setattr(worker, "max_waiting", 4)
    monkeypatch.setattr(worker, "max_batch", 2)
    questions = [f"{QUESTION} {i}" for i in range(12)]
    found = asyncio.run(own.abatch(questions))
    assert len(found) == 12 and found == own.batch(questions)
    assert not own.batch([]) and not asyncio.run(own.abatch([]))


def test_retrievers_that_guided_once_are_let_go(tiny_acre: ACRE) -> None:
    tiny_acre.add(ZOO, id="zoo")
    guides = [Scripted(found=[]) for _ in range(40)]
    gone = [weakref.ref(guide) for guide in guides]
    engines = [ACREDocumentQA(acre=tiny_acre, retriever=guide).engine for guide in guides]
    assert ACREDocumentQA(acre=tiny_acre, retriever=guides[-1]).engine is engines[-1]
    del guides, engines
    gc.collect()
    assert 0 < sum(each() is not None for each in gone) <= 16


class OnOtherThreads(BaseRetriever):
    """Asks another retriever several questions at once."""

    inner: BaseRetriever

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun
    ) -> list[LangChainDocument]:
        return [each for found in self.inner.batch([query, query.upper()]) for each in found]


def test_a_guide_that_asks_its_own_engine_from_other_threads_is_refused_not_hung(tiny_acre: ACRE) -> None:
    own = ACRERetriever.from_texts([ZOO], acre=tiny_acre, ids=["zoo"], k=2)
    qa = ACREDocumentQA(acre=tiny_acre, retriever=OnOtherThreads(inner=own), max_tokens=4, timeout=20)
    with pytest.raises(ConfigError, match="from another thread .*one question after another"):
        qa.invoke(QUESTION)
    assert own.batch([QUESTION, QUESTION])  # nobody waits for these


def test_without_langchain_the_error_names_the_extra() -> None:
    code = (
        "import sys; sys.modules['langchain_core'] = None\n"
        "from acre_rag.errors import MissingExtraError\n"
        "try:\n    import acre_rag.integrations.langchain\n"
        "except MissingExtraError as error:\n    print(error)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "pip install 'acre-rag[langchain]'" in told
