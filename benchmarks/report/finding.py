"""Whether the right passages are found, and how well it answers from them."""

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
