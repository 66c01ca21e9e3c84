"""Pieces to sums, in one order of additions.

Rows are cut anew into chunks of whole blocks of the kernels, counted over complete rows, so that the sums do not depend
on how the source was cut, and are those of the same rows in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import kernels
from ..engines.one_factor.reading import BLOCK, log_sum
from ..errors import LMMError
from ..kernels.records.rows import RowColumns, Rows
from ..problem.columns import piece_rows
from ..support.threads import threads_in_use
from ..support.types import Array
from ..tables.columns import Table
from .labels import CellSlots
from .recipe import Piece, Recipe, Seen
from .source import AHEAD, PIECES

__all__ = [
    "PassSums",
    "chunk_rows",
    "chunks",
    "constant_values",
    "first_chunk",
    "line_length",
    "room_for_lines",
    "sum_chunks",
]


TARGET = 1 << 18
"""Numbers of a chunk: it stays in the cache of a core, and is long against the cost of a call."""

COPIES = 4
"""Lines that a fit holds of each group: as they were summed, in order, factored, and as they are evaluated."""

TEXT = 200
"""Bytes of a label that is text, with what finds it."""

ROOMS = AHEAD + 2
"""Chunks at a time: one that is filled, those that wait, one that is summed."""


def chunk_rows(width: int) -> int:
    """Rows of a chunk of so many columns: a power of two, whole blocks and pieces."""
    return int(max(BLOCK, piece_rows(width), 1 << (TARGET // max(width, 1)).bit_length() - 1))


def line_length(p: int, q: int) -> int:
    """Numbers of a line of `raw`."""
    return q * (q + 1) // 2 + q * (p + 1) + 1


class _Room:
    """Room for a chunk."""

    def __init__(self, size: int, piece: Piece, sources: Sequence[tuple[int, int]]) -> None:
        self.X = np.empty((piece.X.shape[1], size)).T
        self.alike, self._sources = piece.alike, sources
        self.Z = self.X if self.alike else np.empty((len(sources), size)).T
        self.y, self.codes = np.empty(size), np.empty(size, dtype=np.int64)
        self.weights = None if piece.weights is None else np.empty(size)
        self.offset = None if piece.offset is None else np.empty(size)

    def put(self, at: slice, piece: Piece, codes: NDArray[np.int64], rows: slice) -> None:
        """Copy rows of a piece."""
        self.X[at] = piece.X[rows]
        if not self.alike:
            for column, (term, j) in enumerate(self._sources):
                self.Z[at, column] = piece.Z[term][rows, j]
        self.y[at], self.codes[at] = piece.y[rows], codes[rows]
        if self.weights is not None:
            self.weights[at] = piece.weights[rows]  # type: ignore[index]
        if self.offset is not None:
            self.offset[at] = piece.offset[rows]  # type: ignore[index]

    def rows(self, n: int, n_slots: int) -> Rows:
        """The first n rows."""
        X = self.X[:n]
        w, o = (None if part is None else part[:n] for part in (self.weights, self.offset))
        return Rows(X, self.y[:n], X if self.alike else self.Z[:n], self.codes[:n], 0, n_slots, w, o)


def _whole(piece: Piece, sources: Sequence[tuple[int, int]]) -> Piece | None:
    """A piece whose columns are those of a chunk, None where these have to be put together."""
    Z = piece.Z[0]
    own = len(piece.Z) == 1 and tuple(sources) == tuple((0, j) for j in range(Z.shape[1]))
    if not (piece.alike or own) or any(part.dtype != np.float64 for part in (piece.X, piece.y, Z)):
        return None
    return piece._replace(Z=(piece.X,)) if piece.alike else piece


def _part(piece: Piece, codes: NDArray[np.int64], at: slice, n_slots: int) -> Rows:
    """Some rows of a piece, where they are."""
    X = piece.X[at]
    w, o = (None if part is None else part[at] for part in (piece.weights, piece.offset))
    return Rows(X, piece.y[at], X if piece.alike else piece.Z[0][at], codes[at], 0, n_slots, w, o)


def chunks(
    recipe: Recipe, tables: Iterable[Table], slots: CellSlots, seen: Seen, size: int | None = None
) -> Iterator[Rows]:
    """The rows of tables in chunks; the arrays of one are overwritten by the fifth after it.

    Parameters
    ----------
    recipe : Recipe
    tables : iterable of Table
    slots : CellSlots
        Is given the labels that it does not know.
    seen : Seen
        Is given what is seen of the rows.
    size : int, optional
        Rows of a chunk.
    """
    rooms: list[_Room] = []
    filled = number = 0
    for table in tables:
        piece = recipe.piece(table, seen)
        if piece is None:
            continue
        codes = slots.codes(piece.groups, piece.rows)
        if not rooms:
            sources = recipe.shared.sources
            size = size or chunk_rows(piece.X.shape[1] + len(sources))
            rooms = [_Room(size, piece, sources) for _ in range(ROOMS)]
        assert size is not None
        done, n = 0, len(piece.y)
        whole = _whole(piece, recipe.shared.sources) if n >= size else None
        while done < n:
            if whole is not None and not filled and n - done >= size:
                # rows of one piece are taken where they are
                yield _part(whole, codes, slice(done, done + size), slots.n)
                done += size
                continue
            taken = min(size - filled, n - done)
            room = rooms[number % ROOMS]
            room.put(slice(filled, filled + taken), piece, codes, slice(done, done + taken))
            filled, done = filled + taken, done + taken
            if filled == size:
                yield room.rows(size, slots.n)
                filled, number = 0, number + 1
    if filled:
        yield rooms[number % ROOMS].rows(filled, slots.n)


def first_chunk(recipe: Recipe, tables: Iterable[Table]) -> Rows:
    """The first block of complete rows, or all there are."""
    return next(chunks(recipe, tables, CellSlots(recipe.shared.names), Seen.nothing(), BLOCK))


def room_for_lines(
    memory: float | None, slots: CellSlots, line: int, exact: bool = False
) -> Callable[[int], None] | None:
    """What refuses more lines of sums than have room; None where there is no bound.

    Parameters
    ----------
    memory : float or None
        Megabytes that a fit may take.
    slots : CellSlots
    line : int
        Numbers of a line.
    exact : bool
        Whether sums in twice the precision are taken beside the others.
    """
    if memory is None:
        return None
    bound = float(memory)

    def check(count: int) -> None:
        size = 8 * line * (COPIES + 2 * exact) + (TEXT if slots.text else 0)
        if count * size <= (1.0 - 1.0 / PIECES) * bound * 2**20:
            return
        what = "groups" if len(slots.names) == 1 else "combinations of levels"
        raise LMMError(
            f"memory={bound:g}: a fit of {count:,} {what} of {', '.join(map(repr, slots.names))} takes "
            f"{size * count / 2**20:,.1f} MB, and not all rows have been read; raise memory, or take a grouping factor "
            "with fewer levels"
        )

    return check


class PassSums(NamedTuple):
    """Sums over rows.

    Attributes
    ----------
    raw : (m, K) array
        By slots.
    packed : ((p+1)(p+2)/2,) array
        Those of [X y] over all rows.
    gram : (q(q+1)/2,) array
        Those of Z over all rows.
    constant, varies : bool
    log_weights : float
    first_y : float
        NaN where there are no rows.
    """

    raw: Array
    packed: Array
    gram: Array
    constant: bool
    varies: bool
    log_weights: float
    first_y: float


def sum_chunks(
    read: Iterable[Rows],
    columns: RowColumns,
    kept: NDArray[np.intp] | None,
    values: tuple[float, float],
    p: int,
    q: int,
    room: Callable[[int], None] | None = None,
) -> PassSums:
    """One pass.

    Parameters
    ----------
    read : iterable of Rows
    columns : RowColumns
    kept : int array or None
        The columns of X that are summed, None for all.
    values : (float, float)
        Of the constant columns of X and Z.
    p, q : int
        Columns of X that are summed, and of Z.
    room : callable, optional
        Refuses a number of lines; see `room_for_lines`.
    """
    n_packed = (p + 1) * (p + 2) // 2
    raw, sums = np.zeros((0, line_length(p, q))), np.zeros(n_packed + q * (q + 1) // 2)
    constant, varies = True, False
    log_weights, first_y, n_slots = 0.0, float("nan"), 0
    every = kept is None or len(kept) == 0 or len(kept) == kept[-1] + 1
    for rows in read:
        if kept is not None and not (every and rows.X.shape[1] == len(kept)):
            rows = rows._replace(X=np.ascontiguousarray(rows.X[:, kept]))
        n_slots = rows.n_slots
        if n_slots > len(raw):
            if room is not None:
                room(n_slots)
            more = np.zeros((max(n_slots, 2 * len(raw)), raw.shape[1]))
            more[: len(raw)] = raw
            raw = more
        if np.isnan(first_y):
            first_y = float(rows.y[0])
        for at, value, matrix in zip((columns.x_constant, columns.z_constant), values, (rows.X, rows.Z), strict=True):
            constant = constant and (at < 0 or bool(matrix[0, at] == value))
        unbroken, differs = kernels.add_rows(rows, columns, raw, sums, threads_in_use())
        constant = constant and unbroken
        varies = varies or differs or bool(rows.y[0] != first_y)
        if rows.weights is not None:
            log_weights = log_sum(rows.weights, log_weights)
    return PassSums(raw[:n_slots], sums[:n_packed], sums[n_packed:], constant, varies, log_weights, first_y)


def constant_values(rows: Rows, columns: RowColumns) -> tuple[float, float]:
    """Values of the columns that are taken for constant in X and Z."""
    found: list[Any] = [
        matrix[0, at] if at >= 0 else 0.0 for at, matrix in ((columns.x_constant, rows.X), (columns.z_constant, rows.Z))
    ]
    return float(found[0]), float(found[1])
