"""Subjects by their pattern of visits: what the sums over patterns read."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...design.residual import ResidualPart
from ...kernels.records.residuals import VisitPatterns
from ...kernels.residuals import pattern_rows, positions_of, visit_keys
from ...support.types import Array, Index

__all__ = ["Patterns", "visit_patterns"]


BITS = 62
"""Of an integer that tells patterns apart."""


class Patterns(NamedTuple):
    """Subjects by their pattern of visits.

    Attributes
    ----------
    sums : VisitPatterns
        What the kernels read: as many rows in each pattern as X has dimensions there, and what is left of y.
    places : list of intp arrays
        For each table the positions that occur: what its rows and columns are.
    """

    sums: VisitPatterns
    places: list[Index]

    def of_columns(self, columns: Array) -> Patterns:
        """With [X y] columns for [X y]; columns (c, k), y in the last of them only."""
        rows = (self.sums.rows.reshape(-1, self.sums.columns) @ columns).ravel()
        outside = self.sums.outside * columns[-1, -1]
        return self._replace(sums=self.sums._replace(rows=rows, columns=columns.shape[1], outside=outside))


def visit_patterns(part: ResidualPart, xy: Array) -> Patterns:
    """Group the subjects that were seen at the same visits, and sum them up.

    Parameters
    ----------
    part : ResidualPart
        Of positions; every level of `by` has a table of its own.
    xy : (n, c) array
        [X_o y_o].
    """
    order = part.sorted_rows
    codes = np.asarray(part.subject.codes)[order]
    where = part.where[order]
    starts = np.zeros(int(codes[-1]) + 2, dtype=np.intp)
    np.bincount(codes).cumsum(out=starts[1:])
    first = starts[:-1]
    if len(part.strata) == 1:
        table = np.zeros(len(first), dtype=np.intp)
        places = [np.bincount(where).nonzero()[0]]
        if len(places[0]) <= places[0][-1]:
            where = np.searchsorted(places[0], where)
    else:
        strata = part.stratum[order]
        table = strata[first]
        places = [np.flatnonzero(np.bincount(where[strata == g])) for g in range(len(part.strata))]
        rank = np.empty(len(where), dtype=np.intp)
        for g, found in enumerate(places):
            mine = strata == g
            rank[mine] = np.searchsorted(found, where[mine])
        where = rank
    keys = _keys(where, codes, starts, table, max(map(len, places)))
    by_pattern = np.argsort(keys, kind="stable")
    ordered = keys[by_pattern]
    new = np.ones(len(ordered) + 1, dtype=bool)
    new[1:-1] = ordered[1:] != ordered[:-1]
    begins = new.nonzero()[0]
    rows, members, outside = pattern_rows(xy, order, starts, by_pattern, begins)
    some = by_pattern[begins[:-1]]
    size = (starts[1:] - first)[some]
    sums = VisitPatterns(
        rows=rows,
        size=size,
        members=members,
        counts=(begins[1:] - begins[:-1]).astype(float),
        visits=positions_of(where, starts, some),
        table=table[some],
        table_size=np.array([len(found) for found in places], dtype=np.intp),
        columns=xy.shape[1],
        outside=outside,
    )
    return Patterns(sums, places)


def _keys(where: Index, codes: Index, starts: Index, table: Index, m: int) -> NDArray[np.generic]:
    """What tells the patterns of subjects apart: positions of sorted rows, their subjects, and the table of each."""
    if m + int(table.max()).bit_length() < BITS:
        return visit_keys(starts, where, table, m)
    seen = np.zeros((len(table), m), dtype=np.uint8)
    seen[codes, where] = 1
    keys = np.ascontiguousarray(np.column_stack([seen, table.astype(np.int64).view(np.uint8).reshape(-1, 8)]))
    return keys.view(f"V{keys.shape[1]}").ravel()
