"""A variance function times a structure: R = s(v) s(v)' o R_0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .products import Factor, Sides, product_jacobian, product_matrix, product_second, product_second_sum
from .structure import Array, ResidualStructure, Rows, Where
from .variance_function import VarianceFunction

__all__ = ["Varied"]


@dataclass(frozen=True)
class _OfSeveral:
    """A structure of positions for the rows of several subjects (B, n), from its matrix over all positions."""

    inner: ResidualStructure
    m: int

    def _pairs(self, where: Where) -> NDArray[np.intp]:
        return np.asarray(where[..., :, None] * self.m + where[..., None, :])

    def matrix(self, phi: Array, where: Where) -> Array:
        """R~ (B, n, n)."""
        return self.inner.matrix(phi, np.arange(self.m)).ravel()[self._pairs(where)]

    def jacobian(self, phi: Array, where: Where) -> Array:
        """dR~ / dphi (k, B, n, n)."""
        whole = self.inner.jacobian(phi, np.arange(self.m))
        return whole.reshape(len(whole), self.m**2)[:, self._pairs(where)]

    def second(self, phi: Array, where: Where, slope: Array) -> Array:
        """Sums of slope times second derivatives (k, k)."""
        sums = np.bincount(self._pairs(where).ravel(), slope.ravel(), minlength=self.m**2).astype(float, copy=False)
        return self.inner.second(phi, np.arange(self.m), sums.reshape(self.m, self.m))

    def second_sum(self, phi: Array, where: Where, weights: Array) -> Array:
        """Weighted sum of second derivatives (B, n, n)."""
        return self.inner.second_sum(phi, np.arange(self.m), weights).ravel()[self._pairs(where)]


@dataclass(frozen=True)
class Varied:
    """A structure whose rows have standard deviations by covariates.

    Rows are told by coordinates and covariates (n, d + c): first the position, or the coordinates, for the structure,
    then what the function takes. phi holds the parameters of the function, then those of the structure; the natural
    parameters are those of the structure with sigma^2, then those of the function.

    Parameters
    ----------
    function : VarianceFunction
    inner : ResidualStructure
    """

    function: VarianceFunction
    inner: ResidualStructure

    @property
    def name(self) -> str:
        """Both names."""
        return f"{self.inner.name} with {self.function.name}"

    @property
    def positions(self) -> int | None:
        """Rows have covariates."""
        return None

    @property
    def n_parameters(self) -> int:
        """Of both."""
        return self.function.n_parameters + self.inner.n_parameters

    def _where(self, where: Where) -> tuple[Where, Where]:
        """Rows for the function and for the structure."""
        c = where.shape[-1] - self.function.n_columns
        inner = where[..., 0].astype(np.intp) if self.inner.positions is not None else where[..., :c]
        return where[..., c:], inner

    def _sides(self, phi: Array, where: Where) -> tuple[VarianceFunction, Sides, Factor, Sides]:
        k = self.function.n_parameters
        v, inner = self._where(where)
        m = self.inner.positions
        factor: Factor = self.inner if m is None or inner.ndim < 2 else _OfSeveral(self.inner, m)
        return self.function, (phi[:k], v), factor, (phi[k:], inner)

    def matrix(self, phi: Array, where: Where) -> Array:
        """R~ (n, n)."""
        return product_matrix(*self._sides(phi, where))

    def variances(self, phi: Array, where: Where) -> Array:
        """The diagonal of R~ (n,)."""
        function, first, _, last = self._sides(phi, where)
        return np.asarray(np.exp(2.0 * function.logarithm(*first)) * self.inner.variances(*last))

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
        """The function from the squares, the structure from what it standardizes."""
        v, inner = self._where(rows.where)
        first = self.function.start(rows.residuals, v)
        s = np.exp(self.function.logarithm(first, v))
        return np.concatenate((first, self.inner.start(Rows(rows.residuals / s, inner, rows.subjects))))

    def natural(self, phi: Array, sigma2: float) -> Array:
        """The parameters that are reported (k + 1,)."""
        k = self.function.n_parameters
        return np.concatenate((self.inner.natural(phi[k:], sigma2), self.function.natural(phi[:k])))

    def from_natural(self, psi: Array) -> tuple[Array, float]:
        """Phi and sigma^2 from the natural parameters."""
        k = self.function.n_parameters
        inner, sigma2 = self.inner.from_natural(psi[: len(psi) - k])
        return np.concatenate((self.function.from_natural(psi[len(psi) - k :]), inner)), sigma2

    def natural_jacobian(self, phi: Array, sigma2: float) -> Array:
        """Derivatives of the natural parameters (rows) in phi and sigma^2 (columns)."""
        k = self.function.n_parameters
        rows = len(phi) + 1 - k
        out = np.zeros((len(phi) + 1, len(phi) + 1))
        out[rows:, :k] = self.function.natural_jacobian(phi[:k])
        out[:rows, k:] = self.inner.natural_jacobian(phi[k:], sigma2)
        return out

    def natural_second(self, phi: Array, sigma2: float, weights: Array) -> Array:
        """Second derivatives of the weighted sum of the natural parameters in phi and sigma^2 (k + 1, k + 1)."""
        k = self.function.n_parameters
        rows = len(phi) + 1 - k
        out = np.zeros((len(phi) + 1, len(phi) + 1))
        out[:k, :k] = self.function.natural_second(phi[:k], weights[rows:])
        out[k:, k:] = self.inner.natural_second(phi[k:], sigma2, weights[:rows])
        return out

    def names(self, labels: Sequence[str], term: str) -> tuple[str, ...]:
        """Names of the natural parameters."""
        return (*self.inner.names(labels, term), *self.function.labels())

    def boundary(self, phi: Array, labels: Sequence[str], term: str) -> str | None:
        """What has run into its limit."""
        k = self.function.n_parameters
        return self.function.boundary(phi[:k]) or self.inner.boundary(phi[k:], labels, term)
