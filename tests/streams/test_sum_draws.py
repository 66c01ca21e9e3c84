"""The parametric bootstrap without rows: draws of sums have the distribution of the sums of responses drawn."""

from __future__ import annotations

import numpy as np
import pytest

import fastlmm_core as flc
from fastlmm_core.simulation.sums import SumDraws
from streamed import cut, simulated

MONTE_CARLO = 4.5
"""Standard errors by which means and logarithms of standard deviations of replicates may differ."""


def nested(n=900, seed=2):
    data = simulated(n, m=60, seed=seed)
    return data.assign(room=data["g"], school=data["g"] // 15)


CASES = [
    (simulated(600, m=40), "y ~ x + z + (x | g)", None),
    (simulated(600, m=40).assign(w=lambda d: 1.0 + d["z"] ** 2), "y ~ x + z + (1 | g)", "w"),
    (simulated(600, m=40).assign(u=lambda d: d["x"] + d["z"]), "y ~ x + z + u + (x || g)", None),
    (nested(), "y ~ x + (1 | school/room)", None),
    (nested(), "y ~ z + (z | school) + (1 | room)", None),
]

SMALL = (simulated(20, m=4), "y ~ x + z + (1 | g)", None)
"""So few rows that each degree of freedom shows."""


@pytest.mark.parametrize(("data", "formula", "weights"), CASES)
def test_replicates_are_distributed_as_in_memory(data, formula, weights):
    # fits of slopes of few schools take fifty times as long as the others
    n = 80 if "(z | school)" in formula else 300
    one = flc.lmm(formula, data, weights=weights).fit()
    other = flc.lmm(formula, flc.scan(cut(data, 200)), weights=weights).fit()
    a, b = one.bootstrap(4 * n, seed=1), other.bootstrap(n, seed=2)
    assert b.names == a.names and b.converged.all()
    np.testing.assert_allclose(b.estimate, a.estimate, rtol=1e-6, atol=1e-8)
    for j, name in enumerate(a.names):
        if name.startswith("cor"):  # not told where a variance is zero
            continue
        mine, theirs = a.replicates[:, j], b.replicates[:, j]
        error = np.sqrt(mine.var() / len(mine) + theirs.var() / len(theirs))
        assert abs(mine.mean() - theirs.mean()) < MONTE_CARLO * error, name
        kurtosis = np.mean((mine - mine.mean()) ** 4) / mine.var() ** 2
        spread = np.sqrt((kurtosis - 1.0) / 4.0 * (1.0 / len(mine) + 1.0 / len(theirs)))
        assert abs(np.log(mine.std() / theirs.std())) < MONTE_CARLO * spread, name
    np.testing.assert_array_equal(b.replicates[5:8], other.bootstrap(3, seed=2, first=5).replicates)
    assert np.isfinite(np.asarray(b.conf_int(method="percentile"))).all()
    assert np.isfinite(b.replicate_std_error[:, 0]).all()


@pytest.mark.parametrize(("data", "formula", "weights"), [CASES[0], CASES[1], CASES[3], SMALL])
def test_products_have_their_expectation(data, formula, weights):
    # E y'V^-1 y = n sigma^2 where y has mean 0 and covariance sigma^2 V, whatever X
    fit = flc.lmm(formula, flc.scan(cut(data, 200)), weights=weights).fit()
    draw, rng = SumDraws(fit), np.random.default_rng(1)
    found = []
    for _ in range(400):
        model = draw(rng)
        engine = model.problem.criterion()
        engine.reml = False
        engine.evaluate(model.conditioned_theta(fit.theta, "theta"), 1)
        beta, r2, chol, _ = engine.solution()
        found.append([r2, *(chol.T @ beta)])
    scaled = np.array(found) * fit.model.problem.scale / fit.sigma
    scaled[:, 0] *= fit.model.problem.scale / fit.sigma
    df, r = fit.df_resid, fit.model.problem.rank
    # chi-square of n - r, and standard normal numbers
    assert abs(scaled[:, 0].mean() - df) < MONTE_CARLO * np.sqrt(2.0 * df / 400)
    assert abs(scaled[:, 0].var() / (2.0 * df) - 1.0) < MONTE_CARLO * np.sqrt(2.0 / 400)
    assert np.abs(scaled[:, 1:].mean(axis=0)).max() < MONTE_CARLO / 20.0
    np.testing.assert_allclose(np.cov(scaled[:, 1:].T), np.eye(r), atol=MONTE_CARLO * np.sqrt(2.0 / 400))


def test_a_statistic_of_the_caller_and_what_is_refused():
    data = simulated(600, m=40)
    fit = flc.lmm("y ~ x + (1 | g)", flc.scan(cut(data, 200))).fit()
    found = fit.bootstrap(6, statistic=lambda r: {"ratio": r.theta[0]}, seed=1)
    assert found.names == ("ratio",) and np.isfinite(found.replicates).all()
    with pytest.raises(flc.LMMError, match=r"kind='cases' cannot be given.*not held"):
        fit.bootstrap(5, kind="cases")
    crossed = flc.lmm("y ~ x + (1 | g) + (1 | arm)", flc.scan(cut(data, 200))).fit()
    with pytest.raises(flc.LMMError, match=r"crossed factors, or of groups in buckets, cannot be given.*not held"):
        crossed.bootstrap(5)
