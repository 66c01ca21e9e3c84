"""Least-squares residuals within groups, against regressions of each group and nlme's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import fastlmm_core as flc

HERE = Path(__file__).parents[1] / "reference"
NLME = json.loads((HERE / "nlme_tools.json").read_text())


def test_nlme():
    data = pd.read_csv(HERE / "data" / "orthodont.csv")
    result = flc.lmm("distance ~ age * Sex + (age | Subject)", data).fit()
    assert np.asarray(result.residuals("within-groups")) == pytest.approx(np.array(NLME["within"]), abs=1e-10)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("origin", [0.0, 1e6])
def test_regressions_of_each_group(rng, weighted, origin):
    counts = rng.integers(1, 9, 25)
    g = np.repeat(np.arange(25), counts)
    n = len(g)
    x, between = origin + rng.normal(size=n), rng.normal(size=25)[g]
    X = np.column_stack([np.ones(n), x, between, x - origin])  # the last is a combination of others
    Z = np.column_stack([np.ones(n), x])
    y = 1e3 * origin + rng.normal(size=n) + rng.normal(size=25)[g]
    w = rng.uniform(0.5, 2.0, n) if weighted else None
    order = rng.permutation(n)
    result = flc.LinearMixedModel(y[order], X[order], Z[order], g[order], weights=None if w is None else w[order]).fit()
    found = np.empty(n)
    found[order] = result.residuals("within-groups")
    for j in range(25):
        mine = g == j
        root = np.ones(mine.sum()) if w is None else np.sqrt(w[mine])
        columns = np.column_stack([np.ones(mine.sum()), x[mine] - origin]) * root[:, None]
        own = (y[mine] - 1e3 * origin) * root
        rest = (own - columns @ np.linalg.lstsq(columns, own, rcond=1e-12)[0]) / root
        assert found[mine] == pytest.approx(rest, abs=1e-9 + 1e-12 * origin * 1e3)
        if mine.sum() <= 2:
            assert (found[mine] == 0.0).all()
