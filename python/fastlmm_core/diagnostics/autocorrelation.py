"""Autocorrelation of whitened residuals within groups, by lags of rows, visits or time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import kernels
from ..errors import LMMError
from ..estimation.whitening import whitened
from ..support.checks import float_array
from ..support.types import Array

if TYPE_CHECKING:
    from ..design.grouping import Grouping
    from ..estimation.fit import Fit

__all__ = ["autocorrelation", "lag_grouping", "lag_products"]


def _whitened_in_order(result: Fit, order: NDArray[np.intp]) -> Array:
    """Whitened residuals, each group's rows taken in the given order."""
    model = result.model
    if len(model.factors) > 1 or model.residual is not None:
        return whitened(result, result.marginal_rest, order)[order]
    values = kernels.whiten_residuals(
        result.marginal_rest[order],
        np.ascontiguousarray(model.exog_re[order]),
        model.grouping.index[order].astype(np.int64),
        len(model.grouping.labels),
        result.relative_covariance,
        None if model.weights is None else model.weights[order],
    )
    return np.asarray(values / result.sigma)


def _ticks(index: NDArray[np.intp], time: Array) -> NDArray[np.int64]:
    """Times in units of the smallest step within a group."""
    values = float_array(time, "time", 1)
    if not np.isfinite(values).all():
        raise LMMError("time has values that are not finite; give a number for every row used")
    order = np.lexsort((values, index))
    steps = np.diff(values[order])[np.diff(index[order]) == 0]
    if not len(steps) or steps.min() <= 0.0:
        raise LMMError("time repeats within a group, or no group has two rows; lags need distinct times")
    relative = (values - values.min()) / steps.min()
    ticks = np.rint(relative)
    if np.abs(relative - ticks).max() > 1e-3:
        raise LMMError("time is not equally spaced: round it to a grid, or leave it out to count rows")
    return np.asarray(ticks, dtype=np.int64)


def lag_grouping(result: Fit, factor: str | None) -> Grouping:
    """The grouping factor within whose levels lags are counted: by default the subjects of structured residuals."""
    part = result.model.residual
    if part is not None and factor in (None, part.subject.name):
        return part.subject.count()
    return result.model.factor(factor).grouping


def _places_in_time(result: Fit, index: NDArray[np.intp], time: str | ArrayLike | None) -> tuple[NDArray[Any], bool]:
    """Place of each row among those of its group, and whether the places are times, so that lags count their steps."""
    part = result.model.residual
    if isinstance(time, str):
        return _ticks(index, result.model.design.column(time, "time")), True
    if time is not None:
        return _ticks(index, result.model.design.caller_rows.values(time, "time")), True
    if part is None:
        return np.arange(len(index)), False
    # structured residuals have their own order: visits, or the first coordinate
    where = part.where if part.where.ndim == 1 else part.where[:, 0]
    return where, part.at_visits and "@" not in part.name


def lag_products(
    result: Fit, max_lag: int, time: str | ArrayLike | None, grouping: Grouping
) -> tuple[Array, NDArray[np.int64]]:
    """Autocorrelations of the whitened residuals at lags 1..max_lag and the numbers of pairs."""
    index = grouping.index
    n = len(index)
    places, timed = _places_in_time(result, index, time)
    order = np.lexsort((np.arange(n), places, index))
    group = index[order]
    w = _whitened_in_order(result, order)
    tick = places[order] if timed else np.arange(n)
    # one line of places for all groups, with gaps wider than any lag
    start = np.flatnonzero(np.diff(group, prepend=-1))
    local = tick - tick[start][np.searchsorted(start, np.arange(n), side="right") - 1]
    key = group * (int(local.max()) + max_lag + 1) + local
    scale = float(np.mean(w**2))
    found, pairs = np.full(max_lag, np.nan), np.zeros(max_lag, dtype=np.int64)
    for lag in range(1, max_lag + 1):
        place = np.minimum(np.searchsorted(key, key + lag), n - 1)
        match = key[place] == key + lag
        pairs[lag - 1] = int(match.sum())
        if pairs[lag - 1]:
            found[lag - 1] = float(np.mean(w[match] * w[place[match]])) / scale
    return found, pairs


def autocorrelation(
    result: Fit, max_lag: int = 5, time: str | ArrayLike | None = None, factor: str | None = None
) -> Any:
    """Autocorrelation of the whitened residuals within groups (as nlme's ACF), by lag.

    Under the model whitened residuals are independent; correlated errors show up at the first lags.

    Parameters
    ----------
    result : LMMResult
    max_lag : int
    time : str or (nobs,) array, optional
        Time of each row, used or of the data, on a grid within groups, gaps allowed: lags count its steps, and groups
        are whitened in its order.  By default lags count rows in their order, those of structured residuals visits, or
        rows by their coordinate.
    factor : str, optional
        The grouping factor within whose levels lags are counted, where there are several; by default that with most
        levels, and the subjects of structured residuals.

    Returns
    -------
    frame or dict of arrays
        ``lag``, ``pairs`` (number of products averaged), ``autocorrelation`` (their mean divided by the mean square),
        ``z`` (times the root of the number of pairs: standard normal under the model) and ``p_value`` (two-sided).

    Raises
    ------
    LMMError
        For max_lag below 1, times that repeat or are not on a grid, or an unknown factor.

    Examples
    --------
    >>> import fastlmm_core as flc
    >>> from fastlmm_core.diagnostics.autocorrelation import autocorrelation
    >>> fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
    >>> autocorrelation(fit, 2).round(2)
       lag  pairs  autocorrelation     z  p_value
    0    1    162             0.26  3.26     0.00
    1    2    144             0.01  0.10     0.92
    """
    from scipy.special import ndtr

    if not 1 <= max_lag < max(result.nobs, 2):
        raise LMMError(f"max_lag={max_lag} must be at least 1 and below the number of rows, {result.nobs}")
    found, pairs = lag_products(result, int(max_lag), time, lag_grouping(result, factor))
    z = found * np.sqrt(pairs)
    return result.model.table(
        {
            "lag": np.arange(1, int(max_lag) + 1), "pairs": pairs, "autocorrelation": found, "z": z,
            "p_value": 2.0 * ndtr(-np.abs(z)),
        },
    )  # fmt: skip
