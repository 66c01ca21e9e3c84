"""Permutations where residuals have a structure: roots of V, and statistics at given parameters, response by response.

V = W^1/2 Z G Z' W^1/2 / sigma^2 + R of the weighted rows falls into the clusters that share neither a subject of the
residuals nor a level.  At given parameters the coefficients are those of least squares of V^-1/2 y on V^-1/2 X.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...design.independence import cluster_labels
from ...errors import LMMError
from ...estimation.whitening import marginal_rows
from ...support.types import Array, Index

if TYPE_CHECKING:
    from ...estimation.many.batch_fit import BatchFit

__all__ = ["Solved", "StructuredRoots"]

MOST_BYTES = 2e9
"""Of all roots."""


class Solved(NamedTuple):
    """Coefficients (n, p), sigma^2 (n,) and covariances (n, m, m) of m combinations of them, relative to sigma^2."""

    params: Array
    sigma2: Array
    covariance: Array


class StructuredRoots:
    """Symmetric roots of V of every response, cluster by cluster.

    Parameters
    ----------
    fits : BatchFit
        With structured residuals.
    lost : (n,) bool array
        Responses that were not fitted; theirs is the identity.
    """

    def __init__(self, fits: BatchFit, lost: NDArray[np.bool_]) -> None:
        model = fits.model
        labels = np.unique(cluster_labels(model.design), return_inverse=True)[1].reshape(-1)
        order = np.argsort(labels, kind="stable")
        self.members: list[Index] = np.split(order, np.cumsum(np.bincount(labels))[:-1])
        size = sum(16.0 * len(rows) ** 2 for rows in self.members) * len(fits)
        if size > MOST_BYTES:
            raise LMMError(
                f"permute() takes {size / 1e9:,.0f} GB for {len(fits)} responses whose rows are correlated in clusters "
                f"of up to {max(map(len, self.members))}: permute some of the responses (batch[:1000])"
            )
        self._into: list[list[Array]] = []
        self._out: list[list[Array]] = []
        covariance, phi = fits.covariance, fits.phi
        for i in range(len(fits)):
            into, out = [], []
            for rows in self.members:
                V = np.eye(len(rows))
                if not lost[i]:
                    root = np.ones(len(rows)) if model.weights is None else np.sqrt(model.weights[rows])
                    V = marginal_rows(model, (covariance[i], float(fits.sigma2[i]), phi[i]), rows)
                    V = root[:, None] * V * root / fits.sigma2[i]
                values, vectors = np.linalg.eigh(V)
                size = np.sqrt(np.maximum(values, np.finfo(float).tiny))
                into.append((vectors * size) @ vectors.T)
                out.append((vectors / size) @ vectors.T)
            self._into.append(into)
            self._out.append(out)

    def into(self, e: Array) -> Array:
        """V^1/2 e (n_responses, n)."""
        return np.array([self._applied(own, line[:, None])[:, 0] for own, line in zip(self._into, e, strict=True)])

    def out(self, e: Array) -> Array:
        """V^-1/2 e."""
        return np.array([self._applied(own, line[:, None])[:, 0] for own, line in zip(self._out, e, strict=True)])

    def _applied(self, roots: list[Array], columns: Array) -> Array:
        found = np.empty_like(columns)
        for rows, root in zip(self.members, roots, strict=True):
            found[rows] = root @ columns[rows]
        return found

    def solve(self, X: Array, Y: Array, rows: Array, nu: float) -> Solved:
        """Generalised least squares of weighted responses at these V.

        Parameters
        ----------
        X : (n, r) array
            Weighted, of full rank.
        Y : (count n_responses, n) array
            Weighted, response by response in each of `count` maps.
        rows : (m, r) array
            Combinations of the coefficients.
        nu : float
            sigma^2 is the residual sum of squares by this.
        """
        n_responses, (m, r) = len(self._out), rows.shape
        count = len(Y) // n_responses
        beta, sigma2 = np.empty((count, n_responses, r)), np.empty((count, n_responses))
        covariance = np.empty((count, n_responses, m, m))
        for i, own in enumerate(self._out):
            Q, R = np.linalg.qr(self._applied(own, X))
            y = self._applied(own, Y[i::n_responses].T)
            along = Q.T @ y
            beta[:, i] = np.linalg.solve(R, along).T
            sigma2[:, i] = ((y - Q @ along) ** 2).sum(axis=0) / nu
            half = np.linalg.solve(R.T, rows.T)
            covariance[:, i] = half.T @ half
        return Solved(beta.reshape(-1, r), sigma2.ravel(), covariance.reshape(-1, m, m))
