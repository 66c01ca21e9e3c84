"""Any structure of residuals over positions, for random effects: G = exp(2 tau) R~(phi), theta = (tau, phi).

Its scale is a parameter, as that of random effects is not sigma^2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..residual.natural import natural_second_sum
from ..residual.structure import ResidualStructure, Rows
from .structure import Array

__all__ = ["Relative"]

_LARGEST = 150.0
"""Largest logarithm of a standard deviation relative to sigma."""

_NEGLIGIBLE = 1e-5
"""Standard deviation relative to sigma that counts as zero."""

_SMALLEST = 1e-3
"""Standard deviations of a start, relative to the largest."""


@dataclass(frozen=True)
class Relative:
    """The random effects of a term, with a structure over their order.

    Parameters
    ----------
    structure : ResidualStructure
        Over q positions.
    """

    structure: ResidualStructure

    @property
    def name(self) -> str:
        """That of the structure."""
        return self.structure.name

    @property
    def q(self) -> int:
        """The positions."""
        q = self.structure.positions
        assert q is not None
        return q

    @property
    def n_parameters(self) -> int:
        """One more than the structure's."""
        return self.structure.n_parameters + 1

    @cached_property
    def _where(self) -> NDArray[np.intp]:
        return np.arange(self.q)

    @staticmethod
    def _scale(theta: Array) -> float:
        return float(np.exp(2.0 * np.clip(theta[0], -_LARGEST, _LARGEST)))

    def matrix(self, theta: Array) -> Array:
        """G (q, q)."""
        return self._scale(theta) * self.structure.matrix(theta[1:], self._where)

    def factor(self, theta: Array) -> Array:
        """L (q, q) with G = L L': the symmetric root of the correlations, scaled by rows."""
        R = self.structure.matrix(theta[1:], self._where)
        s = np.sqrt(np.diag(R))
        values, vectors = np.linalg.eigh(R / s / s[:, None])
        half = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
        return np.asarray(np.sqrt(self._scale(theta)) * s[:, None] * half)

    def jacobian(self, theta: Array) -> Array:
        """dG / dtheta (k, q, q)."""
        R = self.structure.matrix(theta[1:], self._where)
        return self._scale(theta) * np.concatenate((2.0 * R[None], self.structure.jacobian(theta[1:], self._where)))

    def second(self, theta: Array, slope: Array) -> Array:
        """Sums of slope times d2G / dtheta_a dtheta_b (k, k)."""
        phi = theta[1:]
        out = np.empty((len(theta), len(theta)))
        out[0, 0] = 4.0 * np.vdot(slope, self.structure.matrix(phi, self._where))
        out[0, 1:] = out[1:, 0] = 2.0 * (self.structure.jacobian(phi, self._where) * slope).sum(axis=(1, 2))
        out[1:, 1:] = self.structure.second(phi, self._where, slope)
        return self._scale(theta) * out

    def second_sum(self, theta: Array, weights: Array) -> Array:
        """Sum over a, b of weights_ab d2G / dtheta_a dtheta_b (q, q)."""
        phi = theta[1:]
        out = 4.0 * weights[0, 0] * self.structure.matrix(phi, self._where)
        out += 4.0 * np.tensordot(weights[0, 1:], self.structure.jacobian(phi, self._where), 1)
        out += self.structure.second_sum(phi, self._where, weights[1:, 1:])
        return np.asarray(self._scale(theta) * out)

    def nearest(self, G: Array) -> Array:
        """The start of the structure for rows that have the moments of G: a subject for each column of a root."""
        variances = np.diag(G)
        floor = _SMALLEST**2 * (float(variances.max()) or 1.0)
        s = np.sqrt(np.maximum(variances, floor))
        values, vectors = np.linalg.eigh(G / s / s[:, None])
        half = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
        residuals = (s[:, None] * half * np.sqrt(self.q)).T.ravel()
        rows = Rows(residuals, np.tile(self._where, self.q), np.repeat(self._where, self.q))
        phi = self.structure.start(rows)
        shape = np.diag(self.structure.matrix(phi, self._where))
        return np.append(0.5 * np.log(np.mean(s**2 / shape)), phi)

    def natural(self, theta: Array, sigma2: float) -> Array:
        """The natural parameters of the structure (k,)."""
        return self.structure.natural(theta[1:], sigma2 * self._scale(theta))

    def natural_jacobian(self, theta: Array, sigma2: float) -> Array:
        """Their derivatives in theta and sigma^2 (k, k + 1)."""
        scale = self._scale(theta)
        inner = self.structure.natural_jacobian(theta[1:], sigma2 * scale)
        return np.column_stack((2.0 * sigma2 * scale * inner[:, -1], inner[:, :-1], scale * inner[:, -1]))

    def bend(self, theta: Array, weights: Array) -> Array:
        """Sum over natural parameters of weights times second derivatives of G in them (q, q)."""
        return natural_second_sum(self.structure, theta[1:], self._scale(theta), self._where, weights)

    def names(self, effects: Sequence[str], term: str) -> tuple[str, ...]:
        """Names of the natural parameters; the common variance is ``var|term``."""
        return tuple(name.replace("sigma2", "var", 1) for name in self.structure.names(effects, term))

    def boundary(self, theta: Array, effects: Sequence[str], term: str) -> str | None:
        """Effects that do not vary, or what has run into its limit."""
        variances = np.diag(self.matrix(theta))
        zero = np.flatnonzero(variances < _NEGLIGIBLE**2)
        if len(zero) == self.q:
            return f"var|{term} = 0"
        if len(zero):
            return f"var_{effects[int(zero[0])]}|{term} = 0"
        return self.structure.boundary(theta[1:], effects, term)
