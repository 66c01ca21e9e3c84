"""Predictions along a variable, against nlme's augPred and predictions of rows written out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import fastlmm_core as flc

HERE = Path(__file__).parents[1] / "reference"
NLME = json.loads((HERE / "nlme_tools.json").read_text())


@pytest.mark.parametrize("library", ["pandas", "polars", "dict"])
def test_nlme(library):
    data = pd.read_csv(HERE / "data" / "orthodont.csv").assign(weight=NLME["weight"])
    given = data
    if library == "polars":
        given = pytest.importorskip("polars").from_pandas(data)
    elif library == "dict":
        given = {name: data[name].to_numpy() for name in data}
    result = flc.lmm(NLME["formula"], given).fit()
    found = result.predict_along("age", 3)
    found = pd.DataFrame({name: np.asarray(found[name]) for name in ("Subject", "age", "fitted_population", "fitted")})
    theirs = pd.DataFrame(NLME["along"]).pivot(index=["Subject", "age"], columns="type", values="value").reset_index()
    both = found.merge(theirs, on=["Subject", "age"])
    assert len(both) == len(found) == 81
    # nlme's optimum moves coefficients by 1e-7 and random effects by 2e-6
    assert both["fitted_population"].to_numpy() == pytest.approx(both["predict.fixed"].to_numpy(), abs=1e-6)
    assert both["fitted"].to_numpy() == pytest.approx(both["predict.Subject"].to_numpy(), abs=1e-5)


def test_others_are_at_the_groups_own_values():
    rng = np.random.default_rng(3)
    data = pd.DataFrame({"a": np.repeat(["p", "q", "r", "s"], 30), "b": np.tile(np.repeat(list("uvwxyz"), 5), 4)})
    data["x"], data["z"] = rng.normal(size=120), rng.normal(size=120)
    data["h"] = rng.choice(["k", "l", "m"], 120)
    data["y"] = data["x"] + rng.normal(size=120)
    data.loc[3, "z"] = np.nan
    result = flc.lmm("y ~ x * h + np.exp(z) + (x | a/b)", data).fit()
    found = result.predict_along("x", 4, low=-1.0, high=2.0, factor="a")
    used = data.drop(index=3)
    for label, own in used.groupby("a"):
        mine = found[found["a"] == label]
        rows = pd.DataFrame({"x": np.linspace(-1.0, 2.0, 4), "a": label, "z": own["z"].mean()})
        rows["h"], rows["b"] = own["h"].mode().iloc[0], own["b"].mode().iloc[0]
        assert mine["x"].to_numpy() == pytest.approx(rows["x"].to_numpy())
        assert mine["fitted"].to_numpy() == pytest.approx(result.predict(rows, "all").to_numpy())
        assert mine["fitted_population"].to_numpy() == pytest.approx(result.predict(rows).to_numpy())
    inner = result.predict_along("x", 2)
    assert len(inner) == 2 * result.n_groups["a:b"]


def test_lines_of_models_with_structured_residuals():
    """X beta + Z b as for independent residuals: a line has no places of which other residuals would tell."""
    rng = np.random.default_rng(4)
    i, v = (part.ravel() for part in np.indices((20, 4)))
    data = pd.DataFrame({"id": i, "v": v, "site": i % 5, "x": rng.normal(size=80)})
    data["y"] = data.x + 2.0 * rng.normal(size=5)[i % 5] + rng.normal(size=80)
    result = flc.lmm("y ~ x + (x | site)", data, residual="ar1(v | id)").fit()
    found = result.predict_along("x", 3, low=0.0, high=2.0)
    population = result.params["Intercept"] + result.params["x"] * found["x"]
    effects = result.random_effects.set_index("site").loc[found["site"]].reset_index(drop=True)
    np.testing.assert_allclose(found["fitted_population"], population, rtol=1e-12)
    np.testing.assert_allclose(
        found["fitted"], population + effects["Intercept"] + effects["x"] * found["x"], rtol=1e-12
    )
    alone = flc.lmm("y ~ x", data, residual="ar1(v | id)").fit()
    with pytest.raises(flc.LMMError, match="the model has no random effects"):
        alone.predict_along("x")


def test_refuses():
    data = flc.datasets.load("orthodont")
    result = flc.lmm("distance ~ age * Sex + (1 | Subject)", data).fit()
    with pytest.raises(flc.LMMError, match="x='Sex' is a factor"):
        result.predict_along("Sex")
    with pytest.raises(flc.LMMError, match="x='height' is no variable of the model; choose one of 'age', 'Sex'"):
        result.predict_along("height")
    with pytest.raises(flc.LMMError, match="the first below the second"):
        result.predict_along("age", low=20.0)
    arrays = flc.LinearMixedModel(np.asarray(data["distance"]), groups=np.asarray(data["Subject"])).fit()
    with pytest.raises(flc.LMMError, match="from arrays"):
        arrays.predict_along("age")
