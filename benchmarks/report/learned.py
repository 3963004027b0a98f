"""What training L1 is worth."""

from benchmarks.record import RESULTS
from benchmarks.report.results import read_result


def stage1() -> str:
    """Loss on later strides, by memory and interval."""
    parts = []
    for path in sorted(RESULTS.glob("stage1_loss-*.jsonl")):
        if not (read := read_result(path.stem)):
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


def content() -> str:
    """What a memory carries of the document itself, beside what any text before a stride gives."""
    parts = []
    for path in sorted(RESULTS.glob("memory_content-*.jsonl")):
        if not (read := read_result(path.stem)):
            continue
        summary = read[0]
        lines = [
            f"| {name} | {each['own']:.3f} | {each['other']:.3f} | {each['alone']:.3f} | {each['content']:.3f} ± {each['standard_error']:.3f} | "
            f"{100 * each['share_of_full']:.0f} % |"
            for name, each in summary["memories"].items()
        ]
        parts.append(
            f"**What of it is memory of the document** ({summary['model']}, interval {summary['interval']}): loss on the last "
            f"{summary['stride']} of {summary['tokens']:,} tokens behind the document's own past and behind another "
            f"book's, and with no past at all, {summary['documents']} documents with standard errors (`benchmarks/memory_content.py`).\n\n"
            "| memory | own past | another's | none | the document's own | share of full attention's |\n|"
            + " --- |" * 6
            + "\n"
            + "\n".join(lines)
            + "\n"
        )
    return "\n".join(parts)
