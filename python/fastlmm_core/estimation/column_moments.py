"""Moments of the columns of X and Z over the rows, also where the rows are not held."""

from __future__ import annotations

from typing import cast

import numpy as np

from ..design.streamed import StreamedDesign, refuse_rows
from ..support.blas_threads import quiet_product
from ..support.types import Array
from .model import Model

__all__ = ["data_sums", "exog_root", "mean_residual_variance", "mean_squares", "offset_mean", "variance_along"]


def _streamed(model: Model) -> StreamedDesign | None:
    return cast("StreamedDesign", model.design) if model.streamed else None


def exog_root(model: Model, weighted: bool = False) -> Array:
    """X, or where its rows are not held a matrix (r, p) with the same cross-products X'X.

    Parameters
    ----------
    model : Model
    weighted : bool
        Whether X'WX does as well, for what is about the space of the columns.

    Raises
    ------
    LMMError
        Where only X'WX is known.
    """
    design = _streamed(model)
    if design is None:
        return model.exog
    if design.weighted and not weighted:
        refuse_rows("X'X without the weights")
    return np.asarray(design.exog_root)


def variance_along(model: Model, beta: Array) -> float:
    """Variance of X beta over the rows, with the divisor n - 1.

    Raises
    ------
    LMMError
        For rows that are not held, with weights or without an intercept.
    """
    design, n = _streamed(model), model.nobs
    if design is None:
        mean = quiet_product(model.exog, beta)
        return float(np.var(mean, ddof=1)) if len(mean) > 1 else 0.0
    if design.constant < 0:
        refuse_rows("the mean of the columns of X, without an intercept,")
    root = exog_root(model)
    along = root @ beta
    # the constant column is the direction of the mean
    direction = root[:, design.constant] / np.linalg.norm(root[:, design.constant])
    rest = along - direction * (direction @ along)
    return float(rest @ rest) / (n - 1)


def mean_squares(model: Model) -> Array:
    """Z'Z / n over the rows (q, q).

    Raises
    ------
    LMMError
        For rows that are not held, with weights.
    """
    design = _streamed(model)
    if design is None:
        Z = model.exog_re
        return np.asarray(Z.T @ Z / len(Z))
    if design.weighted:
        refuse_rows("Z'Z without the weights")
    return np.asarray(design.mean_squares)


def mean_residual_variance(model: Model, phi: Array) -> float:
    """Residual variance relative to sigma^2, averaged over the rows: by weights, and by structures at `phi`.

    Raises
    ------
    LMMError
        For rows that are not held, with weights.
    """
    part = model.residual
    variances = None if part is None else part.variances(phi)
    w = model.weights if model.weighted else None
    if w is None:
        return 1.0 if variances is None else float(np.mean(variances))
    return float(np.mean(1.0 / w if variances is None else variances / w))


def data_sums(model: Model) -> tuple[float, float, float]:
    """Of rows that are not held: sums of log w, of the offset, and of w (y - offset)^2."""
    design = _streamed(model)
    assert design is not None
    return design.log_weights, (design.offset_mean or 0.0) * model.nobs, design.squares


def offset_mean(model: Model) -> float | None:
    """Mean of the offset over the rows, None where there is none."""
    design = _streamed(model)
    if design is not None:
        return design.offset_mean
    return None if model.offset is None else float(model.offset.mean())
