"""Whether the right passages are found, and how well it answers from them."""

from collections.abc import Sequence
from typing import Any

from benchmarks import reading_again
from benchmarks.record import RESULTS
from benchmarks.report.results import read_result, read_rows, table


def _squad() -> dict[str, dict[str, Any]]:
    found = {
        path.stem.removeprefix("squad_article-"): read_result(path.stem)
        for path in sorted(RESULTS.glob("squad_article-*.jsonl"))
    }
    return {name: both[0] for name, both in found.items() if both}


def finds() -> str:
    """Recall of the right passage."""
    rows = []
    for model, summary in _squad().items():
        for k in (2, 4):
            recall = summary[f"recall_at_{k}"]
            cells = " | ".join(f"{recall[name]:.2f}" for name in ("chance", "paper", "bm25", "consensus", "hybrid"))
            rows.append(f"| {model} ({summary['questions']} questions) | {k} | {cells} |")
    if not rows:
        return ""
    return (
        "**It finds things.** Recall of the ~450-token passage that holds the answer among the first *k*, on whole "
        "SQuAD articles; heads calibrated on other data (`benchmarks/squad_article.py`). `paper` is Eq. 15 with pooled, "
        "untrained L1.\n\n"
        "| model | k | chance | paper | BM25 | consensus | hybrid |\n| --- | --- | --- | --- | --- | --- | --- |\n"
        + "\n".join(rows)
        + "\n"
    )


def answers() -> str:
    """Token F1 by what the model read."""
    columns = {
        "full": "full attention",
        "rag_bm25": "text RAG, BM25",
        "rag_consensus": "text RAG, consensus",
        "refill_bm25": "refill, BM25",
        "refill_consensus": "refill, consensus",
        "refill_hybrid": "refill, hybrid",
        "refill_consensus_without_l1": "consensus, no L1",
        "l1_only": "L1 only",
    }
    rows = [
        f"| {model} ({summary['answered']}) | " + " | ".join(f"{summary['f1'][c]:.1f}" for c in columns) + " |"
        for model, summary in _squad().items()
        if summary.get("answered", 0) >= 10  # fewer say nothing
    ]
    if not rows:
        return ""
    return (
        "**Answers**, token F1 on the same documents, two passages refilled. So few questions that differences under "
        "about ten points are noise.\n\n" + table(("model (questions)", *columns.values()), rows)
    )


def evidence() -> str:
    """Recall of the right place by the sources of every committed row: budgets by intervals, then the tables' systems."""
    rows = read_rows("evidence_recall")
    if not rows:
        return ""
    parts = [
        "**Did the sources hold the answer?** `squad_article`, 25 questions: share of questions whose answer stands, at the place "
        "that was asked for, in what was refilled or read (`benchmarks/evidence_recall.py`, from the rows above). A source that "
        "covers a third of the document finds a third by chance.\n"
    ]
    grids = [row for row in rows if {"budget", "interval"} <= row["options"].keys()]
    for result in dict.fromkeys(row["result"] for row in grids):
        mine = [row for row in grids if row["result"] == result]
        budgets = sorted({row["options"]["budget"] for row in mine})
        lines = [
            f"| {name}, {interval} | "
            + " | ".join(_recall_at(mine, name, interval, budget) for budget in budgets)
            + " |"
            for name, interval in sorted({(row["name"], row["options"]["interval"]) for row in mine})
        ]
        head = ("system, interval", *(f"eta = {budget:,}" for budget in budgets))
        parts.append(f"{result}: recall (token F1).\n\n" + table(head, lines))
    asked = [row for row in rows if row not in grids]
    lines = [
        f"| {row['result'].partition('-')[2]} | {_form_of(row)} | {row['recall']:.2f} | {row['covered']:.2f} | {row['f1']:.1f} |"
        for row in sorted(asked, key=lambda row: (row["result"], -row["recall"], row["covered"]))
    ]
    head = ("result", "system", "recall", "share of the document", "token F1")
    return "\n".join([*parts, table(head, lines)])


def _recall_at(rows: Sequence[dict[str, Any]], name: str, interval: int, budget: int) -> str:
    options = {"interval": interval, "budget": budget}
    found = [row for row in rows if row["name"] == name and options.items() <= row["options"].items()]
    return f"{found[0]['recall']:.2f} ({found[0]['f1']:.1f})" if found else ""


def _form_of(row: dict[str, Any]) -> str:
    return ",".join([row["name"], *(f"{option}={value}" for option, value in row["options"].items())])


def again() -> str:
    """Passages as they were kept and read again, in three places."""
    asked: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(RESULTS.glob("reading_again-*.jsonl")):
        asked.setdefault("smollm2-135m" if "smollm2" in path.stem else "qwen2.5-coder-0.5b", []).extend(
            read_rows(path.stem)
        )
    if not asked:
        return ""
    rows = []
    for model, mine in asked.items():
        rows += [
            f"| {model}, {name} ({found['questions']}) | " + " | ".join(f"{x:.1f}" for x in found["f1"].values()) + " |"
            for name, found in reading_again.summary(mine).items()
        ]
        [every] = reading_again.summary([row | {"dataset": "all"} for row in mine]).values()
        gains = [f"{x['mean']:+.1f} ± {x['standard_error']:.1f}" for x in list(every["difference"].values())[1:]]
        rows.append(f"| {model}, all ({every['questions']}), less the first form | | " + " | ".join(gains) + " |")
    return (
        "**As kept, or read again?** Token F1 with the same passages, chosen by consensus, put before the question in six forms "
        "(`benchmarks/reading_again.py`; answers of at most 32 tokens, so other figures than in the tables of systems): "
        "as L2 keeps them or read anew; between the L1 entries (nested), behind all of them, or alone. With standard "
        "errors over questions.\n\n" + table(("model, data set (questions)", *reading_again.FORMS), rows)
    )


def many() -> str:
    """Several documents in one question."""
    both = read_result("many_documents")
    if not both:
        return ""
    s, _ = both
    ways = {"shared": "one softmax", "apart": "a softmax each", "within": "standard scores within each"}
    names = {"bm25": "BM25"}
    for view, read in (("", "over all L1 entries"), ("_prompt", "behind the prompt alone")):
        for name, way in ways.items():
            names |= {f"{name}{view}": f"consensus, {way}, question read {read}"}
            names |= {f"hybrid_{name}{view}": f"hybrid, {way}, question read {read}"}
    rows = [f"| {names[n]} | {s['recall_at_2'][n]:.2f} | {s['recall_at_4'][n]:.2f} |" for n in names]
    return (
        f"**Several documents in one question.** Eight SQuAD articles at once, {s['questions']} questions, SmolLM2: recall of "
        "the right passage among all passages of all articles, by how scores of different documents are made comparable. "
        f"The first pass (for documents that do not fit together) has the right article first for "
        f"{s['right_document_at_1']:.2f}, among two for {s['right_document_at_2']:.2f}, among four for "
        f"{s['right_document_at_4']:.2f}.\n\n| passages compared by | at 2 | at 4 |\n| --- | --- | --- |\n"
        + "\n".join(rows)
        + "\n"
    )


def calibrated() -> str:
    """How many heads, how much data, and does it carry over."""
    both = read_result("calibration_transfer")
    if not both:
        return ""
    s, _ = both
    shipped = s["shipped_heads"]
    tests = sorted(shipped)
    lines = {"chance": s["chance"], **s["recall_at_2"], "shipped heads": shipped}
    rows = [f"| {name} | {' | '.join(f'{line[test]:.2f}' for test in tests)} |" for name, line in lines.items()]
    return (
        f"**Calibration carries over** ({s['model']}): recall of the right passage among two with six heads, by the questions "
        "they were calibrated on (down) and those asked (across); on the own questions, one half of the documents "
        "calibrates for the other. `all others` has no question of the kind asked "
        "(`benchmarks/calibration_transfer.py`).\n\n"
        + table(("calibrated on", *(f"{test} ({s['measured_questions'][test]})" for test in tests)), rows)
        + f"\nHow many heads, and how many questions to choose them by (calibrated on all other kinds; the difference from "
        f"six heads and all questions in brackets, ± its standard error): heads {_curve(s['heads_of_all_others'])}; "
        f"questions {_curve(s['questions_of_all_others'])}.\n"
    )


def _curve(figures: dict[str, dict[str, float]]) -> str:
    return ", ".join(
        f"{n}: {each['recall_at_2']:.2f} ({each['difference']:+.3f} ± {each['standard_error']:.3f})"
        for n, each in figures.items()
    )
