"""Standard deviations times correlations: R = D C D."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .correlation import Correlation
from .deviations import Common, Deviations
from .products import Sides, product_jacobian, product_matrix, product_second, product_second_sum
from .structure import Array, Rows, Where

__all__ = ["Scaled"]


@dataclass(frozen=True)
class Scaled:
    """A structure of standard deviations and correlations; phi holds the parameters of the former, then the latter.

    Natural parameters are those of the deviations and of the correlations, except where all standard deviations are
    equal and the correlation is linear: sigma^2 and covariances.

    Parameters
    ----------
    name : str
    deviations : Deviations
    correlation : Correlation
    """

    name: str
    deviations: Deviations
    correlation: Correlation

    @property
    def n_parameters(self) -> int:
        """Of deviations and correlations."""
        return self.deviations.n_parameters + self.correlation.n_parameters

    @property
    def positions(self) -> int | None:
        """Number of positions that a row can have; None where rows have coordinates."""
        return self.correlation.positions

    @property
    def _covariances(self) -> bool:
        return self.correlation.linear and isinstance(self.deviations, Common)

    def _split(self, phi: Array) -> tuple[Array, Array]:
        first = self.deviations.n_parameters
        return phi[:first], phi[first:]

    def _sides(self, phi: Array, where: Where) -> tuple[Deviations, Sides, Correlation, Sides]:
        first, last = self._split(phi)
        return self.deviations, (first, where), self.correlation, (last, where)

    def matrix(self, phi: Array, where: Where) -> Array:
        """R~ (n, n)."""
        return product_matrix(*self._sides(phi, where))

    def variances(self, phi: Array, where: Where) -> Array:
        """The diagonal of R~ (n,)."""
        return np.asarray(np.exp(2.0 * self.deviations.logarithm(self._split(phi)[0], where)))

    def jacobian(self, phi: Array, where: Where) -> Array:
        """dR~ / dphi (k, n, n)."""
        return product_jacobian(*self._sides(phi, where))

    def second(self, phi: Array, where: Where, slope: Array) -> Array:
        """Sums of slope times d2R~ / dphi_a dphi_b (k, k)."""
        return product_second(*self._sides(phi, where), slope)

    def second_sum(self, phi: Array, where: Where, weights: Array) -> Array:
        """Sum over a, b of weights_ab d2R~ / dphi_a dphi_b (n, n)."""
        return product_second_sum(*self._sides(phi, where), weights)

    def start(self, rows: Rows) -> Array:
        """Deviations from the squares, correlations from what they standardize."""
        first = self.deviations.start(rows)
        s = np.exp(self.deviations.logarithm(first, rows.where))
        return np.concatenate((first, self.correlation.start(rows._replace(residuals=rows.residuals / s))))

    def natural(self, phi: Array, sigma2: float) -> Array:
        """The parameters that are reported (k + 1,)."""
        first, second = self._split(phi)
        c = self.correlation.natural(second)
        return np.concatenate((self.deviations.natural(first, sigma2), sigma2 * c if self._covariances else c))

    def from_natural(self, psi: Array) -> tuple[Array, float]:
        """Phi and sigma^2 from the natural parameters."""
        k = self.deviations.n_parameters + 1
        first, sigma2 = self.deviations.from_natural(psi[:k])
        c = psi[k:] / sigma2 if self._covariances else psi[k:]
        return np.concatenate((first, self.correlation.from_natural(c))), sigma2

    def natural_jacobian(self, phi: Array, sigma2: float) -> Array:
        """Derivatives of the natural parameters (rows) in phi and sigma^2 (columns)."""
        first, second = self._split(phi)
        k = len(first)
        outer = self.deviations.natural_jacobian(first, sigma2)
        inner = self.correlation.natural_jacobian(second)
        out = np.zeros((len(phi) + 1, len(phi) + 1))
        out[: k + 1, :k] = outer[:, :-1]
        out[: k + 1, -1] = outer[:, -1]
        out[k + 1 :, k:-1] = inner
        if self._covariances:
            out[k + 1 :, k:-1] *= sigma2
            out[k + 1 :, -1] = self.correlation.natural(second)
        return out

    def natural_second(self, phi: Array, sigma2: float, weights: Array) -> Array:
        """Second derivatives of the weighted sum of the natural parameters in phi and sigma^2 (k + 1, k + 1)."""
        first, second = self._split(phi)
        k = len(first)
        outer = self.deviations.natural_second(first, sigma2, weights[: k + 1])
        own = weights[k + 1 :]
        out = np.zeros((len(phi) + 1, len(phi) + 1))
        places = [*range(k), len(phi)]
        out[np.ix_(places, places)] = outer
        out[k:-1, k:-1] = self.correlation.natural_second(second, own)
        if self._covariances:
            out[k:-1, k:-1] *= sigma2
            out[k:-1, -1] = out[-1, k:-1] = own @ self.correlation.natural_jacobian(second)
        return out

    def names(self, labels: Sequence[str], term: str) -> tuple[str, ...]:
        """Names of the natural parameters."""
        found = self.correlation.labels(labels)
        if self._covariances:
            found = tuple(label.replace("rho", "cov", 1) for label in found)
        return (*self.deviations.names(labels, term), *(f"{label}|{term}" if term else label for label in found))

    def boundary(self, phi: Array, labels: Sequence[str], term: str) -> str | None:
        """What has run into its limit."""
        first, second = self._split(phi)
        limit = self.correlation.boundary(second, labels)
        if limit is not None:
            return f"{limit[0]}|{term} = {limit[1]}" if term else f"{limit[0]} = {limit[1]}"
        return self.deviations.boundary(first, labels, term)
