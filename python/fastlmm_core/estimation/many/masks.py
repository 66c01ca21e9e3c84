"""Responses with missing observations: those that miss the same ones share a design."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ...errors import LMMError
from ...kernels import mask_labels
from ...support.checks import plain_array
from ...support.types import Array
from ...tables.responses import ResponseColumns, is_table
from ...tables.stored import stored
from ..model import Model
from .batch_fit import BatchFit
from .pieces import fit_few, fit_many
from .progress import Sink, begun
from .responses_of_mask import ResponsesOfMask

__all__ = ["MaskOptions", "Masked", "fit_mask", "masks_of", "responses_of"]

B = TypeVar("B", bound=BatchFit)


ALONE = 2
"""Responses of a mask that are fitted by themselves where there are several grouping factors."""

FEW, MANY_SCATTERED = 64, 32
"""Responses of a mask that are not worth a design of their own, where there are so many of them in all.

A design takes the time of some three hundred responses with one each; tests of random effects, whose null distribution
is that of a design, are worth part of that.
"""


class Masked(NamedTuple, Generic[B]):
    """Responses that miss the same observations.

    Attributes
    ----------
    rows : int array
        Rows of the model that they have.
    members : int array
        Their positions.
    batch : BatchFit or None
        None where these rows do not determine a fit.
    reason : str
        Why not.
    """

    rows: NDArray[np.intp]
    members: NDArray[np.intp]
    batch: B | None
    reason: str


class MaskOptions(NamedTuple):
    """How responses with missing observations are fitted.

    Attributes
    ----------
    n_jobs, memory
        As for `fit_many`.
    min_obs : int
        Responses with fewer observations are not fitted.
    sink : Sink or None
        Takes the estimates.
    """

    n_jobs: int | None
    memory: float
    min_obs: int
    sink: Sink | None


def responses_of(model: Model, Y: Any) -> tuple[Array, NDArray[Any] | None]:
    """All responses (n_responses, nobs), NaN where they are missing, and their labels.

    Blocks of an iterable are put together: each response is kept, with what is its own.

    Raises
    ------
    LMMError
        For another shape or another type.
    """
    rows = model.design.caller_rows
    if is_table(Y):
        table = ResponseColumns(Y, rows)
        return np.asarray(table[np.arange(len(table))], dtype=np.float64), table.labels
    elsewhere = stored(Y, rows)
    if elsewhere is not None:
        return elsewhere[:], elsewhere.labels
    if not hasattr(Y, "shape"):
        return _from_blocks(model, Y)
    if isinstance(Y, np.ma.MaskedArray):
        Y = np.where(np.ma.getmaskarray(Y), np.nan, Y.data)
    array = np.atleast_2d(plain_array(Y, "Y"))
    if array.ndim != 2 or array.shape[1] != model.nobs:
        raise LMMError(f"Y must have the shape (n_responses, {model.nobs}), not {array.shape}; transpose it if needed")
    if array.dtype.kind not in "fiub":
        raise LMMError(f"Y must hold numbers, not {array.dtype}")
    return np.asarray(array, dtype=np.float64), None


def _from_blocks(model: Model, blocks: Any) -> tuple[Array, NDArray[Any] | None]:
    """Responses of blocks, one after the other, and their labels where all blocks have some."""
    if not isinstance(blocks, Iterable):
        raise LMMError("Y must be an array of shape (n_responses, n_obs), a table or an iterable of such blocks")
    parts, labels = [np.empty((0, model.nobs))], []
    for block in blocks:
        known = hasattr(block, "shape") or is_table(block)
        part, names = responses_of(model, block if known else np.asarray(plain_array(block, "a block of Y")))
        parts.append(part)
        labels.append(names)
    found = [names for names in labels if names is not None]
    return np.concatenate(parts), np.concatenate(found) if found and len(found) == len(labels) else None


def _part(model: Model, rows: NDArray[np.intp], typical: Array | None) -> Model:
    """The model of some rows, which takes a response for a typical one if it can."""
    design = model.design.rows(rows)
    if typical is not None:
        try:
            return model.of(design, typical)
        except LMMError:
            # where that response is constant in these rows, others may not be
            pass
    return model.of(design, None, True).fittable()


def masks_of(
    model: Model, Y: Array, scattered: bool
) -> tuple[list[tuple[NDArray[np.intp], NDArray[np.intp]]], NDArray[np.intp]]:
    """Responses by what they miss.

    Parameters
    ----------
    model : Model
    Y : (n_responses, nobs) array
        C-contiguous, NaN where missing.
    scattered : bool
        Whether responses may be left where many masks have few.

    Returns
    -------
    masks : list of (int array, int array)
        Rows that are there, and positions of the responses that have these and no others.
    left : int array
        Positions of the responses that were left.
    """
    model.needs_free_covariances("fit_many()")
    owner = mask_labels(Y)
    order = np.argsort(owner, kind="stable")
    counts = np.bincount(owner)
    ends = np.cumsum(counts)
    few = counts[owner] < FEW
    left = np.flatnonzero(few) if scattered and few.sum() >= MANY_SCATTERED else np.empty(0, dtype=np.intp)
    found = []
    for k in np.flatnonzero((counts >= FEW) | (not len(left))).tolist():
        members = order[ends[k] - counts[k] : ends[k]]
        found.append((np.flatnonzero(~np.isnan(Y[members[0]])), members))
    return found, left


def fit_mask(
    model: Model,
    empty: Callable[[Model, int, Any], B],
    rows: NDArray[np.intp],
    members: NDArray[np.intp],
    Y: Array,
    options: MaskOptions,
    resume: B | None = None,
) -> Masked[B]:
    """Fit the responses that have certain observations.

    Parameters
    ----------
    model : Model
    empty : callable
        Makes an empty batch of a model for so many responses, which are kept.
    rows, members : int arrays
        See `Masked`.
    Y : (n_responses, nobs) array
        All responses.
    options : MaskOptions
    resume : BatchFit or None
        What an earlier run has left of these.
    """
    sink = None if options.sink is None else options.sink.at(members)
    try:
        if not len(rows):
            raise LMMError("all observations are missing")
        if len(rows) < options.min_obs:
            raise LMMError(f"it has {len(rows)} observations, fewer than min_obs={options.min_obs}")
        some = ResponsesOfMask(Y, members, rows)
        alone = len(model.factors) > 1 and len(members) <= ALONE
        typical = Y[members[0], rows] if alone else None if model.given else model.endog[rows]
        own = model.fittable() if len(rows) == model.nobs else _part(model, rows, typical)

        def made(count: int, responses: Any) -> B:
            return empty(own, count, responses)

        if not alone:
            batch = fit_many(made, some, options.n_jobs, False, options.memory, sink, resume)
        elif resume is None:
            batch = fit_few(made, some())
        else:
            batch = made(len(some), some)
            begun(batch, resume)
    except LMMError as error:
        if sink is not None:
            sink.leave_out()
        return Masked(rows, members, None, str(error))
    if alone and sink is not None:
        sink.write(batch, 0)
    return Masked(rows, members, batch, "")
