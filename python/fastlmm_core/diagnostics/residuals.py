"""Residuals of every kind."""

from __future__ import annotations

import numpy as np

from .. import kernels
from ..errors import LMMError
from ..estimation.fit import Fit
from ..estimation.whitening import whitened
from ..support.hints import option
from ..support.types import Array
from .studentized import studentized
from .within_groups import within_groups

__all__ = ["residuals"]


def residuals(fit: Fit, kind: str) -> Array:
    """Residuals of the rows used; see `LMMResult.residuals`."""
    if kind == "conditional":
        return fit.rest
    if kind == "marginal":
        return fit.marginal_rest
    if kind == "pearson":
        return fit.rest / np.sqrt(fit.residual_variances)
    if kind == "whitened":
        model = fit.model
        if len(model.factors) > 1 or model.residual is not None:
            return whitened(fit, fit.marginal_rest)
        values = kernels.whiten_residuals(
            fit.marginal_rest, model.exog_re, model.grouping.index.astype(np.int64), model.problem.m,
            fit.relative_covariance, model.weights,
        )  # fmt: skip
        return np.asarray(values / fit.sigma)
    if kind == "studentized":
        return studentized(fit)
    if kind == "within-groups":
        return within_groups(fit)
    known = ("conditional", "marginal", "pearson", "whitened", "studentized", "within-groups")
    near = option("kind of residuals", kind, known)
    raise LMMError(f"kind={kind!r} is unknown: use {', '.join(map(repr, known[:-1]))} or {known[-1]!r}{near}")
