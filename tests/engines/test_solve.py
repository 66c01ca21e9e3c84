"""V^-1 v by rows: every engine against a dense covariance matrix in the caller's units."""

from __future__ import annotations

import numpy as np
import pytest

from dense_factors import make
from fastlmm_core.design.grouping import Codes
from fastlmm_core.engines import choose
from fastlmm_core.engines.choose import condition_factors
from fastlmm_core.engines.nested.engine import NestedCriterion
from fastlmm_core.engines.one_factor.conditioning import condition
from fastlmm_core.engines.rows import conditioned_rows

DESIGNS = [(kind, q) for kind in ("nested", "nested3", "crossed", "mixed", "crossed3") for q in (1, 2)] + [
    ("mixed", (1, 3, 2)),
    ("crossed", (3, 1)),
]


def dense(factors, w, n, Lam):
    """V relative to sigma^2."""
    V = np.eye(n) if w is None else np.diag(1.0 / w)
    at = 0
    for f in factors:
        part = slice(at, at + f.Z.shape[1])
        G = Lam[part, part] @ Lam[part, part].T
        V += (f.codes[:, None] == f.codes) * (f.Z @ G @ f.Z.T)
        at = part.stop
    return V


def natural(structure, singular):
    """Lambda in the caller's units; a factor without variance and, where that can be, one of rank one."""
    Lam = structure.factor(np.random.default_rng(4).uniform(0.3, 0.8, structure.n_parameters))
    if singular:
        Lam[-1] = 0.0
        first = structure.blocks[0]
        if first.stop - first.start > 1:
            Lam[first.stop - 1, first.stop - 1] = 0.0
    return Lam


def check(engine, z_map, factors, w, structure, Lam):
    conditioned = np.linalg.solve(z_map, Lam)
    engine.evaluate(structure.theta(structure.canonical(conditioned)), 1)
    n = len(factors[0].codes)
    rows = conditioned_rows([f.Z for f in factors], [f.codes for f in factors], w, z_map)
    V = dense(factors, w, n, Lam)
    v = np.random.default_rng(5).normal(size=(n, 40))
    expected = np.linalg.solve(V, v)
    # rounding errors are those of v times the weights, and of V's condition
    allowed = 1e-13 * np.linalg.cond(V) * np.abs(expected).max()
    assert np.abs(engine.solve(v, rows) - expected).max() < allowed
    found = engine.solve(v[:, 3], rows)
    assert found.shape == (n,)
    assert np.abs(found - expected[:, 3]).max() < allowed
    assert engine.solve(v[:, :0], rows).shape == (n, 0)


@pytest.mark.parametrize("singular", [False, True])
@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize(("kind", "q"), DESIGNS)
def test_several_factors(kind, q, weights, singular, monkeypatch):
    y, X, factors, w, off, structure = make(kind, 7, q, weights)
    Lam = natural(structure, singular)
    for quick_from in (0, 10_000):
        monkeypatch.setattr(choose, "QUICK_FROM", quick_from)
        problem = condition_factors(y, X, factors, w, off, structure)
        engine = problem.criterion()
        # four rows in the finest levels of three factors, four different columns
        spanned = kind == "nested3" and q == 2
        assert isinstance(engine, NestedCriterion) == (quick_from == 0 and kind.startswith("nested") and not spanned)
        check(engine, problem.z_map, factors, w, structure, Lam)


@pytest.mark.parametrize("singular", [False, True])
@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("q", [1, 2, 3])
def test_one_factor(q, weights, singular):
    y, X, factors, w, off, structure = make("one", 7, q, weights)
    (factor,) = factors
    problem, *_ = condition(y, X, factor.Z, Codes("g", factor.codes, 0, factor.m), w, off, structure)
    check(problem.criterion(), problem.z_map, factors, w, structure, natural(structure, singular))


def test_a_point_has_to_be_known():
    y, X, factors, w, off, structure = make("crossed", 7, 1)
    problem = condition_factors(y, X, factors, w, off, structure)
    rows = conditioned_rows([f.Z for f in factors], [f.codes for f in factors], w, problem.z_map)
    with pytest.raises(ValueError, match="evaluate"):
        problem.criterion().solve(y, rows)
