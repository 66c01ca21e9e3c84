"""Arrays of numbers in twice the precision: pairs (hi, lo) of which the sum is meant.

What is known of cross-products in twice the precision stays known under any linear map of the columns, however much
cancels (Dekker 1971, Numer. Math. 18, 224-242; Hida, Li and Bailey 2001, Proc. 15th IEEE Symp. Computer Arithmetic).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .types import Array

__all__ = ["Pairs", "cholesky", "pairs", "product", "total"]

SPLITTER = 2.0**27 + 1.0

VANISHED = 1e-28
"""Share of a diagonal element that is left of it where it is a combination of those before."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """Numbers hi + lo, |lo| at most half a unit of the last place of hi."""

    hi: Array
    lo: Array

    def __getitem__(self, at: Any) -> Pairs:
        return Pairs(self.hi[at], self.lo[at])

    def __add__(self, other: Pairs) -> Pairs:
        s, e = _sum(self.hi, other.hi)
        return _settled(s, e + (self.lo + other.lo))

    def __neg__(self) -> Pairs:
        return Pairs(-self.hi, -self.lo)

    def __sub__(self, other: Pairs) -> Pairs:
        return self + -other

    def __mul__(self, other: Pairs) -> Pairs:
        p, e = _product(self.hi, other.hi)
        return _settled(p, e + (self.hi * other.lo + self.lo * other.hi))

    @property
    def T(self) -> Pairs:
        """The last two axes exchanged."""
        return Pairs(np.swapaxes(self.hi, -1, -2), np.swapaxes(self.lo, -1, -2))


def pairs(values: Array | float) -> Pairs:
    """Numbers as they are."""
    return Pairs(np.asarray(values, dtype=np.float64), np.zeros(np.shape(values)))


def _sum(a: Array, b: Array) -> tuple[Array, Array]:
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


def _settled(s: Array, e: Array) -> Pairs:
    hi = s + e
    return Pairs(hi, e - (hi - s))


def _split(a: Array) -> tuple[Array, Array]:
    t = SPLITTER * a
    hi = t - (t - a)
    return hi, a - hi


def _product(a: Array, b: Array) -> tuple[Array, Array]:
    p = a * b
    (a_hi, a_lo), (b_hi, b_lo) = _split(a), _split(b)
    return p, ((a_hi * b_hi - p) + a_hi * b_lo + a_lo * b_hi) + a_lo * b_lo


def product(a: Pairs, b: Pairs) -> Pairs:
    """Products of matrices (..., i, k) and (..., k, j)."""
    shape = np.broadcast_shapes(a.hi.shape[:-2], b.hi.shape[:-2])
    out = pairs(np.zeros((*shape, a.hi.shape[-2], b.hi.shape[-1])))
    for k in range(a.hi.shape[-1]):
        out = out + a[..., :, k, None] * b[..., None, k, :]
    return out


def total(values: Pairs) -> Pairs:
    """Sums along the first axis."""
    while len(values.hi) > 1:
        half = len(values.hi) // 2
        summed = values[:half] + values[half : 2 * half]
        rest = values[2 * half :]
        values = Pairs(np.concatenate([summed.hi, rest.hi]), np.concatenate([summed.lo, rest.lo]))
    return values[0] if len(values.hi) else pairs(np.zeros(values.hi.shape[1:]))


def cholesky(gram: Pairs) -> Array:
    """R, upper triangular, with R'R = gram; rows of zeros for columns that are combinations of those before."""
    p = len(gram.hi)
    out = np.zeros((p, p))
    left = gram
    for j in range(p):
        pivot = left[j, j]
        if not pivot.hi > VANISHED * gram.hi[j, j]:
            continue
        root = np.sqrt(pivot.hi)
        # one step of Newton's method: twice the digits
        lost = (pivot - Pairs(*_product(root, root))).hi / (2.0 * root)
        inverse = 1.0 / root
        # 1 / (root + lost) in twice the precision
        rest = (pairs(1.0) - Pairs(root, lost) * pairs(inverse)).hi * inverse
        row = left[j, j:] * Pairs(inverse, rest)
        out[j, j:] = row.hi
        step = row[:, None] * row[None, :]
        tail = left[j:, j:] - step
        hi, lo = left.hi.copy(), left.lo.copy()
        hi[j:, j:], lo[j:, j:] = tail.hi, tail.lo
        left = Pairs(hi, lo)
    return out
