"""Nested factors by sweeps over families of levels: against block elimination, dense matrices and differences."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastlmm_core as flc
from dense_factors import Dense, close
from fastlmm_core import RandomTerm, kernels
from fastlmm_core.covariance.parameters import Block, CovarianceStructure
from fastlmm_core.engines import choose
from fastlmm_core.engines.choose import condition_factors
from fastlmm_core.engines.crossed.problem import Factor
from fastlmm_core.engines.nested import problem as chain
from fastlmm_core.engines.nested.families import RUN, families
from fastlmm_core.engines.nested.problem import NestedProblem
from fastlmm_core.errors import LMMError


@pytest.fixture(autouse=True)
def few_rows_too(monkeypatch):
    monkeypatch.setattr(choose, "QUICK_FROM", 0)


def make(columns, seed=3, top=20, weights=False, equal=False, diagonal=(), rows=8):
    """Nested factors, finest first, with columns of (1, x1, x2, x3): unequal families, levels with one row."""
    rng = np.random.default_rng(seed)
    m, parents = top, []
    for s in range(len(columns) - 1):
        count = np.full(m, 5) if equal else rng.integers(1, 9, m)
        if not equal and s == 0 and top > 5:
            count[3] = 70  # more than one run
        parents.append(np.repeat(np.arange(m), count))
        m = int(count.sum())
    finest = np.repeat(np.arange(m), rng.integers(1, rows, m))
    n = len(finest)
    codes = [finest]
    for parent in parents[::-1]:
        codes.append(parent[codes[-1]])
    order = rng.permutation(n)
    codes = [rng.permutation(c.max() + 1)[c][order] for c in codes]
    given = np.column_stack([np.ones(n), rng.normal(size=(n, 3)) + 2.0])
    X = given[:, :3]
    y = X @ [1.0, 2.0, 3.0] + rng.normal(size=n)
    factors, blocks, at = [], [], 0
    for f, (c, some) in enumerate(zip(codes, columns, strict=True)):
        Z = np.ascontiguousarray(given[:, list(some)])
        y = y + 0.7 * (Z * rng.normal(size=(c.max() + 1, len(some)))[c]).sum(1)
        factors.append(Factor(Z, c, int(c.max()) + 1, f"f{f}"))
        blocks.append(Block(at, at + len(some), "diagonal" if f in diagonal else "full"))
        at += len(some)
    w = rng.uniform(0.5, 2.0, n) if weights else None
    offset = rng.normal(size=n) if weights else None
    return y, X, factors, w, offset, CovarianceStructure(tuple(blocks))


SHAPES = [
    (((0, 1), (0, 1)), {}),
    (((0, 1), (0, 1)), {"weights": True, "equal": True}),
    (((0,), (0,)), {"weights": True}),
    (((0,), (0, 1)), {}),
    (((0, 1), (0,)), {"weights": True}),
    (((0, 1), (0, 1), (0, 1)), {}),
    (((0,), (0, 1), (0,), (1, 2)), {"weights": True, "top": 8}),
    (((0, 1), (0, 1)), {"diagonal": (0,)}),
    (((0, 1, 2), (0, 3)), {"rows": 12}),
    (((0,), (3,)), {}),
]


@pytest.mark.parametrize("point", ["inside", "singular", "zero", "large"])
@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize(("columns", "options"), SHAPES)
def test_every_quantity_against_block_elimination(columns, options, reml, point):
    y, X, factors, w, offset, structure = make(columns, **options)
    problem = condition_factors(y, X, factors, w, offset, structure)
    assert isinstance(problem, NestedProblem)
    found, expected = problem.criterion(), problem.blocked_criterion()
    found.average = expected.average = False
    found.reml = expected.reml = reml
    rng = np.random.default_rng(1)
    theta = rng.normal(size=structure.n_parameters) * (10.0 if point == "large" else 0.5)
    if point == "singular":
        theta[-1] = 0.0
    elif point == "zero":
        theta[:] = 0.0
    for a, b, tolerance in zip(found.evaluate(theta, 2), expected.evaluate(theta, 2), (1e-12, 1e-9, 1e-8), strict=True):
        close(a, b, tolerance)
    for name, tolerance in (("precision", 1e-10), ("cross", 1e-9), ("curvature", 1e-9), ("traces", 1e-9)):
        close(getattr(found, name)(), getattr(expected, name)(), tolerance)
    beta, _, chol, _ = expected.solution()
    # as well as H_xx, which is 1 for independent rows, determines them; products with y_o, whose length is root n, are
    # rounded in proportion to it
    allowed = 1e-13 * (1.0 + np.abs(beta).max()) + 3e-15 * np.sqrt(len(y))
    allowed /= np.linalg.eigvalsh(chol @ chol.T)[0]
    assert np.abs(found.solution()[0] - beta).max() < allowed
    for i in (1, 2, 3):
        close(found.solution()[i], expected.solution()[i], 1e-9)
    weight = np.triu(rng.normal(size=(found.k, found.k)))
    close(found.traces(weight), expected.traces(weight), 1e-9)
    both = rng.normal(size=found.curvature().shape)
    close(found.sandwich(both + both.T), expected.sandwich(both + both.T), 1e-9)
    close(found.scores(), expected.scores(), 1e-10)
    found.average = expected.average = True
    close(found.evaluate(theta, 2)[2], expected.evaluate(theta, 2)[2], 1e-8)


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize(("columns", "options"), [SHAPES[0], SHAPES[5], (((0,), (0, 1)), {"weights": True})])
def test_against_dense_matrices(columns, options, reml):
    y, X, factors, w, offset, structure = make(columns, **{**options, "top": 3 if len(columns) > 2 else 5})
    problem = condition_factors(y, X, factors, w, offset, structure)
    criterion = problem.criterion()
    criterion.reml, criterion.average = reml, False
    theta = np.random.default_rng(5).normal(size=structure.n_parameters) * 0.7
    value, gradient, hessian = criterion.evaluate(theta, 2)
    dense = Dense(problem, factors, X, y, w, offset)

    def at(point):
        factor = structure.factor(point)
        return dense.at(factor @ factor.T, reml)

    assert abs(value - at(theta)) < 1e-11 * abs(value)
    h = 1e-5
    for i, unit in enumerate(np.eye(len(theta))):
        slope = (at(theta + h * unit) - at(theta - h * unit)) / (2 * h)
        assert abs(gradient[i] - slope) < 1e-6 * (1 + np.abs(gradient).max())
        ahead, behind = (criterion.evaluate(theta + s * h * unit, 1)[1] for s in (1, -1))
        close(hessian[i], (ahead - behind) / (2 * h), 1e-6)


def test_rotated_coordinates():
    y, X, factors, w, offset, structure = make(((0, 1), (0, 1)))
    problem = condition_factors(y, X, factors, w, offset, structure)
    found, expected = problem.criterion(), problem.blocked_criterion()
    rng = np.random.default_rng(2)
    turn = np.zeros((4, 4))
    for at in (0, 2):
        turn[at : at + 2, at : at + 2] = np.linalg.qr(rng.normal(size=(2, 2)))[0]
    theta = rng.normal(size=structure.n_parameters)
    for average in (True, False):
        found.average = expected.average = average
        found.rotate(turn)
        expected.rotate(turn)
        for a, b in zip(found.evaluate(theta, 2), expected.evaluate(theta, 2), strict=True):
            close(a, b, 1e-9)


def test_other_columns():
    y, X, factors, w, offset, structure = make(((0, 1), (0,)))
    problem = condition_factors(y, X, factors, w, offset, structure)
    columns = np.random.default_rng(2).normal(size=(4, 3))
    found, expected = problem.criterion(columns), problem.blocked_criterion(columns)
    theta = np.full(structure.n_parameters, 0.4)
    for a, b in zip(found.evaluate(theta, 1)[:2], expected.evaluate(theta, 1)[:2], strict=True):
        close(a, b, 1e-10)
    close(found.scores(), expected.scores(), 1e-10)


@pytest.mark.parametrize("lanes", [2, 4, 8])
def test_every_level_has_one_place_below_its_parent(lanes):
    rng = np.random.default_rng(0)
    parents = [np.repeat(np.arange(50), rng.integers(1, 100, 50)), np.repeat(np.arange(7), [1, 2, 40, 3, 1, 1, 2])]
    parents[0] = rng.permutation(parents[0])
    sizes = [len(parents[0]), 50, 7]
    order, starts, above = families(parents, sizes, lanes)
    for s, m in enumerate(sizes):
        assert len(order[s]) == starts[s][-1] * lanes
        assert sorted(order[s][order[s] >= 0].tolist()) == list(range(m))
    for s in (0, 1):
        table = order[s].reshape(-1, lanes)
        for block in range(len(starts[s]) - 1):
            for lane in range(lanes):
                inside = table[starts[s][block] : starts[s][block + 1], lane]
                inside = inside[inside >= 0]
                if above[s][block, lane] < 0:
                    assert not len(inside)
                else:
                    assert (parents[s][inside] == order[s + 1][above[s][block, lane]]).all()
        # sorted by size, little is filled up
        assert (order[s] < 0).sum() <= lanes * (RUN + len(starts[s]))


def test_order_of_rows_and_levels_does_not_matter():
    y, X, factors, w, offset, structure = make(((0, 1), (0, 1)), weights=True)
    rng = np.random.default_rng(8)
    theta = np.array([0.7, 0.2, 0.4, 0.9, -0.3, 0.5])
    expected = condition_factors(y, X, factors, w, offset, structure).criterion().evaluate(theta, 2)
    rows = rng.permutation(len(y))
    moved = [Factor(f.Z[rows], rng.permutation(f.m)[f.codes][rows], f.m, f.name) for f in factors]
    found = condition_factors(y[rows], X[rows], moved, w[rows], offset[rows], structure).criterion().evaluate(theta, 2)
    # the conditioning takes its scales from a sample of rows in their order
    assert abs(found[0] - expected[0]) < 1e-9 * abs(expected[0])


def test_the_sample_is_a_part_of_the_problem():
    y, X, factors, w, offset, structure = make(((0, 1), (0, 1)), top=60)
    problem = condition_factors(y, X, factors, w, offset, structure)
    assert problem.sample(20) is None
    sample = problem.sample(15)
    few = np.flatnonzero(np.arange(60) % 4 == 0)
    rows = np.flatnonzero(np.isin(factors[1].codes, few))
    assert sample.n == len(rows)
    assert sample.n_levels == (len(np.unique(factors[0].codes[rows])), 15)
    theta = np.full(6, 0.4)
    dense = sample.blocked_criterion().evaluate(theta, 1)
    for a, b in zip(sample.criterion().evaluate(theta, 1), dense, strict=True):
        if a is not None:
            close(a, b, 1e-10)


def fitted(y, X, factors, **options):
    terms = [RandomTerm(f.Z, f.codes, f.name) for f in factors]
    return flc.LinearMixedModel(y, X, terms=terms, **options).fit()


@pytest.mark.parametrize("columns", [((0, 1), (0, 1)), ((0,), (0,), (0,)), ((0, 1), (0,))])
def test_fits_are_those_of_block_elimination(columns, monkeypatch):
    y, X, factors, *_ = make(columns, top=40)
    found = fitted(y, X, factors)
    assert isinstance(found.model.problem, NestedProblem)
    assert len(found.model.endog) == len(y)  # rows are read before the choice of the engine changes
    monkeypatch.setattr(chain, "WIDEST", 0)
    expected = fitted(y, X, factors)
    assert not isinstance(expected.model.problem, NestedProblem)
    assert found.converged and expected.converged
    assert abs(found.criterion - expected.criterion) < 1e-10 * abs(found.criterion)
    close(found.params, expected.params, 1e-7)
    close(found.bse, expected.bse, 1e-7)
    for a, b in zip(found.blups, expected.blups, strict=True):
        close(a, b, 1e-6)


def test_a_factor_without_variance():
    y, X, factors, *_ = make(((0, 1), (0, 1)), top=40)
    rng = np.random.default_rng(4)
    y = X @ [1.0, 2.0, 3.0] + rng.normal(size=len(y))
    found = fitted(y, X, factors)
    assert found.converged and found.optimum.singular


def test_nearly_all_variation_between_levels():
    y, X, factors, *_ = make(((0,), (0,)), top=40)
    rng = np.random.default_rng(4)
    between = sum(1e5 * rng.normal(size=f.m)[f.codes] for f in factors)
    noise = rng.normal(size=len(y))
    found = fitted(between + noise, X[:, :2], factors)
    assert found.converged
    within = noise - (np.bincount(factors[0].codes, noise) / np.bincount(factors[0].codes))[factors[0].codes]
    x = X[:, 1] - (np.bincount(factors[0].codes, X[:, 1]) / np.bincount(factors[0].codes))[factors[0].codes]
    rest = within - x * (x @ within / (x @ x))
    assert abs(found.sigma2 / (rest @ rest / (len(y) - factors[0].m - 1)) - 1.0) < 1e-6
    with pytest.raises(LMMError, match="reproduced exactly"):
        fitted(between, X[:, :2], factors)


def test_problems_survive_pickling():
    y, X, factors, w, offset, structure = make(((0, 1), (0,)))
    problem = condition_factors(y, X, factors, w, offset, structure)
    theta = np.full(structure.n_parameters, 0.4)
    expected = problem.criterion().evaluate(theta, 0)[0]
    assert pickle.loads(pickle.dumps(problem)).criterion().evaluate(theta, 0)[0] == expected


def test_variants_agree():
    code = (
        "import sys; sys.path[:0] = ['tests', 'tests/engines/nested']\n"
        "from test_engine import *\n"
        "choose.QUICK_FROM = 0\n"
        "for columns in (((0, 1), (0, 1)), ((0,), (0, 1), (0,))):\n"
        "    problem = condition_factors(*make(columns, weights=True))\n"
        "    theta = np.linspace(0.2, 0.8, problem.structure.n_parameters)\n"
        "    criterion = problem.criterion()\n"
        "    criterion.average = False\n"
        "    value, gradient, hessian = criterion.evaluate(theta, 2)\n"
        "    print(*map(repr, map(float, [value, *gradient, *hessian.ravel()])))\n"
    )
    found = []
    root = Path(__file__).parents[3]
    for variant in kernels.variants():
        environment = {**os.environ, "FASTLMM_KERNELS": variant}
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment, cwd=root
        )
        found.append(np.array(done.stdout.split(), dtype=float))
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=1e-9, atol=1e-9 * np.abs(found[0]).max())


def test_rows_that_the_columns_of_all_factors_reproduce():
    # three rows in each fine level, three different columns of Z, two of them with effects of that level
    rng = np.random.default_rng(0)
    m = 200
    fine = np.repeat(np.arange(m), 3)
    coarse = fine // 10
    n = len(fine)
    x = rng.normal(size=(n, 2))
    one = np.ones(n)
    Z = [np.column_stack([one, x[:, 0]]), np.column_stack([one, x[:, 1]])]
    y = 1.0 + rng.normal(size=n)
    for z, c in zip(Z, (fine, coarse), strict=True):
        y += (z * rng.normal(size=(m, 2))[c]).sum(1)
    factors = [Factor(Z[0], fine, m, "fine"), Factor(Z[1], coarse, m // 10, "coarse")]
    structure = CovarianceStructure((Block(0, 2, "full"), Block(2, 4, "full")))
    problem = condition_factors(y, one[:, None], factors, None, None, structure)
    theta = np.array([0.8, 0.2, 0.6, 0.9, -0.1, 0.5])
    Lam = structure.factor(theta)
    dense = Dense(problem, factors, one[:, None], y, None, None)
    value = problem.criterion().evaluate(theta)[0]
    assert abs(value - dense.at(Lam @ Lam.T, True)) < 1e-10 * abs(value)
    # effects of as many columns as there are rows do reproduce them, but the times differ between levels
    wide = [Factor(np.column_stack([one, x]), fine, m, "fine"), factors[1]]
    structure = CovarianceStructure((Block(0, 3, "full"), Block(3, 5, "full")))
    problem = condition_factors(y, one[:, None], wide, None, None, structure)
    assert problem.saturated and problem.outside == 0
    Lam = np.tril(rng.uniform(0.2, 0.9, (5, 5))) * (np.arange(5) // 3 == np.arange(5)[:, None] // 3)
    value = problem.criterion().evaluate(structure.theta(Lam))[0]
    dense = Dense(problem, wide, one[:, None], y, None, None)
    assert abs(value - dense.at(Lam @ Lam.T, True)) < 1e-10 * abs(value)
