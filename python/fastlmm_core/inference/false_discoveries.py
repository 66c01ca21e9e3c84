"""False discovery rates over the responses of a batch."""

from __future__ import annotations

import numpy as np

from ..errors import LMMError
from ..support.hints import option
from ..support.types import Array

__all__ = ["false_discovery_rates"]


METHODS = ("bh", "by")


def false_discovery_rates(pvalues: Array, method: str = "bh") -> Array:
    """Adjusted p-values, column by column.

    Parameters
    ----------
    pvalues : (n, ...) array
        NaN takes no part and stays NaN.
    method : {"bh", "by"}
        Benjamini and Hochberg (1995), J. R. Stat. Soc. B 57: the least of n p_(i) / i from i on; times 1 + 1/2 + ... +
        1/n by Benjamini and Yekutieli (2001), Ann. Stat. 29, for any dependence.

    Raises
    ------
    LMMError
        For an unknown method.
    """
    if method not in METHODS:
        raise LMMError(f"method={method!r} is unknown: use 'bh' or 'by'{option('method', method, METHODS)}")
    ordered = np.sort(pvalues, axis=0)  # NaN comes last
    counts = (~np.isnan(pvalues)).sum(axis=0)
    rank = np.arange(1.0, len(pvalues) + 1.0).reshape(-1, *[1] * (pvalues.ndim - 1))
    factor = counts * 1.0
    if method == "by":
        sums = np.append(0.0, np.cumsum(1.0 / np.arange(1.0, len(pvalues) + 1.0)))
        factor = factor * sums[counts]
    scaled = np.fmin(ordered * (factor / rank), 1.0)
    scaled[np.isnan(ordered)] = np.nan
    steps = np.fmin.accumulate(scaled[::-1], axis=0)[::-1]
    steps[np.isnan(ordered)] = np.nan
    out = np.empty_like(steps)
    np.put_along_axis(out, np.argsort(pvalues, axis=0, kind="stable"), steps, axis=0)
    return out
