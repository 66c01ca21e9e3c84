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

__all__ = ["Chain", "MarkovChain", "Whitened", "chain_of", "whiten", "whiten_twice"]

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


class _Links(NamedTuple):
    """What leads from each row to the one before it; a subject's first row has none.

    Attributes
    ----------
    log_s : (n,) array
    h, bends : (k - 1, n), (k - 1, k - 1, n) arrays
        Derivatives of log s.
    rho, root : (n,) arrays
        rho_k and sqrt(1 - rho_k^2).
    steps : Steps
        Of the rows that have one before them.
    tau1, tau2 : (n,) arrays
    """

    log_s: Array
    h: Array
    bends: Array
    rho: Array
    root: Array
    steps: Steps
    tau1: Array
    tau2: Array

    def standardized(self, columns: Array) -> Array:
        """u, for columns as rows (c, n)."""
        return columns * np.exp(-self.log_s) if len(self.h) else columns

    def both(self, u: Array) -> tuple[Array, Array]:
        """w, and tau' b, of standardized columns as rows (c, n)."""
        w, b = u.copy(), self.rho * u
        w[:, 1:] -= self.rho[1:] * u[:, :-1]
        b[:, 1:] -= u[:, :-1]
        w /= self.root
        b *= self.tau1 / self.root
        return w, b


def _links(chain: Chain, phi: Array, where: Where, starts: Index) -> _Links:
    k, n = len(phi) - 1, len(where)
    h, bends, log_s = np.zeros((k, n)), np.zeros((k, k, n)), np.zeros(n)
    if chain.varied is not None:
        function = chain.varied.function
        covariates = where[:, where.shape[1] - function.n_columns :]
        log_s, (_, h, bends) = function.logarithm(phi[:k], covariates), function.at(phi[:k], covariates)
    time = where if where.ndim == 1 else where[:, 0]
    if chain.varied is not None and chain.varied.inner.positions is not None:
        time = time.astype(np.intp)
    inside = np.ones(n, dtype=bool)
    inside[starts] = False
    steps = chain.correlation.steps(phi[k:], np.diff(time)[inside[1:]])
    rho, root, tau1, tau2 = np.zeros(n), np.ones(n), np.zeros(n), np.zeros(n)
    rho[inside], root[inside] = steps.rho, np.sqrt(steps.rest)
    tau1[inside], tau2[inside] = steps.first, steps.second
    return _Links(log_s, h, bends, rho, root, steps, tau1, tau2)


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
    links = _links(chain, phi, where, starts)
    k = len(phi) - 1
    rho, rest, slope, bend = links.steps
    # columns as rows: what is done to each is done to long vectors
    u = links.standardized(np.ascontiguousarray(columns.T))
    w, turned = links.both(u)
    first = np.empty((k + 1, *w.shape))
    second = np.empty((k + 1, k + 1, *w.shape))
    first[k] = turned
    # tau' is not zero where tau'' is not
    ratio = np.divide(links.tau2, links.tau1, out=np.zeros_like(links.tau1), where=links.tau1 != 0.0)
    second[k, k] = w * links.tau1**2 + turned * ratio
    h, bends = links.h, links.bends
    for a in range(k):
        first[a], second[a, k] = links.both(-h[a] * u)
        second[k, a] = second[a, k]
        for other in range(a + 1):
            second[a, other] = second[other, a] = links.both((h[a] * h[other] - bends[a, other]) * u)[0]
    log_det_second = np.zeros((k + 1, k + 1))
    log_det_second[:k, :k] = 2.0 * bends.sum(axis=2)
    log_det_second[k, k] = -2.0 * float(rho @ bend + rest @ slope**2)
    return Whitened(
        w.T, first.swapaxes(1, 2), second.swapaxes(2, 3),
        float(2.0 * links.log_s.sum() + np.log(rest).sum()),
        np.append(2.0 * h.sum(axis=1), -2.0 * float(rho @ slope)),
        log_det_second,
    )  # fmt: skip


def whiten_twice(chain: Chain, phi: Array, where: Where, starts: Index, columns: Array) -> Array:
    """R~^-1 columns (n, c): whitened, and by the transposed of what whitens."""
    links = _links(chain, phi, where, starts)
    scaled = links.both(links.standardized(np.ascontiguousarray(columns.T)))[0] / links.root
    scaled[:, :-1] -= links.rho[1:] * scaled[:, 1:]
    return links.standardized(scaled).T
