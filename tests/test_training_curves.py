"""The picture of the shipped adapter's training: every step is in it, and what is smoothed is a mean of neighbours."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks import curves


def test_the_curve_is_a_mean_of_neighbours_and_of_fewer_at_the_ends() -> None:
    values = [float(i * i % 11) for i in range(40)]
    smooth = curves.smoothed(values)
    assert len(smooth) == 40
    assert smooth[20] == pytest.approx(sum(values[13:28]) / 15)
    assert smooth[0] == pytest.approx(sum(values[:8]) / 8) and smooth[-1] == pytest.approx(sum(values[-8:]) / 8)


def test_every_step_of_both_stages_is_drawn_and_smoothing_is_named() -> None:
    for axis, name in zip(curves.picture().axes, curves.STAGES, strict=True):
        points, line = axis.lines
        recorded = json.loads((curves.RESULTS / f"{name}.json").read_text())["curve"]
        assert list(points.get_ydata()) == [record["loss"] for record in recorded]
        assert "mean of up to 15 steps" in line.get_label()
    assert curves.PICTURE.is_file()
