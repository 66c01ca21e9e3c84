"""Logarithms of tails that are too small for a number: p-values of very large statistics."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .distributions import f_tail
from .types import Array

__all__ = ["log10_f_tail"]


TINY = 1e-280
"""Tails from which the logarithm is taken as they are."""

MOST = 10_000
"""Steps of a continued fraction."""


def log10_f_tail(statistic: ArrayLike, df_num: ArrayLike, df_denom: ArrayLike) -> Array:
    """log10 P(X > statistic) for F with df_num and df_denom degrees of freedom (inf: chi-square / df_num).

    A t statistic is one of F with df_num 1, squared.

    Parameters
    ----------
    statistic, df_num, df_denom : array_like

    Returns
    -------
    ndarray
        To about 12 digits, however small the tail is.  Where it is below 1e-280 from the continued fractions of the
        incomplete beta and gamma functions (DLMF 8.17.22 and 8.9.2).
    """
    value, above, below = np.broadcast_arrays(*(np.asarray(v, dtype=float) for v in (statistic, df_num, df_denom)))
    tail = np.atleast_1d(f_tail(value, above, below)).astype(float)
    with np.errstate(divide="ignore", invalid="ignore"):
        out = np.log10(tail)
    small = np.flatnonzero(tail.ravel() < TINY)
    if len(small):
        x, a, b = (np.atleast_1d(v).ravel()[small] for v in (value, above, below))
        known = np.isinf(b)
        found = np.empty(len(small))
        found[known] = _log_gamma_tail(0.5 * a[known], 0.5 * a[known] * x[known])
        found[~known] = _log_beta_tail(0.5 * b[~known], 0.5 * a[~known], a[~known] * x[~known] / b[~known])
        out.ravel()[small] = found / np.log(10.0)
    return np.asarray(out.reshape(value.shape))


def _log_gamma_tail(a: Array, x: Array) -> Array:
    """log Q(a, x), x far above a."""
    from scipy.special import gammaln

    with np.errstate(divide="ignore", invalid="ignore"):
        found = (
            a * np.log(x) - x - gammaln(a) + np.log(_lentz(x + 1.0 - a, lambda k: (-k * (k - a), x + 2 * k + 1.0 - a)))
        )
    return np.asarray(np.where(np.isinf(x), -np.inf, found))


def _log_beta_tail(a: Array, b: Array, ratio: Array) -> Array:
    """log I_x(a, b) at x = 1 / (1 + ratio), x far below its mean."""
    from scipy.special import betaln

    with np.errstate(divide="ignore", invalid="ignore"):
        log_x, y = -np.log1p(ratio), 1.0 / (1.0 + 1.0 / ratio)
        x = np.exp(log_x)

        def term(k: int) -> tuple[Array, Array]:
            m = k // 2
            if k % 2:
                return -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1.0)), np.ones_like(x)
            return m * (b - m) * x / ((a + 2 * m - 1.0) * (a + 2 * m)), np.ones_like(x)

        found = a * log_x + b * np.log(y) - np.log(a) - betaln(a, b) + np.log(_lentz(np.ones_like(x), term))
    return np.asarray(np.where(np.isinf(ratio), -np.inf, found))


def _lentz(first: Array, term: Any) -> Array:
    """1 / (first + n_1 / (d_1 + n_2 / (d_2 + ...))) for terms (n_k, d_k), by Lentz's method as modified by Thompson."""
    f = first.copy()
    c, d = f.copy(), np.zeros_like(f)
    for k in range(1, MOST):
        numerator, denominator = term(k)
        d = 1.0 / (denominator + numerator * d)
        c = denominator + numerator / c
        change = c * d
        f = f * change
        if not (np.abs(change - 1.0) > 1e-15).any():
            break
    return np.asarray(1.0 / f)
