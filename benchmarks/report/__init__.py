"""The measurements as Markdown, from benchmarks/results/; `python -m benchmarks.report` writes them into the documents."""

from pathlib import Path

from benchmarks.report.finding import again, answers, calibrated, evidence, finds, many
from benchmarks.report.learned import content, stage1
from benchmarks.report.running import beyond, faults, quantised, speed, storage
from benchmarks.report.systems import tables

_ROOT = Path(__file__).parent.parent.parent
_BEGIN, _END = "<!-- results -->", "<!-- /results -->"


def rendered() -> dict[Path, str]:
    """Text between the marks by document: what a user weighs first in the README, everything in docs/results.md."""
    first = [tables("table1-qwen2.5-coder-0.5b"), finds(), speed(), beyond(), storage(), faults()]
    everything = [
        *map(tables, ("table1-*", "ablation-*", "sweep-*")),
        evidence(),
        finds(),
        answers(),
        again(),
        many(),
        calibrated(),
        stage1(),
        content(),
        speed(),
        beyond(),
        storage(),
        quantised(),
        faults(),
    ]
    parts = {"README.md": first, "docs/results.md": everything}
    return {_ROOT / name: "\n".join(filter(None, each)) for name, each in parts.items()}


def written(document: Path) -> str:
    """What stands between the marks."""
    return document.read_text(encoding="utf-8").split(_BEGIN)[1].split(_END)[0]


def write(document: Path, text: str) -> None:
    """Replace what stands between the marks."""
    head, rest = document.read_text(encoding="utf-8").split(_BEGIN)
    document.write_text(f"{head}{_BEGIN}\n{text}{_END}{rest.split(_END)[1]}", encoding="utf-8")
