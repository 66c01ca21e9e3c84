"""Fits without some of the rows."""

from __future__ import annotations

from typing import NamedTuple

from ...support.types import Array, Int64

__all__ = ["DeletedLines", "DeletionSums"]


class DeletionSums(NamedTuple):
    """Sums over all groups as polynomials of S, G^ = F (I + S) F'."""

    table: Array
    """(n_terms, (1 + n_par) (1 + n_h)) coefficients of the monomials of S / radius in log|W| and H (packed lower
    triangle by rows, n_h = k (k + 1) / 2), then in their derivatives in each free element of S."""
    parent: Int64
    """(n_terms,) monomial t is monomial parent[t] times S[variable[t]] / radius; the first is 1."""
    variable: Int64
    n_lower: int
    """Terms, the first ones, of the derivatives."""
    second: Array
    """(n_par * n_par, 1 + n_h) second derivatives at S = 0: enough for the steps, the gradient is exact."""
    rows: Int64
    """(n_par,) positions of the free elements."""
    columns: Int64
    factor: Array
    """(q, q) F."""
    k: int
    reml: bool
    radius: float
    """Of the ball |S| <= radius in which the polynomials hold."""
    rank_tolerance: float
    """A pivot of H_xx smaller than this, relative to its diagonal element, is a loss of rank."""


class DeletedLines(NamedTuple):
    """What each deletion takes away, as lines of R, c and w (q q + q k + n_h,)."""

    less: Array
    """(m, .) the groups that lose rows."""
    owner: Int64
    """(n_deletions,) line of `less` of each deletion."""
    more: Array | None
    """(n_deletions, .) what is left of the group; None where it is nothing."""
    removed: Int64
    """(n_deletions,) number of rows."""
