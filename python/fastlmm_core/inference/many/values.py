"""Fits of many responses with observations, weights, an offset or covariates of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ...errors import LMMError
from ...estimation.many.batch_fit import BatchFit
from ...estimation.many.masks import Masked, MaskOptions, fit_masks, masks_of, responses_of
from ...estimation.many.parts import same_design
from ...estimation.many.progress import Sink
from ...estimation.many.stack_fit import Look, estimates_of, fit_stack, leave_unreached
from ...estimation.many.values import ResponseStack, for_lanes, shaped_like
from ...support.checks import sum_is_finite
from ...support.types import Array
from .each import EachResult
from .masked import MaskedBatch

if TYPE_CHECKING:
    from ...estimation.fit import Fit
    from ...estimation.model import Model

__all__ = ["Run", "fit_all", "fit_values", "fit_with_holes"]


class Run(NamedTuple):
    """How a run goes, and what becomes of it; see `LinearMixedModel.fit_many`."""

    n_jobs: int | None
    progress: bool | None
    memory: float = 64.0
    out: Any = None
    resume: Any = None


def fit_values(
    model: Model,
    kind: type[Fit],
    reml: bool,
    Y: Any,
    own: Mapping[str, Any],
    missing: str,
    min_obs: int,
    run: Run,
) -> EachResult:
    """Fit responses with values of their own; see `LinearMixedModel.fit_many`.

    Parameters
    ----------
    own : mapping
        weights, offset and covariates, as given.
    missing : {"invalid", "drop", "raise"}
        What a NaN in Y is.
    min_obs : int
    run : Run
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
    labels = np.arange(len(responses)) if labels is None else labels
    stack = ResponseStack(model, responses, labels, values.get("weights"), values.get("offset"), covariates)
    stack.seal()
    named = {**values, **{f"covariates[{name!r}]": given for name, given in covariates.items()}}

    def look(first: int, last: int) -> dict[int, str]:
        part = slice(first, last)
        if not all(_sound(name, given[part] if len(given) > 1 else given) for name, given in named.items()):
            _check(named, drop)
        return {} if drop else _incomplete(stack.Y, part)

    return fit_all(EachResult(stack, kind, reml), run, _short(stack, min_obs) if min_obs else {}, look=look)


def fit_all(
    empty: EachResult,
    run: Run,
    refused: Mapping[int, str] = MappingProxyType({}),
    look: Look | None = None,
) -> EachResult:
    """Fit problems with designs of their own; see `fit_stack`.

    Parameters
    ----------
    empty : EachResult
        Filled, and returned.
    run : Run
    refused, look
        As for `fit_stack`.
    """
    if run.resume is not None and not isinstance(run.resume, EachResult):
        raise LMMError(_other(run.resume))
    sink = None if run.out is None else Sink(run.out, estimates_of(empty, slice(0, 0)), len(empty))
    fit_stack(empty, run.n_jobs, run.progress, refused, sink, run.resume, look)
    return empty


def _sound(name: str, array: Array) -> bool:
    """Whether values of this name show at once to be fit for use: finite, and weights positive."""
    return sum_is_finite(array) and (name != "weights" or bool((array > 0.0).all()))


def _check(named: Mapping[str, Array], drop: bool) -> None:
    """Refuse values that cannot be: infinite, or missing where that is not asked for; weights that are not positive."""
    for name, array in named.items():
        bad = ~np.isfinite(array) if not drop else np.isinf(array)
        if bad.any():
            i, j = np.argwhere(bad)[0].tolist()
            remedy = "" if drop else "; missing='drop' leaves such observations out"
            raise LMMError(f"{name} is {array[i, j]} at response {i}, observation {j}: give finite numbers{remedy}")
    weights = named.get("weights")
    if weights is not None and (weights <= 0.0).any():
        i, j = np.argwhere(weights <= 0.0)[0].tolist()
        raise LMMError(
            f"weights must be positive, and is {weights[i, j]} at response {i}, observation {j}; with missing='drop' "
            "NaN leaves an observation out"
        )


def _incomplete(Y: Array, part: slice) -> dict[int, str]:
    """Responses that are not to be fitted as they miss something; infinite values are found where the fit fails."""
    if sum_is_finite(Y[part]):
        return {}
    return {part.start + int(i): "it has missing values" for i in np.flatnonzero(np.isnan(Y[part]).any(axis=1))}


def _short(stack: ResponseStack, min_obs: int) -> dict[int, str]:
    """Responses that are not to be fitted as they have too few observations."""
    missing = np.isnan(stack.Y)
    for values in (stack.weights, stack.offset, *stack.covariates.values()):
        missing |= False if values is None else np.isnan(values)
    count = missing.shape[1] - missing.sum(axis=1)
    few = np.flatnonzero(count < min_obs).tolist()
    return {i: f"it has {count[i]} observations, fewer than min_obs={min_obs}" for i in few}


def fit_with_holes(
    model: Model,
    empty: Callable[[Model, int, Any], BatchFit],
    kind: type[Fit],
    reml: bool,
    Y: Any,
    run: Run,
    min_obs: int = 0,
) -> MaskedBatch:
    """Fit responses on the observations that they have; see `LinearMixedModel.fit_many`.

    Those of masks that many have share a design; others are problems of their own.
    """
    responses, labels = responses_of(model, Y)
    responses = np.ascontiguousarray(responses)
    masks, left = masks_of(model, responses, for_lanes(model))
    sink = None if run.out is None else Sink(run.out, empty(model.fittable(), 0, None), len(responses))
    known = _left_masks(model, reml, masks, len(responses), run.resume)
    options = MaskOptions(run.n_jobs, run.memory, min_obs, sink)
    done: list[Masked[BatchFit]] = []
    others: EachResult | None = None
    if len(left):
        # where none of them share masks, responses are read where they stand
        some = responses if len(left) == len(responses) else responses[left]
        stack = ResponseStack(model, some, left if labels is None else labels[left], None, None, {})
        if some is responses:
            stack.seal()
        others = EachResult(stack, kind, reml)
    try:
        done = fit_masks(model, empty, masks, responses, options, known)
        if others is not None:
            begun = None if run.resume is None or run.resume.scattered is None else run.resume.scattered[1]
            part = None if sink is None else sink.at(left)
            fit_stack(others, run.n_jobs, run.progress, sink=part, resume=begun)
    except BaseException as error:
        done = getattr(error, "masks", done)
        if others is not None and getattr(error, "batch", None) is not others:
            leave_unreached(others, np.arange(len(left)))
        error.batch = MaskedBatch(  # type: ignore[attr-defined]
            model, done, labels, None if others is None else (left, others)
        )
        raise
    return MaskedBatch(model, done, labels, None if others is None else (left, others))


def _left_masks(model: Model, reml: bool, masks: list[Any], count: int, resume: Any) -> dict[bytes, BatchFit]:
    """What an earlier run has left of each mask, by the positions of its responses."""
    if resume is None:
        return {}
    if not isinstance(resume, MaskedBatch):
        raise LMMError(_other(resume))
    alike = len(resume) == count and [mask.members.tobytes() for mask in resume.masks] == [
        members.tobytes() for _, members in masks
    ]
    known = {mask.members.tobytes(): mask.batch for mask in resume.masks if mask.batch is not None}
    others = [] if resume.scattered is None else [resume.scattered[1].reml]
    kinds = {*others, *(batch.reml for batch in known.values())}
    if not alike or not same_design(model, resume.model) or not kinds <= {reml}:
        raise LMMError("resume is of another design, criterion, number or missing values of responses than this run")
    return known


def _other(resume: Any) -> str:
    return (
        f"resume is a {type(resume).__name__}; give the batch that the error of a run with the same options carries, "
        "error.batch"
    )
