"""Many responses over the same visits with `us` residuals: every fit is the single fit, with the dense criterion."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import fastlmm_core as flc
import oracle_residual as dense
from fastlmm_core.estimation.many.visits import visit_design

# Both paths stop at a decrement of 1e-9 sqrt(m), a distance in standard errors of the parameters.
AGREE = 1e-7
CRITERION = 1e-11  # relative: rounding of sums that are taken in another order
ALONE = "weights", "offset", "by"


def table(rng: np.random.Generator, subjects: int = 60, m: int = 3) -> pd.DataFrame:
    """Subjects with visits missing at random in two arms, a covariate of each visit, weights and an offset."""
    rows = []
    for i in range(subjects):
        seen = np.flatnonzero(rng.random(m) < 0.75)
        rows += [(f"s{i}", v, "AB"[i % 2], rng.normal()) for v in seen]
    frame = pd.DataFrame(rows, columns=["id", "visit", "arm", "x"])
    frame["w"], frame["o"] = rng.uniform(0.5, 2.0, len(frame)), 5.0 * rng.normal(size=len(frame))
    level = dict(zip(frame.id.unique(), rng.normal(size=frame.id.nunique()), strict=True))
    frame["y"] = frame.id.map(level) + 0.4 * frame.visit + rng.normal(size=len(frame)) + frame.o
    return frame.sample(frac=1.0, random_state=3).reset_index(drop=True)


def made(frame: pd.DataFrame, *what: str) -> flc.LinearMixedModel:
    return flc.lmm(
        "y ~ arm * x + C(visit)",
        frame,
        residual="us(visit | id, by=arm)" if "by" in what else "us(visit | id)",
        weights="w" if "weights" in what else None,
        offset="o" if "offset" in what else None,
    )


def responses(model: flc.LinearMixedModel, rng: np.random.Generator, count: int) -> np.ndarray:
    """Correlated within subjects, of different sizes."""
    codes = np.asarray(model.design.residual.subject.codes)
    level = rng.normal(size=(count, codes.max() + 1))[:, codes]
    return (level + rng.normal(size=level.shape)) * np.geomspace(1e-3, 1e3, count)[:, None] + 7.0


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("what", [(), ("weights",), ("offset",), ("by",), ALONE], ids="+".join)
def test_every_fit_is_the_single_fit(what, reml, rng):
    model = made(table(rng), *what)
    Y = responses(model, rng, 6)
    batch = model.fit_many(Y, reml=reml, n_jobs=1)
    assert not batch.alone.any() and batch.converged.all() and not batch.singular.any()
    for i, y in enumerate(Y):
        one = model.refit(y, reml=reml)
        known = dense.criterion(one.model, batch.theta[i], reml)
        assert batch.criterion[i] == pytest.approx(one.criterion, rel=CRITERION)
        assert one.criterion == pytest.approx(known, rel=1e-10)
        assert (np.abs(batch.params[i] - one.params) < AGREE * one.bse).all()
        np.testing.assert_allclose(batch.bse[i], one.bse, rtol=AGREE)
        np.testing.assert_allclose(batch.sigma2[i], one.sigma2, rtol=AGREE)
        np.testing.assert_allclose(batch.theta[i], one.theta, rtol=AGREE, atol=AGREE)
        np.testing.assert_allclose(batch.satterthwaite[i], one.df, rtol=1e-6)
        assert batch.gradient_norm[i] < 1e-6


def test_what_does_not_go_smoothly_is_fitted_by_itself(rng):
    frame = table(rng)
    model = made(frame)
    Y = responses(model, rng, 5)
    Y[1, 3] = np.nan
    codes, visit = np.asarray(model.design.residual.subject.codes), np.asarray(frame.visit)
    Y[2, visit == 1] = 4.0
    # two visits that are nearly the same
    level = rng.normal(size=codes.max() + 1)
    Y[3] = level[codes] + np.where(visit < 2, 1e-5, 1.0) * rng.normal(size=len(visit))
    # three visits of which each has a variance of its own, and one combination has hardly any
    first, second, third = rng.normal(size=(3, len(level)))[:, codes]
    Y[4] = np.select([visit == 0, visit == 1, visit == 2], [first, first + 5e-3 * second, second + 5e-3 * third], Y[4])
    batch = model.fit_many(Y, n_jobs=1)
    assert batch.invalid.tolist() == [1, 2]
    assert batch.alone.tolist() == [False, False, False, True, True]
    for i in (3, 4):
        assert batch.criterion[i] == pytest.approx(model.refit(Y[i]).criterion, rel=CRITERION)


def test_patterns_that_x_does_not_reach(rng):
    frame = table(rng)
    visit = np.asarray(frame.visit)
    # subjects seen at the first visit alone have no fixed effects, and their pattern may be the last
    X = np.column_stack([visit == 1, visit == 2]).astype(float)
    residual = flc.Residual("us", np.asarray(frame.id), 2 - visit)
    model = flc.LinearMixedModel(np.asarray(frame.y), X, residual=residual)
    Y = responses(model, rng, 3) - 7.0
    batch = model.fit_many(Y, n_jobs=1)
    assert batch.converged.all() and not batch.alone.any()
    for i, y in enumerate(Y):
        one = model.refit(y)
        assert batch.criterion[i] == pytest.approx(one.criterion, rel=CRITERION)
        assert one.criterion == pytest.approx(dense.criterion(one.model, one.theta, True), rel=1e-10)


def test_order_and_threads_do_not_matter(rng):
    model = made(table(rng))
    Y = responses(model, rng, 300)
    whole, turned = model.fit_many(Y, n_jobs=1), model.fit_many(Y[::-1], n_jobs=2)
    assert np.array_equal(whole.params, turned.params[::-1])
    assert np.array_equal(whole.satterthwaite, turned.satterthwaite[::-1])


def test_other_structures_and_designs_take_single_fits(rng):
    frame = table(rng)
    assert visit_design(made(frame)) is not None
    assert visit_design(flc.lmm("y ~ arm", frame, residual="toeph(visit | id)")) is None
    assert visit_design(flc.lmm("y ~ arm + (1 | arm)", frame, residual="us(visit | id)")) is None
