"""What a summary says beside its tables."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import fastlmm_core as flc


def trial(seed=1):
    rng = np.random.default_rng(seed)
    n = 3000
    g, h, x = np.arange(n) % 60, rng.integers(0, 40, n), rng.normal(size=n)
    p = 0.5 + 0.1 * x + 0.1 * rng.normal(size=60)[g]
    return pd.DataFrame({"y": (rng.random(n) < p).astype(float), "x": x, "g": g, "h": h})


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (1.0, 2.0)])
def test_a_response_of_two_values_is_told(low, high):
    data = trial()
    data["y"] = low + (high - low) * data["y"]
    text = " ".join(str(flc.lmm("y ~ x + (1 | g)", data).fit().summary()).split())
    assert f"The response has two values, {low:g} and {high:g}: effects are differences of probabilities" in text
    assert "fit a generalised model (glmer of lme4, Bambi, GEE of statsmodels)" in text


def test_other_responses_are_not():
    data = trial()
    third = data.copy()
    third.loc[2999, "y"] = 0.5
    for frame in (third, data.assign(y=data["y"] + data["x"])):
        assert "two values" not in str(flc.lmm("y ~ x + (1 | g)", frame).fit().summary())
    # rows that are not held are not looked at
    assert "two values" not in str(flc.lmm("y ~ x + (1 | g)", flc.scan([data])).fit().summary())


def test_fits_by_iterations_state_their_errors():
    data = trial()
    fit = flc.lmm("y ~ x + (1 | g) + (1 | h)", data).fit(method="iterative")
    text = " ".join(str(fit.summary()).split())
    assert f"By method='iterative', {fit.n_evaluations} evaluations: {fit.optimum.message}." in text
    assert "Optimum certified" not in text
