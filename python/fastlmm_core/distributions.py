"""Tails and quantiles of the normal and t distributions (scipy.special: importing scipy.stats takes a second)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["quantile", "two_sided_p"]


def two_sided_p(statistic: ArrayLike, df: ArrayLike | None) -> NDArray[Any]:
    """P(|T| > |statistic|) for t with df degrees of freedom, or the normal distribution where df is None."""
    from scipy.special import ndtr, stdtr

    size = -np.abs(np.asarray(statistic, dtype=float))
    return np.asarray(2.0 * (ndtr(size) if df is None else stdtr(np.asarray(df, dtype=float), size)))


def quantile(probability: float, df: ArrayLike | None) -> NDArray[Any]:
    """Quantile of the t distribution with df degrees of freedom, or of the normal where df is None."""
    from scipy.special import ndtri, stdtrit

    return np.asarray(ndtri(probability) if df is None else stdtrit(np.asarray(df, dtype=float), probability))
