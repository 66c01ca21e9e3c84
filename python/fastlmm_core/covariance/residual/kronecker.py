"""Several responses over visits, `us@cs`, `us@ar1`: R = S o C with S over responses and C over visits.

Entries are S_ef C_vw for response e at visit v and response f at visit w; a position is e m_C + v.

    <slope, d2R> = <slope o C, S''>,   <slope o S'_a, C'_b>,   <slope o S, C''>
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .correlation import Correlation
from .structure import Array, Rows, Where
from .unstructured import Unstructured

__all__ = ["Kronecker"]


@dataclass(frozen=True)
class Kronecker:
    """The product of an unstructured covariance of responses and a correlation over visits.

    phi holds the parameters of the former, then those of the latter; natural parameters are variances and covariances
    of responses, and those of the correlation.

    Parameters
    ----------
    responses : Unstructured
    visits : Correlation
    labels_of_responses : tuple of str
    """

    responses: Unstructured
    visits: Correlation
    labels_of_responses: tuple[str, ...]

    @property
    def name(self) -> str:
        """Both names."""
        return f"{self.responses.name}@{self.visits.name}"

    @property
    def _m(self) -> int:
        m = self.visits.positions
        assert m is not None
        return m

    @property
    def positions(self) -> int | None:
        """Responses times visits."""
        return self.responses.positions * self._m

    @property
    def n_parameters(self) -> int:
        """Of both."""
        return self.responses.n_parameters + self.visits.n_parameters

    def _split(self, phi: Array) -> tuple[Array, Array]:
        first = self.responses.n_parameters
        return phi[:first], phi[first:]

    def _sides(self, where: Where) -> tuple[Where, Where]:
        return np.divmod(where, self._m)

    def _all(self, phi: Array, where: Where) -> tuple[Array, Array, Array, Array]:
        """S, C and their derivatives at rows."""
        (first, last), (e, v) = self._split(phi), self._sides(where)
        return (
            self.responses.matrix(first, e),
            self.visits.matrix(last, v),
            self.responses.jacobian(first, e),
            self.visits.jacobian(last, v),
        )

    def matrix(self, phi: Array, where: Where) -> Array:
        """R~ (n, n)."""
        (first, last), (e, v) = self._split(phi), self._sides(where)
        return self.responses.matrix(first, e) * self.visits.matrix(last, v)

    def variances(self, phi: Array, where: Where) -> Array:
        """The diagonal of R~ (n,)."""
        return self.responses.variances(self._split(phi)[0], self._sides(where)[0])

    def jacobian(self, phi: Array, where: Where) -> Array:
        """dR~ / dphi (k, n, n)."""
        S, C, dS, dC = self._all(phi, where)
        return np.concatenate((dS * C, S * dC))

    def second(self, phi: Array, where: Where, slope: Array) -> Array:
        """Sums of slope times d2R~ / dphi_a dphi_b (k, k)."""
        (first, last), (e, v) = self._split(phi), self._sides(where)
        S, C, dS, dC = self._all(phi, where)
        mixed = (dS * slope).reshape(len(dS), -1) @ dC.reshape(len(dC), -1).T
        return np.block(
            [
                [self.responses.second(first, e, slope * C), mixed],
                [mixed.T, self.visits.second(last, v, slope * S)],
            ]
        )

    def second_sum(self, phi: Array, where: Where, weights: Array) -> Array:
        """Sum over a, b of weights_ab d2R~ / dphi_a dphi_b (n, n)."""
        (first, last), (e, v) = self._split(phi), self._sides(where)
        k = len(first)
        S, C, dS, dC = self._all(phi, where)
        out = C * self.responses.second_sum(first, e, weights[:k, :k])
        out += S * self.visits.second_sum(last, v, weights[k:, k:])
        out += 2.0 * (np.tensordot(weights[k:, :k], dS, 1) * dC).sum(axis=0)
        return np.asarray(out)

    def start(self, rows: Rows) -> Array:
        """Responses from rows of the same visit, visits from rows of the same response."""
        e, v = self._sides(rows.where)
        first = self.responses.start(_regrouped(rows.residuals, e, rows.subjects * self._m + v))
        s = np.sqrt(np.diag(self.responses.matrix(first, np.arange(self.responses.m))))
        by_response = rows.subjects * self.responses.m + e
        return np.concatenate((first, self.visits.start(_regrouped(rows.residuals / s[e], v, by_response))))

    def natural(self, phi: Array, sigma2: float) -> Array:
        """The parameters that are reported (k + 1,)."""
        first, last = self._split(phi)
        return np.concatenate((self.responses.natural(first, sigma2), self.visits.natural(last)))

    def from_natural(self, psi: Array) -> tuple[Array, float]:
        """Phi and sigma^2 from the natural parameters."""
        k = self.responses.n_parameters + 1
        first, sigma2 = self.responses.from_natural(psi[:k])
        return np.concatenate((first, self.visits.from_natural(psi[k:]))), sigma2

    def _places(self, phi: Array) -> list[int]:
        """Where the responses' parameters and sigma^2 stand."""
        return [*range(self.responses.n_parameters), len(phi)]

    def natural_jacobian(self, phi: Array, sigma2: float) -> Array:
        """Derivatives of the natural parameters (rows) in phi and sigma^2 (columns)."""
        first, last = self._split(phi)
        k = len(first)
        out = np.zeros((len(phi) + 1, len(phi) + 1))
        out[: k + 1, self._places(phi)] = self.responses.natural_jacobian(first, sigma2)
        out[k + 1 :, k:-1] = self.visits.natural_jacobian(last)
        return out

    def natural_second(self, phi: Array, sigma2: float, weights: Array) -> Array:
        """Second derivatives of the weighted sum of the natural parameters in phi and sigma^2 (k + 1, k + 1)."""
        first, last = self._split(phi)
        k = len(first)
        out = np.zeros((len(phi) + 1, len(phi) + 1))
        places = self._places(phi)
        out[np.ix_(places, places)] = self.responses.natural_second(first, sigma2, weights[: k + 1])
        out[k:-1, k:-1] = self.visits.natural_second(last, weights[k + 1 :])
        return out

    def names(self, labels: Sequence[str], term: str) -> tuple[str, ...]:
        """Names of the natural parameters; of the positions' labels only the visits of the first response count."""
        found = self.visits.labels(labels[: self._m])
        return (*self.responses.names(self.labels_of_responses, term), *(f"{label}|{term}" for label in found))

    def boundary(self, phi: Array, labels: Sequence[str], term: str) -> str | None:
        """What has run into its limit."""
        first, last = self._split(phi)
        limit = self.visits.boundary(last, labels[: self._m])
        if limit is not None:
            return f"{limit[0]}|{term} = {limit[1]}"
        return self.responses.boundary(first, self.labels_of_responses, term)


def _regrouped(residuals: Array, where: Where, groups: Where) -> Rows:
    """Rows by other groups, which stand together."""
    order = np.argsort(groups, kind="stable")
    return Rows(residuals[order], where[order], groups[order])
