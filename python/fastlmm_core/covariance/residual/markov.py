"""Long series: rows whitened one after the other where the correlation is that of a Markov chain, O(n).

With u_k = r_k / s_k in the order of time, rho_k the correlation of rows k - 1 and k, and tau_k = artanh(rho_k):

    w_1 = u_1,   w_k = (u_k - rho_k u_{k-1}) / sqrt(1 - rho_k^2),   b_k = (rho_k u_k - u_{k-1}) / sqrt(1 - rho_k^2)

w w' sums to r'R^-1 r, and dw = b dtau, db = w dtau: along a parameter of the correlations w' = b tau' and
w'' = w tau'^2 + b tau''. Along those of s, u' = -h_a u and u'' = (h_a h_b - h_ab) u, and w is linear in u.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from .deviations import Common
from .scaled import Scaled
from .steps import Steps
from .structure import Array, ResidualStructure, Where
from .varied import Varied

__all__ = ["MarkovChain", "Whitened", "chain_of", "whiten"]

Index = NDArray[np.intp]


@runtime_checkable
class MarkovChain(Protocol):
    """A correlation of one parameter that is a Markov chain along the first coordinate, or along positions."""

    def steps(self, phi: Array, gaps: Where) -> Steps:
        """Correlations over gaps (n,) > 0."""


class Whitened(NamedTuple):
    """Columns whitened, and the logarithm of the determinant, with derivatives in phi.

    Attributes
    ----------
    value : (n, c) array
    first : (k, n, c) array
    second : (k, k, n, c) array
    log_det : float
        log |R~|.
    log_det_first, log_det_second : (k,) and (k, k) arrays
    """

    value: Array
    first: Array
    second: Array
    log_det: float
    log_det_first: Array
    log_det_second: Array


@dataclass(frozen=True)
class Chain:
    """A structure read as a Markov chain: whose standard deviations, and what correlations."""

    varied: Varied | None
    correlation: MarkovChain


def chain_of(structure: ResidualStructure, n_coordinates: int = 1) -> Chain | None:
    """The structure as a Markov chain, None where it is none.

    Parameters
    ----------
    structure : ResidualStructure
    n_coordinates : int
        Of the rows, where they are told by coordinates: a Markov chain has one.
    """
    inner = structure.inner if isinstance(structure, Varied) else structure
    if not isinstance(inner, Scaled) or not isinstance(inner.deviations, Common) or n_coordinates != 1:
        return None
    if not isinstance(inner.correlation, MarkovChain):
        return None
    return Chain(structure if isinstance(structure, Varied) else None, inner.correlation)


def whiten(chain: Chain, phi: Array, where: Where, starts: Index, columns: Array) -> Whitened:
    """Whiten columns by the covariance of the rows of subjects.

    Parameters
    ----------
    chain : Chain
        From `chain_of`.
    phi : (k,) array
        Of the structure.
    where : (n,) or (n, d) array
        Of the rows, subject by subject and in the order of time.
    starts : (m,) int array
        First row of each subject.
    columns : (n, c) array
    """
    k = len(phi) - 1
    h, bends, log_s = np.zeros((k, len(where))), np.zeros((k, k, len(where))), np.zeros(len(where))
    if chain.varied is not None:
        function = chain.varied.function
        found = function.at(phi[:k], where[:, where.shape[1] - function.n_columns :])
        log_s, h, bends = function.logarithm(phi[:k], where[:, where.shape[1] - function.n_columns :]), *found[1:]
    time = where if where.ndim == 1 else where[:, 0]
    inside = np.ones(len(time), dtype=bool)
    inside[starts] = False
    later = np.flatnonzero(inside)
    rho, rest, slope, bend = chain.correlation.steps(phi[k:], time[later] - time[later - 1])

    def both(u: Array) -> tuple[Array, Array]:
        w, b = u.copy(), np.zeros_like(u)
        root = np.sqrt(rest)[:, None]
        w[later] = (u[later] - rho[:, None] * u[later - 1]) / root
        b[later] = (rho[:, None] * u[later] - u[later - 1]) / root
        return w, b

    tau1, tau2 = np.zeros((2, len(time), 1))
    tau1[later, 0], tau2[later, 0] = slope, bend
    u = columns * np.exp(-log_s)[:, None]
    w, b = both(u)
    first = np.empty((k + 1, *w.shape))
    second = np.empty((k + 1, k + 1, *w.shape))
    first[k], second[k, k] = b * tau1, w * tau1**2 + b * tau2
    for a in range(k):
        first[a], turned = both(-h[a][:, None] * u)
        second[a, k] = second[k, a] = turned * tau1
        for other in range(a + 1):
            second[a, other] = second[other, a] = both((h[a] * h[other] - bends[a, other])[:, None] * u)[0]
    log_det_second = np.zeros((k + 1, k + 1))
    log_det_second[:k, :k] = 2.0 * bends.sum(axis=2)
    log_det_second[k, k] = -2.0 * float(rho @ bend + rest @ slope**2)
    return Whitened(
        w, first, second,
        float(2.0 * log_s.sum() + np.log(rest).sum()),
        np.append(2.0 * h.sum(axis=1), -2.0 * float(rho @ slope)),
        log_det_second,
    )  # fmt: skip
