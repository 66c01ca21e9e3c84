"""A share of the variance that no two rows have in common: (1 - nu) C + nu I, `nugget=True`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .correlation import Correlation
from .links import Linked, Logistic
from .structure import NEAR, Array, Rows, Where, identity

__all__ = ["Nugget"]

_LINK = Logistic()
_START = 0.1


@dataclass(frozen=True)
class Nugget:
    """A correlation with a nugget, whose parameter comes last.

    Parameters
    ----------
    inner : Correlation
    """

    inner: Correlation
    linear: bool = False

    @property
    def name(self) -> str:
        """That of the correlation."""
        return self.inner.name

    @property
    def positions(self) -> int | None:
        """Those of the correlation."""
        return self.inner.positions

    @property
    def n_parameters(self) -> int:
        """One more than the correlation."""
        return self.inner.n_parameters + 1

    def _nu(self, phi: Array) -> Linked:
        return _LINK.at(phi[-1:])

    def matrix(self, phi: Array, where: Where) -> Array:
        """(1 - nu) C + nu I (n, n)."""
        nu = self._nu(phi).value
        return (1.0 - nu) * self.inner.matrix(phi[:-1], where) + nu * identity(where)

    def _toward(self, phi: Array, where: Where) -> Array:
        """I - C, the derivative in nu."""
        return identity(where) - self.inner.matrix(phi[:-1], where)

    def jacobian(self, phi: Array, where: Where) -> Array:
        """Derivatives in phi (k, n, n)."""
        nu, first, _ = self._nu(phi)
        return np.concatenate(
            ((1.0 - nu) * self.inner.jacobian(phi[:-1], where), first * self._toward(phi, where)[None])
        )

    def second(self, phi: Array, where: Where, slope: Array) -> Array:
        """Sums of slope times second derivatives (k, k)."""
        nu, first, second = self._nu(phi)
        out = np.empty((len(phi), len(phi)))
        out[:-1, :-1] = (1.0 - nu) * self.inner.second(phi[:-1], where, slope)
        change = self.inner.jacobian(phi[:-1], where)
        out[-1, :-1] = out[:-1, -1] = -first * (change.reshape(len(change), slope.size) @ slope.ravel())
        out[-1:, -1] = second * np.vdot(slope, self._toward(phi, where))
        return out

    def second_sum(self, phi: Array, where: Where, weights: Array) -> Array:
        """Weighted sum of second derivatives (n, n)."""
        nu, first, second = self._nu(phi)
        out = (1.0 - nu) * self.inner.second_sum(phi[:-1], where, weights[:-1, :-1])
        out = out - 2.0 * first * np.tensordot(weights[-1, :-1], self.inner.jacobian(phi[:-1], where), 1)
        total: Array = out + weights[-1, -1] * second * self._toward(phi, where)
        return total

    def start(self, rows: Rows) -> Array:
        """That of the correlation, and a tenth."""
        return np.append(self.inner.start(rows), _LINK.inverse(np.array([_START])))

    def natural(self, phi: Array) -> Array:
        """Natural parameters of the correlation, and nu."""
        return np.append(self.inner.natural(phi[:-1]), self._nu(phi).value)

    def from_natural(self, c: Array) -> Array:
        """Phi from the natural parameters."""
        return np.append(self.inner.from_natural(c[:-1]), _LINK.inverse(c[-1:]))

    def natural_jacobian(self, phi: Array) -> Array:
        """Derivatives of the natural parameters (k, k)."""
        out = np.zeros((len(phi), len(phi)))
        out[:-1, :-1] = self.inner.natural_jacobian(phi[:-1])
        out[-1:, -1] = self._nu(phi).first
        return out

    def natural_second(self, phi: Array, weights: Array) -> Array:
        """Second derivatives of their weighted sum (k, k)."""
        out = np.zeros((len(phi), len(phi)))
        out[:-1, :-1] = self.inner.natural_second(phi[:-1], weights[:-1])
        out[-1:, -1] = weights[-1] * self._nu(phi).second
        return out

    def labels(self, labels: Sequence[str]) -> tuple[str, ...]:
        """Those of the correlation, and ``nugget``."""
        return (*self.inner.labels(labels), "nugget")

    def boundary(self, phi: Array, labels: Sequence[str]) -> tuple[str, str] | None:
        """What has run into its limit."""
        nu = float(self._nu(phi).value[0])
        if min(nu, 1.0 - nu) < NEAR:
            return "nugget", f"{nu:.0f}"
        return self.inner.boundary(phi[:-1], labels)
