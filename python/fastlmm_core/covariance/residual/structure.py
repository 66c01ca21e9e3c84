"""What an engine asks of the covariance of the rows of a subject.

A structure is an immutable object, bound to the number of positions or to the coordinates that its rows can have. The
covariance of the rows of one subject is

    R = sigma^2 R~(phi, where)

with k parameters phi without constraints, and a scale sigma^2 that is profiled and no element of phi. `where` says what
the rows are: the integer positions (n,) of their visits, or coordinates (n, d). The covariance of some rows is the part
of the covariance of more rows that belongs to them: a structure of positions may be evaluated once at all of them.
Coordinates of several subjects of as many rows each, (B, n, d), may be given at once: matrices are (..., B, n, n) then,
and `second` sums over the subjects.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ...support.types import Array

__all__ = ["NEAR", "Array", "ResidualStructure", "Rows", "Where", "identity"]

Where = NDArray[Any]

NEAR = 1e-5
"""Nearer to its limit than this share a parameter counts as one at its boundary."""


class Rows(NamedTuple):
    """Rows from which start values are made.

    Attributes
    ----------
    residuals : ndarray of shape (N,)
        What simple regression leaves.
    where : ndarray of shape (N,) or (N, d)
        Positions or coordinates.
    subjects : ndarray of shape (N,)
        Codes of the subjects; the rows of a subject stand together.
    """

    residuals: Array
    where: Where
    subjects: NDArray[np.intp]


def identity(where: Where) -> Array:
    """The identity (n, n) of rows; (B, n, n) of several subjects."""
    n = len(where) if where.ndim == 1 else where.shape[-2]
    return np.broadcast_to(np.eye(n), (*where.shape[:-2], n, n))


class ResidualStructure(Protocol):
    """The covariance of the rows of a subject, relative to a scale.

    Shapes: phi (k,), `where` (n,) or (n, d), `slope` a symmetric (n, n). The natural parameters psi (k + 1,) are
    functions of phi and sigma^2, whose derivatives are taken in the order phi, sigma^2.
    """

    @property
    def name(self) -> str:
        """As users write it."""

    @property
    def n_parameters(self) -> int:
        """Number k of parameters phi."""

    @property
    def positions(self) -> int | None:
        """Number of positions that a row can have; None where rows have coordinates."""

    def matrix(self, phi: Array, where: Where) -> Array:
        """R~ (n, n)."""

    def variances(self, phi: Array, where: Where) -> Array:
        """The diagonal of R~ (n,), for rows of any subjects."""

    def jacobian(self, phi: Array, where: Where) -> Array:
        """dR~ / dphi (k, n, n)."""

    def second(self, phi: Array, where: Where, slope: Array) -> Array:
        """Sums of slope times d2R~ / dphi_a dphi_b (k, k)."""

    def second_sum(self, phi: Array, where: Where, weights: Array) -> Array:
        """Sum over a, b of weights_ab d2R~ / dphi_a dphi_b (n, n), for symmetric weights (k, k)."""

    def start(self, rows: Rows) -> Array:
        """A member near to the moments of residuals; inside, and where no derivative vanishes."""

    def natural(self, phi: Array, sigma2: float) -> Array:
        """The parameters that are reported (k + 1,): those of SAS."""

    def from_natural(self, psi: Array) -> tuple[Array, float]:
        """Phi and sigma^2 from the natural parameters."""

    def natural_jacobian(self, phi: Array, sigma2: float) -> Array:
        """Derivatives of the natural parameters (rows) in phi and sigma^2 (columns)."""

    def natural_second(self, phi: Array, sigma2: float, weights: Array) -> Array:
        """Second derivatives in phi and sigma^2 of the sum of weights times natural parameters (k + 1, k + 1)."""

    def names(self, labels: Sequence[str], term: str) -> tuple[str, ...]:
        """Names of the natural parameters, given the labels of the positions and the name of the subjects' factor."""

    def boundary(self, phi: Array, labels: Sequence[str], term: str) -> str | None:
        """What has run into its limit, e.g. ``"rho|id = 1"``; None inside."""
