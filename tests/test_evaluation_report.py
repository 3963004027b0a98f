"""Findings by hand and by machine; tables, pictures and a page that hostile text cannot leave."""

import base64
import io
import itertools
import random
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from evaluation_case import BY_HAND, FORMS, items, row, run
from rich.console import Console

from acre_rag.errors import ConfigError, EvaluationError
from acre_rag.evaluation import plots
from acre_rag.evaluation.page import page
from acre_rag.evaluation.report import Comparison, compare
from acre_rag.evaluation.rows import Row
from acre_rag.evaluation.sheets import Sheet, markdown, rich_table, said_of, sheets_of, significant
from acre_rag.evaluation.side_by_side import asked_questions, most_telling, show_question
from acre_rag.evaluation.statistics import ENOUGH_DOCUMENTS, mean_of, mean_of_means, paired_differences
from acre_rag.evaluation_commands import _show as show

HOSTILE = "</td></table><script>alert(1)</script> | $x_1$ [bold]&amp; <img src=x onerror=alert(2)> `*_"


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """Rows of a real run: two data sets, two systems that answer, one that cannot be made."""
    return run(tmp_path_factory.mktemp("run"), items(), items("own:more", questions=1, lines=24), forms=FORMS)


def found(rows: list[Row] = BY_HAND) -> Comparison:
    [comparison] = compare(rows)
    return comparison


def test_means_averages_and_differences_by_hand() -> None:
    acre, bm25, full = found().systems
    assert [each.system for each in found().systems] == ["acre", "bm25", "full"]  # the registry's order
    assert (acre.cells["a"].score.mean, acre.cells["b"].score.mean) == (30, 50)
    assert acre.average and acre.average.mean == 40  # of the data sets, not of the five questions
    assert acre.difference is None and acre.cells["a"].difference is None
    assert (bm25.cells["a"].score.mean, bm25.cells["b"].score.mean) == (50, 35)
    assert bm25.cells["b"].answered == 70 and (bm25.cells["b"].failed, bm25.cells["b"].n) == (1, 2)
    differences = [bm25.cells[name].difference for name in ("a", "b")]
    assert [each.mean for each in differences if each] == [pytest.approx(20), -15]
    assert bm25.difference and bm25.difference.mean == pytest.approx(2.5)
    assert full.average is None and full.difference is None  # it has not been asked everything
    assert full.cells["a"].difference and full.cells["a"].difference.mean == 80  # over the one question both have
    assert full.refusals == {"b": "UnavailableError: no CUDA"}
    assert bm25.failures == {"CapacityError: too long": 1}


def test_costs_count_each_document_once() -> None:
    acre, bm25, full = found().systems
    assert (full.cost.read_s, full.cost.question_s, full.cost.first_token_s) == (8, 6, 5)
    assert bm25.cost.question_s == 2 and bm25.cost.read_s == 4  # the failed question has no time, its document has
    assert (acre.cost.kv_tokens, acre.cost.peak_bytes) == (100, 2**20)
    again = {"read": 6.0, "question": 2.0, "first_token": 1.0}  # the same document, read anew by a run that went on
    twice = [replace(BY_HAND[0], document="one"), replace(BY_HAND[1], document="one", seconds=again), BY_HAND[2]]
    assert compare(twice)[0].systems[0].cost.read_s == (6 + 4) / 2


def test_missing_repeated_and_unlike_questions_are_told() -> None:
    remarks = " ".join(found().remarks)
    assert "a: full lacks 2 of 3 questions" in remarks
    repeated = found([*BY_HAND, row("acre", "a", "0", 100)])
    assert repeated.systems[0].cells["a"].score.mean == 60 and "1 rows repeat" in " ".join(repeated.remarks)
    other = replace(BY_HAND[0], run=replace(BY_HAND[0].run, template="another"))
    assert "a: prompts, limits, metric or seed differ" in " ".join(found([other, *BY_HAND[1:]]).remarks)
    assert "a: 1 questions differ" in " ".join(found([replace(BY_HAND[0], content="x"), *BY_HAND[1:]]).remarks)


def test_several_machines_and_measures_of_memory_are_told() -> None:
    assert not [remark for remark in found().remarks if "machines" in remark or "memory" in remark]
    gpu = {"where": {"machine": "x86", "device": "H200"}, "memory": {"peak_bytes": 2**30, "kind": "CUDA"}}
    here = [replace(each, where={"machine": "x86", "device": ""}) for each in BY_HAND]
    comparison = found([replace(here[0], **gpu), *here[1:]])
    remarks = " ".join(comparison.remarks)
    assert "several machines, so times are means over unlike ones: x86; x86, H200." in remarks
    assert "acre: memory was measured in several ways (CUDA, tested)" in remarks
    acre, bm25, _ = comparison.systems
    assert (acre.cost.peak_bytes, acre.cost.memory) == (None, "")
    assert (bm25.cost.peak_bytes, bm25.cost.memory) == (2**20, "tested")


def test_models_are_never_averaged_together() -> None:
    other = [replace(each, run=replace(each.run, weights="v", model="other")) for each in BY_HAND]
    assert [each.model for each in compare([*BY_HAND, *other])] == ["tiny", "other"]
    with pytest.raises(ConfigError, match="acre, bm25, full"):
        compare(BY_HAND, baseline="snapkv")


def test_the_bootstrap_agrees_with_every_possible_resample() -> None:
    values = [0.0, 10.0, 50.0, 100.0, 70.0]
    one = {"one document": values}
    means = np.array([np.mean(drawn) for drawn in itertools.product(values, repeat=len(values))])  # all 3125
    estimate = mean_of(one)
    assert estimate.mean == pytest.approx(46) and estimate.n == 5
    assert estimate.low == pytest.approx(np.quantile(means, 0.025), abs=4)
    assert estimate.high == pytest.approx(np.quantile(means, 0.975), abs=4)
    assert mean_of(one) == estimate  # the seed is fixed
    each = mean_of({str(value): [value] for value in values})  # as many documents, a question each: the same resamples
    assert (each.low, each.high) == (pytest.approx(estimate.low, abs=4), pytest.approx(estimate.high, abs=4))


def test_questions_of_one_document_count_as_its_own_where_there_are_enough_documents() -> None:
    """Four questions a document, all answered alike: as many facts as documents, not four times as many."""
    alike = {str(i): [value] * 4 for i, value in enumerate((0.0, 10.0, 50.0, 100.0, 70.0))}
    single = mean_of({name: values[:1] for name, values in alike.items()})
    drawn = mean_of(alike)
    assert drawn.n == 20 and len(alike) == ENOUGH_DOCUMENTS
    assert (drawn.low, drawn.high) == (pytest.approx(single.low, abs=4), pytest.approx(single.high, abs=4))
    few = mean_of({name: values for name, values in alike.items() if name != "0"})
    assert few.high - few.low < 0.8 * (drawn.high - drawn.low)  # four documents: questions alone


def test_the_bootstrap_of_documents_agrees_with_a_slow_one() -> None:
    sample = {"a": [0.0, 20.0, 90.0], "b": [100.0], "c": [30.0, 50.0], "d": [10.0] * 4, "e": [80.0, 70.0]}
    slow, documents = random.Random(1), list(sample.values())
    means = []
    for _ in range(4000):
        chosen = [slow.choice(documents) for _ in documents]
        drawn = [slow.choice(each) for each in chosen for _ in each]
        means.append(np.mean(drawn))
    estimate = mean_of(sample)
    assert estimate.mean == pytest.approx(np.mean(sum(documents, [])))
    assert estimate.low == pytest.approx(np.quantile(means, 0.025), abs=2)
    assert estimate.high == pytest.approx(np.quantile(means, 0.975), abs=2)


def test_the_bootstrap_of_an_average_draws_within_each_data_set() -> None:
    first, second = [0.0, 30.0], [90.0, 100.0, 80.0]
    ways = itertools.product(itertools.product(first, repeat=2), itertools.product(second, repeat=3))
    means = np.array([(np.mean(a) + np.mean(b)) / 2 for a, b in ways])
    estimate = mean_of_means([{"one": first}, {"other": second}])
    assert estimate.mean == pytest.approx(52.5)
    assert estimate.low == pytest.approx(np.quantile(means, 0.025), abs=2)
    assert estimate.high == pytest.approx(np.quantile(means, 0.975), abs=2)


def test_too_few_or_equal_values_have_no_false_interval() -> None:
    lone, alike = mean_of({"d": [5.0]}), mean_of({"d": [5.0] * 9})
    assert (lone.low, lone.high) == (None, None)
    assert (alike.low, alike.high) == (5.0, 5.0)
    assert paired_differences({"a": 3.0, "b": 1.0, "c": 9.0}, {"b": 4.0, "a": 1.0, "d": 7.0}) == {"a": 2.0, "b": -3.0}


def cells(sheet: Sheet, line: int) -> list[str]:
    return [entry.text for entry in sheet.lines[line]]


def test_the_table_marks_best_and_second_and_counts_failures() -> None:
    scores, against, costs, failed = sheets_of(found())
    assert scores.header == [
        "system",
        "a (qa_f1, n=3, 3 documents)",
        "b (qa_f1, n=2, 2 documents)",
        "average",
        "failed",
    ]
    assert [[entry.mark for entry in line] for line in scores.lines] == [
        ["", "", "best", "second", ""],
        ["", "second", "second", "best", ""],
        ["", "best", "", "", ""],
    ]
    assert cells(scores, 1)[1:] == ["50.0", "35.0", "42.5", "1 of 5"]
    assert cells(scores, 2)[1:] == ["90.0", "refused", "–", "0 of 1"]
    assert scores.lines[2][1].aside == "n=1"
    assert cells(against, 0)[1:] == ["+20.0", "-15.0", "+2.5"]
    assert cells(costs, 2)[1:] == ["8.00", "6.00", "5.00", "–", "1", "100"]
    assert [line[0].aside for line in costs.lines] == ["", "", "(only a)"]  # its costs are of fewer data sets
    assert [cells(failed, i)[1:] for i in range(2)] == [
        ["1 questions", "CapacityError: too long"],
        ["could not be made for b", "UnavailableError: no CUDA"],
    ]
    text = markdown(found())
    assert "**42.5**" in text and "<u>40.0</u>" in text


def test_numbers_have_no_more_digits_than_they_deserve() -> None:
    shown = [significant(value, 3) for value in (0, 0.0123456, 0.5, 4.8731, 89.4133, 404.4, 1404.2)]
    assert shown == ["0.00", "0.0123", "0.500", "4.87", "89.4", "404", "1,400"]


def test_documents_are_counted_and_the_notes_say_what_intervals_are_over() -> None:
    about_two = [replace(each, document=str(int(str(each.item)) % 2)) for each in BY_HAND if each.item]
    scores, against, *_ = sheets_of(found(about_two))
    assert scores.header[1] == "a (qa_f1, n=3, 2 documents)"
    assert "over questions, on these few documents" in scores.note
    assert "on these documents" in against.note
    many = [row(system, "a", str(i), 10.0 * i) for system in ("acre", "bm25") for i in range(5)]
    scores, *_ = sheets_of(found(many))
    assert scores.header[1] == "a (qa_f1, n=5, 5 documents)"
    assert "over documents and the questions about each." in scores.note
    scores, *_ = sheets_of(found([*many, row("acre", "b", "0", 5.0)]))
    assert "about each; of b over questions alone" in scores.note and scores.header[2] == "b (qa_f1, n=1, 1 document)"


def test_few_documents_differ_from_many_in_the_table_too() -> None:
    scores = (0.0, 0.0, 0.0, 100.0, 100.0, 100.0, 50.0, 50.0, 50.0, 0.0, 100.0, 0.0, 50.0, 0.0, 100.0)
    apart = [row("acre", "a", str(i), score, document=str(i // 3)) for i, score in enumerate(scores)]
    together = [replace(each, document="one") for each in apart]
    intervals = [found(rows).systems[0].cells["a"].score for rows in (apart, together)]
    widths = [each.high - each.low for each in intervals if each.high is not None and each.low is not None]
    assert widths[0] > 1.1 * widths[1]


EMBEDDER = "all-MiniLM-L6-v2 (BGE-M3 is not on this machine)"


def with_facts(**facts: dict[str, str]) -> list[Row]:
    """The rows by hand; `facts` by system and data set, as `rag_a`."""
    return [
        replace(each, facts=facts.get(f"{each.run.system}_{each.run.dataset}", facts.get(each.run.system, {})))
        for each in BY_HAND
    ]


def test_rows_that_were_made_unlike_are_told() -> None:
    def remarks(rows: list[Row]) -> list[str]:
        return [remark for remark in found(rows).remarks if "rows differ" in remark]

    alike = with_facts(acre={"window": "512"}, bm25={"window": "512", "kept_tokens": "256"})
    assert not remarks(alike)
    assert remarks(with_facts(acre_a={"kept_tokens": "1"}, acre_b={"kept_tokens": "2"})) == [
        "acre: rows differ in kept_tokens: 1 (a); 2 (b)."
    ]
    by_data_set = with_facts(acre_a={"reserve_tokens": "1"}, acre_b={"reserve_tokens": "2"})
    assert not remarks(by_data_set)  # they follow the questions
    within = [replace(by_data_set[0], facts={"reserve_tokens": "9"}), *by_data_set[1:]]
    assert remarks(within) == ["acre: rows differ in reserve_tokens: 9 (a); 1 (a); 2 (b)."]
    some = with_facts(acre_a={"reserve_tokens": "1", "adapter": "x"}, bm25_a={"adapter": "x", "reserve_tokens": "3"})
    assert remarks(some) == ["acre, bm25: rows differ in adapter, reserve_tokens: told (a); not told (b)."]
    one = [replace(alike[0], facts={}), *alike[1:]]
    assert remarks(one) == ["acre: rows differ in window: told (a, b); not told (a)."]


def test_commits_are_one_remark() -> None:
    at = [replace(each, where={"commit": "c" + each.run.system}) for each in BY_HAND]
    [remark] = [remark for remark in found(at).remarks if "commits" in remark]
    assert remark == "Rows were measured at several commits: cacre, cbm25, cfull."
    at[0] = replace(at[0], where={"commit": None})
    [remark] = [remark for remark in found(at).remarks if "commits" in remark]
    assert remark == "Rows were measured at several commits: cacre, cbm25, cfull, unknown; several within acre on a."


def test_tables_name_what_systems_were_made_from() -> None:
    heads = {"heads": "[[1, 2]]", "window": "512", "budget": "4096", "adapter": ""}
    dense = {"retriever": "dense", "embedder": EMBEDDER}
    rows = with_facts(acre=heads, bm25=dense, full_a=dense | {"memory": "m" * 300})
    assert said_of(found(rows)) == [
        f"BM25: embedder {EMBEDDER}; retriever dense.",
        f"Full context: embedder {EMBEDDER}; memory {'m' * 79}…; retriever dense.",
    ]
    assert f"- BM25: embedder {EMBEDDER}; retriever dense." in markdown(found(rows))
    console = Console(file=io.StringIO(), width=200, force_terminal=True, highlight=False)
    show(console, found(rows))
    assert EMBEDDER in console.file.getvalue()
    several = with_facts(bm25_a={"reserve_tokens": "1"}, bm25_b={"reserve_tokens": "2"})
    assert said_of(found(several)) == ["BM25: reserve_tokens 1, 2."]
    assert not said_of(found())


def test_peak_memory_of_reading_stands_beside_that_of_asking() -> None:
    reading = {"read_peak_bytes": 5 * 2**20, "peak_bytes": 2**20, "kind": "tested"}
    comparison = found([replace(BY_HAND[0], memory=reading), *BY_HAND[1:]])  # other rows are of before
    acre, bm25, _ = comparison.systems
    assert (acre.cost.read_peak_bytes, acre.cost.peak_bytes) == (5 * 2**20, 2**20)
    assert (bm25.cost.read_peak_bytes, bm25.cost.peak_bytes) == (None, 2**20)
    _, _, costs, _ = sheets_of(comparison)
    assert costs.header[4:6] == ["peak memory reading, MiB", "peak memory asking, MiB"]
    assert cells(costs, 0)[4:6] == ["5", "1"] and cells(costs, 1)[4:6] == ["–", "1"]


def hostile() -> list[Row]:
    """Every text that comes from elsewhere is hostile."""
    changed = []
    for each in BY_HAND:
        error = {"kind": "Error", "message": HOSTILE} if each.error else None
        changed.append(
            replace(
                each,
                run=replace(each.run, dataset=each.run.dataset + HOSTILE, model=HOSTILE),
                document=each.document + HOSTILE,
                question=HOSTILE,
                gold=(HOSTILE,),
                answer=HOSTILE,
                error=error,
                sources=[{"start": 0, "end": 9, "score": 1.0, "text": HOSTILE}],
                trace=[{"name": HOSTILE, "text": HOSTILE}],
                notes=[HOSTILE],
                facts={HOSTILE: HOSTILE},
                where={"machine": HOSTILE},
            )
        )
    return changed


class Seen(HTMLParser):
    """Tags, their attributes and the text of a page; fails on tags that do not close."""

    VOID = {"meta", "br", "img"}

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self._open = "", []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_hostile_text_stays_text() -> None:
    seen = Seen(page(compare(hostile())))
    assert "script" not in {tag for tag, _ in seen.tags}
    assert {name for _, attributes in seen.tags for name in attributes} <= {
        "lang", "charset", "name", "content", "http-equiv", "class", "scope", "src", "alt"
    }  # fmt: skip
    assert HOSTILE in seen.text
    for tag, attributes in seen.tags:
        if tag == "img":
            assert str(attributes["src"]).startswith("data:image/svg+xml;base64,")
    table = markdown(compare(hostile())[0])
    assert "<script" not in table and "<img" not in table
    lines = [line for line in table.splitlines() if line.startswith("|")]
    scores = lines[: 2 + 3]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in scores} == {6}  # no cell breaks its row
    console = Console(file=io.StringIO(), width=200)
    for sheet in sheets_of(compare(hostile())[0]):
        console.print(rich_table(sheet))
    for asked in asked_questions(compare(hostile())[0]):
        show_question(console, asked)
    assert "[bold]" in console.file.getvalue()  # shown as it stands, not obeyed


def test_the_page_needs_nothing_else_and_holds_everything(real: list[Row]) -> None:
    text = page(compare(real))
    seen = Seen(text)
    pictures = [str(each["src"]) for tag, each in seen.tags if tag == "img"]
    assert len(pictures) == 3
    for address in pictures:
        svg = ElementTree.fromstring(base64.b64decode(address.partition(",")[2]))
        assert svg.tag.endswith("svg")
    assert not re.findall(r'(?:src|href)="(?!data:)', text) and "@import" not in text and "url(" not in text
    for each in real:
        assert not each.answer or each.answer in seen.text
        assert each.question in seen.text
    assert text == page(compare(real))  # the same rows, the same page


def test_a_real_run_in_a_table(real: list[Row]) -> None:
    [comparison] = compare(real)
    acre, l1, learned = comparison.systems
    assert acre.cells["own:houses"].n == 4 and acre.cells["own:more"].n == 2
    assert acre.cost.kv_tokens and l1.cost.kv_tokens and acre.cost.kv_tokens > l1.cost.kv_tokens
    assert acre.cost.read_s == l1.cost.read_s  # one reading for both
    assert set(learned.refusals) == {"own:houses", "own:more"} and not learned.cells
    [line] = [line for line in markdown(comparison).splitlines() if "learned" in line and "refused" in line]
    assert line.count("refused") == 2


def test_the_most_telling_questions_come_first() -> None:
    comparison = found()
    spreads = [(each.dataset, each.item, each.spread) for each in most_telling(comparison, 3)]
    assert spreads == [("a", "0", 80), ("b", "1", 30), ("a", "2", 20)]
    console = Console(file=io.StringIO(), width=120)
    show_question(console, most_telling(comparison, 1)[0])
    shown = console.file.getvalue()
    assert "question 0" in shown and "gold" in shown
    assert [name in shown for name in ("acre says", "bm25 says", "full says")] == [True] * 3


def test_pictures_are_written_and_bad_places_told(real: list[Row], tmp_path: Path) -> None:
    [comparison] = compare(real)
    for name, figure in (
        ("cost.png", plots.quality_against_cost(comparison)),
        ("bars.svg", plots.bars_by_dataset(comparison)),
        ("length.png", plots.score_by_length(comparison)),
    ):
        plots.save(figure, tmp_path / "deep" / name)
        assert (tmp_path / "deep" / name).stat().st_size > 5000
    with pytest.raises(EvaluationError, match=r"\.png"):
        plots.save(plots.bars_by_dataset(comparison), tmp_path / "picture.nothing")


def test_lengths_are_drawn_only_where_they_differ() -> None:
    assert plots.score_by_length(found()) is None
    longer = [replace(each, document_tokens=9000) if each.item == "1" else each for each in BY_HAND]
    axis = plots.score_by_length(found(longer)).axes[0]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["512-1,024\nn=3", "8,192-16,384\nn=2"]


def test_one_name_for_two_adapters_is_refused(real: list[Row]) -> None:
    other = [replace(row, run=replace(row.run, adapter="another")) for row in real]
    elsewhere = [replace(row, run=replace(row.run, dataset="elsewhere")) for row in other]
    with pytest.raises(ConfigError, match="more than one adapter"):
        compare([*real, *elsewhere])
    [row, *rest] = [row for row in real if row.error is None and not row.refused]
    found = [replace(row, facts={"embedder": name}) for name in ("MiniLM", "BGE-M3")]
    with pytest.raises(ConfigError, match=r"more than one embedder \(as found\)"):
        compare([*rest, *found], baseline=row.run.system)
    with pytest.raises(ConfigError, match="more than one adapter.*acre ablate"):
        compare([*real, *other])
