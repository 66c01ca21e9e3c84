"""Long series whitened row by row, against dense algebra and differences."""

from __future__ import annotations

import numpy as np
import pytest

from fastlmm_core.covariance.residual import markov
from fastlmm_core.covariance.residual.catalogue import of_coordinates, of_covariate, of_positions
from fastlmm_core.covariance.residual.markov import (
    chain_of,
    gaps_of,
    products,
    products_of_gaps,
    sums_of_gaps,
    whiten_twice,
)
from fastlmm_core.covariance.residual.varied import Varied
from structures_cases import difference

STARTS = np.array([0, 4])
TIMES = np.array([0.0, 1.0, 3.0, 4.0, 2.0, 3.0, 7.0])
V = np.array([0.5, 2.0, 1.0, -1.5, 3.0, 0.2, 1.1])
COLUMNS = np.random.default_rng(0).standard_normal((7, 3))

CASES = {
    "ar1": (of_positions("ar1", 8), TIMES.astype(int)),
    "car1": (of_coordinates("car1"), TIMES[:, None]),
    "sp_exp": (of_coordinates("sp_exp"), TIMES[:, None]),
    "sp_power": (of_coordinates("sp_power"), TIMES[:, None]),
    "power-car1": (Varied(of_covariate("power"), of_coordinates("car1")), np.column_stack((TIMES, V))),
    "constpower-ar1": (Varied(of_covariate("constpower"), of_positions("ar1", 8)), np.column_stack((TIMES, V))),
}

over_cases = pytest.mark.parametrize("name", CASES)


def summed(name, phi, q=3):
    structure, where = CASES[name]
    return products(chain_of(structure), phi, where, STARTS, COLUMNS, q)


def sums(name, phi):
    triangle = summed(name, phi).triangle
    return triangle.transpose(0, 2, 1) @ triangle


def draw(name):
    return np.random.default_rng(1).uniform(0.2, 0.9, CASES[name][0].n_parameters)


@pytest.fixture(params=[4096, 2])
def chunk(request, monkeypatch):
    monkeypatch.setattr(markov, "CHUNK", request.param)


@over_cases
@pytest.mark.parametrize("q", [0, 1, 2])
def test_rows_of_subjects_and_what_they_leave(name, q, chunk):
    phi = draw(name)
    whole, part = summed(name, phi), summed(name, phi, q)
    np.testing.assert_allclose(part.triangle, whole.triangle[:, :q], atol=1e-13)
    np.testing.assert_allclose(part.first, whole.first[:, :, :q], atol=1e-12)
    np.testing.assert_allclose(part.second, whole.second[:, :, :, :q], atol=1e-12)
    left = whole.triangle[:, q:, q:].reshape(-1, 3 - q)
    np.testing.assert_allclose(part.left, left.T @ left, atol=1e-12)
    np.testing.assert_allclose(part.first_rest, whole.first[:, :, q:, q:].sum(axis=1), atol=1e-12)
    np.testing.assert_allclose(part.second_rest, whole.second[:, :, :, q:, q:].sum(axis=2), atol=1e-12)


@over_cases
def test_sums_of_products_and_determinant(name, chunk):
    structure, where = CASES[name]
    phi = draw(name)
    found, log_det = sums(name, phi), 0.0
    for i, rows in enumerate((slice(0, 4), slice(4, 7))):
        R = structure.matrix(phi, where[rows])
        np.testing.assert_allclose(found[i], COLUMNS[rows].T @ np.linalg.solve(R, COLUMNS[rows]), rtol=1e-12)
        log_det += np.linalg.slogdet(R)[1]
    np.testing.assert_allclose(summed(name, phi).log_det, log_det, rtol=1e-11)


@over_cases
def test_derivatives(name, chunk):
    phi = draw(name)
    found = summed(name, phi)
    np.testing.assert_allclose(found.first, difference(lambda x: sums(name, x), phi), atol=1e-7)
    np.testing.assert_allclose(found.second, difference(lambda x: summed(name, x).first, phi), atol=1e-6)
    np.testing.assert_allclose(found.log_det_first, difference(lambda x: summed(name, x).log_det, phi), atol=1e-8)
    expected = difference(lambda x: summed(name, x).log_det_first, phi)
    np.testing.assert_allclose(found.log_det_second, expected, atol=1e-7)


def _first_rows(found, q):
    """Of A_i."""
    return (found.triangle.transpose(0, 2, 1) @ found.triangle)[:, :q]


def _last_part(found, q):
    """The sum of the last parts of A_i."""
    rows = found.triangle[:, :, q:].reshape(-1, found.triangle.shape[2] - q)
    return rows.T @ rows + found.left


@pytest.mark.parametrize("q", [0, 1, 2, 3])
@pytest.mark.parametrize("x", [-3.0, -0.4, 0.0, 0.7, 30.0])
def test_sums_over_few_gaps_are_those_of_rows(q, x):
    # gaps of 1, 2 and 3; a subject of one row, one whose second column is its first, one with large means
    rng = np.random.default_rng(2)
    sizes = np.array([12, 1, 9, 7, 20])
    starts = np.concatenate(([0], np.cumsum(sizes)[:-1]))
    where = np.concatenate([np.cumsum(rng.choice([1, 1, 1, 2, 3], size)) for size in sizes])
    columns = rng.standard_normal((sizes.sum(), 5))
    columns[13:22, 1] = 3.0 * columns[13:22, 0]
    columns[22:29, 0] += 1e3
    chain, phi = chain_of(of_positions("ar1", 60)), np.array([x])
    gaps = gaps_of(chain, where, starts)
    sums = sums_of_gaps(chain, starts, columns, q, gaps)
    assert sums is not None
    found, expected = products_of_gaps(chain, phi, gaps, sums), products(chain, phi, where, starts, columns, q, gaps)
    # where columns are dependent, rows of zeros stand for rounding errors: nothing but products are the same
    for part in (_first_rows, _last_part):
        one, other = part(found, q), part(expected, q)
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-11 * np.abs(other).max(initial=0.0))
    for one, other in zip(found[4:], expected[4:], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-11 * np.abs(other).max(initial=0.0))


def test_rows_are_read_where_gaps_are_not_few():
    where = np.arange(6.0)[:, None] ** 2
    chain, starts = chain_of(of_coordinates("car1")), np.array([0])
    assert sums_of_gaps(chain, starts, np.ones((6, 1)), 0, gaps_of(chain, where, starts)) is None
    varied, both = CASES["constpower-ar1"]
    chain = chain_of(varied)
    assert sums_of_gaps(chain, STARTS, COLUMNS, 1, gaps_of(chain, both, STARTS)) is None


@pytest.mark.parametrize("x", [-1e4, -0.5, 0.0, 1e-200, 1e4, 1e7])
def test_near_limits_nothing_cancels(x):
    # 1 - rho^2 = 1 / (1 + x^2), to full precision
    found = of_positions("ar1", 3).correlation.steps(np.array([x]), np.array([1]))
    np.testing.assert_allclose(found.rest, 1.0 / (1.0 + x * x), rtol=1e-14)
    assert all(np.isfinite(part).all() for part in found)
    # short distances beside the range
    found = of_coordinates("car1").correlation.steps(np.array([30.0]), np.array([1.0]))
    np.testing.assert_allclose(found.rest, 2.0 * np.exp(-30.0), rtol=1e-12)


def test_structures_that_are_no_chains():
    assert chain_of(of_positions("cs", 4)) is None
    assert chain_of(of_positions("us", 4)) is None
    assert chain_of(of_positions("ar1h", 4)) is None
    assert chain_of(of_coordinates("sp_gau")) is None
    assert chain_of(of_coordinates("sp_exp", nugget=True)) is None
    assert chain_of(of_coordinates("sp_exp"), 2) is None


@over_cases
def test_solving(name):
    structure, where = CASES[name]
    phi = draw(name)
    found = whiten_twice(chain_of(structure), phi, where, STARTS, COLUMNS)
    for rows in (slice(0, 4), slice(4, 7)):
        expected = np.linalg.solve(structure.matrix(phi, where[rows]), COLUMNS[rows])
        np.testing.assert_allclose(found[rows], expected, rtol=1e-10, atol=1e-12)
