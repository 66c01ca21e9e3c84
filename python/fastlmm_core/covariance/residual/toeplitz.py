"""A correlation for each lag: `toep` and `toeph`, by partial autocorrelations.

r(pi) is Durbin and Levinson's recursion, which gives a positive definite C for all pi in (-1, 1):

    r_k = pi_k v_{k-1} + sum_j f_{k-1,j} r_{k-j},    f_kj = f_{k-1,j} - pi_k f_{k-1,k-j},  f_kk = pi_k,
    v_k = v_{k-1} (1 - pi_k^2)

and its derivatives are those of the recursion, taken twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ...errors import LMMError
from .links import Hyperbolic
from .moments import positive_definite, visit_covariance
from .structure import NEAR, Array, Rows, Where

__all__ = ["Toeplitz"]

_LINK = Hyperbolic()


def _step(
    k: int, pi: float, r: list[Array], f: list[Array], v: list[Array], order: int
) -> tuple[list[Array], list[Array]]:
    """Step k of the recursion: r gets its entry k; new f and v. Each list holds value, first and second derivatives.

    Derivatives are taken in pi_1, ..., pi_k only, so the axes of parameters have length K and use their first k places.
    """
    p = k - 1
    back = [part[..., k - 1 : 0 : -1] for part in r]  # r_{k-j} for j = 1, ..., k - 1
    turned = [part[..., ::-1] for part in f]  # f_{k-j}
    rest = 1.0 - pi * pi
    r[0][k] = pi * v[0] + f[0] @ back[0]
    new_f = [np.append(f[0] - pi * turned[0], pi)]
    new_v = [v[0] * rest]
    if order >= 1:
        r[1][:, k] = pi * v[1] + f[1] @ back[0] + back[1] @ f[0]
        r[1][p, k] += v[0]
        change = f[1] - pi * turned[1]
        change[p] -= turned[0]
        unit = np.zeros((len(change), 1))
        unit[p] = 1.0
        new_f.append(np.hstack((change, unit)))
        slope = v[1] * rest
        slope[p] -= 2.0 * pi * v[0]
        new_v.append(slope)
    if order >= 2:
        mixed = f[1] @ back[1].T
        bend = pi * v[2] + f[2] @ back[0] + back[2] @ f[0] + mixed + mixed.T
        bend[p] += v[1]
        bend[:, p] += v[1]
        r[2][:, :, k] = bend
        twice = f[2] - pi * turned[2]
        twice[p] -= turned[1]
        twice[:, p] -= turned[1]
        new_f.append(np.concatenate((twice, np.zeros((*twice.shape[:2], 1))), axis=2))
        curve = v[2] * rest
        curve[p] -= 2.0 * pi * v[1]
        curve[:, p] -= 2.0 * pi * v[1]
        curve[p, p] -= 2.0 * v[0]
        new_v.append(curve)
    return new_f, new_v


@lru_cache(maxsize=8)
def _correlations(raw: bytes, order: int) -> tuple[Array, ...]:
    """r (m,), dr / dphi (m - 1, m) and d2r / dphi_a dphi_b (m - 1, m - 1, m) of phi, up to an order.

    Matrix, gradient and Hessian at one phi ask one after the other, the latter two for all; the last few are kept.
    """
    x = np.frombuffer(raw)
    pi, first, second = _LINK.at(x)
    K = len(x)
    shapes: list[tuple[int, ...]] = [(), (K,), (K, K)][: order + 1]
    r = [np.zeros((*shape, K + 1)) for shape in shapes]
    r[0][0] = 1.0
    f = [np.zeros((*shape, 0)) for shape in shapes]
    v: list[Array] = [np.ones(()), *(np.zeros(shape) for shape in shapes[1:])]
    for k in range(1, K + 1):
        f, v = _step(k, float(pi[k - 1]), r, f, v, order)
    if order >= 2:
        r[2] *= (first[:, None] * first)[:, :, None]
        r[2][range(K), range(K)] += second[:, None] * r[1]
    if order >= 1:
        r[1] *= first[:, None]
    for part in r:
        part.setflags(write=False)
    return tuple(r)


def partial_autocorrelations(r: Array) -> Array:
    """Durbin and Levinson's recursion backwards: pi (m - 1,) from the correlations at lags 1, ..., m - 1."""
    pi = np.empty(len(r))
    f = np.empty(0)
    v = 1.0
    for k in range(len(r)):
        pi[k] = (r[k] - f @ r[:k][::-1]) / v
        if not abs(pi[k]) < 1.0:
            raise LMMError("The correlations are not those of a positive definite Toeplitz matrix.")
        f = np.append(f - pi[k] * f[::-1], pi[k])
        v *= 1.0 - pi[k] ** 2
    return pi


@dataclass(frozen=True)
class Toeplitz:
    """C_ij = r_|i - j|.

    Parameters
    ----------
    m : int
        Number of positions.
    """

    m: int
    name: str = "toep"
    linear: bool = True

    @property
    def positions(self) -> int:
        """m."""
        return self.m

    @property
    def n_parameters(self) -> int:
        """m - 1."""
        return self.m - 1

    def labels(self, labels: Sequence[str]) -> tuple[str, ...]:
        """``rho_lag1``, ``rho_lag2``, ..."""
        return tuple(f"rho_lag{k}" for k in range(1, self.m))

    def matrix(self, phi: Array, where: Where) -> Array:
        """C (n, n)."""
        out: Array = _correlations(phi.tobytes(), 0)[0][np.abs(where[:, None] - where)]
        return out

    def jacobian(self, phi: Array, where: Where) -> Array:
        """dC / dphi (m - 1, n, n)."""
        out: Array = _correlations(phi.tobytes(), 2)[1][:, np.abs(where[:, None] - where)]
        return out

    def second(self, phi: Array, where: Where, slope: Array) -> Array:
        """Sums of slope times second derivatives (m - 1, m - 1), by the sums of slope over lags."""
        lags = np.abs(where[:, None] - where)
        sums = np.bincount(lags.ravel(), slope.ravel(), minlength=self.m)
        return _correlations(phi.tobytes(), 2)[2] @ sums

    def second_sum(self, phi: Array, where: Where, weights: Array) -> Array:
        """Weighted sum of second derivatives (n, n)."""
        by_lag = np.tensordot(weights, _correlations(phi.tobytes(), 2)[2], 2)
        out: Array = by_lag[np.abs(where[:, None] - where)]
        return out

    def start(self, rows: Rows) -> Array:
        """Means by lag of the correlations over pairs of rows, drawn to zero until they are positive definite."""
        covariance = visit_covariance(rows, self.m)
        s = np.sqrt(np.diag(covariance))
        lags = np.abs(np.subtract.outer(np.arange(self.m), np.arange(self.m)))
        sums = np.bincount(lags.ravel(), (covariance / s / s[:, None]).ravel())
        means = sums / np.bincount(lags.ravel())
        r: Array = positive_definite(means[lags])[0, 1:]
        pi = np.clip(partial_autocorrelations(r), -0.9, 0.9)
        return _LINK.inverse(np.where(np.abs(pi) < 0.01, 0.01, pi))

    def natural(self, phi: Array) -> Array:
        """The correlations by lag (m - 1,)."""
        return _correlations(phi.tobytes(), 0)[0][1:].copy()

    def from_natural(self, c: Array) -> Array:
        """Phi from the correlations by lag."""
        return _LINK.inverse(partial_autocorrelations(c))

    def natural_jacobian(self, phi: Array) -> Array:
        """Derivatives of the correlations by lag (m - 1, m - 1)."""
        return _correlations(phi.tobytes(), 2)[1][:, 1:].T.copy()

    def natural_second(self, phi: Array, weights: Array) -> Array:
        """Second derivatives of their weighted sum (m - 1, m - 1)."""
        return _correlations(phi.tobytes(), 2)[2][:, :, 1:] @ weights

    def boundary(self, phi: Array, labels: Sequence[str]) -> tuple[str, str] | None:
        """The first partial autocorrelation at -1 or 1."""
        pi = _LINK.at(phi).value
        limits = np.flatnonzero(1.0 - np.abs(pi) < NEAR)
        if not len(limits):
            return None
        k = int(limits[0])
        return f"rho_lag{k + 1}" if k == 0 else f"partial rho_lag{k + 1}", f"{pi[k]:.0f}"
