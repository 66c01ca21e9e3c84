"""Sums over rows in columns that are well conditioned, read as often as that takes."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from typing import Any, NamedTuple

import numpy as np

from ... import kernels
from ...errors import LMMError
from ...kernels.records.rows import RowColumns
from ...problem.columns import WELL_CONDITIONED, independent_columns, nothing_left
from ...support.types import Array, Index
from .reading import RowReader, first_mean, unshifted

__all__ = ["MOSTLY_EXPLAINED", "Conditioned", "conditioned_sums"]


MOSTLY_EXPLAINED = 1e-7
"""Share of y'y that X leaves below which its residual is taken from the rows."""

ATTEMPTS = 4
"""Passes over the rows at most."""


class Conditioned(NamedTuple):
    """Sums over the rows, and the columns to which they are turned.

    Attributes
    ----------
    columns : RowColumns
        As they were summed.
    kept : (r,) array
        Columns of X.
    m : int
        Groups with rows.
    raw, packed, gram : arrays
        As `kernels.accumulate` gives them: `raw` of all slots, `packed` of [X y], `gram` of Z.
    to_x : (r, r) array
    to_z : Any
        What the caller's function has made of `gram`.
    xy : (r + 1, r + 1) array
        From the columns of the sums to orthonormal ones, and a residual of unit variance.
    beta : (r,) array
        Least-squares coefficients, with those taken from y before the sums.
    scale : float
        Standard deviation of the residual.
    alone : float
        See `OneFactorProblem`.
    """

    columns: RowColumns
    kept: Index
    m: int
    raw: Array
    packed: Array
    gram: Array
    to_x: Array
    to_z: Any
    xy: Array
    beta: Array
    scale: float
    alone: float = 0.0

    @property
    def x_rows(self) -> Array:
        """From shifted and scaled rows of X to orthonormal ones."""
        turn = self.columns.x_transform
        return self.to_x if turn is None else turn @ self.to_x

    @property
    def x_turn(self) -> Array:
        """From shifted and scaled rows of X to those that were summed."""
        turn = self.columns.x_transform
        return np.eye(len(self.kept)) if turn is None else turn


def conditioned_sums(
    reader: RowReader,
    columns: RowColumns,
    turn_z: Callable[[Array, int, RowColumns], tuple[Any, float]],
    precondition_z: Callable[[Array, int], Array],
    given: bool = False,
    once: bool = False,
    sigma: float | None = None,
) -> Conditioned | None:
    """Sum the rows, about better columns where sums of products in these are not exact enough.

    Parameters
    ----------
    reader : RowReader
    columns : RowColumns
        To begin with.
    turn_z : callable
        Of the packed Z'Z, n and the columns: how Z is turned, and the least 1 - R^2 of its columns.
    precondition_z : callable
        Of R of the QR decomposition of Z and n: a turn of Z that makes its columns nearly orthogonal.
    given : bool
        Whether the parameters are, so that any response will do.
    once : bool
        Read the rows once, and give None where that does not do.
    sigma : float, optional
        Residual standard deviation where it is known: any response will do, too.

    Raises
    ------
    LMMError
        For values that are not finite, and a response that is constant, or that X reproduces.
    """
    kept = np.arange(len(columns.beta0))
    m, alone = 0, 0.0
    takes_all = given or sigma is not None
    for attempt in range(1 if once else ATTEMPTS):
        raw, packed, gram, constant, varies, finite = reader.sums(columns, kept)
        n = reader.n
        if once and not (finite and (varies or takes_all) and constant):
            return None
        if not finite:
            reader.refuse_non_finite()
        if attempt == 0:
            m = int(np.count_nonzero(raw[:, -1]))
        if not varies and not takes_all:
            raise LMMError("y is constant: there is nothing to model; check that the right column is the response")
        if not constant:
            # a column that looked constant in the sample is not: do without shifts
            columns = unshifted(reader)
            continue
        to_x, x_margin, xy, beta, rest, total, scale = kernels.least_squares(packed, columns.beta0, n)
        to_z, z_margin = turn_z(gram, n, columns)
        poor_x = x_margin < WELL_CONDITIONED and columns.x_transform is None
        poor_z = z_margin < WELL_CONDITIONED and columns.z_transform is None
        if once and (poor_x or poor_z or not rest > MOSTLY_EXPLAINED * packed[-1]):
            return None
        if poor_x:
            kept, x_scale, x_constant, turn = independent_columns(
                lambda scales: reader.triangle(scales, False),
                columns.x_scale,
                columns.x_constant,
                lambda: unshifted(reader).x_scale,
            )
            turn = turn * sqrt(n)
            start: Array = np.zeros(len(kept))
            if x_constant >= 0:
                # sums of squares about the mean of y, in the coordinates of the turned columns
                start[x_constant] = first_mean(reader)
                start = np.asarray(np.linalg.solve(turn, start))
            columns = columns._replace(x_scale=x_scale, x_constant=x_constant, x_transform=turn, beta0=start)
        if poor_z:
            triangle = reader.triangle(columns.z_scale, True)
            columns = columns._replace(z_transform=precondition_z(triangle, n))
        if poor_x or poor_z:
            continue
        if rest <= MOSTLY_EXPLAINED * packed[-1] and attempt < ATTEMPTS - 1:
            # the fixed effects explain nearly all of y: take its residual again from the rows
            columns = columns._replace(beta0=beta)
            continue
        break
    # beta0 is not zero only where it has been taken from y before the sums
    if not rest > 1e-30 * total:
        if not takes_all:
            raise nothing_left(total)
        scale = sqrt(total / n) if total > 0.0 else 1.0
        if sigma is not None and not given:
            scale, alone = sigma, float(n)
        xy[:-1, -1], xy[-1, -1] = (columns.beta0 - beta) / scale, 1.0 / scale
    return Conditioned(columns, kept, m, raw, packed, gram, to_x, to_z, xy, beta, scale, alone)
