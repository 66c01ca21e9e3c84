"""Tails and quantiles of the normal, t, chi-square and F distributions.

They come from scipy.special: importing scipy.stats takes a second.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from .types import Array

__all__ = ["chi2_tail", "f_tail", "quantile", "two_sided_p"]


def two_sided_p(statistic: ArrayLike, df: ArrayLike | None) -> Array:
    """P(|T| > |statistic|) for t with df degrees of freedom (inf: normal), or the normal distribution for df None."""
    from scipy.special import ndtr, stdtr

    size = -np.abs(np.asarray(statistic, dtype=float))
    if df is None:
        return np.asarray(2.0 * ndtr(size))
    freedom = np.asarray(df, dtype=float)
    if freedom.sum() != np.inf:
        return np.asarray(2.0 * stdtr(freedom, size))
    return np.asarray(2.0 * np.where(np.isinf(freedom), ndtr(size), stdtr(freedom, size)))


def quantile(probability: float, df: ArrayLike | None) -> Array:
    """Quantile of the t distribution with df degrees of freedom (inf: normal), or of the normal where df is None."""
    from scipy.special import ndtri, stdtrit

    if df is None:
        return np.asarray(ndtri(probability))
    freedom = np.asarray(df, dtype=float)
    if not np.isinf(freedom).any():
        return np.asarray(stdtrit(freedom, probability))
    return np.where(np.isinf(freedom), ndtri(probability), stdtrit(freedom, probability))


def chi2_tail(statistic: ArrayLike, df: ArrayLike) -> Array:
    """P(X > statistic) for chi-square with df degrees of freedom."""
    from scipy.special import chdtrc

    return np.asarray(chdtrc(np.asarray(df, dtype=float), np.asarray(statistic, dtype=float)))


def f_tail(statistic: ArrayLike, df_num: ArrayLike, df_denom: ArrayLike) -> Array:
    """P(X > statistic) for F with df_num and df_denom degrees of freedom (df_denom inf: chi-square / df_num)."""
    from scipy.special import chdtrc, fdtrc

    value = np.asarray(statistic, dtype=float)
    above, below = np.asarray(df_num, dtype=float), np.asarray(df_denom, dtype=float)
    if not np.isinf(below).any():
        return np.asarray(fdtrc(above, below, value))
    return np.where(np.isinf(below), chdtrc(above, above * value), fdtrc(above, below, value))
