"""Subjects by their pattern of visits: what the sums over patterns read."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...design.residual import ResidualPart
from ...kernels.records import VisitPatterns
from ...kernels.residuals import spanning_rows, split_patterns
from ...support.types import Array, Index

__all__ = ["Patterns", "visit_patterns"]


SOME, FEW = 8_000, 24
"""Numbers in the rows of a pattern from which fewer are looked for, and dimensions that they may have beside y."""

BITS = 62
"""Of an integer that tells patterns apart."""

MANY = 2
"""Subjects, in numbers that one has, from which they are summed up in any case."""

EXACTLY = 1e-13
"""The same of X alone, whose rows are the same for many subjects or are not."""

NEGLIGIBLE = 1e-10
"""Singular value, relative to the largest, of the rows of a pattern that adds nothing to their sums of squares."""


class Patterns(NamedTuple):
    """Subjects by their pattern of visits.

    Attributes
    ----------
    sums : VisitPatterns
        What the kernels read.
    places : list of intp arrays
        For each table the positions that occur: what its rows and columns are.
    """

    sums: VisitPatterns
    places: list[Index]

    def split(self) -> VisitPatterns:
        """With only as many rows as X has dimensions in each pattern, and what is left of y."""
        rows, members, outside = split_patterns(self.sums, EXACTLY)
        return self.sums._replace(rows=rows, members=members, outside=outside)

    def of_columns(self, columns: Array) -> Patterns:
        """With [X y] columns for [X y]; columns (c, k)."""
        rows = (self.sums.rows.reshape(-1, self.sums.columns) @ columns).ravel()
        return self._replace(sums=self.sums._replace(rows=rows, columns=columns.shape[1]))


def visit_patterns(part: ResidualPart, xy: Array) -> Patterns:
    """Group the subjects that were seen at the same visits, and sum up groups with many subjects.

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
    sizes = np.bincount(codes)
    starts = np.cumsum(sizes) - sizes
    strata = part.stratum[order]
    if len(part.strata) == 1:
        places = [np.flatnonzero(np.bincount(where))]
        if len(places[0]) <= places[0][-1]:
            where = np.searchsorted(places[0], where)
    else:
        places = [np.flatnonzero(np.bincount(where[strata == g])) for g in range(len(part.strata))]
        rank = np.empty(len(where), dtype=np.intp)
        for g, found in enumerate(places):
            mine = strata == g
            rank[mine] = np.searchsorted(found, where[mine])
        where = rank
    table_of = strata[starts]
    keys = _keys(where, codes, starts, table_of, max(map(len, places)))
    # each row at its place: pattern, visit, subject
    by_pattern = np.argsort(keys, kind="stable")
    ordered = keys[by_pattern]
    new = np.empty(len(keys), dtype=bool)
    new[:1] = True
    new[1:] = ordered[1:] != ordered[:-1]
    begins = np.flatnonzero(new)
    first, members = by_pattern[begins], np.diff(begins, append=len(keys))
    label = np.empty(len(keys), dtype=np.intp)
    label[by_pattern] = np.cumsum(new) - 1
    size, c = sizes[first], xy.shape[1]
    number = np.empty(len(sizes), dtype=np.intp)
    number[by_pattern] = np.arange(len(sizes)) - np.repeat(np.cumsum(members) - members, members)
    ends = np.cumsum(size * members)
    own = label[codes]
    place = (ends - size * members)[own] + (np.arange(len(where)) - starts[codes]) * members[own] + number[codes]
    taken = np.empty(len(where), dtype=np.intp)
    taken[place] = order
    rows = xy.take(taken, axis=0)
    visits = [where[at : at + length] for at, length in zip(starts[first].tolist(), size.tolist(), strict=True)]
    kept = members.astype(np.intp)
    large = np.flatnonzero(size * members * c >= SOME).tolist()
    if large:
        pieces = np.split(rows, ends[:-1])
        for k in large:
            n, N = int(size[k]), int(members[k])
            block = _fewer(pieces[k].reshape(n, N, c).transpose(1, 0, 2).reshape(N, -1), n + FEW)
            kept[k] = len(block)
            pieces[k] = block.reshape(-1, n, c).transpose(1, 0, 2).reshape(-1, c)
        rows = np.concatenate(pieces)
    sums = VisitPatterns(
        rows=rows.ravel(),
        size=size.astype(np.intp),
        members=kept,
        counts=members.astype(float),
        visits=np.concatenate(visits).astype(np.intp),
        table=table_of[first].astype(np.intp),
        table_size=np.array([len(found) for found in places], dtype=np.intp),
        columns=c,
    )
    return Patterns(sums, places)


def _keys(where: Index, codes: Index, starts: Index, table: Index, m: int) -> NDArray[np.generic]:
    """What tells the patterns of subjects apart: positions of sorted rows, their subjects, and the table of each."""
    if m + int(table.max()).bit_length() < BITS:
        bits: NDArray[np.int64] = np.add.reduceat(np.left_shift(np.int64(1), where), starts)
        return bits + (table.astype(np.int64) << m)
    seen = np.zeros((len(starts), m), dtype=np.uint8)
    seen[codes, where] = 1
    keys = np.ascontiguousarray(np.column_stack([seen, table.astype(np.int64).view(np.uint8).reshape(-1, 8)]))
    return keys.view(f"V{keys.shape[1]}").ravel()


def _fewer(rows: Array, few: int) -> Array:
    """Fewer rows with the same sums of products, where that pays; otherwise the rows themselves.

    Subjects differ in few columns of X, the same at each visit, and in y, so that their rows have few dimensions.

    Parameters
    ----------
    rows : (N, size * c) array
    few : int
        Dimensions that are looked for.
    """
    found = _spanning(rows, min(few, len(rows) // 2))
    if found is not None:
        return found
    return summed_up(rows) if len(rows) > rows.shape[1] * MANY else rows


def _spanning(rows: Array, most: int) -> Array | None:
    """R with R'R = rows'rows to rounding, of up to so many rows; None where more are needed."""
    size = np.linalg.norm(rows, axis=0)
    size[size == 0.0] = 1.0
    found = spanning_rows(rows / size, most, NEGLIGIBLE)
    return None if found is None else found * size


def summed_up(rows: Array) -> Array:
    """Fewer rows with the same sums of products: those of the triangular factor, in as many as they have dimensions."""
    size = np.linalg.norm(rows, axis=0)
    size[size == 0.0] = 1.0
    triangle = np.linalg.qr(rows / size, mode="r")
    _, sizes, directions = np.linalg.svd(triangle)
    count = max(1, int(np.sum(sizes > NEGLIGIBLE * sizes[0])))
    return np.asarray(sizes[:count, None] * directions[:count] * size)
