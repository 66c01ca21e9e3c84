"""What all tests of plots share: they leave no figures, and each figure can be rendered."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def no_figures_left():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.close("all")
    yield
    for figure in map(plt.figure, plt.get_fignums()):
        if figure.stale:  # not as the test has rendered it
            figure.canvas.draw()  # a plot that cannot be rendered is none
    plt.close("all")
