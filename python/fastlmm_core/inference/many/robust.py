"""Robust covariances for a batch, one response after the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import LMMError
from ...support.types import Array
from ..sandwich import sandwich
from ..wald import coefficient_table

if TYPE_CHECKING:
    from ...estimation.fit import Fit
    from ...estimation.many.batch_fit import BatchFit
    from ..sandwich import Sandwich

__all__ = ["robust_coefficients", "robust_fits"]


def robust_fits(batch: BatchFit, vcov: str, cluster: Any) -> Iterator[tuple[int, Fit, Sandwich | None]]:
    """Position, fit and robust covariance of the responses that were fitted."""
    if batch.responses is None:
        raise LMMError(f"{batch.gone}, but robust covariances are made of residuals: fit an array, or use vcov='model'")
    for i in np.flatnonzero(batch.status >= 0).tolist():
        fit = batch.one(i)
        yield i, fit, sandwich(fit, vcov, cluster)


def robust_coefficients(batch: BatchFit, ddf: str, vcov: str, cluster: Any) -> tuple[Array, Array]:
    """Standard errors and degrees of freedom (n, p) of the coefficients.

    Parameters
    ----------
    batch : BatchResult
    ddf : {"satterthwaite", "residual", "normal"}
    vcov, cluster
        As for `sandwich.sandwich`.

    Raises
    ------
    LMMError
        As `sandwich.sandwich`, and where the responses are gone.
    """
    error, freedom = np.full(batch.params.shape, np.nan), np.full(batch.params.shape, np.nan)
    for i, fit, robust in robust_fits(batch, vcov, cluster):
        table = coefficient_table(fit, ddf, robust=robust)
        error[i], freedom[i] = table["std_error"], table["df"]
    return error, freedom
