"""Quadrature over the scale that t statistics share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ...support.types import Array

__all__ = ["over_scale"]


_OUTER = 0.03  # largest step over the logarithm of the scale
_STEPS = 240  # least number of them
_NEGLIGIBLE = -46.0  # log of what is left out of an integrand, relative to its largest value


def over_scale(q: float, df: float, tail: Callable[[Array], Array], log_bound: Callable[[Array], Array]) -> float:
    """Mean of tail(q s), where df s² is chi-squared with df degrees of freedom.

    By the trapezoidal rule over log s, where the product of density and tail counts: first by a bound of the tail, then
    summed.

    Parameters
    ----------
    q : float
        Positive.
    df : float
        Finite.
    tail, log_bound : callable
        Probabilities of positive numbers, and logarithms that are nowhere smaller than those of the probabilities.
    """
    half = 0.5 * df
    constant = np.log(2.0) - _log_gamma_ratio(half)

    def log_density(x: Array) -> Array:  # of log s
        return np.asarray(constant - half * (np.expm1(2.0 * x) - 2.0 * x))

    spread = 10.0 / np.sqrt(df) + 46.0 / df
    x = np.linspace(-spread, min(spread, 3.0), 2001)
    size = log_density(x) + np.minimum(0.0, log_bound(q * np.exp(x)))
    counts = np.flatnonzero(size > size.max() + _NEGLIGIBLE)
    low, high = float(x[max(counts[0] - 1, 0)]), float(x[min(counts[-1] + 1, 2000)])
    x, step = np.linspace(low, high, max(_STEPS, int((high - low) / _OUTER)) + 1, retstep=True)
    return float(min(step * float(np.exp(log_density(x)) @ tail(q * np.exp(x))), 1.0))


def _log_gamma_ratio(a: float) -> float:
    """log Gamma(a) - a log a + a, by Stirling's series where its terms are large and nearly cancel."""
    from scipy.special import gammaln

    if a < 50.0:
        return float(gammaln(a) - a * np.log(a) + a)
    series = (1.0 / 12.0 - (1.0 / 360.0 - 1.0 / (1260.0 * a * a)) / (a * a)) / a
    return float(series + 0.5 * np.log(2.0 * np.pi / a))
