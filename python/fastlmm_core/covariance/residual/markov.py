"""Long series: rows whitened one after the other where the correlation is that of a Markov chain, O(n).

With u_k = r_k / s_k in the order of time, rho_k the correlation of rows k - 1 and k, and tau_k = artanh(rho_k):

    w_1 = u_1,   w_k = (u_k - rho_k u_{k-1}) / sqrt(1 - rho_k^2),   b_k = (rho_k u_k - u_{k-1}) / sqrt(1 - rho_k^2)

w w' sums to r'R^-1 r, and dw = b dtau, db = w dtau: along a parameter of the correlations w' = b tau' and
w'' = w tau'^2 + b tau''. Along those of s, u' = -h_a u and u'' = (h_a h_b - h_ab) u, and w is linear in u.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from .deviations import Common
from .scaled import Scaled
from .steps import Steps
from .structure import Array, ResidualStructure, Where
from .varied import Varied

__all__ = ["Chain", "MarkovChain", "Products", "chain_of", "products", "whiten_twice"]

Index = NDArray[np.intp]

CHUNK = 4096
"""Rows that are whitened at a time: what is made of them stays in the cache."""


@runtime_checkable
class MarkovChain(Protocol):
    """A correlation of one parameter that is a Markov chain along the first coordinate, or along positions."""

    def steps(self, phi: Array, gaps: Where) -> Steps:
        """Correlations over gaps (n,) > 0."""


class Products(NamedTuple):
    """Sums of products A_i = columns'R_i^-1 columns of the rows of subjects, and log|R|, with derivatives in phi.

    Attributes
    ----------
    triangle : (m, c, c) array
        Upper triangular factor of A_i.
    first, second : (k, m, c, c), (k, k, m, c, c) arrays
        Derivatives of A_i.
    log_det : float
        Of all subjects.
    log_det_first, log_det_second : (k,) and (k, k) arrays
    """

    triangle: Array
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

    def both(self, columns: Array, rows: slice, factor: Array | None) -> tuple[Array, Array]:
        """w, and tau' b, of some rows of a subject (c, rows).

        Parameters
        ----------
        columns : (c, n) array
        rows : slice
        factor : (n,) array or None
            What the columns are multiplied by.
        """
        u = columns[:, rows]
        # the first row of a subject has rho = 0 and tau' = 0: what stands before it does not matter
        before = columns[:, rows.start - 1 : rows.stop - 1] if rows.start else columns[:, _shifted(rows)]
        if factor is not None:
            u = u * factor[rows]
            before = before * (factor[rows.start - 1 : rows.stop - 1] if rows.start else factor[_shifted(rows)])
        rho, root = self.rho[rows], self.root[rows]
        w = u - rho * before
        w /= root
        b = rho * u
        b -= before
        b *= self.tau1[rows] / root
        return w, b


def _shifted(rows: slice) -> Index:
    """The rows before, the first standing for itself."""
    return np.asarray(np.maximum(np.arange(rows.start, rows.stop) - 1, 0))


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


def products(chain: Chain, phi: Array, where: Where, starts: Index, columns: Array) -> Products:
    """Sums of products of columns over the rows of subjects.

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
    k, (n, c), m = len(phi) - 1, columns.shape, len(starts)
    held = np.ascontiguousarray(columns.T)
    triangle, first, second = np.zeros((m, c, c)), np.zeros((k + 1, m, c, c)), np.zeros((k + 1, k + 1, m, c, c))
    # tau' is not zero where tau'' is not
    ratio = np.divide(links.tau2, links.tau1, out=np.zeros(n), where=links.tau1 != 0.0)
    for i, (start, stop) in enumerate(pairwise([*starts.tolist(), n])):
        upper = np.zeros((0, c))
        for low in range(start, stop, CHUNK):
            rows = slice(low, min(low + CHUNK, stop))
            w, dw, ddw = _whitened(links, held, rows, ratio)
            upper = np.asarray(np.linalg.qr(np.vstack((upper, w.T)), mode="r"))
            for a in range(k + 1):
                first[a, i] += w @ dw[a].T
                for b in range(a + 1):
                    second[a, b, i] += w @ ddw[a, b].T + dw[a] @ dw[b].T
        triangle[i, : len(upper)] = upper
    first += first.swapaxes(2, 3)
    second += second.swapaxes(3, 4)
    for a in range(k + 1):
        second[:a, a] = second[a, :a]
    rho, rest, slope, bend = links.steps
    log_det_second = np.zeros((k + 1, k + 1))
    log_det_second[:k, :k] = 2.0 * links.bends.sum(axis=2)
    log_det_second[k, k] = -2.0 * float(rho @ bend + rest @ slope**2)
    return Products(
        triangle,
        first,
        second,
        float(2.0 * links.log_s.sum() + np.log(rest).sum()),
        np.append(2.0 * links.h.sum(axis=1), -2.0 * float(rho @ slope)),
        log_det_second,
    )


def _whitened(
    links: _Links, columns: Array, rows: slice, ratio: Array
) -> tuple[Array, list[Array], dict[tuple[int, int], Array]]:
    """Some rows whitened (c, rows), with first derivatives, and second ones for a >= b."""
    h, bends, k = links.h, links.bends, len(links.h)
    base = np.exp(-links.log_s) if k else None
    w, turned = links.both(columns, rows, base)
    dw, ddw = [], {}
    for a in range(k):
        assert base is not None
        change, ddw[k, a] = links.both(columns, rows, -h[a] * base)
        dw.append(change)
        for b in range(a + 1):
            ddw[a, b] = links.both(columns, rows, (h[a] * h[b] - bends[a, b]) * base)[0]
    dw.append(turned)
    ddw[k, k] = w * links.tau1[rows] ** 2 + turned * ratio[rows]
    return w, dw, ddw


def whiten_twice(chain: Chain, phi: Array, where: Where, starts: Index, columns: Array) -> Array:
    """R~^-1 columns (n, c): whitened, and by the transposed of what whitens."""
    links = _links(chain, phi, where, starts)
    scale = np.exp(-links.log_s)
    scaled = links.both(np.ascontiguousarray(columns.T), slice(0, len(where)), scale)[0] / links.root
    scaled[:, :-1] -= links.rho[1:] * scaled[:, 1:]
    return (scaled * scale).T
