"""Several grouping factors over shared columns: how each is conditioned, and rows that stand for cells.

A cell is a combination of levels that occurs.  With A = Z'WZ and C = Z'W[X y] of its rows, A = R'R, the rows of R and
of c = R^-T C have the same products: whatever depends on rows by their products only can be asked of them instead.
They are contrasts of the rows of the cell; what these have besides is orthogonal to all Z.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ... import kernels
from ...covariance.parameters import Block, CovarianceStructure
from ...kernels.records.rows import RowColumns, Rows
from ...problem.aliasing import refuse_aliased
from ...problem.columns import (
    ConditionedX,
    condition_z,
    factor_structure,
    revealed,
    rotation,
)
from ...problem.identification import GroupedColumns, clearly_identified, refuse_unidentified_rows
from ...support.types import Array, Index
from ..one_factor.reading import RowReader, first_columns
from ..one_factor.summing import Conditioned

__all__ = ["RESIDUE", "CellRows", "SharedColumns", "conditioned_x", "rooted", "shared_scales"]


RESIDUE = 1e-12
"""Share of a combination of columns of X within cells that rounding may have left."""

PIVOT, STACK = 2e-16, 1 << 14
"""Share of the square of a column of Z in a cell that rounding may have left; cells that are taken together."""

TELLING, TELLING_PER_COLUMN = 64, 4
"""Cells of the first levels of each factor that identify all parameters as a rule; more for each column of X."""


class SharedColumns(NamedTuple):
    """Grouping factors, and which of the different columns of Z each of them has.

    Attributes
    ----------
    names : tuple of str
    columns : tuple of tuple of str
        Names of the columns of each factor.
    sizes : tuple of int
        Levels.
    which : sequence of sequence of int
        The columns of each factor among the different ones.
    structure : CovarianceStructure
        Over the columns of all factors, side by side.
    """

    names: tuple[str, ...]
    columns: tuple[tuple[str, ...], ...]
    sizes: tuple[int, ...]
    which: Sequence[Sequence[int]]
    structure: CovarianceStructure

    @property
    def width(self) -> int:
        """Different columns."""
        return 1 + max(max(mine) for mine in self.which)

    @property
    def starts(self) -> tuple[int, ...]:
        """First column of each factor, side by side."""
        return tuple(np.cumsum([0, *(len(mine) for mine in self.which[:-1])]).tolist())

    def local(self, f: int) -> CovarianceStructure:
        """Covariance of one factor by itself."""
        return factor_structure(self.structure, self.starts[f], len(self.which[f]))

    def turns(self, gram: Array, n: int, columns: RowColumns) -> tuple[list[Array], float]:
        """What makes the shifted and scaled columns of each factor orthogonal (q_f, q_f), and the least 1 - R^2.

        Parameters
        ----------
        gram : array
            Packed products of the different columns, as they were summed.
        n : int
        columns : RowColumns
        """
        products = kernels.unpack(gram, self.width)
        turns, margin = [], 1.0
        if columns.z_transform is not None:
            root = _root(products) @ np.linalg.inv(columns.z_transform)
            return [condition_z(root[:, mine], None, self.local(f), n)[1] for f, mine in enumerate(self.which)], margin
        for f, mine in enumerate(self.which):
            turned, least = rotation(products[np.ix_(mine, mine)], n, self.local(f))
            turns.append(turned)
            margin = min(margin, least)
        return turns, margin

    def precondition(self, triangle: Array, n: int) -> Array:
        """A turn of the different columns that makes those orthogonal that do not depend on others."""
        kept, own = revealed(triangle)
        out = np.eye(self.width)
        out[np.ix_(kept, kept)] = np.triu(np.linalg.inv(own)) * np.sqrt(n)
        return out

    def maps(self, found: Conditioned) -> tuple[list[Array], Array]:
        """Turns from the columns as they were summed to each factor's (r, q_f), and z_map (q, q)."""
        columns = found.columns
        back = np.eye(self.width) if columns.z_transform is None else np.linalg.inv(columns.z_transform)
        z_map = np.zeros((self.structure.q, self.structure.q))
        turns = []
        for start, mine, turned in zip(self.starts, self.which, found.to_z, strict=True):
            part = slice(start, start + len(mine))
            constant = mine.index(columns.z_constant) if columns.z_constant in mine else -1
            z_map[part, part] = kernels.scale_map(np.ascontiguousarray(columns.z_scale[:, mine]), constant) @ turned
            turns.append(np.ascontiguousarray(back[:, mine] @ turned))
        return turns, z_map

    def refuse_aliased(
        self, found: list[tuple[Block, Array]], rows: Rows, sums: Conditioned, f: int, level: Index
    ) -> None:
        """See `problem.aliasing.refuse_aliased`; `level`: of each group of the rows, of factor f."""
        turns, z_map = self.maps(sums)
        columns, start, mine = sums.columns, self.starts[f], self.which[f]
        part = slice(start, start + len(mine))
        root = 1.0 if rows.weights is None else np.sqrt(rows.weights)[:, None]
        z = (rows.Z - columns.z_scale[0]) * columns.z_scale[1]
        if columns.z_transform is not None:
            z = z @ columns.z_transform
        x = (rows.X[:, sums.kept] - columns.x_scale[0]) * columns.x_scale[1] @ sums.x_rows
        refuse_aliased(
            found, z @ turns[f] * root, x * root, level[rows.codes], z_map[part, part], rows.Z[:, mine], self.names[f],
            self.columns[f],
        )  # fmt: skip


def shared_scales(reader: RowReader, which: Sequence[Sequence[int]], structure: CovarianceStructure) -> RowColumns:
    """Shifts and scales of the first rows; a shift must be undone by a constant column of the same block."""
    starts = np.cumsum([0, *(len(mine) for mine in which)]).tolist()
    alone = all(factor_structure(structure, at, len(mine)).one_full for at, mine in zip(starts, which, strict=False))
    columns = first_columns(reader, alone)
    if columns.z_constant >= 0 and any(columns.z_constant not in mine for mine in which):
        return first_columns(reader, False)
    return columns


def conditioned_x(found: Conditioned) -> ConditionedX:
    """How the columns of X are turned."""
    return ConditionedX(found.kept, found.columns.x_scale, found.columns.x_constant, found.x_rows)


def _root(products: Array) -> Array:
    """Rows with these products."""
    values, vectors = np.linalg.eigh(products)
    return np.asarray(np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T)


def _rooted(raw: Array, turn: Array, r: int) -> tuple[Array, Array, Index]:
    """Rows that stand for the cells of some lines; the largest pivot first, so that rounding does not grow."""
    m, k = len(raw), len(turn)
    lower, at = np.tril_indices(r), np.arange(m)
    A = np.empty((m, r, r))
    A[:, lower[0], lower[1]] = A[:, lower[1], lower[0]] = raw[:, : len(lower[0])]
    size = np.sqrt(np.diagonal(A, axis1=1, axis2=2))
    size[size == 0.0] = 1.0
    A /= size[:, :, None] * size[:, None, :]
    C = raw[:, len(lower[0]) : -1].reshape(m, r, k) @ turn / size[:, :, None]
    Z, xy = np.zeros((m, r, r)), np.zeros((m, r, k))
    for step in range(r):
        left = np.diagonal(A, axis1=1, axis2=2)
        pivot = np.argmax(left, axis=1)
        found = left[at, pivot]
        factor = np.where(found > PIVOT, 1.0 / np.sqrt(np.maximum(found, PIVOT)), 0.0)[:, None]
        Z[:, step], xy[:, step] = A[at, pivot] * factor, C[at, pivot] * factor
        A -= Z[:, step, :, None] * Z[:, step, None, :]
        C -= Z[:, step, :, None] * xy[:, step, None, :]
    there = Z.any(axis=2)
    return (Z * size[:, None, :])[there], xy[there], np.nonzero(there)[0]


def rooted(raw: Array, turn: Array, r: int) -> tuple[Array, Array, Index]:
    """Rows that stand for the cells of some lines.

    Parameters
    ----------
    raw : (cells, K) array
        See `kernels.accumulate`.
    turn : (k, k) array
        Of [X y].
    r : int
        Columns of Z.

    Returns
    -------
    Z, xy : (N, r), (N, k) arrays
    cell : (N,) array
    """
    parts = [_rooted(raw[at : at + STACK], turn, r) for at in range(0, len(raw), STACK)]
    Z, xy, cell = (np.concatenate(own) for own in zip(*parts, strict=True))
    cell += np.repeat(STACK * np.arange(len(parts)), [len(own) for _, _, own in parts])
    return Z, xy, cell


class CellRows(NamedTuple):
    """Rows that stand for those of the cells.

    Attributes
    ----------
    found : Conditioned
        Sums over the rows; its groups are the cells.
    n : int
        Rows that there are.
    """

    found: Conditioned
    n: int

    def rows(self, cells: Index | slice = slice(None)) -> tuple[Array, Array, Index]:
        """Rows that stand for some cells.

        Returns
        -------
        Z, xy : (N, r), (N, k) arrays
            Z in the columns as they were summed, [X_o y_o].
        cell : (N,) array
            Among those asked for.
        """
        return rooted(self.found.raw[cells], self.found.xy, self.width)

    @property
    def width(self) -> int:
        """Different columns of Z."""
        k, line = len(self.found.xy), self.found.raw.shape[1]
        r = 1
        while r * (r + 1) // 2 + r * k + 1 < line:
            r += 1
        return r

    def all_rows(self) -> tuple[Array, Array, Index]:
        """Z, [X_o y_o] and cells of rows that have the products of all: those of the cells, what is left of X, a gap.

        Where rows are left that neither has, a row of zeros stands for them.
        """
        Z, xy, cell = self.rows()
        k = len(self.found.xy)
        within = self.found.xy.T @ kernels.unpack(self.found.packed, k) @ self.found.xy - xy.T @ xy
        values, vectors = np.linalg.eigh(within[:-1, :-1])
        some = values > RESIDUE
        left = int(some.sum())
        rest = np.zeros((left + (self.n > len(Z) + left), k))
        rest[:left, :-1] = np.sqrt(values[some])[:, None] * vectors[:, some].T
        # columns of Z are zero there, so that the cell does not matter
        Z = np.vstack([Z, np.zeros((len(rest), Z.shape[1]))])
        return Z, np.vstack([xy, rest]), np.concatenate([cell, np.zeros(len(rest), dtype=np.intp)])

    def _grouped(
        self, shared: SharedColumns, turns: Sequence[Array], levels: Sequence[Index], Z: Array, cell: Index
    ) -> list[GroupedColumns]:
        return [
            GroupedColumns(Z @ turn, level[cell], m, name, columns)
            for turn, level, m, name, columns in zip(
                turns, levels, shared.sizes, shared.names, shared.columns, strict=True
            )
        ]

    def clearly_identified(self, shared: SharedColumns, turns: Sequence[Array], levels: Sequence[Index]) -> bool:
        """Whether some cells identify all parameters.

        Parameters
        ----------
        shared : SharedColumns
        turns : sequence of (r, q_f) arrays
        levels : sequence of (cells,) arrays
            Of each factor.
        """
        k = len(self.found.xy)
        count = TELLING + TELLING_PER_COLUMN * k
        some = np.unique(np.concatenate([_first(level, count) for level in levels]))
        Z, xy, cell = self.rows(some)
        if self.n - np.minimum(self.found.raw[:, -1], self.width).sum() >= k:
            Z, xy = np.vstack([Z, np.zeros((1, Z.shape[1]))]), np.vstack([xy, np.zeros((1, k))])
            cell = np.append(cell, 0)
        return clearly_identified(self._grouped(shared, turns, levels, Z, some[cell]), xy[:, :-1], shared.structure)

    def refuse_unidentified(
        self, shared: SharedColumns, turns: Sequence[Array], levels: Sequence[Index], z_map: Array
    ) -> None:
        """See `problem.identification.refuse_unidentified_rows`."""
        Z, xy, cell = self.all_rows()
        grouped = self._grouped(shared, turns, levels, Z, cell)
        refuse_unidentified_rows(grouped, np.ascontiguousarray(xy[:, :-1]), shared.structure, z_map)


def _first(level: Index, count: int) -> Index:
    """The cells of the first levels, about so many."""
    if len(level) <= count:
        return np.arange(len(level))
    return np.argpartition(level, count)[:count]
