"""Every published file format read from small files of that form, the user's own, prompts, sampling and all the errors."""

import gzip
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from acre_rag.errors import ConfigError, EvaluationError
from acre_rag.evaluation import EvalItem, load_dataset, sample, task_of
from acre_rag.evaluation.datasets import hub
from acre_rag.evaluation.tasks import TASKS

LONGBENCH = {
    "input": "Who rang?",
    "context": "Passage 1:\nAnn rang the bell.",
    "answers": ["Ann", "Ann Lee"],
    "length": 6,
    "dataset": "hotpotqa",
    "language": "en",
    "all_classes": None,
    "_id": "abc",
}
INFINITEBENCH = {"id": 7, "context": "A long book.", "input": "Who?", "answer": ["Bo", "Bob"], "options": []}
ULTRADOMAIN = {
    "input": "What is a bond?",
    "answers": ["A loan."],
    "context": "Bonds are loans.",
    "length": 3,
    "context_id": "c1",
    "_id": "u1",
    "label": "fin",
    "meta": {"title": "Bonds"},
}


def write(path: Path, *records: Any) -> Path:
    text = "".join(json.dumps(record) + "\n" for record in records)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def test_longbench(tmp_path: Path) -> None:
    write(tmp_path / "data" / "hotpotqa.jsonl", LONGBENCH, LONGBENCH | {"_id": "abd", "input": "What rang?"})
    first, second = load_dataset("hotpotqa", path=tmp_path)
    assert (first.id, first.question, first.answers) == ("abc", "Who rang?", ("Ann", "Ann Lee"))
    assert first.document == LONGBENCH["context"]
    assert first.facts == {"words": 6, "language": "en"}
    assert first.document_id == second.document_id  # one text, one document
    assert first.document is second.document


def test_longbench_from_its_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr("data/hotpotqa.jsonl", json.dumps(LONGBENCH))
    for name in ("hotpotqa", "longbench_hotpotqa"):
        (item,) = load_dataset(name, path=tmp_path / "data.zip")
        assert (item.id, item.dataset) == ("abc", name)
    with pytest.raises(EvaluationError, match=r"no file of musique; looked for data/musique\.jsonl"):
        load_dataset("musique", path=tmp_path / "data.zip")


def test_infinitebench(tmp_path: Path) -> None:
    write(tmp_path / "longbook_qa_eng.jsonl", INFINITEBENCH)
    (item,) = load_dataset("longbook_qa_eng", path=tmp_path)
    assert (item.id, item.question, item.answers, item.options) == ("7", "Who?", ("Bo", "Bob"), ())
    assert item.facts["words"] == 3


@pytest.mark.parametrize(("name", "stem"), [("financial", "fin"), ("legal", "legal"), ("cs", "cs")])
def test_ultradomain(tmp_path: Path, name: str, stem: str) -> None:
    write(tmp_path / f"{stem}.jsonl", ULTRADOMAIN)
    (item,) = load_dataset(f"ultradomain_{name}", path=tmp_path)
    assert (item.id, item.document_id, item.answers) == ("u1", "c1", ("A loan.",))
    assert item.facts == {"words": 3, "label": "fin", "meta": {"title": "Bonds"}}


def test_the_normalised_format_with_shared_documents(tmp_path: Path) -> None:
    write(tmp_path / "covidqa.docs.jsonl.gz", {"doc_id": "d1", "title": "T", "context": "Viruses spread."})
    questions = [
        {"id": f"q{i}", "doc_id": "d1", "question": f"Q{i}?", "answers": ["a"], "context_words": 2} for i in range(3)
    ]
    write(tmp_path / "covidqa.jsonl.gz", *questions, {**questions[0], "id": "q3", "context": "Viruses spread."})
    items = load_dataset("covidqa", path=tmp_path)
    assert [item.id for item in items] == ["q0", "q1", "q2", "q3"]
    assert {item.document for item in items} == {"Viruses spread."}
    write(tmp_path / "covidqa.jsonl.gz", {**questions[0], "doc_id": "d2"})
    with pytest.raises(EvaluationError, match=r"covidqa\.jsonl\.gz, line 1 has no document \('d2' is not in the"):
        load_dataset("covidqa", path=tmp_path)


def test_options_stand_below_the_question(tmp_path: Path) -> None:
    record = {"context": "Red.", "question": "Colour?", "answers": ["red"], "options": ["blue", "red"], "id": 1}
    (item,) = load_dataset("leval_quality", path=write(tmp_path / "x.jsonl", record))
    assert item.question == "Colour?\nA. blue\nB. red"
    assert item.facts["bare_question"] == "Colour?"
    assert item.options == ("blue", "red")
    assert task_of("leval_quality").score("B", item) == 100
    (unshown,) = load_dataset("loogle", path=tmp_path / "x.jsonl")  # scored by F1, so the options are not given away
    assert unshown.question == "Colour?"


def test_own_data_needs_only_three_fields(tmp_path: Path) -> None:
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "one.md").write_text("# One\n\nIt is written.")
    file = write(
        tmp_path / "mine.jsonl",
        {"document": "A short text.", "question": "Q1?", "answer": 1964},
        {"document": "papers/one.md", "question": "Q2?", "answer": "written", "level": "easy"},
        {"context": "file.txt", "question": "Q3?", "answers": ["text"]},
    )
    items = load_dataset("own:mine", path=file)
    assert [item.document for item in items] == ["A short text.", "# One\n\nIt is written.", "file.txt"]
    assert [item.answers for item in items] == [("1964",), ("written",), ("text",)]
    assert items[1].facts["level"] == "easy"
    assert len({item.id for item in items}) == len({item.document_id for item in items}) == 3
    assert [task_of(name).metric for name in ("own:mine", "own_choice", "own_long:x")] == [
        "qa_f1",
        "option_accuracy",
        "rouge_l",
    ]


def test_a_repeated_id_stays_apart(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.jsonl", *[{"id": "a", "context": "x", "question": "?", "answer": "y"}] * 2)
    assert [item.id for item in load_dataset("own", path=file)] == ["a", "a#1"]


GOOD = {"context": "A text.", "question": "Q?", "answer": "a"}


def test_a_short_sentence_is_no_file_name(tmp_path: Path) -> None:
    write(tmp_path / "own.jsonl", {**GOOD, "context": None, "document": "The meeting ended at 5.30"})
    [item] = load_dataset("own", path=tmp_path / "own.jsonl")
    assert item.document == "The meeting ended at 5.30"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({**GOOD, "question": " "}, r"line 2 has no question \(a text in the field question or input\)"),
        ({**GOOD, "answer": None}, r"line 2 has no answers \(texts in the field answers or answer\)"),
        ({**GOOD, "answer": []}, "line 2 has no answers"),
        ({**GOOD, "answer": [["a"]]}, "line 2 has no answers"),
        ({**GOOD, "context": " "}, r"line 2 has no document: a text in the field context or document"),
        ({**GOOD, "options": "ab"}, "line 2: options must be a list of texts"),
        ({**GOOD, "options": ["x"] * 27}, "line 2 has 27 options, more than the 26 letters"),
        ({**GOOD, "context": None, "document": "missing.txt"}, r"line 2: document 'missing.txt' is not in"),
        ({**GOOD, "context": None, "document": "../secret.txt"}, r"line 2: document '../secret.txt' lies outside"),
        (["a"], "line 2 is list, not an object with fields"),
    ],
)
def test_an_incomplete_line_is_named(tmp_path: Path, record: Any, message: str) -> None:
    (tmp_path / "secret.txt").write_text("not for everybody")
    file = write(tmp_path / "data" / "mine.jsonl", GOOD, record)
    with pytest.raises(EvaluationError, match=f"mine.jsonl, {message}"):
        load_dataset("own", path=file)


def test_options_that_no_answer_names_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.jsonl", {**GOOD, "options": ["one", "two"], "answer": "three"})
    with pytest.raises(EvaluationError, match=r"no answer of \['three'\] names one of the 2 options"):
        load_dataset("own_choice", path=file)


def test_one_document_id_has_one_text(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.jsonl", {**GOOD, "doc_id": "d"}, {**GOOD, "doc_id": "d", "context": "Another."})
    with pytest.raises(EvaluationError, match="line 2: document 'd' has another text than before"):
        load_dataset("own", path=file)


def test_damaged_files(tmp_path: Path) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text(json.dumps(GOOD) + "\n\n{'question': 1}\n")
    with pytest.raises(EvaluationError, match=r"broken\.jsonl, line 3 is not JSON"):
        load_dataset("own", path=broken)
    broken.write_bytes(json.dumps(GOOD).encode() + b"\n\xff\xfe\n")
    with pytest.raises(EvaluationError, match=r"is not UTF-8 text"):
        load_dataset("own", path=broken)
    broken.write_text("\n\n")
    with pytest.raises(EvaluationError, match=r"broken\.jsonl holds no question"):
        load_dataset("own", path=broken)
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(write(tmp_path / "whole.jsonl.gz", *[GOOD | {"id": i} for i in range(999)]).read_bytes()[:-40])
    with pytest.raises(EvaluationError, match=r"cut\.jsonl\.gz cannot be read after line \d+ .*Is it complete\?"):
        load_dataset("own", path=cut)
    (tmp_path / "no.jsonl.gz").write_text("plain")
    with pytest.raises(EvaluationError, match="cannot be read after line 0"):
        load_dataset("own", path=tmp_path / "no.jsonl.gz")
    (tmp_path / "no.zip").write_text("plain")
    with pytest.raises(EvaluationError, match="cannot be read as a zip archive"):
        load_dataset("qasper", path=tmp_path / "no.zip")


def test_a_file_that_cannot_be_found(tmp_path: Path) -> None:
    with pytest.raises(
        EvaluationError, match=r"'hotpot'\. For questions of your own: own=PATH.*own:NAME.*\nKnown: 2wiki"
    ):
        load_dataset("hotpot", path=tmp_path)
    with pytest.raises(EvaluationError, match=r"hotpotqa needs its file: pass path=FILE_OR_FOLDER, or hub=True"):
        load_dataset("hotpotqa")
    with pytest.raises(EvaluationError, match="does not exist"):
        load_dataset("hotpotqa", path=tmp_path / "nowhere")
    with pytest.raises(EvaluationError, match=r"holds no file of hotpotqa; looked for hotpotqa\.jsonl, "):
        load_dataset("hotpotqa", path=tmp_path)
    with pytest.raises(EvaluationError, match="is a folder; for own:x pass the"):
        load_dataset("own:x", path=tmp_path)
    with pytest.raises(EvaluationError, match=r"ruler_vt is made, not loaded: acre_rag\.evaluation\.ruler\.generate"):
        load_dataset("ruler_vt", path=tmp_path)


def test_the_hub_is_asked_only_when_told_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def downloaded(repository: str, filename: str, *, repo_type: str) -> str:
        assert repo_type == "dataset"
        asked.append((repository, filename))
        if filename == "data.zip":
            with zipfile.ZipFile(tmp_path / filename, "w") as archive:
                archive.writestr("data/qasper.jsonl", json.dumps(LONGBENCH))
        else:
            write(tmp_path / filename, ULTRADOMAIN if "Ultra" in repository else INFINITEBENCH)
        return str(tmp_path / filename)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", downloaded)
    write(tmp_path / "here" / "qasper.jsonl", LONGBENCH)
    load_dataset("qasper", path=tmp_path / "here", hub=True)
    assert not asked
    for name in ("qasper", "longbench_qasper", "longbook_qa_eng", "ultradomain_financial", "ultradomain_physics"):
        assert load_dataset(name, hub=True)
    assert asked == [
        ("THUDM/LongBench", "data.zip"),
        ("THUDM/LongBench", "data.zip"),
        ("xinrongzhang2022/InfiniteBench", "longbook_qa_eng.jsonl"),
        ("TommyChien/UltraDomain", "fin.jsonl"),
        ("TommyChien/UltraDomain", "physics.jsonl"),
    ]
    with pytest.raises(EvaluationError, match="covidqa is not on the hub"):
        load_dataset("covidqa", hub=True)


def test_without_a_connection_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(EvaluationError, match=r"cannot be downloaded .*pass path=FILE"):
        hub.download("THUDM/LongBench", "no-such-file.zip")


OFFICIAL = {
    "narrativeqa": "You are given a story, which can be either a novel or a movie script, and a question. Answer the question as concisely as you can, using a single phrase if possible. Do not provide any explanation.\n\nStory: {context}\n\nNow, answer the question based on the story as concisely as you can, using a single phrase if possible. Do not provide any explanation.\n\nQuestion: {input}\n\nAnswer:",
    "qasper": 'You are given a scientific article and a question. Answer the question as concisely as you can, using a single phrase or sentence if possible. If the question cannot be answered based on the information in the article, write "unanswerable". If the question is a yes/no question, answer "yes", "no", or "unanswerable". Do not provide any explanation.\n\nArticle: {context}\n\n Answer the question based on the above article as concisely as you can, using a single phrase or sentence if possible. If the question cannot be answered based on the information in the article, write "unanswerable". If the question is a yes/no question, answer "yes", "no", or "unanswerable". Do not provide any explanation.\n\nQuestion: {input}\n\nAnswer:',
    "multifieldqa_en": "Read the following text and answer briefly.\n\n{context}\n\nNow, answer the following question based on the above text, only give me the answer and do not output any other words.\n\nQuestion: {input}\nAnswer:",
    "hotpotqa": "Answer the question based on the given passages. Only give me the answer and do not output any other words.\n\nThe following are given passages.\n{context}\n\nAnswer the question based on the given passages. Only give me the answer and do not output any other words.\n\nQuestion: {input}\nAnswer:",
    "qmsum": "You are given a meeting transcript and a query containing a question or instruction. Answer the query in one or more sentences.\n\nTranscript:\n{context}\n\nNow, answer the query based on the above meeting transcript in one or more sentences.\n\nQuery: {input}\nAnswer:",
    "longbook_qa_eng": "Read the book and answer the question. Be very concise in your answer.\n\n{context}\n\nQuestion: {input}\nAnswer:",
    "ultradomain_legal": "Read the text below and answer a question.\n\n{context}\n\nQuestion: {input}\n\nBe concise.",
    "ruler_niah_single_2": "A special magic number is hidden within the following text. Make sure to memorize it. I will quiz you about the number afterwards.\n{context}\n{input}",
    "ruler_niah_multivalue": "Some special magic numbers are hidden within the following text. Make sure to memorize it. I will quiz you about the numbers afterwards.\n{context}\n{input}",
    "ruler_vt": "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n{context}\nQuestion: {input}",
    "ruler_qa": "Answer the question based on the given documents. Only give me the answer and do not output any other words.\n\nThe following are given documents.\n\n{context}\n\nAnswer the question based on the given documents. Only give me the answer and do not output any other words.\n\nQuestion: {input}",
}


@pytest.mark.parametrize("name", OFFICIAL)
def test_published_prompts_are_cut_and_not_changed(name: str) -> None:
    template = task_of(name).template
    whole = f"{template.before}{{context}}{template.after.replace('{question}', '{input}')}"
    assert whole == OFFICIAL[name]


def test_limits_are_the_published_ones() -> None:
    limits = {"narrativeqa": 128, "qasper": 128, "multifieldqa_en": 64, "hotpotqa": 32, "2wikimqa": 32, "musique": 32}
    for name, limit in limits.items():
        for task in (task_of(name), task_of(f"longbench_{name}")):
            assert (task.max_new_tokens, task.metric, task.stop) == (limit, "qa_f1", ())
        assert task_of(name).template == task_of(f"longbench_{name}").template
    assert (task_of("qmsum").max_new_tokens, task_of("longbook_qa_eng").max_new_tokens) == (512, 40)
    assert task_of("2wikimqa").template == task_of("musique").template == task_of("hotpotqa").template
    for task in TASKS.values():
        assert task.prompt_source == "acre-rag" or "/" in task.prompt_source


def items_of(*counts: int) -> list[EvalItem]:
    return [
        EvalItem(
            id=f"{d}-{i}", dataset="own", document_id=f"d{d}", document="x", question="?", answers=("y",), facts={}
        )
        for i in range(max(counts))
        for d, count in enumerate(counts)
        if i < count
    ]


def test_a_sample_is_even_grouped_and_repeatable() -> None:
    items = items_of(20, 3, 20, 20)
    chosen = sample(items, limit=15, seed=3)
    names = [item.document_id for item in chosen]
    assert {name: names.count(name) for name in names} == {"d0": 4, "d1": 3, "d2": 4, "d3": 4}
    assert names == [name for name in dict.fromkeys(names) for _ in range(names.count(name))]  # grouped
    assert sample(items, limit=15, seed=3) == chosen
    assert {item.id for item in sample(items, limit=15, seed=4)} != {item.id for item in chosen}
    assert len(sample(items, limit=999, seed=0)) == len(items)


def test_a_larger_sample_holds_the_smaller_one() -> None:
    items = items_of(9, 2, 9, 5, 1)
    for documents in (None, 3):
        held: set[str] = set()
        for limit in range(1, 27):
            more = {item.id for item in sample(items, limit=limit, seed=7, documents=documents)}
            assert held <= more
            held = more
    assert len({item.document_id for item in sample(items, limit=26, seed=7, documents=3)}) == 3


@pytest.mark.parametrize("options", [{"limit": 0}, {"limit": 3, "documents": 0}])
def test_a_sample_of_nothing_is_refused(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="=0 must be 1 or more"):
        sample(items_of(2), seed=0, **options)
