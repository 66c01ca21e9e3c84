"""Structures of residuals: definitions, derivatives, limits and names."""

from __future__ import annotations

import pickle
from functools import partial

import numpy as np
import pytest

from fastlmm_core import LMMError
from fastlmm_core.covariance.residual.catalogue import (
    factor_analytic,
    kind_of,
    of_coordinates,
    of_positions,
    of_responses,
    position_names,
)
from fastlmm_core.covariance.residual.moments import visit_covariance
from fastlmm_core.covariance.residual.natural import natural_jacobian, natural_second_sum
from fastlmm_core.covariance.residual.structure import Rows
from structures_cases import CASES, difference, labels, symmetric

TOLERANCES = {
    "derivative": 1e-9,  # differences: error step^6 = 1e-18 times a sixth derivative, and rounding 1e-16 / step
    "second": 1e-8,  # differences of a derivative that was itself tested, and sums over matrices
    "algebra": 1e-12,  # the same number by another way
    "round trip": 1e-9,  # through an inverse
}

over_cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def draw(case, seed, spread=0.8):
    return spread * np.random.default_rng(seed).standard_normal(case.structure.n_parameters)


@over_cases
def test_jacobian(case):
    for seed in range(3):
        phi = draw(case, seed)
        found = case.structure.jacobian(phi, case.where)
        assert found.shape == (len(phi), len(case.where), len(case.where))
        expected = difference(lambda x: case.structure.matrix(x, case.where), phi)
        np.testing.assert_allclose(found, expected.reshape(found.shape), rtol=0, atol=TOLERANCES["derivative"] * 10)


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.structure.positions is None], ids=lambda case: case.name
)
def test_several_subjects_at_once(case):
    """Coordinates of several subjects of as many rows: their matrices, and sums of their second derivatives."""
    where = np.stack([case.where, case.where[::-1], case.where[[1, 1, *range(2, len(case.where))]]])
    phi = draw(case, 4)
    one = case.structure
    algebra = {"rtol": TOLERANCES["algebra"], "atol": TOLERANCES["algebra"]}
    np.testing.assert_allclose(one.matrix(phi, where), [one.matrix(phi, w) for w in where], **algebra)
    np.testing.assert_allclose(
        one.jacobian(phi, where), np.stack([one.jacobian(phi, w) for w in where], axis=1), **algebra
    )
    slope = np.stack([symmetric(np.random.default_rng(k), len(case.where)) for k in range(3)])
    total = sum(one.second(phi, w, part) for w, part in zip(where, slope, strict=True))
    np.testing.assert_allclose(
        one.second(phi, where, slope), total, rtol=1e-11, atol=1e-11 * np.abs(total).max(initial=1.0)
    )


def gradient(case, slope, phi):
    return (case.structure.jacobian(phi, case.where) * slope).sum(axis=(1, 2))


@over_cases
def test_second(case):
    rng = np.random.default_rng(5)
    for seed in range(3):
        phi = draw(case, seed)
        slope = symmetric(rng, len(case.where))
        found = case.structure.second(phi, case.where, slope)
        expected = difference(partial(gradient, case, slope), phi)
        scale = max(1.0, np.abs(expected).max(initial=0.0))
        expected = expected.reshape(found.shape)
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCES["second"] * scale)
        np.testing.assert_allclose(found, found.T, rtol=0, atol=TOLERANCES["algebra"] * scale)
        # the same second derivatives, summed the other way
        k = len(phi)
        weights = symmetric(rng, k)
        total = case.structure.second_sum(phi, case.where, weights)
        np.testing.assert_allclose(np.vdot(total, slope), np.vdot(weights, found), rtol=0, atol=1e-11 * scale * (k + 1))
        np.testing.assert_allclose(total, total.T, rtol=0, atol=1e-12 * scale * (k + 1))


@over_cases
def test_variances(case):
    phi = draw(case, 2)
    found = case.structure.variances(phi, case.where)
    np.testing.assert_allclose(found, np.diag(case.structure.matrix(phi, case.where)), rtol=1e-13)


@over_cases
def test_parts_of_the_matrix_belong_to_parts_of_the_rows(case):
    phi = draw(case, 1)
    R = case.structure.matrix(phi, case.where)
    some = np.array([1, 0])
    np.testing.assert_allclose(case.structure.matrix(phi, case.where[some]), R[np.ix_(some, some)], rtol=1e-15)


@over_cases
def test_positive_definite_everywhere(case):
    rng = np.random.default_rng(8)
    structure = case.structure
    for phi in 1.5 * rng.standard_normal((10_000 // len(CASES) * 4, structure.n_parameters)):
        R = structure.matrix(phi, case.where)
        s = np.sqrt(np.diag(R))
        assert np.linalg.eigvalsh(R / s / s[:, None])[0] > 0.0


@over_cases
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [30.0, 1e3, 1e8, 1e200])
def test_extreme_parameters_do_not_overflow(case, size):
    rng = np.random.default_rng(3)
    for _ in range(5):
        phi = size * rng.choice([-1.0, 1.0], case.structure.n_parameters)
        if case.structure.name.startswith("us"):
            phi = np.clip(phi, -1e80, 1e80)  # elements of a factor that is squared
        slope = symmetric(rng, len(case.where))
        # numbers beyond 1e300 times weights are out of a float's range for any structure
        R = case.structure.matrix(phi, case.where)
        J = case.structure.jacobian(phi, case.where)
        assert np.isfinite(R).all() and np.isfinite(J).all()
        with np.errstate(over="ignore", invalid="ignore"):
            second = case.structure.second(phi, case.where, slope / max(1.0, np.abs(R).max()))
        assert np.isfinite(second).all()


@over_cases
def test_natural_parameters_and_back(case):
    for seed in range(3):
        phi = draw(case, seed, 0.6)
        psi = case.structure.natural(phi, 2.5)
        assert len(psi) == len(phi) + 1 == len(case.structure.names(case.labels, "id"))
        back, sigma2 = case.structure.from_natural(psi)
        np.testing.assert_allclose(back, phi, rtol=0, atol=TOLERANCES["round trip"])
        np.testing.assert_allclose(sigma2, 2.5, rtol=TOLERANCES["round trip"])


@over_cases
def test_derivatives_of_natural_parameters(case):
    def natural(x):
        return case.structure.natural(x[:-1], float(x[-1]))

    rng = np.random.default_rng(0)
    omega = np.append(draw(case, 4, 0.6), 2.5)
    found = case.structure.natural_jacobian(omega[:-1], 2.5)
    np.testing.assert_allclose(found, difference(natural, omega).T, rtol=0, atol=1e-8)
    weights = rng.standard_normal(len(omega))
    second = case.structure.natural_second(omega[:-1], 2.5, weights)
    expected = difference(lambda x: weights @ case.structure.natural_jacobian(x[:-1], float(x[-1])), omega)
    np.testing.assert_allclose(second, expected, rtol=0, atol=1e-7)


@over_cases
def test_derivatives_in_natural_parameters(case):
    structure, where = case.structure, case.where
    phi = draw(case, 6, 0.5)
    psi = structure.natural(phi, 2.5)

    def matrix(x):
        back, sigma2 = structure.from_natural(x)
        return sigma2 * structure.matrix(back, where)

    def jacobian(x):
        back, sigma2 = structure.from_natural(x)
        return natural_jacobian(structure, back, sigma2, where)

    found = natural_jacobian(structure, phi, 2.5, where)
    np.testing.assert_allclose(found, difference(matrix, psi, 1e-4), rtol=0, atol=1e-7)
    weights = symmetric(np.random.default_rng(2), len(psi))
    second = natural_second_sum(structure, phi, 2.5, where, weights)
    expected = np.einsum("ab,abij->ij", weights, difference(jacobian, psi, 1e-4))
    np.testing.assert_allclose(second, expected, rtol=0, atol=1e-6 * max(1.0, np.abs(expected).max()))


@pytest.mark.parametrize("name", ["us", "cs", "toep", "id"])
def test_covariances_are_linear_in_themselves(name):
    # the second derivatives of Kenward and Roger's adjustment vanish for these, as in SAS
    structure = of_positions(name, 4)
    phi = 0.5 * np.random.default_rng(1).standard_normal(structure.n_parameters)
    weights = symmetric(np.random.default_rng(2), len(phi) + 1)
    second = natural_second_sum(structure, phi, 1.7, np.arange(4), weights)
    np.testing.assert_allclose(second, 0.0, atol=1e-10)


def naturals(name, m, variances, c):
    """The matrix from its definition in the literature, entry by entry."""
    R = np.empty((m, m))
    for i in range(m):
        for j in range(m):
            low, high = min(i, j), max(i, j)
            correlation = {
                "id": 0.0,
                "cs": c[0] if len(c) else 0.0,
                "ar1": c[0] ** (high - low) if len(c) else 0.0,
                "ad": float(np.prod(c[low:high])),
                "arma": c[-1] * c[0] ** (high - low - 1) if i != j and len(c) == 2 else 0.0,
                "toep": c[high - low - 1] if i != j and len(c) >= m - 1 else 0.0,
            }[name]
            R[i, j] = np.sqrt(variances[i] * variances[j]) * (1.0 if i == j else correlation)
    return R


@pytest.mark.parametrize(
    ("name", "base", "c"),
    [
        ("id", "id", []),
        ("diag", "id", []),
        ("cs", "cs", [-0.2]),
        ("csh", "cs", [0.4]),
        ("ar1", "ar1", [-0.6]),
        ("ar1h", "ar1", [0.7]),
        ("ad", "ad", [0.5, -0.3, 0.8]),
        ("adh", "ad", [0.5, -0.3, 0.8]),
        ("toep", "toep", [0.5, 0.1, 0.3]),
        ("toeph", "toep", [0.5, 0.1, 0.3]),
        ("arma", "arma", [0.7, 0.4]),
        ("arma", "arma", [-0.5, 0.2]),
    ],
)
def test_definitions(name, base, c):
    structure = of_positions(name, 4)
    same = name == base
    variances = np.full(4, 2.0) if same else np.array([2.0, 0.5, 3.0, 1.0])
    scale = 2.0 if name in ("cs", "toep") else 1.0
    psi = np.append(variances[:1] if same else variances, scale * np.array(c))
    phi, sigma2 = structure.from_natural(psi)
    found = sigma2 * structure.matrix(phi, np.arange(4))
    np.testing.assert_allclose(found, naturals(base, 4, variances, np.array(c)), rtol=1e-12, atol=1e-14)


def test_unstructured_is_any_covariance():
    half = np.random.default_rng(0).standard_normal((4, 6))
    S = half @ half.T
    structure = of_positions("us", 4)
    phi, sigma2 = structure.nearest(S)
    np.testing.assert_allclose(sigma2 * structure.matrix(phi, np.arange(4)), S, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(structure.natural(phi, sigma2), S[np.triu_indices(4)], rtol=1e-12)
    assert structure.names(labels(4), "id")[:3] == ("var_v0|id", "cov_v0.v1|id", "cov_v0.v2|id")


def test_closed_forms():
    # determinants: cs (1 - rho)^(m-1) (1 + (m-1) rho); ar1 (1 - rho^2)^(m-1); toep by partial autocorrelations
    m = 6
    where = np.arange(m)
    for rho in (-0.15, 0.5):
        cs = of_positions("cs", m)
        phi, _ = cs.from_natural(np.array([1.0, rho]))
        expected = (1 - rho) ** (m - 1) * (1 + (m - 1) * rho)
        np.testing.assert_allclose(np.linalg.det(cs.matrix(phi, where)), expected, rtol=1e-12)
        ar1 = of_positions("ar1", m)
        phi, _ = ar1.from_natural(np.array([1.0, rho]))
        np.testing.assert_allclose(np.linalg.det(ar1.matrix(phi, where)), (1 - rho**2) ** (m - 1), rtol=1e-12)
    toep = of_positions("toep", m)
    x = np.random.default_rng(0).standard_normal(m - 1)
    pi = x / np.sqrt(1 + x**2)
    expected = np.prod((1 - pi**2) ** (m - np.arange(1, m)))
    np.testing.assert_allclose(np.linalg.det(toep.matrix(x, where)), expected, rtol=1e-11)
    # ar1 has one partial autocorrelation
    rho = np.array([0.6, 0.0, 0.0, 0.0, 0.0])
    np.testing.assert_allclose(toep.matrix(rho / np.sqrt(1 - rho**2), where), 0.6 ** np.abs(where[:, None] - where))


def test_equal_neighbours_are_an_autoregression():
    where = np.array([0, 2, 3, 6])
    found = of_positions("ad", 7).matrix(np.full(6, 0.7), where)
    np.testing.assert_allclose(found, of_positions("ar1", 7).matrix(np.array([0.7]), where), rtol=1e-13)


def test_arma_without_a_moving_average_is_an_autoregression():
    where = np.array([0, 2, 3, 6])
    found = of_positions("arma", 7).matrix(np.array([0.7, 0.0]), where)
    np.testing.assert_allclose(found, of_positions("ar1", 7).matrix(np.array([0.7]), where), rtol=1e-13)


def test_arma_is_the_correlation_of_the_process():
    # y_t = rho y_{t-1} + e_t + theta e_{t-1} as a sum of past noise: weights 1, (rho + theta) rho^(k-1)
    rho, theta = 0.6, -0.35
    weights = np.append(1.0, (rho + theta) * rho ** np.arange(200))
    covariances = np.array([weights[: len(weights) - lag] @ weights[lag:] for lag in range(4)])
    x = np.array([rho, theta])
    found = of_positions("arma", 4).matrix(x / np.sqrt(1.0 - x**2), np.arange(4))
    np.testing.assert_allclose(found[0], covariances / covariances[0], rtol=1e-12)


def test_continuous_autoregression_on_integers_is_an_autoregression():
    where = np.array([0, 2, 3, 6])
    for name in ("car1", "sp_power"):
        car1 = of_coordinates(name)
        phi, _ = car1.from_natural(np.array([1.0, 0.45]))
        ar1, _ = of_positions("ar1", 7).from_natural(np.array([1.0, 0.45]))
        expected = of_positions("ar1", 7).matrix(ar1, where)
        np.testing.assert_allclose(car1.matrix(phi, where[:, None].astype(float)), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("sp_exp", lambda u: np.exp(-u)),
        ("sp_gau", lambda u: np.exp(-(u**2))),
        ("matern", lambda u: (1 + np.sqrt(3) * u) * np.exp(-np.sqrt(3) * u)),
        ("matern52", lambda u: (1 + np.sqrt(5) * u + 5 * u**2 / 3) * np.exp(-np.sqrt(5) * u)),
        ("ratio", lambda u: 1 / (1 + u**2)),
        ("spher", lambda u: np.where(u < 1, 1 - 1.5 * u + 0.5 * u**3, 0.0)),
    ],
)
@pytest.mark.parametrize("nugget", [False, True])
def test_definitions_by_distance(name, formula, nugget):
    where = np.random.default_rng(2).uniform(0, 3, (5, 2))
    structure = of_coordinates(name, nugget=nugget)
    phi, sigma2 = structure.from_natural(np.array([2.0, 1.3, 0.2] if nugget else [2.0, 1.3]))
    assert structure.names((), "id") == ("sigma2|id", "range|id", "nugget|id")[: len(phi) + 1]
    distance = np.linalg.norm(where[:, None] - where, axis=2)
    expected = 2.0 * formula(distance / 1.3) * (0.8 if nugget else 1.0)
    np.fill_diagonal(expected, 2.0)
    np.testing.assert_allclose(sigma2 * structure.matrix(phi, where), expected, rtol=1e-12, atol=1e-15)


def test_units_of_distance_move_the_parameter_only():
    where = np.random.default_rng(2).uniform(0, 3, (5, 1))
    for name in ("car1", "sp_exp", "sp_gau", "matern", "ratio", "spher"):
        structure = of_coordinates(name)
        expected = structure.matrix(np.array([0.4]), where)
        found = structure.matrix(np.array([0.4 + np.log(86400.0)]), 86400.0 * where)
        np.testing.assert_allclose(found, expected, rtol=1e-11)


@pytest.mark.parametrize("name", ["car1", "sp_exp", "sp_gau", "matern", "matern52", "ratio", "spher"])
def test_starts_by_distance_are_near(name):
    rng = np.random.default_rng(4)
    structure = of_coordinates(name)
    x = np.array([0.5])
    parts = []
    for subject in range(500):
        where = np.sort(rng.uniform(0, 8, (8, 1)), axis=0)
        R = structure.matrix(x, where) + 1e-9 * np.eye(8)
        parts.append((np.linalg.cholesky(R) @ rng.standard_normal(8), where, np.full(8, subject)))
    rows = Rows(*(np.concatenate(part) for part in zip(*parts, strict=True)))
    np.testing.assert_allclose(structure.start(rows), x, atol=0.35)


@pytest.mark.parametrize(
    ("name", "x", "expected"),
    [
        ("car1", 12.0, None),
        ("car1", 17.0, "rho|id = 1"),
        ("car1", -4.0, "rho|id = 0"),
        ("sp_exp", 17.0, "range|id = infinity"),
        ("sp_exp", -4.0, "range|id = 0"),
    ],
)
def test_boundaries_by_distance(name, x, expected):
    # distances from half a unit to ten units
    assert of_coordinates(name, 0.5, 10.0).boundary(np.array([x]), (), "id") == expected


def test_boundaries_of_nuggets():
    structure = of_coordinates("sp_exp", nugget=True)
    assert structure.boundary(np.array([0.0, -14.0]), (), "id") == "nugget|id = 0"
    assert structure.boundary(np.array([0.0, 14.0]), (), "id") == "nugget|id = 1"
    assert structure.boundary(np.array([0.0, 0.0]), (), "id") is None


def test_factors():
    loadings = np.array([[0.6, 0.0], [0.3, -0.5], [0.7, 0.2], [-0.2, 0.4], [0.1, 0.6]])
    variances = np.array([2.0, 1.0, 0.5, 3.0, 1.5])
    structure = factor_analytic(5, 2)
    psi = np.concatenate((variances, loadings[:, 0], loadings[1:, 1]))
    phi, sigma2 = structure.from_natural(psi)
    C = loadings @ loadings.T
    np.fill_diagonal(C, 1.0)
    s = np.sqrt(variances)
    np.testing.assert_allclose(sigma2 * structure.matrix(phi, np.arange(5)), C * np.outer(s, s), rtol=1e-12)
    assert structure.names(labels(5), "id")[5:] == (
        *(f"loading1_v{k}|id" for k in range(5)),
        *(f"loading2_v{k}|id" for k in range(1, 5)),
    )
    assert structure.boundary(np.append(np.zeros(12), 1e4), labels(5), "id") == "specific variance of v4|id = 0"


@pytest.mark.parametrize("q", [1, 2])
def test_factors_start_near(q):
    structure = factor_analytic(6, q)
    phi = np.random.default_rng(3).uniform(0.3, 1.0, structure.n_parameters)
    found = structure.start(drawn_rows(structure, phi, 4_000, 0.1, 2))
    expected, start = structure.matrix(phi, np.arange(6)), structure.matrix(found, np.arange(6))
    np.testing.assert_allclose(start / start[0, 0], expected / expected[0, 0], rtol=0.25, atol=0.1)


@pytest.mark.parametrize("name", ["cs", "ar1", "ad", "toep"])
def test_several_responses(name):
    structure = of_responses(name, ("r", "s"), 3)
    visits = of_positions(name, 3)
    rng = np.random.default_rng(0)
    inner = rng.standard_normal(visits.n_parameters)
    S = np.array([[2.0, 0.7], [0.7, 1.0]])
    phi, sigma2 = of_positions("us", 2).nearest(S)
    found = sigma2 * structure.matrix(np.concatenate((phi, inner)), np.arange(6))
    np.testing.assert_allclose(found, np.kron(S, visits.matrix(inner, np.arange(3))), rtol=1e-12)
    assert structure.names(labels(6), "id")[:3] == ("var_r|id", "cov_r.s|id", "var_s|id")
    start = structure.start(drawn_rows(structure, np.concatenate((phi, inner)), 3_000, 0.1, 1))
    found = structure.matrix(start, np.arange(6))
    expected = structure.matrix(np.concatenate((phi, inner)), np.arange(6))
    np.testing.assert_allclose(found, expected, rtol=0.15, atol=0.08)


def test_two_positions_have_one_correlation():
    for name in ("csh", "ar1h", "adh", "toeph"):
        structure = of_positions(name, 2)
        phi, sigma2 = structure.from_natural(np.array([2.0, 3.0, -0.4]))
        cov = -0.4 * np.sqrt(6.0)
        np.testing.assert_allclose(sigma2 * structure.matrix(phi, np.arange(2)), [[2.0, cov], [cov, 3.0]], rtol=1e-13)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("id", ("sigma2|id",)),
        ("diag", ("var_v0|id", "var_v1|id", "var_v2|id")),
        ("cs", ("sigma2|id", "cov|id")),
        ("csh", ("var_v0|id", "var_v1|id", "var_v2|id", "rho|id")),
        ("ar1", ("sigma2|id", "rho|id")),
        ("ad", ("sigma2|id", "rho_v0.v1|id", "rho_v1.v2|id")),
        ("toep", ("sigma2|id", "cov_lag1|id", "cov_lag2|id")),
        ("toeph", ("var_v0|id", "var_v1|id", "var_v2|id", "rho_lag1|id", "rho_lag2|id")),
        ("us", ("var_v0|id", "cov_v0.v1|id", "cov_v0.v2|id", "var_v1|id", "cov_v1.v2|id", "var_v2|id")),
    ],
)
def test_names(name, expected):
    assert of_positions(name, 3).names(labels(3), "id") == expected


@pytest.mark.parametrize(
    ("name", "phi", "expected"),
    [
        ("ar1", [1e4], "rho|id = 1"),
        ("ar1", [-1e4], "rho|id = -1"),
        ("cs", [-30.0], "rho|id = -0.5"),
        ("csh", [0.0, 0.0, 30.0], "rho|id = 1"),
        ("diag", [0.0, -20.0], "var_v2|id = 0"),
        ("diag", [20.0, 20.0], "var_v0|id = 0"),
        ("ad", [0.3, 1e4], "rho_v1.v2|id = 1"),
        ("toep", [0.3, -1e4], "partial rho_lag2|id = -1"),
        ("us", [0.0, 0.0, -20.0, 0.0, 0.0], "var_v1|id = 0"),
        ("us", [1.0, 0.0, -20.0, 0.0, 0.0], "var of a combination of v0 and v1|id = 0"),
    ],
)
def test_boundaries(name, phi, expected):
    structure = of_positions(name, 3)
    assert structure.boundary(np.array(phi), labels(3), "id") == expected
    assert structure.boundary(np.full(len(phi), 0.5), labels(3), "id") is None


def drawn_rows(structure, phi, subjects, missing, seed):
    rng = np.random.default_rng(seed)
    m = structure.positions
    L = np.linalg.cholesky(structure.matrix(phi, np.arange(m)))
    values = 3.0 * rng.standard_normal((subjects, m)) @ L.T
    seen = rng.uniform(size=(subjects, m)) >= missing
    index, where = np.nonzero(seen)
    return Rows(values[seen], where, index)


@pytest.mark.parametrize("name", [name for name in position_names() if name != "id"])
def test_starts_are_near(name):
    structure = of_positions(name, 4)
    phi = np.random.default_rng(1).uniform(0.2, 0.6, structure.n_parameters)
    found = structure.start(drawn_rows(structure, phi, 4_000, 0.15, 2))
    expected, start = structure.matrix(phi, np.arange(4)), structure.matrix(found, np.arange(4))
    # 4,000 subjects: correlations to about 0.02, variances to 4 per cent
    np.testing.assert_allclose(start / start[0, 0], expected / expected[0, 0], rtol=0.15, atol=0.06)


def several(name):
    """The structure over six positions."""
    if name.startswith("fa"):
        return factor_analytic(6, int(name[2:]))
    return of_responses(name[3:], ("r", "s"), 3) if "@" in name else of_positions(name, 6)


def test_visits_that_are_nearly_copies_start_so():
    # correlations of 1 - 1e-12 of subjects that have all visits are no accident of few rows
    rng = np.random.default_rng(0)
    values = rng.standard_normal((60, 1)) + 1e-6 * rng.standard_normal((60, 4))
    rows = Rows(values.ravel(), np.tile(np.arange(4), 60), np.repeat(np.arange(60), 4))
    structure = of_positions("us", 4)
    found = structure.matrix(structure.start(rows), np.arange(4))
    expected = values.T @ values
    np.testing.assert_allclose(found, expected / expected[0, 0], rtol=1e-9)
    # where subjects miss visits, pairs of rows may make what no covariance matrix is: it is drawn inside
    kept = rng.uniform(size=240) > 0.4
    some = Rows(rows.residuals[kept], rows.where[kept], rows.subjects[kept])
    R = structure.matrix(structure.start(some), np.arange(4))
    s = np.sqrt(np.diag(R))
    assert np.linalg.eigvalsh(R / s / s[:, None])[0] > 1e-3


@pytest.mark.parametrize("name", [*position_names(), "fa1", "fa2", "us@cs", "us@ar1"])
@pytest.mark.parametrize("subjects", [1, 2, 5])
def test_starts_of_few_subjects_are_inside(name, subjects):
    structure = several(name)
    for seed in range(20):
        phi = np.random.default_rng(seed).standard_normal(structure.n_parameters)
        rows = drawn_rows(structure, phi, subjects, 0.4, seed)
        if len(rows.where) < 2:
            continue
        found = structure.start(rows)
        R = structure.matrix(found, np.arange(6))
        s = np.sqrt(np.diag(R))
        assert np.linalg.eigvalsh(R / s / s[:, None])[0] > 1e-3
        # derivatives of some vanish where a correlation is zero; standard deviations come first
        correlations = found[5:] if name.endswith("h") else found
        assert (correlations != 0.0).all() or name in ("us", "diag", "fa1", "fa2") or "@" in name
        assert structure.boundary(found, labels(6), "id") is None


def test_starts_of_few_pairs_are_shrunk():
    """The correlation of three pairs counts for three of five; variances have a quarter of a row more."""
    values = np.array([[1.0, 0.6], [-2.0, -0.5], [0.5, 0.9]])
    rows = Rows(values.ravel(), np.tile(np.arange(2), 3), np.repeat(np.arange(3), 2))
    squares = (values**2).sum(axis=0)
    variances = (squares + 0.25 * squares.sum() / 6.0) / 3.25
    correlation = values[:, 0] @ values[:, 1] / np.sqrt(squares.prod()) * 3.0 / 5.0
    wanted = correlation * np.sqrt(np.outer(variances, variances))
    np.fill_diagonal(wanted, variances)
    np.testing.assert_allclose(visit_covariance(rows, 2), wanted, rtol=1e-12)


def test_starts_of_residuals_that_are_all_zero():
    rows = Rows(np.zeros(9), np.tile(np.arange(3), 3), np.repeat(np.arange(3), 3))
    for name in position_names():
        assert np.isfinite(of_positions(name, 3).start(rows)).all()


def test_a_long_series_starts_without_a_matrix_over_its_positions():
    n = 200_000
    values = np.empty(n)
    noise = np.random.default_rng(0).standard_normal(n)
    values[0] = noise[0]
    for k in range(1, n):
        values[k] = 0.7 * values[k - 1] + np.sqrt(0.51) * noise[k]
    rows = Rows(values, np.arange(n), np.zeros(n, dtype=np.intp))
    structure = of_positions("ar1", n)
    np.testing.assert_allclose(structure.natural(structure.start(rows), 1.0)[1], 0.7, atol=0.01)


@pytest.mark.parametrize("name", [*position_names(), "fa"])
def test_kinds(name):
    """What the catalogue says of a structure is what its matrix does."""
    m, kind = 5, kind_of(name)
    structure, where = of_positions(name, m), np.arange(m)
    phi = 0.3 * np.random.default_rng(2).standard_normal(structure.n_parameters)
    diagonal = np.array([np.diag(J) for J in structure.jacobian(phi, where)]).reshape(-1, m)
    # the variances, one of which is the scale, move each by itself
    assert kind.own_variances == (np.linalg.matrix_rank(diagonal, tol=1e-10) >= m - 1)
    # whether a random intercept of subjects, or any matrix, can be added to it
    ones, any_ = np.ones((m, m)), np.outer(np.arange(1.0, m + 1.0), np.arange(1.0, m + 1.0))
    R = structure.matrix(phi, where)

    def reached(direction):
        span = np.array([R.ravel(), *(J.ravel() for J in structure.jacobian(phi, where))])
        rest = direction.ravel() - span.T @ np.linalg.lstsq(span.T, direction.ravel(), rcond=None)[0]
        return bool(np.abs(rest).max() < 1e-8)

    linear = name in ("us", "cs", "toep")
    assert {"": (False, False), "intercept": (True, False), "visits": (True, True)}[kind.contains] == (
        linear and reached(ones), linear and reached(any_)
    )  # fmt: skip


def test_structures_are_values():
    for case in CASES:
        copy = pickle.loads(pickle.dumps(case.structure))
        assert copy == case.structure
        assert hash(copy) == hash(case.structure)


def test_refusals():
    with pytest.raises(LMMError, match="there is no structure 'arima'; known are us, id"):
        of_positions("arima", 3)
    with pytest.raises(LMMError, match="cs needs 2 visits or more, and there is 1"):
        of_positions("cs", 1)
    with pytest.raises(LMMError, match="arma needs 3 visits or more, and there are 2"):
        of_positions("arma", 2)
    with pytest.raises(
        LMMError, match="fa with q=3 has more loadings than 5 visits determine; take q=2 or fewer, or us"
    ):
        factor_analytic(5, 3)
    with pytest.raises(LMMError, match="there is no structure 'us@us'; known are us@cs, us@ar1"):
        of_responses("us", ("r", "s"), 3)
    with pytest.raises(LMMError, match="not those of a positive definite Toeplitz matrix"):
        of_positions("toep", 3).from_natural(np.array([1.0, 0.9, -0.9]))
