"""Balanced layouts of several intercepts have one minimum: their criterion is convex in the precisions of strata."""

from __future__ import annotations

import numpy as np
import pytest

import fastlmm_core as flc
from fastlmm_core import kernels
from fastlmm_core.kernels.records.objectives import Evaluated

Codes = list[np.ndarray]

ROWS = 48
SHAPES: dict[str, Codes] = {
    "crossed": [np.repeat(np.arange(12), 4), np.tile(np.arange(4), 12)],
    "replicated": [np.arange(ROWS) % 6, np.arange(ROWS) // 6 % 4],
    "nested": [np.arange(ROWS) // 3, np.arange(ROWS) // 12],
    "three levels": [np.arange(ROWS) // 2, np.arange(ROWS) // 8, np.arange(ROWS) // 24],
    "interaction": [np.arange(ROWS) // 2, np.arange(ROWS) // 8, np.arange(ROWS) // 2 % 4],
    "crossed with two levels": [np.arange(ROWS) // 2, np.arange(ROWS) % 2],
    "nested in a crossed one": [np.arange(ROWS) // 4, np.arange(ROWS) // 12, np.arange(ROWS) % 4],
}


def made(
    codes: Codes, X: np.ndarray | None = None, y: np.ndarray | None = None, weights: np.ndarray | None = None
) -> flc.LinearMixedModel:
    n = len(codes[0])
    y = np.random.default_rng(0).standard_normal(n) if y is None else y
    terms = [flc.RandomTerm(None, code, name) for code, name in zip(codes, "abc", strict=False)]
    return flc.LinearMixedModel(y, X, weights=weights, terms=terms)


def balanced(*args: object) -> bool:
    return made(*args).problem.elsewhere().kind == "nothing"  # type: ignore[arg-type]


def strata(codes: Codes) -> tuple[list[np.ndarray], list[int]]:
    """Projectors on the columns of each factor, and the rows of a level."""
    found, sizes = [], []
    for code in codes:
        Z = (code[:, None] == np.unique(code)).astype(float)
        sizes.append(int(Z[:, 0].sum()))
        found.append(Z @ Z.T / sizes[-1])
    return found, sizes


def dense(codes: Codes, X: np.ndarray, y: np.ndarray, variances: np.ndarray, reml: bool) -> float:
    """-2 log-likelihood up to a constant, variances of factors first."""
    n = len(y)
    V = variances[-1] * np.eye(n)
    for code, variance in zip(codes, variances, strict=False):
        V += variance * (code[:, None] == code)
    inverse = np.linalg.inv(V)
    inner = X.T @ inverse @ X
    r = y - X @ np.linalg.solve(inner, X.T @ inverse @ y)
    value = np.linalg.slogdet(V)[1] + r @ inverse @ r
    return float(value + (np.linalg.slogdet(inner)[1] if reml else 0.0))


def finer(codes: Codes, f: int) -> int | None:
    """The coarsest of the factors nested in one."""
    inside = [
        g
        for g in range(len(codes))
        if g != f and all(len(np.unique(codes[f][codes[g] == level])) == 1 for level in np.unique(codes[g]))
    ]
    return min(inside, key=lambda g: len(np.unique(codes[g]))) if inside else None


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_criterion_is_convex_in_the_precisions(shape: str, reml: bool) -> None:
    codes = SHAPES[shape]
    assert balanced(codes)
    rng = np.random.default_rng(1)
    X, y = np.ones((ROWS, 1)), rng.standard_normal(ROWS)
    _, sizes = strata(codes)
    next_finer = [finer(codes, f) for f in range(len(codes))]

    def variances(precisions: np.ndarray) -> np.ndarray:
        """Of the factors and the residuals, from the precisions of their strata."""
        spread = 1.0 / precisions
        below = [spread[-1] if g is None else spread[g] for g in next_finer]
        return np.append((spread[:-1] - below) / sizes, spread[-1])

    def drawn() -> np.ndarray:
        found = np.append(np.zeros(len(codes)), 10.0 ** rng.uniform(-1.0, 1.0))
        for f in sorted(range(len(codes)), key=lambda f: -len(np.unique(codes[f]))):
            g = next_finer[f]
            found[f] = found[-1 if g is None else g] * rng.uniform(0.05, 1.0) ** rng.integers(0, 3)
        return found

    for _ in range(60):
        one, other = drawn(), drawn()
        low, high = (dense(codes, X, y, variances(w), reml) for w in (one, other))
        between = dense(codes, X, y, variances(0.5 * (one + other)), reml)
        assert between <= 0.5 * (low + high) + 1e-9 * (1.0 + abs(low) + abs(high))


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_all_searches_end_at_one_minimum(shape: str, reml: bool) -> None:
    rng = np.random.default_rng(2)
    codes = SHAPES[shape]
    for spread in (0.0, 0.3, 3.0):
        y = rng.standard_t(2.0, ROWS)
        for code in codes:
            y = y + spread * rng.standard_t(2.0, code.max() + 1)[code]
        model = made(codes, y=y)
        result = model.fit(reml=reml)
        assert result.converged
        assert "balanced data have one minimum only" in result.message
        criterion: Evaluated = model.problem.criterion()  # type: ignore[assignment]
        criterion.reml = reml  # type: ignore[attr-defined]
        for _ in range(10):
            start = 10.0 ** rng.uniform(-1.5, 1.0, len(codes))
            value = kernels.minimize_newton(criterion, start)[3]
            # a search may end at a saddle where a variance is zero, never lower
            assert value >= result.optimum.value - 1e-8


def test_what_is_balanced() -> None:
    rng = np.random.default_rng(3)
    a, b = SHAPES["crossed"]
    fine, coarse = SHAPES["nested"]
    ones, x = np.ones(ROWS), rng.standard_normal(ROWS)
    between = rng.standard_normal(12)[a]
    assert balanced([a, b], np.column_stack([ones, between]))
    assert not balanced([a, b], np.column_stack([ones, x]))
    # the common direction is no column of X, and a stratum with a variance that is no sum of variances
    assert not balanced([a, b], (between - between.mean())[:, None])
    assert balanced([fine, coarse], np.column_stack([ones, rng.standard_normal(4)[coarse]]))
    assert not balanced([fine, coarse], np.column_stack([ones, x]))
    within = x - np.bincount(fine, x)[fine] / 3.0
    assert balanced([fine, coarse], np.column_stack([ones, within]))
    assert balanced([a, b], None, None, np.full(ROWS, 3.0))
    assert not balanced([a, b], None, None, rng.uniform(1.0, 2.0, ROWS))


@pytest.mark.parametrize(
    "codes",
    [
        [np.delete(code, 5) for code in SHAPES["crossed"]],
        [np.delete(code, 5) for code in SHAPES["nested"]],
        # as many rows of each level, not as many of each pair
        [np.arange(ROWS) // 4, np.concatenate([np.tile(np.arange(4), 11), [0, 0, 1, 2]])],
        [np.arange(ROWS) % 12, np.arange(ROWS) % 8],
        # levels of equal size with one, two or three finer ones
        [np.repeat(np.arange(12), [6, 6, 3, 3, 3, 3, 6, 6, 3, 3, 3, 3]), np.arange(ROWS) // 12],
        # three factors that are crossed
        [np.arange(ROWS) // 16, np.arange(ROWS) // 4 % 4, np.arange(ROWS) % 4],
        # too few degrees of freedom for maximum likelihood
        [np.arange(9) // 3, np.arange(9) % 3],
        [np.arange(12) // 2, np.arange(12) % 2],
        [np.arange(12) // 2, np.arange(12) // 4, np.arange(12) % 2],
        [np.arange(36) // 4, np.arange(36) // 12, np.arange(36) // 4 % 3],
        [np.arange(ROWS) // 24, np.arange(ROWS) % 2],
        # unequal levels, 5^2 + 2^2 + 6^2 = 5 (5 + 2 + 6): their squares sum to what equal ones would give
        [np.repeat(np.arange(12), [5, 2, 6] * 4), np.repeat(np.arange(4), 13)],
    ],
)
def test_what_is_not_known_to_be(codes: Codes) -> None:
    assert not balanced(codes)


def test_slopes_of_equal_length_are_not_intercepts() -> None:
    """Lengths and numbers of rows are those of balanced layouts; what the factors have in common is not."""
    y, ones = np.random.default_rng(4).standard_normal(ROWS), np.ones((ROWS, 1))
    fine, coarse = np.arange(ROWS) // 2, np.arange(ROWS) // 8
    signs = np.tile([1.0, -1.0], ROWS // 2)
    terms = [flc.RandomTerm(None, fine, "a"), flc.RandomTerm(signs[:, None], coarse, "b")]
    assert flc.LinearMixedModel(y, ones, terms=terms).problem.elsewhere().kind != "nothing"
    a, b = SHAPES["crossed"]
    signs = np.where((a + b) % 4 < 2, 1.0, -1.0)
    terms = [flc.RandomTerm(None, a, "a"), flc.RandomTerm(signs[:, None], b, "b")]
    assert flc.LinearMixedModel(y, signs[:, None], terms=terms).problem.elsewhere().kind != "nothing"
    # as much of each level of one factor in each of the other, but not all of what they have
    a, b = np.arange(ROWS) // 16, np.arange(ROWS) // 4 % 4
    signs = np.tile([1.0, 1.0, 1.0, -1.0], ROWS // 4)
    terms = [flc.RandomTerm(None, a, "a"), flc.RandomTerm(signs[:, None], b, "b")]
    X = np.column_stack([np.ones(ROWS), signs])
    assert flc.LinearMixedModel(y, X, terms=terms).problem.elsewhere().kind != "nothing"
