"""Fits of many responses with observations, weights, an offset or covariates of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import LMMError
from ...estimation.many.masks import fit_masked, responses_of
from ...estimation.many.stack import fit_stack
from ...estimation.many.values import ResponseStack, for_lanes, shaped_like
from ...support.types import Array
from .each import EachResult
from .masked import MaskedBatch

if TYPE_CHECKING:
    from ...estimation.fit import Fit
    from ...estimation.many.batch_fit import BatchFit
    from ...estimation.model import Model

__all__ = ["fit_values", "fit_with_holes"]


def fit_values(
    model: Model,
    kind: type[Fit],
    reml: bool,
    Y: Any,
    own: Mapping[str, Any],
    missing: str,
    min_obs: int,
    n_jobs: int | None,
    progress: bool | None,
) -> EachResult:
    """Fit responses with values of their own; see `LinearMixedModel.fit_many`.

    Parameters
    ----------
    own : mapping
        weights, offset and covariates, as given.
    missing : {"invalid", "drop", "raise"}
        What a NaN in Y is.
    """
    drop = missing == "drop"
    if not model.factors or model.residual is not None or model.structure.restricted:
        raise LMMError(
            "weights, offset, covariates and min_obs of fit_many() take random effects with free covariances and "
            "independent residuals; fit the responses one by one with lmm() or LinearMixedModel"
        )
    responses, labels = responses_of(model, Y)
    values = {
        name: shaped_like(responses, own[name], name, model) for name in ("weights", "offset") if own[name] is not None
    }
    covariates = {
        name: shaped_like(responses, given, f"covariates[{name!r}]", model) for name, given in own["covariates"].items()
    }
    if missing == "raise" and not np.isfinite(responses).all():
        i, j = np.argwhere(~np.isfinite(responses))[0].tolist()
        raise LMMError(f"Y is missing or not finite at response {i}, observation {j}; missing='drop' leaves such out")
    _check(values, covariates, drop)
    labels = np.arange(len(responses)) if labels is None else labels
    stack = ResponseStack(model, responses, labels, values.get("weights"), values.get("offset"), covariates)
    refused = _refused(stack, drop, min_obs)
    out = EachResult(stack, kind, reml)
    fit_stack(out, n_jobs, progress, refused)
    return out


def _check(values: Mapping[str, Array], covariates: Mapping[str, Array], drop: bool) -> None:
    """Refuse values that cannot be: infinite, or missing where that is not asked for; weights that are not positive."""
    for name, array in (*values.items(), *((f"covariates[{name!r}]", array) for name, array in covariates.items())):
        bad = ~np.isfinite(array) if not drop else np.isinf(array)
        if bad.any():
            i, j = np.argwhere(bad)[0].tolist()
            remedy = "" if drop else "; missing='drop' leaves such observations out"
            raise LMMError(f"{name} is {array[i, j]} at response {i}, observation {j}: give finite numbers{remedy}")
    weights = values.get("weights")
    if weights is not None and (weights <= 0.0).any():
        i, j = np.argwhere(weights <= 0.0)[0].tolist()
        raise LMMError(
            f"weights must be positive, and is {weights[i, j]} at response {i}, observation {j}; with missing='drop' "
            "NaN leaves an observation out"
        )


def _refused(stack: ResponseStack, drop: bool, min_obs: int) -> dict[int, str]:
    """Responses that are not to be fitted, and why."""
    out = {int(i): "it has infinite values" for i in np.flatnonzero(np.isinf(stack.Y).any(axis=1))}
    if not drop:
        out |= {int(i): "it has missing values" for i in np.flatnonzero(np.isnan(stack.Y).any(axis=1))}
    if min_obs:
        missing = np.isnan(stack.Y)
        for values in (stack.weights, stack.offset, *stack.covariates.values()):
            missing |= False if values is None else np.isnan(values)
        count = missing.shape[1] - missing.sum(axis=1)
        for i in np.flatnonzero(count < min_obs).tolist():
            out[i] = f"it has {count[i]} observations, fewer than min_obs={min_obs}"
    return out


def fit_with_holes(
    model: Model,
    empty: Callable[[Model, int, Any], BatchFit],
    kind: type[Fit],
    reml: bool,
    Y: Any,
    n_jobs: int | None,
    progress: bool | None,
    memory: float,
    min_obs: int = 0,
) -> MaskedBatch:
    """Fit responses on the observations that they have; see `LinearMixedModel.fit_many`.

    Those of masks that many have share a design; others are problems of their own.
    """
    responses, labels = responses_of(model, Y)
    masks, left = fit_masked(model, empty, responses, n_jobs, memory, for_lanes(model), min_obs)
    if not len(left):
        return MaskedBatch(model, masks, labels)
    some = np.ascontiguousarray(responses[left])
    stack = ResponseStack(model, some, left if labels is None else labels[left], None, None, {})
    out = EachResult(stack, kind, reml)
    fit_stack(out, n_jobs, progress, _refused(stack, True, 0))
    return MaskedBatch(model, masks, labels, (left, out))
