"""Draw the picture of the README: ``python docs/_support/picture.py`` writes docs/_static/sleepstudy.png."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

import fastlmm_core as flc

TARGET = Path(__file__).parents[1] / "_static" / "sleepstudy.png"


def draw(target: Path = TARGET) -> None:
    """Reaction times of the sleepstudy data with the fit, and how the drivers' own lines are drawn towards the mean."""
    result = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
    with mpl.rc_context({"font.size": 9.0}):
        figure, (left, right) = plt.subplots(1, 2, figsize=(9.0, 3.9), layout="constrained")
        flc.plots.trajectories(result, ax=left)
        flc.plots.shrinkage(result, ax=right)
        left.set(xlabel="days with little sleep", ylabel="reaction time (ms)")
        right.set(xlabel="intercept (ms)", ylabel="slope (ms per day)")
        figure.savefig(target, dpi=120, metadata={"Software": None})
        plt.close(figure)


if __name__ == "__main__":
    draw()
