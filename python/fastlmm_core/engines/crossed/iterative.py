"""The criterion of crossed factors too many for dense matrices, up to what random probes leave open.

What it consists of is in `systems`; derivatives of profiled coefficients are those of `CrossedCriterion`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, NoReturn, Self

import numpy as np

from ...errors import LMMError
from ...kernels.layouts import Layout
from ...support.types import Array
from ..protocol import UNASKED, Elsewhere
from .directions import LevelDirections, vech_place
from .problem import CrossedProblem
from .systems import TOGETHER, Products, System, Traces, blocks_times, products_of

__all__ = ["IterativeCriterion", "IterativeProblem"]


FLOOR = 1e-5
"""Least diagonal element of Lambda (columns of Z of unit mean square per level), so that it has an inverse."""


class IterativeCriterion(LevelDirections):
    """The criterion as a function of theta, up to what the probes leave open; see `CrossedCriterion`.

    Parameters
    ----------
    problem : IterativeProblem
    """

    serial, costly, remainder = True, True, 1.0

    def __init__(self, problem: IterativeProblem) -> None:
        self.problem = problem
        self.layout, self.structure = problem.layout, problem.structure  # type: ignore[misc]
        self.n_slots, self.q, self.k = problem.n_effects, problem.structure.q, len(problem.gram)  # type: ignore[misc]
        self.reml = True
        self.n_evaluations = 0
        self._key: tuple[Any, ...] | None = None
        self._probes: tuple[Array, Traces] | None = None
        self._second: Array | None = None

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise LMMError(
            "this needs the exact criterion, which a fit by method='iterative' does not have; fit with "
            "method='newton', or a part of the data"
        )

    def floored(self, theta: Array) -> Array:
        """Lambda whose diagonal is not below what it needs to have an inverse."""
        factor = self.structure.factor(theta)
        diagonal = np.diag(factor)
        least = FLOOR * np.sqrt(self.problem.levels / self.problem.n)
        np.fill_diagonal(factor, np.where(np.abs(diagonal) < least, np.where(diagonal < 0.0, -least, least), diagonal))
        return factor

    def _at(self, theta: Array) -> None:
        """Solve for [X y] at a point."""
        key = (theta.tobytes(), self.reml)
        if key == self._key:
            return
        problem = self.problem
        self.n_evaluations += 1
        self.theta, self.factor = theta.copy(), self.floored(theta)
        self.system = System(problem.products, self.factor)
        self._E, turned = self._solved(problem.cross)
        H = problem.gram - problem.cross.T @ turned
        p = self.k - 1
        self.chol: Array = np.asarray(np.linalg.cholesky(H[:p, :p]), dtype=np.float64)
        self.inverse: Array = np.asarray(np.linalg.inv(self.chol), dtype=np.float64)
        half = self.inverse @ H[:p, p]
        self.beta: Array = np.asarray(self.inverse.T @ half)
        self.r2 = float(H[p, p] - half @ half)
        self.nu = float(problem.n - (p if self.reml else 0))
        self.e = self._E @ np.append(-self.beta, 1.0)
        self._second, self._key = None, key
        # probes know nothing of X and y
        if self._probes is not None and not np.array_equal(self._probes[0], self.factor):
            self._probes = None

    def _solved(self, columns: Array) -> tuple[Array, Array]:
        """(I + K G)^-1 columns, and Lambda M^-1 Lambda' columns."""
        turned, out, moved = np.empty_like(columns), np.empty_like(columns), np.empty_like(columns)
        parts = list(zip(self.system.products.slots, self.system.inner, strict=True))
        for mine, L in parts:
            turned[mine] = np.einsum("ji,ajc->aic", L, columns[mine])
        s = self.system.solve(turned)
        for mine, L in parts:
            out[mine] = np.einsum("ji,ajc->aic", np.linalg.inv(L), s[mine])
            moved[mine] = np.einsum("ij,ajc->aic", L, s[mine])
        return out, moved

    @property
    def probed(self) -> Traces:
        """What the probes tell at the last point."""
        if self._probes is None:
            self._probes = self.factor, self.system.traces(self.problem.probes, self.problem.seed)
        return self._probes[1]

    # ---- what every engine offers ----------------------------------------------------------------------------

    def evaluate(self, theta: Array, order: int = 0) -> tuple[float, Array | None, Array | None]:
        """Value, gradient and average information in theta."""
        self._at(np.asarray(theta, dtype=np.float64))
        value = self.probed.log_det + self.nu * (1.0 + np.log(2.0 * np.pi * self.r2 / self.nu))
        if self.reml and self.k > 1:
            value += 2.0 * float(np.log(np.diag(self.chol)).sum())
        gradient = self.along(self.slope) if order >= 1 else None
        hessian = None
        if order >= 2:
            J = self._moved()
            hessian = J.T @ self.average() @ J
        return float(value), gradient, hessian

    def along(self, slope: Array) -> Array:
        """Derivative in theta from that in G."""
        rows, columns = self.structure.positions
        return np.asarray(2.0 * (slope @ self.factor)[rows, columns])

    def _moved(self) -> Array:
        """How the unit directions of vech(G) change with theta (n_a, k)."""
        rows, columns = self.structure.positions
        out = np.zeros((self.q * (self.q + 1) // 2, len(rows)))
        for at, (r, c) in enumerate(zip(rows.tolist(), columns.tolist(), strict=True)):
            for j in range(self.q):
                out[vech_place(max(r, j), min(r, j)), at] += self.factor[j, c] * (2.0 if j == r else 1.0)
        return out

    @property
    def slope(self) -> Array:
        """Derivative in G (q, q), zero between factors."""
        return self._slope_of(self.probed.blocks)

    def noise(self) -> Array:
        """What each probe makes of the derivative in theta, less the mean (probes, k)."""
        parts = zip(*self.probed.deviations, strict=True)
        return np.array([self.along(self._precision_of(list(blocks))) for blocks in parts])

    def _precision_of(self, blocks: list[Array]) -> Array:
        out = np.zeros((self.q, self.q))
        for L, block, at in zip(self.system.inner, blocks, self.system.products.columns, strict=True):
            inverse = np.linalg.inv(L)
            out[at : at + len(L), at : at + len(L)] = inverse.T @ block @ inverse
        return out

    def _slope_of(self, blocks: list[Array]) -> Array:
        out = self._precision_of(blocks)
        whitened = self._E[:, :-1] @ self.inverse.T if self.reml else self._E[:, :0]
        for mine, at in zip(self.system.products.slots, self.system.products.columns, strict=True):
            part = slice(at, at + mine.shape[1])
            e = self.e[mine]
            out[part, part] -= self.nu / self.r2 * (e.T @ e)
            out[part, part] -= np.einsum("aic,ajc->ij", whitened[mine], whitened[mine])
        return out

    def average(self) -> Array:
        """Average information along the unit directions of vech(G) (n_a, n_a)."""
        if self._second is None:
            scale = self.nu / self.r2
            which, turned = self.directed(self.e[:, None])
            u = np.zeros((self.q * (self.q + 1) // 2, self.k))
            u[which] = turned[:, :, 0].T @ self._E
            square = u @ np.append(-self.beta, 1.0)
            whitened = u[:, :-1] @ self.inverse.T
            self._second = scale * (self.forms(self.e[:, None]) - whitened @ whitened.T) - scale / self.r2 * np.outer(
                square, square
            )
        return self._second

    def solution(self) -> tuple[Array, float, Array, Array]:
        """The fields of `Solution`, and the derivative in the relative covariance."""
        return self.beta, self.r2, self.chol, self.slope

    def state(self) -> tuple[Array, Array, float, float, Array, Array]:
        """theta, Lambda, nu, r^2, (-beta, 1), and the inverse of the factor of X'V^-1 X."""
        return self.theta, self.factor, self.nu, self.r2, np.append(-self.beta, 1.0), self.inverse

    def scores(self) -> Array:
        """E = Z'V^-1[X y] (n_slots, k)."""
        return self._E.copy()

    def means(self, columns: Array) -> Array:
        """(I + G Z'Z)^-1 G columns."""
        return self._solved(columns)[1]

    def multiply(self, columns: Array) -> Array:
        """N columns."""
        return self._solved(self.gram_times(columns))[0]

    def gram_times(self, columns: Array) -> Array:
        """Z'Z columns."""
        return self.problem.gram_times(columns)

    def traces(self, weight: Array | None = None) -> Array:
        """tr(B D N F) along the unit directions, by the probes where B is N; see `CrossedCriterion.traces`."""
        if weight is not None:
            return self.forms(self.scores() @ weight)
        n_a = self.q * (self.q + 1) // 2
        count = self.problem.probes
        rng = np.random.default_rng([self.problem.seed, count])
        out = np.zeros((n_a, n_a))
        for at in range(0, count, self.system.together):
            numbers = range(at, min(at + self.system.together, count), TOGETHER)
            drawn = [rng.integers(0, 2, (self.n_slots, TOGETHER)) for _ in numbers]
            z = 2.0 * np.concatenate(drawn, axis=1).astype(np.float64) - 1.0
            which, left = self.directed(self.multiply(z))
            _, right = self.directed(z)
            # z'N D N F z
            turned = self.multiply(right.reshape(self.n_slots, -1)).reshape(right.shape)
            total = np.einsum("ndc,nec->de", left, turned)
            out[np.ix_(which, which)] += 0.5 * (total + total.T) / count
        return out


@dataclass(frozen=True)
class IterativeProblem(CrossedProblem):
    """A problem of several factors whose criterion is found by iterations.

    Attributes
    ----------
    probes, seed : int
    """

    probes: int = 64
    seed: int = 0

    @classmethod
    def of(cls, problem: CrossedProblem, probes: int, seed: int) -> Self:
        """The problem, with so many probes (rounded up to those that are solved for together)."""
        given = {field.name: getattr(problem, field.name) for field in fields(CrossedProblem)}
        return cls(**given, probes=-(-probes // TOGETHER) * TOGETHER, seed=seed)

    @property
    def layout(self) -> Layout:
        """Products as they come of the rows: nothing is eliminated but the levels of one factor."""
        return self.laid_out.layout

    @property
    def cross(self) -> Array:
        """Z'[X y] (n_slots, k)."""
        return self.laid_out.cross

    @cached_property
    def products(self) -> Products:
        """Z'WZ as sparse matrices."""
        return products_of(self.layout, self.n_effects)

    def gram_times(self, columns: Array) -> Array:
        """Z'Z columns."""
        found = self.products
        first = found.slots[0].size
        out = np.empty_like(columns)
        for own, mine in zip(found.own, found.slots, strict=True):
            out[mine] = blocks_times(own, columns, mine)
        out[:first] += found.across @ columns[first:]
        out[first:] += found.across.T @ columns[:first]
        if found.between is not None:
            out[first:] += found.between @ columns[first:]
        return out

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "products"}

    def elsewhere(self) -> Elsewhere:
        """Other minima are not looked for."""
        return UNASKED

    def criterion(self, columns: Array | None = None) -> Any:
        """The criterion; of [X y] as they are."""
        engine = IterativeCriterion(self if columns is None else self._with(columns))
        return engine

    def _with(self, columns: Array) -> Self:
        laid_out = replace(self.laid_out, cross=self.cross @ columns)
        return replace(self, laid_out=laid_out, gram=columns.T @ self.gram @ columns)

    def pilot(self, n_groups: int = 0) -> None:
        """No part of the data serves for a start."""
        return None

    def effects_covariance(self, factor: Array) -> NoReturn:
        """Refuse what needs an inverse."""
        raise LMMError(
            "conditional variances of random effects need the exact criterion, which a fit by method='iterative' does "
            "not have; fit with method='newton', or a part of the data"
        )
