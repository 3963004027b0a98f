"""Picture of the shipped adapter's training: loss by step of both stages, from their committed records. Asks nobody.

python -m benchmarks.curves
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from acre_rag.evaluation.plots import new_figure, svg_of
from benchmarks.record import RESULTS

STAGES = {
    "training-smollm2-stage1": "stage 1: loss on later strides (Eq. 20)",
    "training-smollm2-stage2": "stage 2: loss on answers (Eq. 21)",
}
SMOOTHED = 15
PICTURE = RESULTS / "training-smollm2.svg"


def main() -> None:
    """Draw and write."""
    PICTURE.write_bytes(svg_of(picture()))


def picture() -> Any:
    """One panel a stage: every step's loss as a point, and the smoothed curve through them.

    Steps draw texts, lengths and intervals of their own, so single ones differ more than training changes them.
    """
    figure = new_figure(9, 3.6)
    for axis, (name, title) in zip(figure.subplots(1, len(STAGES)), STAGES.items(), strict=True):
        record = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        steps, losses = zip(*((each["step"], each["loss"]) for each in record["curve"]), strict=True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.plot(steps, losses, ".", markersize=3, alpha=0.4, label="one step")
        axis.plot(steps, smoothed(losses), linewidth=1.6, label=f"mean of up to {SMOOTHED} steps around it")
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step")
        axis.set_ylabel("nats a token")
        axis.legend(frameon=False, fontsize=8)
    return figure


def smoothed(values: Sequence[float]) -> list[float]:
    """Mean of each value and those up to `SMOOTHED // 2` before and behind it; fewer at the ends."""
    reach = SMOOTHED // 2
    return [float(np.mean(values[max(0, i - reach) : i + reach + 1])) for i in range(len(values))]


if __name__ == "__main__":
    main()
