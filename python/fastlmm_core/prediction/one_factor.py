"""The effects of one factor given the data, and what their prediction loses by the estimation of G.

A prediction x'beta^ + z'b^ of a row of level o is, with the vectors a_i = Z_i'(its weights) less z for i = o,

    a_o = P z - E_o h,    a_i = -E_i h,    h = H^-1 d        (P, E and d as in `predict`),

and its derivative in the relative covariance G^ along D_k is sum_i a_i'D_k s_i, s_i = Z_i'V_i^-1 (y_i - X_i beta^).
Estimated variance parameters therefore add to its error about

    g = sum_kl W_kl T_kl,    T_kl = sum_i a_i'D_k N_i D_l a_i - t_k'H^-1 t_l,    t_k = sum_i E_i'D_k a_i,

N_i = Z_i'V_i^-1 Z_i, W the covariance of G^ (Kackar and Harville 1984, J. Am. Statist. Assoc. 79, 853-862), and the
estimated variance is too small by as much again (Prasad and Rao 1990, J. Am. Statist. Assoc. 85, 163-171; Harville and
Jeske 1992, ibid. 87, 724-731).  Without an effect of the level 2 g is Kenward and Roger's adjustment.  A level that was
observed later has no part in the estimates: there a_o = P z alone, and the covariance of s_o is N_o + E_o H^-1 E_o'.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .. import kernels
from ..engines.one_factor.problem import one_factor
from ..estimation.moments import Moments
from ..support.types import Array, Index

if TYPE_CHECKING:
    from ..estimation.fit import Fit

__all__ = ["LEAST_DF", "OneFactorEffects", "least_stratum", "of_estimation", "solved"]


LEAST_DF = 1.0
"""Least degrees of freedom of a prediction for a known group.

The delta method takes the variance as linear in the variance parameters.  Near a variance of zero that of a group's
mean is not: it is nearly all slope, its degrees of freedom go to zero and the t quantile to 1e10, although the variance
itself is no larger than sigma^2 / n_i.  No mean square has less than one degree of freedom.  A larger floor, that of
the smallest stratum of the design, costs what these intervals are for: with ten groups and a variance of 0.2 they
cover .89 instead of .92, while a floor of 1 changes no coverage."""

HELD = 1 << 20
"""Numbers in the intermediate arrays of a piece of the rows."""


class OneFactorEffects:
    """The groups of one factor, each by itself.

    Parameters
    ----------
    factor : (q, q) array
        L.
    A : (g, q, q) array
    C : (g, q, r + 1) array
        Z'[X_o y_o].
    beta : (r,) array
    n_fitted : int
        So many groups, the first ones, are of the data of the fit; the others were observed later.
    """

    def __init__(self, factor: Array, A: Array, C: Array, beta: Array, n_fitted: int) -> None:
        self.A, self.n_fitted = A, n_fitted
        # M = L (I + L'A L)^-1 L' has no differences in it, however large L is
        unit = np.eye(len(factor))
        self.M = factor @ np.linalg.solve(unit + factor.T @ A @ factor, np.broadcast_to(factor.T, A.shape))
        self.carried = self.M @ C
        self.carried[:, :, -1] -= self.carried[:, :, :-1] @ beta
        self.C, self.inner = C[:, :, :-1], unit + A @ (factor @ factor.T)

    def at(self, Z: list[Array], levels: list[Index]) -> tuple[Array, Array]:
        (z,), (level,) = Z, levels
        known = level >= 0
        carried, variance = np.zeros((len(z), self.carried.shape[2])), np.zeros(len(z))
        z, level = z[known], level[known]
        carried[known] = np.einsum("ij,ijk->ik", z, self.carried[level])
        variance[known] = np.einsum("ij,ijk,ik->i", z, self.M[level], z)
        return carried, variance

    def turned(self, z: Array, level: Index, h: Array) -> tuple[Array, Array]:
        """P z and E h (n, q) of rows of known levels."""
        P = self._inverse()
        return np.einsum("ijk,ik->ij", P[level], z), np.einsum("ijk,ik->ij", (P @ self.C)[level], h)

    def _inverse(self) -> Array:
        """P (g, q, q)."""
        return np.asarray(np.linalg.inv(self.inner), dtype=np.float64)

    def information(self) -> tuple[Array, Array]:
        """N (g, q, q) and E (g, q, r)."""
        P = self._inverse()
        return P @ self.A, P @ self.C


def of_estimation(
    found: Moments, effects: OneFactorEffects, level: Index, whitened: Array, own: Array, carried: Array
) -> Array:
    """2 g less what is there without an effect of the level, for rows of known levels (n,).

    Parameters
    ----------
    found : Moments
        By Kenward and Roger's method.
    effects : OneFactorEffects
    level : (n,) int array
    whitened : (n, r) array
        L^-1 d, with H = L L'.
    own, carried : (n, q) arrays
        P z, and E_o h.
    """
    N, E = effects.information()
    # L^-1 E'
    turned = found.half @ np.swapaxes(E, 1, 2)
    twice = 2.0 * found.inverse
    units = kernels.unit_directions(own.shape[1])
    fitted = level < effects.n_fitted
    out = np.empty(len(level))
    step = max(1, HELD // max(1, len(units) * (whitened.shape[1] + own.shape[1])))
    for begin in range(0, len(level), step):
        part = slice(begin, begin + step)
        at = level[part]
        ahead = np.einsum("kab,nb->nka", units, own[part])
        # a level of the fit has its own share of the coefficients' errors
        other = own[part] - 2.0 * np.where(fitted[part, None], carried[part], 0.0)
        back = np.einsum("kab,nb->nka", units, other)
        weighted = np.einsum("kl,nla->nka", twice, ahead)
        value = np.einsum("nka,nab,nkb->n", weighted, N[at], back, optimize=True)
        own_t = np.einsum("nra,nka->nkr", turned[at], ahead)
        mixed = own_t - 2.0 * np.einsum("kri,ni->nkr", found.slopes, whitened[part])
        mixed = np.where(fitted[part, None, None], -mixed, own_t)
        value += np.einsum("nkr,kl,nlr->n", own_t, twice, mixed, optimize=True)
        out[part] = 2.0 * value
    return out


def least_stratum(result: Fit) -> float:
    """Degrees of freedom of the stratum between groups, per random effect: at least 1.

    The rank of Z less the dimensions of X within its span, over the number of effects: of a random intercept the number
    of groups less the coefficients between them.
    """
    return result.model.once("least stratum", lambda: _least_stratum(result))


def _least_stratum(result: Fit) -> float:
    problem = one_factor(result.model.problem)
    q, r = problem.structure.q, problem.rank
    rows, columns = np.tril_indices(q)
    lower = np.zeros((len(problem.raw), q, q))
    lower[:, rows, columns] = lower[:, columns, rows] = problem.raw[:, : len(rows)]
    A = problem.z_transform.T @ lower @ problem.z_transform
    levels = int(np.linalg.matrix_rank(A, hermitian=True).sum()) if len(A) else 0
    within = kernels.unpack(problem.within[: r * (r + 1) // 2], r)
    inside = int(np.linalg.matrix_rank(within, tol=1e-9 * problem.n, hermitian=True)) if r else 0
    return max(LEAST_DF, (levels - (r - inside)) / q)


def solved(L: Array, rows: Array) -> Array:
    """L^-1 a for rows a (n, r)."""
    return np.asarray(np.linalg.solve(L, rows.T).T if rows.shape[1] else rows, dtype=np.float64)
