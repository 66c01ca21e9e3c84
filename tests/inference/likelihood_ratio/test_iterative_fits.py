"""Tests of fits by iterations: statistics within the Monte Carlo errors that they state of those of exact fits."""

from __future__ import annotations

import numpy as np
import pytest

import fastlmm_core as flc

MONTE_CARLO = 4.0
"""Standard errors of statistics, as these state them."""


def ratings(seed=1, n=3000, users=300, films=50, slope=0.1):
    rng = np.random.default_rng(seed)
    user, film = rng.integers(0, users, n), np.minimum(rng.geometric(1.5 / films, n), films) - 1
    x, z = rng.normal(size=(2, n))
    y = 1.0 + 0.05 * x + 0.7 * rng.normal(size=users)[user] + rng.normal(size=films)[film] * 0.5 + rng.normal(size=n)
    return {"y": y + slope * x * rng.normal(size=films)[film], "x": x, "z": z, "user": user, "film": film}


FORMULA = "y ~ x + z + (1 | user) + (x || film)"


@pytest.fixture(scope="module")
def fits():
    model = flc.lmm(FORMULA, ratings())
    return {(way, reml): model.fit(reml, method=way) for way in ("newton", "iterative") for reml in (True, False)}


def near(found, wanted, drawn):
    assert wanted.statistic_std_error == 0.0 < found.statistic_std_error
    assert abs(found.statistic - wanted.statistic) < MONTE_CARLO * found.statistic_std_error + 1e-4
    assert found.df == wanted.df
    # what the p-value could be is said, and the exact one lies there
    assert f"standard error of {found.statistic_std_error:.2g}, p lies in [" in found.null
    return found.statistic_std_error / drawn.criterion


@pytest.mark.parametrize("reml", [True, False])
def test_terms_left_out(fits, reml):
    one, other = (fits[way, reml].drop1() for way in ("newton", "iterative"))
    for a, b in zip(other.rows[1:], one.rows[1:], strict=True):
        # the same probes have nearly the same errors without the term
        assert near(a, b, fits["iterative", reml].optimum.monte_carlo) < 0.05
    assert any("Monte Carlo standard errors of up to" in note for note in other.notes)
    assert not any("Monte Carlo" in note for note in one.notes)
    assert "statistic_std_error" in other.to_frame() and "statistic_std_error" not in one.to_frame()


@pytest.mark.parametrize("reml", [True, False])
def test_random_effects_left_out(fits, reml):
    one, other = (fits[way, reml].random_effect_test() for way in ("newton", "iterative"))
    for a, b in zip(other.rows[1:], one.rows[1:], strict=True):
        near(a, b, fits["iterative", reml].optimum.monte_carlo)


def test_comparisons_and_mixtures_of_both(fits):
    data = ratings()
    small = flc.lmm("y ~ x + z + (1 | user) + (1 | film)", data)
    exact = flc.compare(small.fit(reml=False), fits["newton", False]).rows[1]
    drawn = fits["iterative", False].optimum.monte_carlo
    pair = flc.compare(small.fit(reml=False, method="iterative"), fits["iterative", False]).rows[1]
    assert near(pair, exact, drawn) < 1.5
    mixed = flc.compare(small.fit(reml=False), fits["iterative", False]).rows[1]
    assert near(mixed, exact, drawn) == 1.0
    other = small.fit(reml=False, method="iterative", options={"seed": 3})
    apart = flc.compare(other, fits["iterative", False]).rows[1].statistic_std_error
    assert apart == pytest.approx(np.hypot(other.optimum.monte_carlo.criterion, drawn.criterion), rel=1e-12)
    # factors of which one is left are fitted exactly
    alone = flc.compare(flc.lmm("y ~ x + z + (1 | user)", data).fit(reml=False), fits["iterative", False])
    assert alone.rows[1].statistic_std_error == drawn.criterion


def test_refits_are_by_iterations_with_the_same_probes(fits):
    fit = fits["iterative", True]
    for other in (fit.update(". ~ . - z"), fit.again(fit.model, reml=False)):
        assert other.optimum.method == "iterative" and other.optimum.monte_carlo.probes == 64
    assert fit.update("y ~ x + (1 | user)").optimum.method == "newton"


def test_stated_errors_are_how_statistics_vary():
    data = ratings(2, 600, 60, 12, 0.4)
    large, small = (flc.lmm(f"y ~ x + z + (1 | user) + {right}", data) for right in ("(x || film)", "(1 | film)"))
    rows = []
    for seed in range(40):
        pair = (m.fit(reml=False, method="iterative", options={"seed": seed, "probes": 32}) for m in (small, large))
        rows.append(flc.compare(*pair, null="chi2").rows[1])
    statistics, errors = (np.array([getattr(r, k) for r in rows]) for k in ("statistic", "statistic_std_error"))
    assert 0.6 < np.std(statistics) / np.sqrt(np.mean(errors**2)) < 1.6
    exact = flc.compare(small.fit(reml=False), large.fit(reml=False), null="chi2").rows[1].statistic
    assert abs(np.mean(statistics) - exact) < MONTE_CARLO * np.std(statistics) / np.sqrt(len(rows))


def test_files_keep_the_probes(fits, tmp_path):
    fit = fits["iterative", True]
    fit.save(tmp_path / "fit.flc")
    again = flc.load(tmp_path / "fit.flc")
    assert again.criterion == pytest.approx(fit.criterion, abs=1e-9) and again.message == fit.message
    drawn, other = fit.optimum.monte_carlo, again.optimum.monte_carlo
    assert (other.probes, other.seed, other.parameters) == (drawn.probes, drawn.seed, drawn.parameters)
    np.testing.assert_allclose(other.deviations, drawn.deviations, atol=1e-9)
    with pytest.raises(flc.LMMError, match="have Monte Carlo errors; take intervals by method='wald'"):
        again.profile()
