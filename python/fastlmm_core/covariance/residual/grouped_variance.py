"""A variance function with parameters of its own for each level of a factor, which may vary within subjects."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .structure import Array
from .variance_function import Heights, VarianceFunction

__all__ = ["GroupedVariance"]


@dataclass(frozen=True)
class GroupedVariance(VarianceFunction):
    """The function of the level of each row, whose number is the last covariate.

    Parameters
    ----------
    inner : VarianceFunction
    levels : tuple of str
    """

    inner: VarianceFunction
    levels: tuple[str, ...]

    @property
    def name(self) -> str:
        """That of the function."""
        return self.inner.name

    @property
    def n_parameters(self) -> int:
        """Those of the function for each level."""
        return len(self.levels) * self.inner.n_parameters

    @property
    def n_columns(self) -> int:
        """Those of the function, and the number of the level."""
        return self.inner.n_columns + 1

    def at(self, phi: Array, v: Array) -> Heights:
        """log s and its derivatives."""
        k, n = self.inner.n_parameters, len(v)
        total = self.n_parameters
        out = Heights(np.zeros(n), np.zeros((total, n)), np.zeros((total, total, n)))
        for level in np.unique(v[:, -1]).astype(int).tolist():
            rows = np.flatnonzero(v[:, -1] == level)
            own = slice(level * k, (level + 1) * k)
            found = self.inner.at(phi[own], v[rows, :-1])
            out.value[rows] = found.value
            out.first[own, rows] = found.first
            out.second[own, own, rows] = found.second
        return out

    def _each(self, phi: Array) -> list[Array]:
        return np.split(phi, len(self.levels))

    def start(self, residuals: Array, v: Array) -> Array:
        """From the rows of each level; from all rows where there are few."""
        parts = []
        for level in range(len(self.levels)):
            rows = v[:, -1] == level
            rows = rows if rows.sum() > 4 * self.inner.n_parameters else np.ones(len(v), dtype=bool)
            parts.append(self.inner.start(residuals[rows], v[rows, :-1]))
        return np.concatenate(parts)

    def labels(self) -> tuple[str, ...]:
        """``name[level]``."""
        return tuple(f"{label}[{level}]" for level in self.levels for label in self.inner.labels())

    def natural(self, phi: Array) -> Array:
        """Of each level."""
        return np.concatenate([self.inner.natural(own) for own in self._each(phi)])

    def from_natural(self, c: Array) -> Array:
        """Phi of each level."""
        return np.concatenate([self.inner.from_natural(own) for own in self._each(c)])

    def natural_jacobian(self, phi: Array) -> Array:
        """Of each level, along the diagonal."""
        return _along_diagonal([self.inner.natural_jacobian(own) for own in self._each(phi)])

    def natural_second(self, phi: Array, weights: Array) -> Array:
        """Of each level, along the diagonal."""
        pairs = zip(self._each(phi), self._each(weights), strict=True)
        return _along_diagonal([self.inner.natural_second(own, weight) for own, weight in pairs])

    def boundary(self, phi: Array) -> str | None:
        """That of the first level with one."""
        for level, own in zip(self.levels, self._each(phi), strict=True):
            limit = self.inner.boundary(own)
            if limit is not None:
                name, _, value = limit.partition(" = ")
                return f"{name}[{level}] = {value}"
        return None


def _along_diagonal(blocks: list[Array]) -> Array:
    k = len(blocks[0])
    out = np.zeros((k * len(blocks), k * len(blocks)))
    for g, block in enumerate(blocks):
        out[g * k : (g + 1) * k, g * k : (g + 1) * k] = block
    return out
