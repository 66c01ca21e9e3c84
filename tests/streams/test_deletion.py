"""The deletion of groups of a fit whose rows are not held, by one more pass over them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import fastlmm_core as flc
from streamed import FORMULA, cut, simulated

MEASURES = ("params", "theta", "sigma2", "criterion", "cooks_distance", "mdffits", "covratio", "dfbetas", "rvc")

OTHER_ORDER = 1e-8
"""Estimates from sums in another order, relative."""


def uneven(**more):
    data = simulated(2000, m=60, **more)
    data["y"] += 4.0 * (data["g"] == 9)
    data.loc[[4, 700], "z"] = np.nan
    return data.assign(
        w=1.0 + data["x"] / 40.0, o=0.1 * data["x"], name=[f"g{v:03}" for v in data["g"]],
        big=data["g"] * 2_000_000_011, v=2.0 * data["x"] - data["z"],
    )  # fmt: skip


CASES = [
    (FORMULA, {}), ("y ~ arm * z + (1 | g)", {}), (FORMULA, {"weights": "w", "offset": "o"}),
    ("y ~ x + z + v + (1 | name)", {}), ("y ~ x + (x | big)", {}), ("y ~ z + (z || arm:name)", {}),
    ("y ~ 1 + (1 | g)", {}),
]  # fmt: skip


@pytest.mark.parametrize(("formula", "options"), CASES)
@pytest.mark.parametrize("shuffled", [False, True])
def test_the_bits_of_memory(formula, options, shuffled):
    data = uneven(shuffled=shuffled)
    one = flc.lmm(formula, data, **options).fit().influence()
    fit = flc.lmm(formula, flc.scan(cut(data, 700)), **options).fit()
    other = fit.influence(source=flc.scan(cut(data, 333)))
    assert other.labels.tolist() == one.labels.tolist() and other.notes == one.notes
    for name in MEASURES:
        np.testing.assert_array_equal(getattr(other, name), getattr(one, name), err_msg=name)
    frame = other.to_frame()
    assert [c for c in one.to_frame() if not c.startswith("leverage")] == list(frame)
    assert str(other) == str(one)


def test_sums_of_many_places_and_a_fit_without_the_group():
    data = uneven()
    plan = flc.plan(FORMULA, data)
    total = flc.merge([plan.reduce(part, key=i) for i, part in enumerate(cut(data, 450))])
    found = flc.lmm(plan, total).fit().influence("g", source=data)
    i = found.labels.tolist().index(9)
    without = flc.lmm(FORMULA, data[data["g"] != 9]).fit()
    np.testing.assert_allclose(found.params[i], without.beta, rtol=OTHER_ORDER)
    assert found.criterion[i] == pytest.approx(without.criterion, rel=1e-10)
    assert found.sigma2[i] == pytest.approx(without.sigma2, rel=OTHER_ORDER)


def test_a_group_that_x_needs():
    data = uneven().assign(only=lambda d: (d["g"] == 6).astype(float))
    fit = flc.lmm("y ~ x + only + (1 | g)", flc.scan(data)).fit()
    found = fit.influence(source=data)
    assert list(found.notes) == [6] and "fit a table in memory" in found.notes[6]
    assert np.isnan(found.params[found.labels.tolist().index(6)]).all() and found.converged.sum() == 59


def test_what_is_refused():
    data = uneven()
    fit = flc.lmm(FORMULA, flc.scan(data)).fit()
    with pytest.raises(flc.LMMError, match=r"products of the columns.*result\.influence\(source="):
        fit.influence()
    with pytest.raises(flc.LMMError, match=r"deletion of single rows.*not held"):
        fit.influence("observation", source=data)
    with pytest.raises(flc.LMMError, match=r"rows by labels of their own.*not held"):
        fit.influence(data["arm"], source=data)
    with pytest.raises(flc.LMMError, match="by='h' is unknown"):
        fit.influence("h", source=data)
    with pytest.raises(flc.LMMError, match=r"source has 0 complete rows of 0 of 'g', and the fit had \d+"):
        fit.influence(source=data[data["g"] > 0])
    with pytest.raises(flc.LMMError, match="source has the level '0' of 'g', which the fit does not know"):
        fit.influence(source=data.assign(g=data["g"].astype(str)))
    with pytest.raises(flc.LMMError, match="source has the level -3 of 'g'"):
        fit.influence(source=pd.concat([data, data.iloc[:5].assign(g=-3)]))
    with pytest.raises(flc.LMMError, match="source is for a model whose rows are not held"):
        flc.lmm(FORMULA, data).fit().influence(source=data)
    nested = flc.lmm("y ~ x + (1 | g/arm)", flc.scan(data)).fit()
    with pytest.raises(flc.LMMError, match=r"deletion of groups, each of which refits.*not held"):
        nested.influence(source=data)
    with pytest.raises(flc.LMMError, match=r"level of each row.*not held"):
        fit.influence(source=data).without(9)
