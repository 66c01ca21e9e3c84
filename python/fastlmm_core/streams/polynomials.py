"""Orthogonal polynomials of a column whose rows are seen piece by piece.

With the moments M_j = sum u^j of u = x - x_0 up to j = 2 d, the monic polynomials of formulaic's `poly` follow,

    P_k = (u - alpha_(k-1)) P_(k-1) - N_(k-1) / N_(k-2) P_(k-2),   N_k = <P_k, P_k>,   alpha_k = <u P_k, P_k> / N_k

<u^i, u^j> = M_(i+j) (Chebyshev's algorithm; Gautschi 2004, Orthogonal Polynomials, sec. 2.1).  That is badly
conditioned: moments are summed in twice the precision, the recurrence is evaluated in fractions, and what is lost is
known from

    kappa_k = sum_i |c_i| sqrt(M_2i) / sqrt(N_k),   P_k = sum_i c_i u^i

N_k is known to 2^-98 kappa_k^2 of itself, and a column that is put together from rounded powers to 2^-53 kappa_k.
"""

from __future__ import annotations

from fractions import Fraction
from math import comb, inf, sqrt

import numpy as np

from ..errors import LMMError
from ..support.double_double import Pairs, pairs, total
from ..support.types import Array

__all__ = ["TOLD", "PowerSums", "basis"]

SUMMED, ROUNDED = 2.0**-98, 2.0**-53
"""Relative errors of the moments, and of powers of numbers."""

KNOWN, TOLD = 1e-13, 1e-10
"""Errors that norms, and columns made of powers, may have."""


class PowerSums:
    """Sums of the powers of x - x_0 up to twice a degree, in twice the precision.

    Parameters
    ----------
    reference : float
        x_0.
    degree : int
    """

    def __init__(self, reference: float, degree: int) -> None:
        self.reference = reference
        self.sums = pairs(np.zeros(2 * degree + 1))

    def see(self, x: Array) -> None:
        """Add the powers of some numbers."""
        # powers that are too large for floats are refused by `recurrence`
        with np.errstate(over="ignore", invalid="ignore"):
            u, power = pairs(x) + pairs(-self.reference), pairs(np.ones(len(x)))
            found = [total(power)]
            for _ in range(len(self.sums.hi) - 1):
                power = power * u
                found.append(total(power))
            self.sums = self.sums + Pairs(np.array([one.hi for one in found]), np.array([one.lo for one in found]))

    def take(self, other: PowerSums) -> None:
        """Add the sums of other rows, which may be about another number."""
        if not (np.isfinite(self.sums.hi).all() and np.isfinite(other.sums.hi).all()):
            self.sums = pairs(np.full(len(self.sums.hi), np.inf))
            return
        moved = other.about(self.reference)
        high = np.array([float(value) for value in moved])
        low = np.array([float(value - Fraction(one)) for value, one in zip(moved, high.tolist(), strict=True)])
        self.sums = self.sums + Pairs(high, low)

    def about(self, centre: float) -> list[Fraction]:
        """Sums of the powers of x - centre."""
        own = [Fraction(hi) + Fraction(lo) for hi, lo in zip(self.sums.hi.tolist(), self.sums.lo.tolist(), strict=True)]
        step = Fraction(self.reference) - Fraction(centre)
        return [
            sum((comb(j, i) * step ** (j - i) * own[i] for i in range(j + 1)), Fraction(0)) for j in range(len(own))
        ]

    def recurrence(self, call: str, degree: int) -> tuple[dict[int, float], dict[int, float]]:
        """`alpha` and `norms2` of formulaic's `poly`.

        Raises
        ------
        LMMError
            For fewer different values than the degree asks for, and where rounding has left too few digits.
        """
        M = self.about(self.reference) if np.isfinite(self.sums.hi).all() else [Fraction(0)] * (2 * degree + 1)
        before, P, last = [Fraction(0)], [Fraction(1)], Fraction(1)
        alpha: dict[int, float] = {}
        norms: dict[int, float] = {}
        for k in range(degree + 1):
            norm = _product(P, P, M)
            lost = SUMMED * _condition(P, M, norm) ** 2
            if not lost <= KNOWN:
                raise LMMError(
                    f"{call}: the column has fewer than {degree + 1} different values, or values so far from the first "
                    "one, or so uneven, that sums of their powers have lost their digits; center or scale it as a "
                    "column first, or take a lower degree"
                )
            norms[k] = float(norm)
            if k < degree:
                centre = _product([Fraction(0), *P], P, M) / norm
                alpha[k] = float(Fraction(self.reference) + centre)
                # beta is 0 where there is no polynomial before
                P, before, last = _next(P, before, centre, norm / last if k else Fraction(0)), P, norm
        return alpha, norms

    def amplified(self, centre: float, columns: Array) -> float:
        """Relative error of columns of polynomials that are put together from powers of x - centre."""
        M = self.about(centre)
        return max(ROUNDED * _condition([Fraction(c) for c in column.tolist()], M, Fraction(1)) for column in columns.T)


def basis(alpha: dict[int, float], norms: dict[int, float], degree: int, centre: float) -> Array:
    """Coefficients (degree + 1, degree) of the powers of x - centre in the columns of `poly`."""
    before, P = [Fraction(0)], [Fraction(1)]
    out = np.zeros((degree + 1, degree))
    for k in range(degree):
        beta = Fraction(norms[k]) / Fraction(norms[k - 1]) if k else Fraction(0)
        P, before = _next(P, before, Fraction(alpha[k]) - Fraction(centre), beta), P
        # as floats of numbers that may be as large as the square of what floats hold
        out[: k + 2, k] = [float(c) / sqrt(norms[k + 1]) for c in P]
    return out


def _next(P: list[Fraction], before: list[Fraction], alpha: Fraction, beta: Fraction) -> list[Fraction]:
    """(u - alpha) P - beta times the one before."""
    out = [Fraction(0), *P]
    for i, c in enumerate(P):
        out[i] -= alpha * c
    for i, c in enumerate(before):
        out[i] -= beta * c
    return out


def _product(one: list[Fraction], other: list[Fraction], M: list[Fraction]) -> Fraction:
    return sum((a * b * M[i + j] for i, a in enumerate(one) for j, b in enumerate(other)), Fraction(0))


def _condition(P: list[Fraction], M: list[Fraction], norm: Fraction) -> float:
    if not norm > 0:
        return inf
    return sum(sqrt(c * c * M[2 * i] / norm) for i, c in enumerate(P))
