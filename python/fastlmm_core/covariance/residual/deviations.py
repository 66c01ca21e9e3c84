"""Standard deviations relative to a scale: log s = h(phi), with the first at positions 1.

Natural parameters are functions of phi and sigma^2: the variances of the positions, or the coefficients of a function.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .structure import NEAR, Array, Rows, Where

__all__ = ["Common", "Deviations", "OfPositions"]

_LARGEST = 150.0
"""Largest logarithm of a relative standard deviation: products of squares of some are finite, and their inverses."""


class Deviations(Protocol):
    """Relative standard deviations of the rows of a subject."""

    @property
    def n_parameters(self) -> int:
        """Number k of parameters phi."""

    @property
    def positions(self) -> int | None:
        """Number of positions that they need; None where they need none."""

    def logarithm(self, phi: Array, where: Where) -> Array:
        """log s (n,)."""

    def jacobian(self, phi: Array, where: Where) -> Array:
        """dlog s / dphi (k, n)."""

    def second(self, phi: Array, where: Where, weights: Array) -> Array:
        """Sums over rows of weights (n,) times second derivatives (k, k)."""

    def second_sum(self, phi: Array, where: Where, weights: Array) -> Array:
        """Sums over parameters of weights (k, k) times second derivatives (n,)."""

    def start(self, rows: Rows) -> Array:
        """Phi near to the squares of residuals."""

    def natural(self, phi: Array, sigma2: float) -> Array:
        """What is reported (k + 1,)."""

    def from_natural(self, psi: Array) -> tuple[Array, float]:
        """Phi and sigma^2 from it."""

    def natural_jacobian(self, phi: Array, sigma2: float) -> Array:
        """Its derivatives in phi and sigma^2 (k + 1, k + 1)."""

    def natural_second(self, phi: Array, sigma2: float, weights: Array) -> Array:
        """Second derivatives of its weighted sum (k + 1, k + 1)."""

    def names(self, labels: Sequence[str], term: str) -> tuple[str, ...]:
        """Names of what is reported."""

    def boundary(self, phi: Array, labels: Sequence[str], term: str) -> str | None:
        """What has run into its limit."""


@dataclass(frozen=True)
class Common:
    """One standard deviation for all rows."""

    @property
    def n_parameters(self) -> int:
        """None beside the scale."""
        return 0

    @property
    def positions(self) -> int | None:
        """Any rows."""
        return None

    def logarithm(self, phi: Array, where: Where) -> Array:
        """Zeros."""
        return np.zeros(len(where))

    def jacobian(self, phi: Array, where: Where) -> Array:
        """No rows."""
        return np.zeros((0, len(where)))

    def second(self, phi: Array, where: Where, weights: Array) -> Array:
        """Empty."""
        return np.zeros((0, 0))

    def second_sum(self, phi: Array, where: Where, weights: Array) -> Array:
        """Zeros."""
        return np.zeros(len(where))

    def start(self, rows: Rows) -> Array:
        """Empty."""
        return np.zeros(0)

    def natural(self, phi: Array, sigma2: float) -> Array:
        """sigma^2."""
        return np.array([sigma2])

    def from_natural(self, psi: Array) -> tuple[Array, float]:
        """sigma^2."""
        return np.zeros(0), float(psi[0])

    def natural_jacobian(self, phi: Array, sigma2: float) -> Array:
        """One."""
        return np.ones((1, 1))

    def natural_second(self, phi: Array, sigma2: float, weights: Array) -> Array:
        """Zero."""
        return np.zeros((1, 1))

    def names(self, labels: Sequence[str], term: str) -> tuple[str, ...]:
        """The residual variance."""
        return (f"sigma2|{term}" if term else "sigma2",)

    def boundary(self, phi: Array, labels: Sequence[str], term: str) -> str | None:
        """Never."""
        return None


@dataclass(frozen=True)
class OfPositions:
    """A standard deviation for each of `m` positions; the first is the scale.

    phi_i = log s_{i+1}; the natural parameters are the m variances.
    """

    m: int

    @property
    def n_parameters(self) -> int:
        """One less than positions."""
        return self.m - 1

    @property
    def positions(self) -> int | None:
        """m."""
        return self.m

    def _all(self, phi: Array) -> Array:
        return np.concatenate(([0.0], np.clip(phi, -_LARGEST, _LARGEST)))

    def logarithm(self, phi: Array, where: Where) -> Array:
        """log s (n,)."""
        out: Array = self._all(phi)[where]
        return out

    def jacobian(self, phi: Array, where: Where) -> Array:
        """Indicators of the positions but the first (k, n)."""
        return np.equal.outer(np.arange(1, self.m), where).astype(float)

    def second(self, phi: Array, where: Where, weights: Array) -> Array:
        """Zero."""
        return np.zeros((self.m - 1, self.m - 1))

    def second_sum(self, phi: Array, where: Where, weights: Array) -> Array:
        """Zero."""
        return np.zeros(len(where))

    def start(self, rows: Rows) -> Array:
        """From the mean squares by position; where there are none, that of all."""
        counts = np.bincount(rows.where, minlength=self.m)
        squares = np.bincount(rows.where, rows.residuals**2, minlength=self.m)
        pooled = max(float(squares.sum()) / max(len(rows.where), 1), np.finfo(float).tiny)
        # a quarter of a row of the pooled variance keeps a position of few rows from an extreme
        variances = (squares + 0.25 * pooled) / (counts + 0.25)
        out: Array = 0.5 * np.log(variances[1:] / variances[0])
        return out

    def natural(self, phi: Array, sigma2: float) -> Array:
        """The variances (m,)."""
        out: Array = sigma2 * np.exp(2.0 * self._all(phi))
        return out

    def from_natural(self, psi: Array) -> tuple[Array, float]:
        """Logarithms of ratios, and the first variance."""
        return 0.5 * np.log(psi[1:] / psi[0]), float(psi[0])

    def natural_jacobian(self, phi: Array, sigma2: float) -> Array:
        """Derivatives of the variances (m, m)."""
        relative = np.exp(2.0 * self._all(phi))
        out = np.zeros((self.m, self.m))
        out[range(1, self.m), range(self.m - 1)] = 2.0 * sigma2 * relative[1:]
        out[:, -1] = relative
        return out

    def natural_second(self, phi: Array, sigma2: float, weights: Array) -> Array:
        """Second derivatives of the weighted sum of variances (m, m)."""
        change = 2.0 * weights[1:] * np.exp(2.0 * self._all(phi)[1:])
        out = np.zeros((self.m, self.m))
        out[range(self.m - 1), range(self.m - 1)] = 2.0 * sigma2 * change
        out[:-1, -1] = out[-1, :-1] = change
        return out

    def names(self, labels: Sequence[str], term: str) -> tuple[str, ...]:
        """A variance for each label."""
        return tuple(f"var_{label}|{term}" for label in labels)

    def boundary(self, phi: Array, labels: Sequence[str], term: str) -> str | None:
        """A variance that vanishes beside the largest."""
        logs = self._all(phi)
        low = int(np.argmin(logs))
        return f"var_{labels[low]}|{term} = 0" if logs[low] - logs.max() < np.log(NEAR) else None
