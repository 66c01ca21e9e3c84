"""Every structure of residuals is the same model by a formula and `residual=`, by arrays, and by `mmrm`."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import fastlmm_core as flc
from fastlmm_core.covariance.residual.catalogue import coordinate_names, position_names

SAME = 1e-11  # rounding: columns of X are the same, rows may be summed in another order

# the structure, what stands before the bar, and options within the parentheses
STRUCTURES = [
    *((name, "visit", "") for name in position_names()),
    *((name, "time", "") for name in coordinate_names()),
    *((name, "time", ", nugget=True") for name in coordinate_names() if name != "sp_power"),
    ("sp_exp", "time, height", ""),
    ("fa", "visit", ", q=1"),
    ("fa0", "visit", ", q=4"),
    *((f"us@{name}", "response, visit", "") for name in ("cs", "ar1", "toep")),
]
VARIANCES = [None, "power(size)", "exp(size, by=arm)", "constpower(size)", "constprop(size)", "~ 0 + arm"]


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(3)
    subject, visit, response = (part.ravel() for part in np.indices((14, 4, 2)))
    n = len(subject)
    frame = pd.DataFrame(
        {
            "id": subject,
            "visit": visit,
            "response": response,
            "site": subject // 5,
            "arm": np.where(subject % 2, "A", "B"),
        }
    )
    frame["time"], frame["height"] = visit + rng.uniform(0.0, 0.5, n), rng.normal(size=n)
    frame["size"], frame["y"] = rng.uniform(0.5, 2.0, n), rng.normal(size=14)[subject] + rng.normal(size=n)
    return frame[(rng.random(n) < 0.85) | (subject < 3)].sample(frac=1.0, random_state=1).reset_index(drop=True)


def variance_of_arrays(written, data):
    if written is None:
        return None
    if written == "~ 0 + arm":
        arms = (data["arm"].to_numpy()[:, None] == np.array(["A", "B"])).astype(float)
        return flc.Variance("log-linear", arms)
    by = data["arm"].to_numpy() if "by=" in written else None
    return flc.Variance(written.partition("(")[0], data["size"].to_numpy(), by=by)


def evaluated(model):
    engine = model.problem.criterion()
    point = model.problem.start(engine)
    return point, engine.evaluate(point + 0.1 * np.sin(np.arange(len(point))), 2)


def assert_the_same(data, name, where, options, by, variance):
    subset = data if name.startswith("us@") else data[data["response"] == 0]
    inside = f"{options}, by=arm" if by else options
    # with random effects where there are several sets of parameters
    formula = f"y ~ arm + visit{' + (time | site)' if by else ''}"
    written = flc.lmm(formula, subset, residual=f"{name}({where} | id{inside})", variance=variance)
    columns = [subset[column].to_numpy() for column in where.split(", ")]
    arrays = flc.LinearMixedModel(
        written.endog,
        written.exog,
        written.exog_re if by else None,
        subset["site"].to_numpy() if by else None,
        residual=flc.Residual(
            name, subset["id"].to_numpy(), np.column_stack(columns) if len(columns) > 1 else columns[0],
            subset["arm"].to_numpy() if by else None, int(options[-1]) if "q=" in options else None,
            "nugget" in options, variance_of_arrays(variance, subset),
        ),
    )  # fmt: skip
    subject = "arm / id" if by else "id"
    called = flc.mmrm(f"{formula} + {name}({where} | {subject}{options})", subset, variance=variance)
    point, expected = evaluated(written)
    for other in (arrays, called):
        at, found = evaluated(other)
        np.testing.assert_allclose(at, point, rtol=1e-9, atol=1e-9)
        for one, two in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, two, rtol=SAME, atol=SAME * np.abs(two).max(initial=0.0))


@pytest.mark.parametrize("by", [False, True])
@pytest.mark.parametrize(("name", "where", "options"), STRUCTURES)
def test_structures(name, where, options, by, data):
    assert_the_same(data, name, where, options, by, None)


@pytest.mark.parametrize("variance", VARIANCES[1:])
@pytest.mark.parametrize("name", ["id", "ar1", "us"])
def test_variance_functions(name, variance, data):
    if name == "us" and variance == "~ 0 + arm":
        variance = "power(size)"
    assert_the_same(data, name, "visit", "", False, variance)
