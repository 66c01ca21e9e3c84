"""The criterion where hardly any residual variance is left, against QR decompositions of all rows."""

from __future__ import annotations

import numpy as np
import pytest

import fastlmm_core as flc
import landscapes


def crossed(seed, small, slopes, n=300):
    rng = np.random.default_rng(seed)
    codes = [np.concatenate([np.arange(m), rng.integers(0, m, n - m)]) for m in (15, 10)]
    X = np.column_stack([np.ones(n), rng.normal(size=n)])
    Z = [X if slopes else X[:, :1], X[:, :1]]
    y = 3.0 + X[:, 1] + small * rng.normal(size=n)
    for z, code in zip(Z, codes, strict=True):
        y += np.sum(z * rng.normal(size=(15, z.shape[1]))[code], axis=1)
    return y, X, Z, codes, rng


def by_rows(y, X, Z, codes, factors, reml, weights=None):
    """Criterion and sigma^2 from the triangle of [[Z Lambda, X, y], [I, 0, 0]]: Householder's, nothing is squared."""
    root = np.ones((len(y), 1)) if weights is None else np.sqrt(weights)[:, None]
    wide = []
    for z, code, L in zip(Z, codes, factors, strict=True):
        wide += [root * (code[:, None] == np.arange(code.max() + 1)) * column[:, None] for column in (z @ L).T]
    wide = np.column_stack(wide)
    q, p = wide.shape[1], X.shape[1]
    below = np.zeros((q, q + p + 1))
    below[:, :q] = np.eye(q)
    R = np.abs(np.diag(np.linalg.qr(np.vstack([np.column_stack([wide, root * X, root[:, 0] * y]), below]), mode="r")))
    nu = len(y) - p if reml else len(y)
    value = 2.0 * np.log(R[:q]).sum() + nu * (1.0 + np.log(2.0 * np.pi * R[-1] ** 2 / nu))
    value += 2.0 * np.log(R[q:-1]).sum() if reml else 0.0
    return value - (0.0 if weights is None else np.log(weights).sum()), R[-1] ** 2 / nu


@pytest.mark.parametrize("small", [1e-2, 1e-3, 1e-4, 1e-5])
@pytest.mark.parametrize("slopes", [False, True])
@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("weighted", [False, True])
def test_criterion_near_the_limit(small, slopes, reml, weighted):
    y, X, Z, codes, rng = crossed(0, small, slopes)
    weights = rng.uniform(0.5, 2.0, len(y)) if weighted else None
    terms = [flc.RandomTerm(z, c, f"g{i}") for i, (z, c) in enumerate(zip(Z, codes, strict=True))]
    result = flc.LinearMixedModel(y, X, terms=terms, weights=weights).fit(reml=reml)
    assert result.converged
    factors = []
    at = 0
    for z in Z:
        factors.append(result.relative_factor[at : at + z.shape[1], at : at + z.shape[1]])
        at += z.shape[1]
    value, sigma2 = by_rows(y, X, Z, codes, factors, reml, weights)
    assert result.criterion == pytest.approx(value, abs=1e-7)
    assert result.sigma2 == pytest.approx(sigma2, rel=1e-7)


def test_a_criterion_without_digits_is_not_certified(monkeypatch):
    from fastlmm_core.estimation import refinement

    y, X, Z, codes, _ = crossed(0, 1e-5, False)
    terms = [flc.RandomTerm(z, c) for z, c in zip(Z, codes, strict=True)]
    model = flc.LinearMixedModel(y, X, terms=terms)
    exact = model.fit()
    # too large for a decomposition of the rows: a small error is let pass, a large one told
    monkeypatch.setattr(refinement, "DENSE", 0.0)
    found = model.fit()
    assert found.converged and found.criterion == pytest.approx(exact.criterion, abs=refinement.SEEN)
    monkeypatch.setattr(refinement, "SEEN", 1e-9)
    found = model.fit()
    assert not found.converged and "digits of the criterion" in found.message


def test_batches_have_the_criterion_of_single_fits():
    y, X, Z, codes, rng = crossed(0, 1e-4, True)
    model = flc.LinearMixedModel(y, X, terms=[flc.RandomTerm(z, c) for z, c in zip(Z, codes, strict=True)])
    Y = np.array([y, y + 0.3 * rng.normal(size=len(y)), y[::-1]])
    batch = model.fit_many(Y)
    for i, response in enumerate(Y):
        assert batch.criterion[i] == pytest.approx(model.refit(response).criterion, abs=1e-7)


@pytest.mark.parametrize("seed", [52, 80, 109, 178])
def test_criterion_where_variances_are_large(seed):
    """Independent intercepts and slopes, far from the origin, of schools and pupils: variances of 1e6 that cancel."""
    problem = landscapes.problem("nested_slopes", seed)
    terms = [flc.RandomTerm(t.Z, t.codes, name=t.factor, structure="diagonal") for t in problem.terms]
    result = flc.LinearMixedModel(problem.y, problem.X, terms=terms).fit(reml=problem.reml)
    assert result.converged
    parts = {f.grouping.name: slice(f.start, f.stop) for f in result.model.factors}
    factors = [result.relative_factor[parts[t.factor], parts[t.factor]] for t in problem.terms]
    Z, codes = [t.Z for t in problem.terms], [t.codes for t in problem.terms]
    value, sigma2 = by_rows(problem.y, problem.X, Z, codes, factors, problem.reml)
    assert result.criterion == pytest.approx(value, abs=2e-8)
    assert result.sigma2 == pytest.approx(sigma2, rel=1e-8)
