"""Sums in twice the precision of rows that can be read only once.

A second pass over rows serves to sum them about better columns, or a residual of y.  Both are linear maps of the
columns [Z X y], so that sums of their products in twice the precision have all that such a pass finds.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from .. import kernels
from ..engines.one_factor.reading import RowSums
from ..kernels.reading import add_products
from ..kernels.records.rows import RowColumns, Rows
from ..support.double_double import Pairs, cholesky, pairs, product, total
from ..support.types import Array, Index

__all__ = ["ExactSums", "unpacked"]


class ExactSums:
    """Products of the columns of Z, X and y - offset by lines, and of the last two over all rows.

    Parameters
    ----------
    columns : RowColumns
        Whose scales, powers of two, are taken.
    """

    def __init__(self, columns: RowColumns) -> None:
        self._x_constant, self._z_constant = columns.x_constant, columns.z_constant
        p, q = len(columns.beta0), columns.z_scale.shape[1]
        self._p, self._q, self._k = p, q, p + 1
        scales = np.concatenate([columns.z_scale[1], columns.x_scale[1], [1.0]])
        self._scales = np.exp2(np.round(np.log2(np.abs(scales))))
        self._lines = np.zeros((2, 0, q * (q + 1) // 2 + q * self._k))
        self._total = np.zeros((2, self._k * (self._k + 1) // 2))
        self._counts = np.zeros(0, dtype=np.int64)
        self._m = 0

    @classmethod
    def of(cls, columns: RowColumns, A: Pairs, C: Pairs, S: Pairs, counts: NDArray[np.int64]) -> ExactSums:
        """From sums that are there: Z'WZ and Z'W[X y] by lines, [X y]'W[X y], and the rows of each line."""
        out = cls(columns)
        m, q = len(counts), out._q
        z, xy = out._scales[:q], out._scales[q:]
        lower, inner = np.tril_indices(q), np.tril_indices(out._k)
        out._m, out._counts = m, counts
        # powers of two change no digit
        out._lines = np.array([
            np.concatenate([(a * (z[:, None] * z))[:, *lower], (c * (z[:, None] * xy)).reshape(m, -1)], axis=1)
            for a, c in ((A.hi, C.hi), (A.lo, C.lo))
        ])  # fmt: skip
        out._total = np.array([(part * (xy[:, None] * xy))[inner] for part in (S.hi, S.lo)])
        return out

    def add(self, rows: Rows) -> None:
        """Take in some rows, whose slots begin at 0."""
        m = rows.n_slots
        if m > self._lines.shape[1]:
            room = max(m, 2 * self._lines.shape[1])
            lines, counts = np.zeros((2, room, self._lines.shape[2])), np.zeros(room, dtype=np.int64)
            lines[:, : self._lines.shape[1]], counts[: len(self._counts)] = self._lines, self._counts
            self._lines, self._counts = lines, counts
        y = rows.y if rows.offset is None else rows.y - rows.offset
        values = np.empty((len(y), len(self._scales)))
        values[:, : self._q], values[:, self._q : -1], values[:, -1] = rows.Z, rows.X, y
        values *= self._scales
        codes: NDArray[np.int64] = np.asarray(rows.codes, dtype=np.int64)
        add_products(values, rows.weights, codes, self._q, self._lines, self._total)
        self._counts += np.bincount(codes, minlength=len(self._counts))
        self._m = m

    # ---- maps ------------------------------------------------------------------------------------------------

    def _scaled(self, shift_scale: Array, constant: int, own: Array) -> Pairs:
        """From columns as they were summed, with scales `own`, to shifted and scaled ones."""
        out = pairs(np.zeros((len(own), len(own))))
        for j in range(len(own)):
            scale = Fraction(float(shift_scale[1, j]))
            out.hi[j, j], out.lo[j, j] = _pair(scale / Fraction(float(own[j])))
            if constant >= 0 and j != constant:
                # the constant column is 1 / its scale
                one = Fraction(float(shift_scale[1, constant])) / Fraction(float(own[constant]))
                out.hi[constant, j], out.lo[constant, j] = _pair(-Fraction(float(shift_scale[0, j])) * scale * one)
        return out

    def _of_x(self, columns: RowColumns, kept: Index | None) -> tuple[Index, Pairs]:
        """The columns of [X y] that are kept, and the map from them to shifted and scaled ones."""
        at = np.arange(self._p) if kept is None else kept
        own = self._scales[self._q : -1][at]
        inner = self._scaled(columns.x_scale, columns.x_constant, own)
        r = len(at)
        out = pairs(np.zeros((r + 1, r + 1)))
        out.hi[:r, :r], out.lo[:r, :r] = inner.hi, inner.lo
        out.hi[r, r] = 1.0
        return np.append(at, self._p), out

    def _of_z(self, columns: RowColumns) -> Pairs:
        turn = self._scaled(columns.z_scale, columns.z_constant, self._scales[: self._q])
        return turn if columns.z_transform is None else product(turn, pairs(columns.z_transform))

    def _turned(self, columns: RowColumns, kept: Index | None, whole: bool) -> tuple[Index, Pairs]:
        """As `_of_x`, to columns as they are to be summed; `whole`: the transform is that of [X y], after beta0."""
        at, out = self._of_x(columns, kept)
        r = len(at) - 1
        step = pairs(np.eye(r + 1))
        turn = columns.x_transform
        if turn is not None and not whole:
            step.hi[:r, :r] = turn
        out = product(out, step)
        residual = pairs(np.eye(r + 1))
        residual.hi[:r, r] = -columns.beta0
        out = product(out, residual)
        return at, out if turn is None or not whole else product(out, pairs(turn))

    # ---- sums ------------------------------------------------------------------------------------------------

    def _products(self) -> tuple[Pairs, Pairs]:
        """A (m, q, q) and C (m, q, k) of the lines."""
        return unpacked(Pairs(*self._lines[:, : self._m]), self._q, self._k)

    def _whole(self) -> Pairs:
        """[X y]'[X y] (k, k)."""
        return Pairs(*(kernels.unpack(part, self._k) for part in self._total))

    def sums(self, columns: RowColumns, kept: Index | None, constant: bool, varies: bool) -> RowSums:
        """What `kernels.accumulate` gives for these columns, by slots."""
        at, turn = self._turned(columns, kept, False)
        of_z = self._of_z(columns)
        square, crossed = self._products()
        A = product(product(of_z.T, square), of_z)
        C = product(product(of_z.T, crossed[:, :, at]), turn)
        S = product(product(turn.T, self._whole()[np.ix_(at, at)]), turn)
        lower, inner = np.tril_indices(self._q), np.tril_indices(len(at))
        m = self._m
        raw = np.column_stack([A.hi[:, *lower], C.hi.reshape(m, -1), self._counts[:m]])
        gram = total(A).hi[lower]
        finite = bool(np.isfinite(S.hi).all() and np.isfinite(gram).all())
        return RowSums(np.ascontiguousarray(raw), S.hi[inner].copy(), gram, constant, varies, finite)

    def triangle(self, shift_scale: Array, of_z: bool) -> Array:
        """R of the QR decomposition of shifted, scaled and weighted columns of X, or of Z."""
        known = self._z_constant if of_z else self._x_constant
        constant = known if (shift_scale[0] != 0.0).any() else -1
        own = self._scales[: self._q] if of_z else self._scales[self._q : -1]
        turn = self._scaled(shift_scale, constant, own)
        gram = total(self._products()[0]) if of_z else self._whole()[:-1, :-1]
        return cholesky(product(product(turn.T, gram), turn))

    def within(self, columns: RowColumns, kept: Index, place: NDArray[np.int64], packed: Array) -> Array:
        """See `kernels.within_rows`; `place`: of each slot."""
        at, turn = self._turned(columns, kept, True)
        of_z = self._of_z(columns)
        square, crossed = self._products()
        A = product(product(of_z.T, square), of_z)
        C = product(product(of_z.T, crossed[:, :, at]), turn)
        B = pairs(_solved(packed, self._q, len(at))[place[: self._m]])
        explained = product(C.T, B)
        explained = explained + explained.T - product(product(B.T, A), B)
        S = product(product(turn.T, self._whole()[np.ix_(at, at)]), turn) - total(explained)
        out = S.hi.copy()
        out[np.diag_indices(len(at))] = np.maximum(np.diagonal(out), 0.0)
        return out[np.tril_indices(len(at))]


def unpacked(lines: Pairs, q: int, k: int) -> tuple[Pairs, Pairs]:
    """A (m, q, q) and C (m, q, k) of lines of sums."""
    m, n_a = len(lines.hi), q * (q + 1) // 2
    lower = np.zeros((q, q), dtype=np.intp)
    lower[np.tril_indices(q)] = np.arange(n_a)
    square = lines[:, np.maximum(lower, lower.T)]
    crossed = lines[:, n_a:]
    return square, Pairs(crossed.hi.reshape(m, q, k), crossed.lo.reshape(m, q, k))


def _pair(value: Fraction) -> tuple[float, float]:
    hi = float(value)
    return hi, float(value - Fraction(hi))


def _solved(packed: Array, q: int, k: int) -> Array:
    """R_i^-1 c_i (places, q, k) of factored groups; 0 where a pivot is."""
    flat = packed.transpose(0, 2, 1).reshape(-1, packed.shape[1])
    n_a = q * (q + 1) // 2
    R = np.zeros((len(flat), q, q))
    R[(slice(None), *np.triu_indices(q))] = flat[:, :n_a]
    c = flat[:, n_a:-1].reshape(-1, q, k)
    pivot = np.diagonal(R, axis1=1, axis2=2)
    inverse = np.where(pivot != 0.0, 1.0 / np.where(pivot != 0.0, pivot, 1.0), 0.0)
    B = np.zeros_like(c)
    for a in range(q - 1, -1, -1):
        B[:, a] = (c[:, a] - np.einsum("ib,ibj->ij", R[:, a, a + 1 :], B[:, a + 1 :])) * inverse[:, a, None]
    return B
