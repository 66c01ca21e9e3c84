"""Responses that have the same observations, where they stand among others."""

from __future__ import annotations

from typing import overload

import numpy as np
from numpy.typing import NDArray

from ... import kernels
from ...support.types import Array

__all__ = ["ResponsesOfMask"]


RUN = 8
"""Columns beside each other from which they are copied together."""


class ResponsesOfMask:
    """Some lines and columns of an array, which are copied where they are asked for alone.

    Parameters
    ----------
    Y : (., .) array
        Not copied.
    members : (count,) array
        Lines.
    rows : (n,) array
        Columns, in ascending order.
    """

    ndim = 2

    def __init__(self, Y: Array, members: NDArray[np.intp], rows: NDArray[np.intp]) -> None:
        self.Y, self.members, self.rows = Y, members, rows
        self.shape = (len(members), len(rows))

    def __len__(self) -> int:
        return len(self.members)

    @overload
    def __getitem__(self, at: slice) -> ResponsesOfMask: ...
    @overload
    def __getitem__(self, at: NDArray[np.intp]) -> Array: ...
    def __getitem__(self, at: slice | NDArray[np.intp]) -> ResponsesOfMask | Array:
        part = ResponsesOfMask(self.Y, self.members[at], self.rows)
        return part if isinstance(at, slice) else part()

    def __call__(self) -> Array:
        """The responses themselves (count, n): columns run by run where few are left out, one by one elsewhere."""
        lines, kept = self.Y[self.members], self.rows
        if len(kept) == lines.shape[1]:
            return lines
        begin = np.flatnonzero(np.diff(kept, prepend=-2) != 1)
        if RUN * len(begin) > len(kept):
            return np.take(lines, kept, axis=1)
        out = np.empty(self.shape)
        for first, end in zip(begin.tolist(), [*begin[1:].tolist(), len(kept)], strict=True):
            out[:, first:end] = lines[:, kept[first] : kept[first] + end - first]
        return out

    def sums(self, shared: kernels.BatchDesign, seals: NDArray[np.uint64] | None) -> Array:
        """What fits on the design of these rows need of them, and their seals; see `kernels.BatchDesign.sums`."""
        return shared.sums(self.Y, self.rows, self.members, seals)
