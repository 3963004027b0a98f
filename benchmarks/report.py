"""Render the README's table of measurements from benchmarks/results/; `python -m benchmarks.report` rewrites it."""

import json
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- results -->", "<!-- /results -->"


def main() -> None:
    """Rewrite the README between its marks."""
    text = README.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    README.write_text(f"{head}{BEGIN}\n{rendered()}{END}{tail}", encoding="utf-8")


def rendered() -> str:
    """All tables as Markdown."""
    parts = [
        _tables(),
        _finds(),
        _answers(),
        _stage1(),
        _speed(),
        _beyond(),
        _storage(),
        _quantised(),
        _many(),
        _faults(),
    ]
    return "\n".join(part for part in parts if part)


def _read(name: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
    path = RESULTS / f"{name}.jsonl"
    if not path.is_file():
        return None
    with path.open(encoding="utf-8") as file:
        first = json.loads(file.readline())
    return first["summary"], first["circumstances"]


_COMPARED = {
    "table1": "Side by side",
    "ablation": "One part left out at a time",
    "sweep": "One option over several values",
}


def _tables() -> str:
    """Systems on the same questions, of each model that was measured."""
    parts = []
    for kind, title in _COMPARED.items():
        for path in sorted(RESULTS.glob(f"{kind}-*.jsonl")):
            read = _read(path.stem)
            for comparison in read[0]["comparisons"] if read else []:
                parts.append(_table(comparison, title, path.stem))
    return "\n".join(parts)


def _table(comparison: dict[str, Any], title: str, name: str) -> str:
    datasets = comparison["datasets"]
    ranked = sorted(comparison["systems"].items(), key=lambda pair: -(pair[1]["average"] or -1.0))
    average = ["average"] if len(datasets) > 1 else []
    head = ["system", *datasets, *average, "difference", "KV tokens attended"]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for system, each in ranked:
        scores = [_figure(each["scores"].get(dataset), 1) for dataset in datasets]
        if each["refused"] and not each["questions"]:
            continue
        means = [_figure(each["average"], 1) for _ in average]
        cells = [*scores, *means, _signed(each["difference"]), _figure(each["kv_tokens"], 0)]
        lines.append(f"| {system} | {' | '.join(cells)} |")
    refused = [system for system, each in ranked if each["refused"] and not each["questions"]]
    questions = max(each["questions"] for _, each in ranked)
    told = f" Not run here, each with its reason in the result file: {', '.join(refused)}." if refused else ""
    return (
        f"**{title}**, {comparison['model']}, {comparison['setting']}, {questions} questions a system, the same prompts, "
        f"documents and settings for all; differences to {comparison['baseline']} (`benchmarks/compared.py`). Intervals, "
        f"seconds and every answer: `benchmarks/results/{name}.*`.{told}\n\n" + "\n".join(lines) + "\n"
    )


def _figure(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.1f}"


def _stage1() -> str:
    """Loss on later strides, by memory and interval."""
    parts = []
    for path in sorted(RESULTS.glob("stage1_loss-*.jsonl")):
        if not (read := _read(path.stem)):
            continue
        summary = read[0]
        names = list(next(iter(summary["intervals"].values())))
        lines = [f"| interval | {' | '.join(names)} | gap closed |", f"|{' --- |' * (len(names) + 2)}"]
        for interval, each in sorted(summary["intervals"].items(), key=lambda pair: int(pair[0])):
            losses = " | ".join(f"{each[name]['loss']:.3f}" for name in names)
            lines.append(f"| {interval} | {losses} | {100 * each['trained']['gap_closed']:.0f} % |")
        parts.append(
            f"**Learned L1, first stage** ({summary['model']}): next-token loss on later strides of {summary['stride']} "
            "tokens of held-out books, by what a stride sees of those before it, and how much of the way from nothing to "
            f"full attention the trained adapter goes (`benchmarks/stage1_loss.py`).\n\n" + "\n".join(lines) + "\n"
        )
    return "\n".join(parts)


def _squad() -> dict[str, dict[str, Any]]:
    found = {
        path.stem.removeprefix("squad_article-"): _read(path.stem)
        for path in sorted(RESULTS.glob("squad_article-*.jsonl"))
    }
    return {name: both[0] for name, both in found.items() if both}


def _finds() -> str:
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


def _answers() -> str:
    columns = (
        "full",
        "rag_bm25",
        "rag_consensus",
        "refill_bm25",
        "refill_consensus",
        "refill_hybrid",
        "refill_consensus_without_l1",
        "l1_only",
    )
    rows = [
        f"| {model} ({summary['answered']}) | " + " | ".join(f"{summary['f1'][c]:.1f}" for c in columns) + " |"
        for model, summary in _squad().items()
        if summary.get("answered", 0) >= 10  # fewer say nothing
    ]
    if not rows:
        return ""
    return (
        "**Answers**, token F1 on the same documents, two passages refilled. So few questions that differences under "
        "about ten points are noise.\n\n"
        "| model (questions) | full attention | text RAG, BM25 | text RAG, consensus | refill, BM25 | refill, consensus | "
        "refill, hybrid | consensus, no L1 | L1 only |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n" + "\n".join(rows) + "\n"
    )


def _speed() -> str:
    runs = [both for path in sorted(RESULTS.glob("speed*.jsonl")) if (both := _read(path.stem))]
    if not runs:
        return ""
    summary = _most_repeated([run for run, _ in runs])
    where = runs[0][1]
    second = summary["second_question"]
    lines = [
        f"**It is fast** ({where['machine']}; SmolLM2-135M; ratios within one run). First token of a further question on "
        f"a document of {second['document_tokens']:,} tokens: {second['acre_s']:.2f} s against {second['stock_s']:.1f} s "
        f"for the stock model's full read, **{second['median_ratio']:.0f}x** (median of {len(second['ratios'])})."
    ]
    for name, construct in summary.items():
        if name.startswith("construct_"):
            lines.append(
                f"Reading {int(name.removeprefix('construct_')):,} tokens through a window of {construct['window']:,}: "
                f"{construct['acre_s']:.0f} s against {construct['stock_s']:.0f} s, {construct['median_ratio']:.1f}x "
                f"(by count of operations {construct['ratio_by_count_of_operations']:.1f}x; {len(construct['ratios'])} "
                f"run{'s' if len(construct['ratios']) > 1 else ''})."
            )
    return " ".join(lines) + "\n"


def _most_repeated(summaries: list[dict[str, Any]]) -> dict[str, Any]:
    """Each measurement from the run that repeated it most often."""
    best: dict[str, Any] = {}
    for summary in summaries:
        for name, measured in summary.items():
            if name not in best or len(measured["ratios"]) > len(best[name]["ratios"]):
                best[name] = measured
    return best


def _beyond() -> str:
    both = _read("beyond_window")
    if not both:
        return ""
    s, _ = both
    right = ", ".join(f"{name} {s['source_holds_needle'][name]} of {s['needles']}" for name in s["source_holds_needle"])
    answered = ", ".join(f"{name} {s['right'][name]}" for name in s["right"])
    return (
        f"**It reads beyond the window.** A book of {s['document_tokens']:,} tokens through SmolLM2 (made for "
        f"{s['model_window']:,}) with window {s['window']:,}, interval {s['interval']}: {s['construct_s']:,.0f} s; "
        f"process memory beyond L2 at 20, 60 and 100 %: {s['working_mib_at_20_percent']:,}, "
        f"{s['working_mib_at_60_percent']:,}, {s['working_mib_at_100_percent']:,} MiB. Needles at ten depths: the sources "
        f"hold the needle for {right}; the 135M model then says it right: {answered}.\n"
    )


def _storage() -> str:
    both = _read("storage")
    if not both:
        return ""
    s, _ = both
    again = s["reopened"]
    return (
        f"**A restart loses nothing.** {s['document_tokens']:,} tokens with SmolLM2: read in {s['construct_s']:,.0f} s and "
        f"stored in {s['save_s']:.1f} s; a new process opens the store in {again['open_s']:.2f} s (after loading the model "
        f"in {again['load_model_s']:.1f} s) and answers in {again['answer_s']:.2f} s, the next question in "
        f"{again['next_answer_s']:.2f} s: **{s['ratio_without_loading_the_model']:,.0f}x** sooner than building again. "
        f"Bytes per token: L2 {s['l2_bytes_per_token']:,.0f} (the model's KV is {s['exact_kv_bytes_per_token']:,}), on the "
        f"device {s['device_bytes_per_token']:,.0f} (by shape {s['device_bytes_per_token_by_shape']:,.0f}, prefix and tail "
        f"apart), on disk {s['disk_bytes_per_token']:,.0f}; after a restart L2 takes {again['host_bytes']:,} bytes of "
        "memory.\n"
    )


def _quantised() -> str:
    rows = []
    for path in sorted(RESULTS.glob("quantised-*.jsonl")):
        both = _read(path.stem)
        assert both
        s = both[0]
        for bits in ("16", "8", "4"):
            r = s[bits]
            rows.append(
                f"| {s['model']} ({s['questions']}) | {bits} | {r['l2_bytes_per_token']:,} | {r['f1']:.1f} | "
                f"{100 * r['same_answer']:.0f} % | {r['divergence_nats']:.4f} | {1000 * r['refill_s']:.0f} ms |"
            )
    if not rows:
        return ""
    return (
        "**L2 in 8 or 4 bits** (`l2_bits=`; the same caches, SQuAD articles).\n\n"
        "| model (questions) | bits | L2 bytes per token | F1 | same answer as 16 bits | divergence of the first token | "
        "refilling |\n| --- | --- | --- | --- | --- | --- | --- |\n" + "\n".join(rows) + "\n"
    )


def _many() -> str:
    both = _read("many_documents")
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


def _faults() -> str:
    both = _read("faults")
    if not both:
        return ""
    s, _ = both
    k, c, m, f = s["kills"], s["crowd"], s["mutations"], s["failing_calls"]
    p, h, d = s["processes"], s["hostile"], s["fingerprints"]
    failed = f["failed_write"] + f["failed_fsync"] + f["failed_rename"]
    return (
        f"**It is hard to break** (`benchmarks/faults.py`, tiny model). {k['kills']:,} kills while saving: "
        f"{k['corrupt_loads']} corrupt loads, {k['leftovers']} leftovers. Each of {failed} writes, flushes and renames failing: "
        f"{f['lost']} losses, {f['leftovers']} leftovers. {m['mutations']:,} changed caches: {m['refused']:,} refused by name, "
        f"{m['answered']:,} answered from untouched bytes, {m['wrong_answers']} wrong answers, {m['unnamed_errors']} other "
        f"errors. {d['refused_by_name']} of {d['fields']} fingerprint fields refused by name. {c['threads']} threads, "
        f"{c['documents']} documents, {c['asked']:,} questions under {c['evictions']:,} evictions with poisoned buffers: "
        f"{c['wrong']} wrong. {p['processes']} processes on one store for a minute: {p['answers']:,} answers, {p['wrong']} "
        f"wrong. {h['names']} hostile names: {h['outside']} files outside.\n"
    )


if __name__ == "__main__":
    main()
