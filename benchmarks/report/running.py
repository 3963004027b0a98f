"""Speed, long documents, restarts, smaller caches, faults."""

from typing import Any

from benchmarks.record import RESULTS
from benchmarks.report.results import read_result, table


def speed() -> str:
    """A further question, and reading, against the stock model."""
    runs = [both for path in sorted(RESULTS.glob("speed*.jsonl")) if (both := read_result(path.stem))]
    if not runs:
        return ""
    summary = _most_repeated([run for run, _ in runs])
    where = runs[0][1]
    second = summary["second_question"]
    lines = [
        f"**It is fast** ({where['machine']}; SmolLM2-135M; ratios within one run). First token of a further question on "
        f"a document of {second['document_tokens']:,} tokens: {second['acre_s']:.2f} s against {second['stock_s']:.1f} s "
        f"for the stock model's full read, **{second['median_ratio']:.0f}x** (median of {len(second['ratios'])}); to read "
        f"it once took ACRE {second['construct_s']:.0f} s. A stock model that keeps its cache of a document is `full` in "
        "the table of systems."
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


def beyond() -> str:
    """A book longer than the window."""
    both = read_result("beyond_window")
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


def storage() -> str:
    """A restart, and bytes per token."""
    both = read_result("storage")
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


def quantised() -> str:
    """L2 in 8 and 4 bits."""
    rows = []
    for path in sorted(RESULTS.glob("quantised-*.jsonl")):
        both = read_result(path.stem)
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
    return "**L2 in 8 or 4 bits** (`l2_bits=`; the same caches, SQuAD articles).\n\n" + table(
        (
            "model (questions)",
            "bits",
            "L2 bytes per token",
            "F1",
            "same answer as 16 bits",
            "divergence of the first token",
            "refilling",
        ),
        rows,
    )


def faults() -> str:
    """Kills, failing writes, changed files, crowds."""
    both = read_result("faults")
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
