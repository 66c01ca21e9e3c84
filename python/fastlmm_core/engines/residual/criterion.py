"""What the criteria of structured residuals share: profiling, and the names under which inference asks.

With d = log|V| + nu log r^2 [+ log|X'V^-1X|] for V relative to sigma^2, along directions D and D' of V

    d_D   = sum tr(D (W - (nu / r^2) e e' [- A A']))
    d_DD' = sum tr(D F D' W) + sum tr(D_D' (W - (nu / r^2) e e' [- A A']))
            - 2 (nu / r^2) s_D's_D' - (nu / r^4) t_D t_D' [- tr(S_D S_D')],      F = 2 (nu / r^2) e e' - W [+ 2 A A']

with W = V^-1, e = W (y - X beta), A = W X C^-T for C C' = X'V^-1X, S_D = A'DA, s_D = A'De, t_D = e'De.  Terms in
brackets are those of REML.
"""

from __future__ import annotations

from abc import abstractmethod
from math import exp, inf, isfinite, log, pi
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...design.residual import ResidualPart
from ...kernels.records.rows import ConditionedRows
from ...kernels.residuals import ScriptedObjective
from ...support.types import Array
from ..protocol import Engine

__all__ = ["StructuredCriterion", "Unprofiled", "structured_engine"]


EPS = float(np.finfo(float).eps)

LOST = 1e5
"""Multiple of r^2 in y'V^-1 y from which the sums of products have lost too many digits."""


class Unprofiled(NamedTuple):
    """The criterion with s = log sigma^2 a parameter of its own.

    Attributes
    ----------
    value : float
    first, second : (n_d,), (n_d, n_d) arrays
        Along all directions.
    in_s, in_ss : float
    mixed : (n_d,) array
    """

    value: float
    first: Array
    second: Array
    in_s: float
    in_ss: float
    mixed: Array


class StructuredCriterion(ScriptedObjective):
    """The profiled criterion in (theta, phi): the free elements of Lambda, and the parameters of the residuals.

    Attributes
    ----------
    reml : bool
    n_evaluations : int
    c, n, n_theta : int
        Columns of [X y], observations, elements of theta.
    part : ResidualPart
    alone : float
        Added to y'V^-1y: what no column reaches of a response that is none.
    """

    serial = True
    costly = False

    def __init__(self, c: int, n: int, n_theta: int, part: ResidualPart) -> None:
        self.reml = True
        self.n_evaluations = 0
        self.c, self.n, self.n_theta, self.part = c, n, n_theta, part
        self._point: Array | None = None
        self.alone = 0.0
        self._kind = True
        self._done = -1
        self.prepare(n_theta + part.n_parameters)

    # ---- what a criterion has to give -----------------------------------------------------------

    @abstractmethod
    def reduce(self, x: Array) -> tuple[float, Array | None]:
        """log|V| and H = [X y]'V^-1[X y]; None where V is not positive definite."""

    def whitened(self) -> Array | None:
        """Rows L^-1 [X y] after `reduce`, whose sums of products are H (., c); None where there are none."""
        return None

    @abstractmethod
    def weigh(self, turn: Array) -> None:
        """Bring the rows to [A e], by `turn` from V^-1 [X y]."""

    @abstractmethod
    def first(self, x: Array, ratio: float, bracket: float) -> Array:
        """tr(D (W - ratio e e' - bracket A A')) along all directions: of G, and of phi."""

    def in_full(self, x: Array) -> StructuredCriterion | None:
        """The engine at x whose `along` takes all its weights, to first order; None where subjects are too large."""
        self.evaluate(x, 1)
        return self

    @abstractmethod
    def along(self, c_n: float, c_e: float, c_x: float) -> Array:
        """tr(D F D' W) for pairs of directions, F = c_n W + c_e e e' + c_x A A'; after `first`."""

    @abstractmethod
    def bend(self, x: Array) -> Array:
        """tr(D_D' (...)) in phi (k, k), with the matrix of the last `first`."""

    @abstractmethod
    def _crossed(self) -> Array:
        """[A e]'D[A e] for all directions (n_d, c, c): S_D, s_D and t_D; after `first`."""

    @abstractmethod
    def sandwich_along(self, weight: Array) -> Array:
        """Sum over pairs of directions of w_DD' A'D V^-1 D'A (r, r); after `first`."""

    @abstractmethod
    def within(self, tables: list[Array]) -> Array:
        """A'TA (r, r) for matrices T of residuals over `places`, in the place of dV."""

    @property
    @abstractmethod
    def places(self) -> list[tuple[int, NDArray[np.intp] | Array]]:
        """Stratum and positions or coordinates of the matrices that `within` takes."""

    def chained(self, x: Array, first: Array, second: Array | None) -> tuple[Array, Array | None]:
        """Gradient and Hessian in x from those along the directions."""
        return first, second

    def directions(self, x: Array) -> Array:
        """Derivatives of x along: rows for the elements of x, columns for the directions."""
        return np.eye(len(x))

    # ---- evaluation ----------------------------------------------------------------------------

    @property
    def nu(self) -> float:
        """Divisor of the residual variance."""
        return float(self.n - (self.c - 1 if self.reml else 0))

    def at(self, x: Array, order: int) -> tuple[float, float, Array | None, Array | None]:
        """Value, its rounding error, gradient and Hessian; an infinite value outside the domain.

        What is known of the last point is not computed again.
        """
        if not (self._point is not None and self._kind == self.reml and np.array_equal(self._point, x)):
            self._done = -1
            self._point, self._kind = None, self.reml
            self.n_evaluations += 1
            with np.errstate(over="ignore", invalid="ignore"):
                self.log_det, H = self.reduce(x)
            if H is None or not self._profile(H):
                return inf, 0.0, None, None
            self._point = x.copy()
            spread = self.nu * (1.0 + log(2.0 * pi * self.r2 / self.nu))
            inner = 2.0 * float(np.log(self.chol.diagonal()).sum()) if self.reml else 0.0
            self._value = self.log_det + spread + inner
            self._noise = EPS * (self.n + abs(self.log_det) + abs(spread) + abs(inner))
            self._done = 0
        bracket = 1.0 if self.reml else 0.0
        ratio = self.nu / self.r2
        if order >= 1 and self._done < 1:
            self.weigh(self._turn())
            self._first = self.first(x, ratio, bracket)
            self._done = 1
        if order >= 2 and self._done < 2:
            second, self._cross = self._bent(x, ratio, bracket)
            t = self._cross[:, -1, -1]
            self._second = second - ratio / self.r2 * np.outer(t, t)
            self._done = 2
        if order == 0:
            return self._value, self._noise, None, None
        gradient, hessian = self.chained(x, self._first, self._second if order > 1 else None)
        return self._value, self._noise, gradient, hessian

    def _turn(self) -> Array:
        """From V^-1 [X y] to [A e] (c, c)."""
        turn = np.zeros((self.c, self.c))
        turn[:-1, :-1] = self.half.T
        turn[:-1, -1] = -self.beta
        turn[-1, -1] = 1.0
        return turn

    def _bent(self, x: Array, ratio: float, bracket: float) -> tuple[Array, Array]:
        """Second derivatives along all directions where sigma^2 = 1 / ratio is given (n_d, n_d); [A e]'D[A e]."""
        second = self.along(-1.0, 2.0 * ratio, 2.0 * bracket)
        k = self.part.n_parameters
        second[len(second) - k :, len(second) - k :] += self.bend(x)
        S = self._crossed()
        within, s = S[:, :-1, :-1].reshape(len(S), (self.c - 1) ** 2), S[:, :-1, -1]
        second -= 2.0 * ratio * (s @ s.T)
        if bracket:
            second -= within @ within.T
        return second, S

    def unprofiled(self, x: Array, s: float) -> Unprofiled | None:
        """The criterion with s = log sigma^2 a parameter of its own, and its derivatives; None outside the domain.

        With d as above, d(x, s) = log|V| + nu (log 2 pi + s) + exp(-s) r^2 [+ log|X'V^-1X|].

        Parameters
        ----------
        x : (k,) array
        s : float
        """
        self._point = None  # the rows may be weighed already
        if not isfinite(StructuredCriterion.at(self, x, 0)[0]):
            return None
        ratio, bracket = exp(-s), 1.0 if self.reml else 0.0
        self.weigh(self._turn())
        first = self.first(x, ratio, bracket)
        second, S = self._bent(x, ratio, bracket)
        self._point = None
        rest = ratio * self.r2
        inner = 2.0 * float(np.log(self.chol.diagonal()).sum()) if self.reml else 0.0
        value = self.log_det + self.nu * (log(2.0 * pi) + s) + rest + inner
        return Unprofiled(value, first, second, self.nu - rest, rest, ratio * S[:, -1, -1])

    def cross_products(self) -> Array:
        """[A e]'D[A e] for all directions (n_d, c, c), at the last point of order 2: S_D, s_D and t_D."""
        return self._cross

    def _profile(self, H: Array) -> bool:
        """Cholesky's factor of H: coefficients, r^2."""
        H[-1, -1] += self.alone
        try:
            full = np.linalg.cholesky(H)
        except np.linalg.LinAlgError:
            full = np.zeros_like(H)
        if not H[-1, -1] < LOST * full[-1, -1] ** 2:
            # r^2 is lost in y'V^-1 y, as near to singular V: from the rows
            rows = None if self.alone else self.whitened()
            if rows is not None:
                triangle: Array = np.asarray(np.linalg.qr(rows, mode="r"), dtype=np.float64)
                full = (triangle * np.where(np.diag(triangle) < 0.0, -1.0, 1.0)[:, None]).T
            if len(full) < self.c or not (np.diag(full) > 0.0).all():
                return False
        self.chol: Array = np.asarray(full[:-1, :-1], dtype=np.float64)
        self.r2 = float(full[-1, -1] ** 2)
        try:
            self.half: Array = np.asarray(np.linalg.inv(self.chol), dtype=np.float64)
        except np.linalg.LinAlgError:  # a pivot is subnormal
            return False
        self.beta = np.asarray(self.half.T @ full[-1, :-1])
        return bool(self.r2 > 0.0) and bool(np.isfinite(self.half).all())

    # ---- what inference needs, at the last point of order 1 or more ----------------------------

    @property
    def remainder(self) -> float:
        """1: nothing is lost, as all is made of sums of squares."""
        return 1.0

    def solution(self) -> tuple[Array, float, Array, Array]:
        """Coefficients, r^2, Cholesky's factor of X'V^-1X, and the derivative in G as a symmetric matrix."""
        return self.beta, self.r2, self.chol, self.slope_in_g()

    def slope_in_g(self) -> Array:
        """Derivative of the criterion in G as a symmetric matrix (q, q), after `first`."""
        return np.zeros((0, 0))

    def first_directions(self) -> Array:
        """First derivatives along all directions, at the last point of order 1 or more."""
        return self._first

    def second_directions(self) -> Array:
        """Second derivatives along all directions, at the last point of order 2."""
        return self._second

    @property
    def unit_places(self) -> NDArray[np.intp]:
        """Which elements of vech(G), lower triangle by rows, the directions of G are."""
        return np.zeros(0, dtype=np.intp)

    def expected(self) -> Array:
        """tr(V^-1 dV V^-1 dV) less twice that within X, for pairs of directions."""
        return self.along(1.0, 0.0, -2.0)

    @abstractmethod
    def solve(self, v: Array, rows: ConditionedRows) -> Array:
        """V^-1 v by the rows of the problem, V relative to sigma^2; (n,) or (n, k) array."""


def structured_engine(engine: Engine) -> StructuredCriterion:
    """The engine, which must be one of structured residuals."""
    if not isinstance(engine, StructuredCriterion):
        raise TypeError(f"an engine of structured residuals is needed, not {type(engine).__name__}")
    return engine
