"""Fits with coefficients at zero, from the sums of the larger model: those of the smaller formula."""

from __future__ import annotations

import numpy as np
import pytest

import fastlmm_core as flc
from fastlmm_core.estimation.constrained import constrained
from streamed import cut, simulated

SAME = 1e-8
"""Units of the criterion; optima are certified to this."""


def data():
    found = simulated(3000)
    found["far"] = 1e4 + found["z"]
    return found.assign(
        room=found["g"],
        school=found["g"] // 15,
        w=1.0 + found["x"] / 40.0,
        o=0.1 * found["x"],
        u=2.0 * found["z"] - 1.0,
    )


CASES = [
    ("x + z + arm", "(x | g)", ["arm"], {}), ("x + z", "(1 | g)", ["x"], {}), ("x + far", "(x | g)", ["far"], {}),
    ("x + z + arm", "(1 | school/room)", ["z"], {}), ("x + z", "(x || g)", ["x", "z"], {"weights": "w", "offset": "o"}),
    ("x + z", "(1 | g) + (1 | arm)", ["z"], {}), ("z + u + x", "(1 | g)", ["x"], {}),
]  # fmt: skip


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize(("right", "groups", "left", "options"), CASES)
def test_coefficients_at_zero(right, groups, left, options, held):
    rows = data()
    source = rows if held else flc.scan(cut(rows, 500))
    fit = flc.lmm(f"y ~ {right} + {groups}", source, **options).fit(reml=False)
    names = fit.model.exog_names
    at = [i for i, name in enumerate(names) if any(name.startswith(one) for one in left)]
    found = constrained(fit, np.eye(len(names))[at])
    rest = [term for term in right.split(" + ") if term not in left] or ["1"]
    smaller = flc.lmm(f"y ~ {' + '.join(rest)} + {groups}", rows, **options).fit(reml=False)
    assert found.converged
    assert found.value - fit.optimum.value == pytest.approx(smaller.criterion - fit.criterion, abs=SAME, rel=1e-9)
    if held:
        return
    other = fit.drop1()
    for term in left:
        one = flc.lmm(f"y ~ {right} + {groups}", rows, **options).fit(reml=False).drop1(term).rows[1]
        row = next(row for row in other.rows if row.name == f"without {term}")
        assert row.statistic == pytest.approx(one.statistic, rel=1e-9, abs=SAME)
        assert (row.df, row.n_parameters, row.null) == (one.df, one.n_parameters, one.null)
        assert row.aic == pytest.approx(one.aic, rel=1e-12) and row.pvalue == pytest.approx(one.pvalue, rel=1e-6)


def test_a_contrast_at_zero():
    # x and z with one coefficient: the column x + z
    rows = data()
    fit = flc.lmm("y ~ x + z + (x | g)", rows).fit(reml=False)
    found = constrained(fit, np.array([[0.0, 1.0, -1.0]]))
    one = flc.lmm("y ~ I(x + z) + (x | g)", rows).fit(reml=False)
    assert found.value - fit.optimum.value == pytest.approx(one.criterion - fit.criterion, abs=SAME, rel=1e-9)


def test_terms_left_out_without_rows_by_f_tests_and_what_is_refused():
    rows = data()
    fit = flc.lmm("y ~ x + z + arm + (x | g)", flc.scan(cut(rows, 500))).fit()
    one, other = flc.lmm("y ~ x + z + arm + (x | g)", rows).fit(), fit
    for test in ("satterthwaite", "kenward-roger"):
        a, b = one.drop1(test=test), other.drop1(test=test)
        for row, wanted in zip(b.rows[1:], a.rows[1:], strict=True):
            assert row.statistic == pytest.approx(wanted.statistic, rel=1e-8)
            assert row.df_denom == pytest.approx(wanted.df_denom, rel=1e-6)
    with pytest.raises(flc.LMMError, match="null='bootstrap' needs the rows"):
        fit.drop1(null="bootstrap")
    without = flc.lmm("y ~ 0 + arm + x + (1 | g)", flc.scan(cut(rows, 500))).fit()
    with pytest.raises(flc.LMMError, match="without an intercept the levels of other factors change"):
        without.drop1("arm")


@pytest.mark.parametrize(
    ("formula", "name", "left"),
    [
        ("Reaction ~ Days + (Days | Subject)", "sleepstudy", 1),
        ("diameter ~ 1 + (1 | plate) + (1 | sample)", "penicillin", 0),
    ],
)
def test_other_minima_of_balanced_data_are_searched_for_where_coefficients_are_held(formula, name, left):
    # what is left of X may vary within groups and between them, or have no constant
    fit = flc.lmm(formula, flc.datasets.load(name)).fit(reml=False)
    assert "one minimum only" in fit.message
    L = np.eye(len(fit.model.exog_names))[[left]]
    assert "no better point in a screen" in constrained(fit, L).message
