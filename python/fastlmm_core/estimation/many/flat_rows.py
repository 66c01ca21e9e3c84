"""Rows of many problems, one after the other: what is summed over the rows of each of them without a loop."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...support.types import Array

__all__ = ["FlatRows"]


@dataclass(frozen=True, eq=False)
class FlatRows:
    """Rows of problems, sorted by problem and group.

    Attributes
    ----------
    X, Z : (n, p) and (n, q) arrays
    y : (n,) array
    weights, offset : (n,) arrays or None
    problem, group : (n,) int arrays
        Number of the problem, and of the group among all groups of all problems.
    row : (n,) int array
        Number of the row in the design that made them.
    place : (n,) int array
        The same observation has the same place in all problems: its row of the design that they share, or its number
        among the rows of the problem.
    n_places, n_problems : int
    """

    X: Array
    Z: Array
    y: Array
    weights: Array | None
    offset: Array | None
    problem: NDArray[np.intp]
    group: NDArray[np.intp]
    row: NDArray[np.intp]
    place: NDArray[np.intp]
    n_places: int
    n_problems: int

    @classmethod
    def sorted_by_group(
        cls, columns: tuple[Array, Array, Array], given: tuple[Array | None, Array | None],
        codes: tuple[NDArray[np.intp], NDArray[np.intp]], at: tuple[NDArray[np.intp], NDArray[np.intp]],
        sizes: tuple[int, int],
    ) -> FlatRows:  # fmt: skip
        """From X, Z, y; weights and offset; problem and code of the group in it; row and place; numbers of these."""
        problem, code = codes
        row, place = at
        order = np.lexsort((code, problem))
        problem, code = problem[order], code[order]
        new = np.ones(len(order), dtype=bool)
        new[1:] = (problem[1:] != problem[:-1]) | (code[1:] != code[:-1])
        X, Z, y = (values[order] for values in columns)
        weights, offset = (None if values is None else values[order] for values in given)
        return cls(X, Z, y, weights, offset, problem, np.cumsum(new) - 1, row[order], place[order], *sizes)

    @property
    def counts(self) -> NDArray[np.intp]:
        """Rows of each problem (n_problems,)."""
        return np.bincount(self.problem, minlength=self.n_problems)

    def sums(self, values: Array) -> Array:
        """Sums over the rows of each problem of values (..., n): (..., n_problems)."""
        return _sums(values, self.problem, self.n_problems)

    def group_sums(self, values: Array) -> Array:
        """Sums over the rows of each group of values (..., n)."""
        return _sums(values, self.group, int(self.group[-1]) + 1 if len(self.group) else 0)

    def grams(self) -> tuple[Array, Array]:
        """Mean of zz' (n_problems, q, q), and covariance of the columns of X (n_problems, p, p), over the rows."""
        count = np.maximum(self.counts, 1).astype(np.float64)
        q, p = self.Z.shape[1], self.X.shape[1]
        of_z, of_x = np.empty((self.n_problems, q, q)), np.empty((self.n_problems, p, p))
        spread = self.X - np.stack([self.sums(x) / count for x in self.X.T], axis=1)[self.problem] if p else self.X
        for out, columns, by in ((of_z, self.Z.T, count), (of_x, spread.T, np.maximum(count - 1.0, 1.0))):
            for i, one in enumerate(columns):
                for j, other in enumerate(columns[: i + 1]):
                    out[:, i, j] = out[:, j, i] = self.sums(one * other) / by
        return of_z, of_x

    def inverse_weights(self) -> Array:
        """Mean of 1 / w over the rows (n_problems,)."""
        if self.weights is None:
            return np.ones(self.n_problems)
        return self.sums(1.0 / self.weights) / np.maximum(self.counts, 1)


def _sums(values: Array, codes: NDArray[np.intp], count: int) -> Array:
    """Sums of neighbours with the same code, 0 .. count - 1 in order."""
    out = np.zeros((*values.shape[:-1], count))
    if len(codes):
        start = np.flatnonzero(np.diff(codes, prepend=-1))
        out[..., codes[start]] = np.add.reduceat(values, start, axis=-1)
    return out
