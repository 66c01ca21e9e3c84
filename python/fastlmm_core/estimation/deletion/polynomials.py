"""The sums over groups of a criterion as polynomials of the covariance parameters near an optimum.

With G^ = F (I + S) F', F the factor at the optimum, the sums log|V^| and H = [X y]'V^^-1[X y] are analytic in S; their
nearest singularities lie about |S| = 1 away.  Polynomials through values and derivatives at nodes in a ball of radius h
have errors of the order h^(degree + 1): rounding error for the small balls that matter here.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations_with_replacement
from math import ceil, comb
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...support.types import Array

if TYPE_CHECKING:
    from ...covariance.parameters import CovarianceStructure
    from ...engines.one_factor.problem import OneFactorProblem
    from ..fit import Fit

__all__ = ["DEGREES", "Basis", "Sums", "n_nodes", "n_terms", "symmetric_sum"]


DEGREES = {1: 10, 2: 8, 3: 6, 4: 6, 5: 5, 6: 5}
"""Highest degree of the polynomials by the number of covariance parameters; with more there are too many terms."""


class Basis(NamedTuple):
    """Monomials up to a total degree, and the nodes in the unit ball at which polynomials are fitted.

    `parent` and `variable` tell how each monomial follows from one before it, `down` which are its derivatives;
    `solver` turns values and derivatives at the nodes into coefficients.
    """

    exponents: NDArray[np.int64]
    parent: NDArray[np.int64]
    variable: NDArray[np.int64]
    down: NDArray[np.int64]
    nodes: Array
    solver: Array


def n_terms(n_par: int, degree: int) -> int:
    """Monomials up to a total degree."""
    return comb(n_par + degree, degree)


def n_nodes(n_par: int, degree: int) -> int:
    """Nodes for polynomials of a degree: each gives a value and n_par derivatives."""
    return ceil(1.15 * n_terms(n_par, degree) / (1 + n_par)) + 1


@lru_cache(maxsize=32)
def _basis(n_par: int, degree: int) -> Basis:
    exponents: list[tuple[int, ...]] = []
    place: dict[tuple[int, ...], int] = {}
    parent, variable = [], []
    for total in range(degree + 1):
        for chosen in combinations_with_replacement(range(n_par), total):
            powers = tuple(chosen.count(v) for v in range(n_par))
            place[powers] = len(exponents)
            exponents.append(powers)
            last = chosen[-1] if chosen else 0
            smaller = tuple(e - (v == last) for v, e in enumerate(powers))
            parent.append(place[smaller] if chosen else 0)
            variable.append(last)
    lowered = [[tuple(e - (v == u) for v, e in enumerate(powers)) for u in range(n_par)] for powers in exponents]
    down = np.array([[place.get(powers, 0) for powers in line] for line in lowered], dtype=np.int64)
    E = np.array(exponents, dtype=np.int64)
    count = n_nodes(n_par, degree)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((count, n_par))
    x *= (rng.uniform(0.0, 1.0, count) ** (0.5 / n_par) / np.linalg.norm(x, axis=1))[:, None]
    monomials = np.prod(x[:, None, :] ** E, axis=2)
    slopes = E.T[:, None, :] * monomials[:, down.T].transpose(1, 0, 2)
    left = np.concatenate([monomials[None], slopes]).transpose(1, 0, 2).reshape(-1, len(E))
    # the values are taken less those at the centre: there is no constant to fit
    Q, triangle = np.linalg.qr(left[:, 1:])
    return Basis(
        E, np.array(parent, dtype=np.int64), np.array(variable, dtype=np.int64), down, x,
        np.asarray(np.linalg.solve(triangle, Q.T)),
    )  # fmt: skip


def symmetric_sum(structure: CovarianceStructure, S: Array) -> Array:
    """I + S (..., q, q) from the free elements of the symmetric S."""
    rows, columns = structure.positions
    out = np.zeros((*S.shape[:-1], structure.q, structure.q))
    out[..., rows, columns] = S
    out[..., columns, rows] = S
    return out + np.eye(structure.q)


class Sums:
    """The sums log|W| and H over all groups as functions of S, where G^ = F (I + S) F'."""

    def __init__(self, result: Fit, problem: OneFactorProblem) -> None:
        structure = result.model.structure
        self.structure = structure
        self.factor = result.optimum.factor
        self.reml = result.reml
        self.nu = problem.n - (problem.rank if result.reml else 0)
        self.k = problem.rank + 1
        self.criterion = problem.criterion()
        self.criterion.reml = result.reml
        self.rows, self.columns = (np.asarray(part, dtype=np.int64) for part in structure.positions)
        self.n_par = len(self.rows)
        q = structure.q
        directions = np.zeros((self.n_par, q, q))
        directions[np.arange(self.n_par), self.rows, self.columns] = 1.0
        directions[np.arange(self.n_par), self.columns, self.rows] = 1.0
        self.turned = self.factor @ directions @ self.factor.T
        self.lower = np.tril_indices(q)
        self.packed = np.tril_indices(self.k)
        self.centre = self.at(np.zeros((1, self.n_par)))[0]

    def factors(self, S: Array) -> Array:
        """Factors of G^ (..., q, q) from the free elements of S."""
        return np.asarray(self.factor @ np.linalg.cholesky(symmetric_sum(self.structure, S)), dtype=np.float64)

    def at(self, S: Array) -> Array:
        """Values and derivatives (count, 1 + n_par, 1 + n_h) at points (count, n_par)."""
        count, k = len(S), self.k
        thetas = self.factors(S)[:, self.rows, self.columns]
        found = []
        for theta in thetas:
            at, _, _ = self.criterion.evaluate(theta, 1)
            found.append((at, *self.criterion.solution()[:3], self.criterion.precision(), self.criterion.cross()))
        value, beta, r2, chol, precision, cross = (np.array(part) for part in zip(*found, strict=True))
        H = np.empty((count, k, k))
        H[:, :-1, :-1] = chol @ chol.transpose(0, 2, 1)
        H[:, -1, :-1] = (H[:, :-1, :-1] @ beta[:, :, None])[:, :, 0]
        H[:, -1, -1] = r2 + np.sum(beta * H[:, -1, :-1], axis=1)
        value = value - self.nu * (1.0 + np.log(2.0 * np.pi * r2 / self.nu))
        if self.reml:
            value -= 2.0 * np.log(np.diagonal(chol, axis1=1, axis2=2)).sum(axis=1)
        out = np.empty((count, 1 + self.n_par, 1 + len(self.packed[0])))
        out[:, 0, 0] = value
        out[:, 0, 1:] = H[:, self.packed[0], self.packed[1]]
        out[:, 1:, 0] = np.tensordot(precision, self.turned, axes=((1, 2), (1, 2)))
        along = self.turned[(slice(None), *self.lower)]
        out[:, 1:, 1:] = -(along @ cross[:, :, self.packed[0], self.packed[1]])
        return out

    def polynomials(self, degree: int, radius: float, reach: float | None = None) -> tuple[Basis, Array, Array]:
        """Basis, table and second derivatives for `refit_deletions`: fitted in |S| <= radius, in units of `reach`."""
        basis = _basis(self.n_par, degree)
        terms, n_f = len(basis.exponents), 1 + len(self.packed[0])
        values = self.at(radius * basis.nodes)
        values[:, 0] -= self.centre[0]
        values[:, 1:] *= radius
        coefficients = np.vstack([self.centre[:1], basis.solver @ values.reshape(-1, n_f)])
        unit = radius if reach is None else reach
        degrees = basis.exponents.sum(axis=1)
        coefficients *= ((unit / radius) ** degrees)[:, None]
        table = np.zeros((terms, 1 + self.n_par, n_f))
        table[:, 0] = coefficients
        for j in range(self.n_par):
            here = np.flatnonzero(basis.exponents[:, j])
            table[basis.down[here, j], 1 + j] = basis.exponents[here, j, None] * coefficients[here] / unit
        second = np.zeros((self.n_par, self.n_par, n_f))
        for t in np.flatnonzero(degrees == 2):
            u, v = np.repeat(np.arange(self.n_par), basis.exponents[t]).tolist()
            second[u, v] = second[v, u] = coefficients[t] * (2.0 if u == v else 1.0) / unit**2
        return basis, table.reshape(terms, -1), second.reshape(-1, n_f)
