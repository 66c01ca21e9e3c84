"""Long series: rows whitened one after the other where the correlation is that of a Markov chain, O(n).

With u_k = r_k / s_k in the order of time, rho_k the correlation of rows k - 1 and k, and tau_k = artanh(rho_k):

    w_1 = u_1,   w_k = (u_k - rho_k u_{k-1}) / sqrt(1 - rho_k^2),   b_k = (rho_k u_k - u_{k-1}) / sqrt(1 - rho_k^2)

w w' sums to r'R^-1 r, and dw = b dtau, db = w dtau: along a parameter of the correlations w' = b tau' and
w'' = w tau'^2 + b tau''. Along those of s, u' = -h_a u and u'' = (h_a h_b - h_ab) u, and w is linear in u.

Where all s are equal, and gaps between rows are few, rows need not be read again: see `kernels.residuals.GapProducts`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from ...kernels.records.residuals import ChainLinks
from ...kernels.residuals import ChainProducts, GapProducts
from ...support.types import Index
from .deviations import Common
from .scaled import Scaled
from .steps import Steps
from .structure import Array, ResidualStructure, Where
from .varied import Varied

__all__ = [
    "Chain",
    "Gaps",
    "MarkovChain",
    "Products",
    "chain_of",
    "gaps_of",
    "products",
    "products_of_gaps",
    "sums_of_gaps",
    "whiten_twice",
]


CHUNK = 64
"""Rows from which a triangular factor is brought up to date: they stay in the cache."""

MOST_GAPS = 64
"""Different gaps of all subjects up to which it is asked whether each subject has few of them."""

SEVERAL = 2
"""Rows for each gap of a subject from which the sums of its gaps are less to read than its rows."""


@runtime_checkable
class MarkovChain(Protocol):
    """A correlation of one parameter that is a Markov chain along the first coordinate, or along positions."""

    def steps(self, phi: Array, gaps: Where) -> Steps:
        """Correlations over gaps (n,) > 0."""


class Products(NamedTuple):
    """Sums of products A_i of the rows of subjects whitened by R_i, and log|R|, with derivatives in phi.

    Attributes
    ----------
    triangle : (m, q, K) array
        First rows of the upper triangular factors of A_i.
    left : (c, c) array
        The sum of what these leave of A_i.
    root : (c, c) array or None
        Its upper triangular factor, where it was summed as such.
    extent : (c,) array or None
        The diagonal of what `left` is a difference of, where it is one.
    first, second : (k, m, q, K), (k, k, m, q, K) arrays
        First rows of the derivatives of A_i; the correlation has the last parameter.
    first_rest, second_rest : (k, c, c), (k, k, c, c) arrays
        The last part of the derivatives, summed.
    log_det : float
        Of all subjects.
    log_det_first, log_det_second : (k,) and (k, k) arrays
    """

    triangle: Array
    left: Array
    root: Array | None
    extent: Array | None
    first: Array
    second: Array
    first_rest: Array
    second_rest: Array
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


class Gaps(NamedTuple):
    """The gaps between rows of subjects, each once: what does not depend on phi.

    Attributes
    ----------
    values : (U,) array
        Different gaps.
    counts : (U,) array
        Rows that have them.
    place : (n,) intp array
        1 + the gap that a row has before it; 0 for the first row of a subject.
    """

    values: Where
    counts: Array
    place: Index


def gaps_of(chain: Chain, where: Where, starts: Index) -> Gaps:
    """The gaps between the rows of subjects; see `products`."""
    time = where if where.ndim == 1 else where[:, 0]
    if chain.varied is not None and chain.varied.inner.positions is not None:
        time = time.astype(np.intp)
    inside = np.ones(len(where), dtype=bool)
    inside[starts] = False
    values, found, counts = np.unique(np.diff(time)[inside[1:]], return_inverse=True, return_counts=True)
    place = np.zeros(len(where), dtype=np.intp)
    place[inside] = 1 + found
    return Gaps(values, counts.astype(float), place)


class _Links(NamedTuple):
    """What leads from each row to the one before it.

    Attributes
    ----------
    log_s : (n,) array
    h, bends : (k - 1, n), (k - 1, k - 1, n) arrays
        Derivatives of log s; all three are empty where standard deviations are equal.
    steps : Steps
        Of the gaps.
    table : (4, U + 1) array
        rho, sqrt(1 - rho^2), and the derivatives of artanh(rho); for no gap at first.
    """

    log_s: Array
    h: Array
    bends: Array
    steps: Steps
    table: Array

    def kernel(self, gaps: Gaps) -> ChainLinks:
        """What the compiled sums of products read."""
        k, n = self.h.shape
        lower = [(a, b) for a in range(k) for b in range(a + 1)]
        factors = np.empty((1 + k + len(lower), n))
        factors[0] = np.exp(-self.log_s)
        factors[1 : 1 + k] = -self.h * factors[0]
        for place, (a, b) in enumerate(lower, 1 + k):
            factors[place] = (self.h[a] * self.h[b] - self.bends[a, b]) * factors[0]
        return ChainLinks(factors, k, gaps.place, *self.table)


def _links(chain: Chain, phi: Array, where: Where, gaps: Gaps) -> _Links:
    k = len(phi) - 1
    h, bends, log_s = np.zeros((k, 0)), np.zeros((k, k, 0)), np.zeros(0)
    if chain.varied is not None:
        function = chain.varied.function
        covariates = where[:, where.shape[1] - function.n_columns :]
        log_s, (_, h, bends) = function.logarithm(phi[:k], covariates), function.at(phi[:k], covariates)
    steps = chain.correlation.steps(phi[k:], gaps.values)
    table = np.zeros((4, len(gaps.values) + 1))
    table[1, 0] = 1.0
    table[:, 1:] = steps.rho, np.sqrt(steps.rest), steps.first, steps.second
    return _Links(log_s, h, bends, steps, table)


def products(
    chain: Chain, phi: Array, where: Where, starts: Index, columns: Array, q: int, gaps: Gaps | None = None
) -> Products:
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
    columns : (n, K) array
    q : int
        Columns, the first ones, of which the products with all are kept for each subject.
    gaps : Gaps, optional
        From `gaps_of`, where they are known.
    """
    gaps = gaps_of(chain, where, starts) if gaps is None else gaps
    links = _links(chain, phi, where, gaps)
    sums = ChainProducts(
        np.ascontiguousarray(columns), np.append(starts, len(columns)).astype(np.intp), links.kernel(gaps), q, CHUNK
    )
    return Products(
        sums.triangle, sums.rest.T @ sums.rest, sums.rest, None,
        sums.first, sums.second, sums.first_rest, sums.second_rest, *_log_det(links, gaps),
    )  # fmt: skip


def _log_det(links: _Links, gaps: Gaps) -> tuple[float, Array, Array]:
    """log|R|, and its derivatives."""
    (rho, rest, slope, bend), counts, k = links.steps, gaps.counts, len(links.h)
    second = np.zeros((k + 1, k + 1))
    second[:k, :k] = 2.0 * links.bends.sum(axis=2)
    second[k, k] = -2.0 * float(counts @ (rho * bend + rest * slope**2))
    value = float(2.0 * links.log_s.sum() + counts @ np.log(rest))
    return value, np.append(2.0 * links.h.sum(axis=1), -2.0 * float(counts @ (rho * slope))), second


def sums_of_gaps(chain: Chain, starts: Index, columns: Array, q: int, gaps: Gaps) -> GapProducts | None:
    """What `products_of_gaps` reads in place of the rows; None where it would not be less.

    Parameters
    ----------
    chain, starts, columns, q, gaps
        See `products`.
    """
    n, m, n_gaps = len(columns), len(starts), len(gaps.values)
    if chain.varied is not None or n_gaps > min(MOST_GAPS, n // (SEVERAL * columns.shape[1])):
        return None
    subject = np.repeat(np.arange(m), np.diff(starts, append=n))
    seen = np.zeros((m, n_gaps + 1), dtype=bool)
    seen[subject, gaps.place] = True
    if SEVERAL * np.count_nonzero(seen[:, 1:]) > n - m:
        return None
    return GapProducts(np.ascontiguousarray(columns), np.append(starts, n).astype(np.intp), gaps.place, n_gaps, q)


def products_of_gaps(chain: Chain, phi: Array, gaps: Gaps, sums: GapProducts) -> Products:
    """As `products`, from the sums of `sums_of_gaps`."""
    links = _links(chain, phi, np.zeros((0, 1)), gaps)
    rho, rest, slope, bend = links.steps
    with np.errstate(divide="ignore", over="ignore"):
        up = np.where(rho > 0.0, (1.0 + rho) ** 2 / rest, rest / (1.0 - rho) ** 2)
        down = np.where(rho > 0.0, rest / (1.0 + rho) ** 2, (1.0 - rho) ** 2 / rest)
    sums.at(0.25 * up, 0.25 * down, slope, bend)
    return Products(
        sums.triangle, sums.left, None, sums.extent,
        sums.first, sums.second, sums.first_rest, sums.second_rest, *_log_det(links, gaps),
    )  # fmt: skip


def whiten_twice(chain: Chain, phi: Array, where: Where, starts: Index, columns: Array) -> Array:
    """R~^-1 columns (n, c): whitened, and by the transposed of what whitens."""
    gaps = gaps_of(chain, where, starts)
    links = _links(chain, phi, where, gaps)
    scale = np.exp(-links.log_s) if len(links.log_s) else 1.0
    rho, root = links.table[:2, gaps.place]
    u = columns.T * scale
    # the first row of a subject has rho = 0
    u[:, 1:] -= rho[1:] * u[:, :-1]
    u /= root**2
    u[:, :-1] -= rho[1:] * u[:, 1:]
    return np.asarray((u * scale).T)
