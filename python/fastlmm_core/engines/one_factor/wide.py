"""The criterion of one grouping factor for many fixed effects, by BLAS and LAPACK.

The same criterion as `kernels.ClusterCriterion` (see fastlmm_core/lanes/profile.pxi), whose plain loops are the faster
ones up to a few dozen columns.  With N_i = Z_i'V_i^-1 Z_i, E_i = Z_i'V_i^-1 [X_i y_i], R R' = H = [X y]'V^-1[X y] and
b = (-beta, 1), everything that derivatives need of E_i is e_i = E_i b and the whitened P_i = R_xx^-1 (E_i)_x':

    d_D d     = <sum N_i - (nu / r^2) e_i e_i' [- P_i'P_i], D>
    d_D d_F d = sum tr((-N_i + 2 (nu / r^2) e_i e_i' [+ 2 P_i'P_i]) D N_i F)
                - (nu / r^2) (2 u_D'u_F + s_D s_F / r^2) [- tr(S_D S_F)]
    u_D = sum P_i D e_i,   s_D = sum e_i'D e_i,   S_D = sum P_i D P_i'

(terms in brackets: REML).  Where the groups have fewer effects than X has columns, tr(S_D S_F) is taken from the
products P_i'P_j of all pairs of groups.  Groups are read in panels, twice per evaluation, and nothing is kept of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, log, pi

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.blas import dtrsm
from scipy.linalg.lapack import dpotrf

from ... import kernels
from ...kernels.records.rows import ConditionedRows
from ...kernels.residuals import ScriptedObjective
from ...support.types import Array, Index
from .panels import GroupSums, Panels

__all__ = ["WideCriterion"]


EPS = float(np.finfo(float).eps)

ALONE = 256
"""Columns up to which the threads of BLAS cost more than they gain."""

SAME = 1e-14
"""Relative difference of elements of G^ up to which it is the one of the last point."""


@dataclass
class Point:
    """What is known at the last point: `order` of derivatives along the unit directions of G^."""

    reml: bool
    F: Array
    G: Array
    order: int
    value: float
    noise: float
    beta: Array
    r2: float
    R: Array
    """Lower triangular factor of H (k, k), in the memory order of LAPACK."""
    sum_n: Array
    slope: Array | None = None
    curve: Array | None = None


class WideCriterion(ScriptedObjective):
    """The criterion as a function of the free elements of L, with the interface of `kernels.ClusterCriterion`.

    Parameters
    ----------
    packed, within, n_rows, q, k, rows, columns, uniform :
        See `kernels.ClusterCriterion`.
    groups : GroupSums, optional
        Instead of `packed`: what gives sums over groups that are elsewhere.
    """

    costly = False
    remainder = 1.0

    def __init__(
        self, packed: Array, within: Array, n_rows: int, q: int, k: int, rows: Index, columns: Index, uniform: bool,
        *, groups: GroupSums | None = None,
    ) -> None:  # fmt: skip
        self.reml = True
        self.n_evaluations = 0
        self.q, self.k, self.n_rows = q, k, n_rows
        self._groups: GroupSums = Panels(packed, uniform, q, k) if groups is None else groups
        self._within: Array = kernels.unpack(np.ascontiguousarray(within), k)
        self._rows, self._columns = np.asarray(rows, dtype=np.intp), np.asarray(columns, dtype=np.intp)
        self._basis: Array | None = None
        self._point: Point | None = None
        self._lower = np.tril_indices(q)
        self.prepare(len(rows))

    @property
    def serial(self) -> bool:
        """Whether its matrices are of a size that one BLAS thread serves best."""
        return self.k <= ALONE

    def of_rank(self, rank: int) -> WideCriterion:
        """The criterion as a function of L with so many columns, of all G^ = L L' of that rank at most."""
        within = self._within[np.tril_indices(self.k)]
        rows, columns = np.tril_indices(self.q, 0, rank)
        out = WideCriterion(
            np.zeros((0, 0, 0)), within, self.n_rows, self.q, self.k, rows, columns, False, groups=self._groups
        )
        out.reml = self.reml
        return out

    # ---- evaluation ----------------------------------------------------------------------------

    def at(self, x: Array, order: int) -> tuple[float, float, Array | None, Array | None]:
        """Value, its rounding error, gradient and Hessian; an infinite value outside the domain."""
        F = np.zeros((self.q, self.q))
        F[self._rows, self._columns] = x
        if self._basis is not None:
            F = self._basis @ F
        point = self._known(F)
        if point is None:
            self._point = None
            self.n_evaluations += 1
            point = self._value(F)
            if point is None:
                return inf, 0.0, None, None
            self._point = point
        if order > max(point.order, 0):
            self._differentiate(point, order)
        if order == 0:
            return point.value, point.noise, None, None
        return point.value, point.noise, *self._chained(F, point, order)

    def _known(self, F: Array) -> Point | None:
        """The last point, if it has the same G^ to rounding: theta may have other coordinates since."""
        point = self._point
        if point is None or point.reml != self.reml:
            return None
        if np.array_equal(F, point.F):
            return point
        return point if np.abs(F @ F.T - point.G).max() <= SAME * np.abs(point.G).max() else None

    def _value(self, F: Array) -> Point | None:
        """The criterion; None where it is not defined."""
        nu = float(self.n_rows - (self.k - 1 if self.reml else 0))
        log_det, sum_n, between = self._groups.values(F)
        H = self._within + between
        R, info = dpotrf(H.T, lower=1, clean=1, overwrite_a=1)
        if info != 0 or not np.isfinite(log_det):
            return None
        beta = dtrsm(1.0, R[:-1, :-1], R[-1:, :-1].T, lower=1, trans_a=1)[:, 0]
        r2 = float(R[-1, -1] ** 2)
        spread = nu * (1.0 + log(2.0 * pi * r2 / nu))
        inner = 2.0 * float(np.log(R.diagonal()[:-1]).sum()) if self.reml else 0.0
        value = log_det + spread + inner
        if not np.isfinite(value):
            return None
        noise = EPS * (abs(log_det) + abs(spread) + abs(inner) + nu)
        return Point(self.reml, F, F @ F.T, 0, value, noise, beta, r2, R, sum_n)

    def _differentiate(self, point: Point, order: int) -> None:
        """Derivatives along the unit directions of G^."""
        q, k = self.q, self.k
        p = k - 1
        ratio = float(self.n_rows - (p if self.reml else 0)) / point.r2
        lower, upper = self._lower
        pairs = self._groups.effects < p
        outer, square, tensor, u, within, whitened = self._groups.derivatives(
            point.F, point.R, point.beta, ratio, self.reml, order, pairs
        )
        square[upper, lower] = square[lower, upper]
        slope = -ratio * outer - square
        slope[lower, upper] += point.sum_n
        slope[upper, lower] = slope[lower, upper]
        point.slope = slope
        if order >= 2:
            curve = kernels.contracted(tensor, q)
            curve = 0.5 * (curve + curve.T)
            # u_D and s_D of the unit directions
            both = (u + u.transpose(0, 2, 1))[:, lower, upper] * np.where(lower == upper, 0.5, 1.0)
            s = outer[lower, upper] * np.where(lower == upper, 1.0, 2.0)
            curve -= ratio * (2.0 * both.T @ both + np.outer(s, s) / point.r2)
            if self.reml:
                curve -= _paired(whitened, q) if pairs else _squared(within, lower == upper)
            point.curve = curve
        point.order = order

    def _chained(self, F: Array, point: Point, order: int) -> tuple[Array, Array | None]:
        """Gradient and Hessian in theta: see fastlmm_core/small/chain.pxi."""
        assert point.slope is not None
        curve = point.curve
        rows, columns, q = self._rows, self._columns, self.q
        basis = np.eye(q) if self._basis is None else self._basis
        turned = basis.T @ point.slope
        gradient = 2.0 * (turned @ F)[rows, columns]
        if order < 2 or curve is None:
            return gradient, None
        lower, upper = self._lower
        jacobian = basis[lower][:, rows] * F[upper][:, columns] + basis[upper][:, rows] * F[lower][:, columns]
        bend = 2.0 * (turned @ basis)[np.ix_(rows, rows)] * (columns[:, None] == columns)
        return gradient, jacobian.T @ curve @ jacobian + bend

    # ---- what inference needs, at the last point ----------------------------------------------

    def _require(self, order: int) -> Point:
        if self._point is None or self._point.order < order:
            raise ValueError(f"evaluate with order={order} first")
        return self._point

    def rotate(self, turn: Array | None = None) -> None:
        """Let theta be the free elements of L in G^ = Q'L L'Q from now on; see `kernels.ClusterCriterion.rotate`."""
        self._basis = None if turn is None else np.array(np.transpose(turn), dtype=float)

    def solution(self) -> tuple[Array, float, Array, Array]:
        """Coefficients, r^2, lower triangular factor of H_xx, and the derivative in G^ as a symmetric matrix."""
        point = self._require(0)
        slope = np.zeros((self.q, self.q)) if point.slope is None else point.slope
        return point.beta, point.r2, np.ascontiguousarray(point.R[:-1, :-1]), slope

    def curvature(self) -> Array:
        """Second derivatives along the unit directions of G^ (n_a, n_a)."""
        curve = self._require(2).curve
        assert curve is not None
        return curve.copy()

    def solve(self, v: Array, rows: ConditionedRows) -> Array:
        """V^-1 v by rows at the last point, V relative to sigma^2; see `kernels.ClusterCriterion.solve`."""
        return kernels.solve_rows(v, rows, self._require(0).F)

    def precision(self) -> Array:
        """sum N_i (q, q)."""
        return kernels.unpack(self._require(0).sum_n, self.q)

    def cross(self) -> Array:
        """sum E_i'D E_i for the unit directions D of vech(G^), (n_a, k, k)."""
        point = self._require(1)
        lower, upper = self._lower
        out = self._groups.cross(point.F)
        off = lower != upper
        out[off] += out[off].transpose(0, 2, 1)
        return out

    def traces(self, weight: Array | None = None) -> Array:
        """tr(sum B_i D N_i F) for the unit directions D, F; see `kernels.ClusterCriterion.traces`."""
        point = self._require(2)
        return kernels.contracted(self._groups.traces(point.F, weight), self.q)

    def sandwich(self, weight: Array) -> Array:
        """sum_kl w_kl E_i'D_k N_i D_l E_i (k, k); see `kernels.ClusterCriterion.sandwich`."""
        point = self._require(2)
        mapped = kernels.sandwich_map(weight, self.q)
        out = self._groups.sandwich(point.F, mapped)
        return 0.5 * (out + out.T)


def _squared(within: Array, diagonal: NDArray[np.bool_]) -> Array:
    """tr(S_D S_F) of the unit directions from sum P_a P_b' (n_a, p, p)."""
    whole = within.copy()
    whole[~diagonal] += within[~diagonal].transpose(0, 2, 1)
    flat = whole.reshape(len(whole), -1)
    return np.asarray(flat @ flat.T)


def _paired(whitened: list[Array], q: int) -> Array:
    """tr(S_D S_F) of the unit directions from P (p, q, .): S_ab = P_a P_b' + P_b P_a'."""
    P = np.concatenate(whitened, axis=2)
    p, m = len(P), P.shape[2]
    flat = P.reshape(p, q * m)
    products = (flat.T @ flat).reshape(q, m, q, m).transpose(0, 2, 1, 3).reshape(q * q, m * m)
    # tr(P_a P_b' P_c P_d') = sum over pairs of (P_a'P_d) (P_b'P_c)
    four = (products @ products.T).reshape(q, q, q, q).transpose(0, 2, 3, 1)
    lower, upper = np.tril_indices(q)
    a, b, c, d = lower[:, None], upper[:, None], lower, upper
    total = four[a, b, c, d] + four[a, b, d, c] + four[b, a, c, d] + four[b, a, d, c]
    # on the diagonal the two terms are one
    share = np.where(lower == upper, 0.5, 1.0)
    return np.asarray(total * share[:, None] * share)
