"""Where the sums of a problem come from: rows in memory, or anything else that gives the same sums.

Shifts and scales come from the first rows, so that they are known before the others are read; whatever reads the rows
in order, in pieces of whole blocks, has the very sums of the rows in memory.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ... import kernels
from ...errors import LMMError
from ...kernels.records.rows import RowColumns, Rows
from ...problem.columns import SAMPLE, refuse_non_finite, scaled_triangle
from ...support.threads import threads_in_use
from ...support.types import Array

__all__ = ["BLOCK", "ArrayRows", "RowReader", "RowSums", "first_columns", "first_mean", "log_sum", "unshifted"]


BLOCK = 2048
"""Rows after which the kernels put partial sums away."""


class RowSums(NamedTuple):
    """Sums over all rows; see `kernels.accumulate`.

    Attributes
    ----------
    raw : (n_slots, K) array
        Groups in order.
    packed : ((p+1)(p+2)/2,) array
    gram : (q(q+1)/2,) array
    constant, varies, finite : bool
    """

    raw: Array
    packed: Array
    gram: Array
    constant: bool
    varies: bool
    finite: bool


class RowReader(Protocol):
    """The rows of a model with one grouping factor, read as often as conditioning asks for."""

    @property
    def n(self) -> int:
        """Rows; known after the first sums."""

    @property
    def n_slots(self) -> int:
        """Groups, of which some may have no rows; known after the first sums."""

    @property
    def log_weights(self) -> float:
        """Sum of the logarithms of the weights; known after the first sums."""

    def first(self) -> Rows:
        """The first rows: at least `BLOCK`, or all there are."""

    def changes(self, column: int, of_z: bool) -> bool:
        """Whether a look at other rows tells already that a column of X, or of Z, is not constant."""

    def sums(self, columns: RowColumns, kept: NDArray[np.intp] | None) -> RowSums:
        """The sums over all rows, of these columns of X (None: all)."""

    def triangle(self, shift_scale: Array, of_z: bool) -> Array:
        """R of the QR decomposition of shifted, scaled and weighted columns of X, or of Z."""

    def within(self, columns: RowColumns, kept: NDArray[np.intp], position: NDArray[np.int64], packed: Array) -> Array:
        """See `kernels.within_rows`."""

    def refuse_non_finite(self) -> None:
        """Name the first value that is not finite, if there is one."""

    def whole(self) -> Rows:
        """All rows at once."""


def log_sum(weights: Array, before: float = 0.0) -> float:
    """Sum of the logarithms of weights, block by block, and what comes before them."""
    for part in np.add.reduceat(np.log(weights), np.arange(0, len(weights), BLOCK)).tolist():
        before += part
    return before


def first_columns(reader: RowReader, may_shift_z: bool) -> RowColumns:
    """Shifts and scales of the columns, and the mean of y, from the first rows."""
    rows = reader.first()
    n_head = min(len(rows.y), BLOCK)
    X, Z = rows.X[:n_head], rows.Z[:n_head]
    x_scale, x_constant = kernels.column_scales(X, n_head, True, True)
    z_scale, z_constant = kernels.column_scales(Z, n_head, may_shift_z, True)
    # what is constant at first may be seen to change without a pass over the rows
    for constant, of_z in ((x_constant, False), (z_constant, True)):
        if constant >= 0 and reader.changes(constant, of_z):
            return unshifted(reader)
    beta0 = np.zeros(X.shape[1])
    if x_constant >= 0:
        beta0[x_constant] = first_mean(reader)
    return RowColumns(x_scale, z_scale, beta0, x_constant, z_constant)


def first_mean(reader: RowReader) -> float:
    """Mean of y over the first rows."""
    y = reader.first().y[:BLOCK]
    return kernels.sample_mean(y, len(y))


def unshifted(reader: RowReader) -> RowColumns:
    """Scales where no column is constant, from the first rows."""
    rows = reader.first()
    n_head = min(len(rows.y), BLOCK)
    scales = [kernels.column_scales(values[:n_head], n_head, False, True)[0] for values in (rows.X, rows.Z)]
    return RowColumns(scales[0], scales[1], np.zeros(rows.X.shape[1]))


class ArrayRows:
    """Rows in memory."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self.n, self.n_slots = len(rows.y), rows.n_slots

    @property
    def log_weights(self) -> float:
        """Sum of the logarithms of the weights."""
        return 0.0 if self._rows.weights is None else log_sum(self._rows.weights)

    def first(self) -> Rows:
        """All rows."""
        return self._rows

    def changes(self, column: int, of_z: bool) -> bool:
        """Whether a sample of the rows tells that a column is not constant."""
        values = (self._rows.Z if of_z else self._rows.X)[:, column]
        if len(values) <= BLOCK:
            return False
        sample = values[:: -(-len(values) // SAMPLE)]
        return bool((sample != sample[0]).any())

    def _of(self, kept: NDArray[np.intp] | None) -> Rows:
        if kept is None or len(kept) == self._rows.X.shape[1]:
            return self._rows
        return self._rows._replace(X=np.ascontiguousarray(self._rows.X[:, kept]))

    def sums(self, columns: RowColumns, kept: NDArray[np.intp] | None) -> RowSums:
        """The sums over all rows."""
        return RowSums(*kernels.accumulate(self._of(kept), columns, threads_in_use()))

    def triangle(self, shift_scale: Array, of_z: bool) -> Array:
        """R of the QR decomposition of shifted, scaled and weighted columns."""
        return scaled_triangle(self._rows.Z if of_z else self._rows.X, shift_scale, self._rows.weights)

    def within(self, columns: RowColumns, kept: NDArray[np.intp], position: NDArray[np.int64], packed: Array) -> Array:
        """See `kernels.within_rows`."""
        return kernels.within_rows(self._of(kept), columns, position, packed)

    def refuse_non_finite(self) -> None:
        """Name the first value that is not finite, if there is one."""
        rows = self._rows
        refuse_non_finite(rows.y, rows.X, rows.Z, rows.weights, rows.offset)
        raise LMMError("the data overflow: rescale y, X, Z or weights to values below 1e100 in size")

    def whole(self) -> Rows:
        """All rows at once."""
        return self._rows
