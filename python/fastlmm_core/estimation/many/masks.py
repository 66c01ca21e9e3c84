"""Responses with missing observations: those that miss the same ones share a design."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ...errors import LMMError
from ...kernels import mask_labels
from ...support.checks import plain_array
from ...support.threads import in_threads, thread_count
from ...support.types import Array
from ...tables.responses import ResponseColumns, is_table
from ...tables.stored import stored
from ..model import Model
from .batch_fit import BatchFit
from .pieces import Run, begin_many, fit_few
from .progress import Sink, begun
from .responses_of_mask import ResponsesOfMask
from .stack_fit import NOT_REACHED
from .values import for_lanes

__all__ = ["MaskOptions", "Masked", "fit_masks", "masks_of", "responses_of"]

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


class _Open(Generic[B]):
    """A mask whose responses are being fitted.

    Parameters
    ----------
    model : Model
        With all rows.
    empty : callable
        Makes an empty batch of a model for so many responses, which are kept.
    some : ResponsesOfMask
        The responses.
    options : MaskOptions
    resume : BatchFit or None
        What an earlier run has left of these.
    """

    def __init__(
        self, model: Model, empty: Callable[[Model, int, Any], B], some: ResponsesOfMask, options: MaskOptions,
        resume: B | None,
    ) -> None:  # fmt: skip
        self.model, self.empty, self.some, self.options, self.resume = model, empty, some, options, resume
        self.sink = None if options.sink is None else options.sink.at(some.members)
        self.run: Run[B] | None = None
        self.batch: B | None = None
        self.reason: str | None = None

    def begin(self, jobs: int, beyond: int) -> Run[B] | None:
        """What is to be fitted piece by piece, see `begin_many`; None where there is nothing, or nothing left."""
        model, some, options = self.model, self.some, self.options
        rows, members = some.rows, some.members
        try:
            if not len(rows):
                raise LMMError("all observations are missing")
            if len(rows) < options.min_obs:
                raise LMMError(f"it has {len(rows)} observations, fewer than min_obs={options.min_obs}")
            alone = len(model.factors) > 1 and len(members) <= ALONE
            typical = some.Y[members[0], rows] if alone else None if model.given else model.endog[rows]
            own = model.fittable() if len(rows) == model.nobs else _part(model, rows, typical)

            def made(count: int, responses: Any) -> B:
                return self.empty(own, count, responses)

            if not alone:
                self.run = begin_many(made, some, jobs, options.memory, self.sink, self.resume, beyond)
            elif self.resume is None:
                self.batch = fit_few(made, some())
            else:
                self.batch = made(len(some), some)
                begun(self.batch, self.resume)
        except LMMError as error:
            self.reason = str(error)
        if self.batch is not None and self.sink is not None:
            self.sink.write(self.batch, 0)
        return self.run

    def fit(self, *piece: Any) -> int:
        """Fit a piece, unless another one has told that there is no fit of these rows; how many responses it has."""
        if self.run is None or self.reason is not None:
            return 0
        try:
            return self.run.fit(*piece)
        except LMMError as error:
            self.reason = str(error)
            return 0

    def masked(self) -> Masked[B]:
        """What has been found, and what an earlier run has left where this one has not come to it."""
        rows, members = self.some.rows, self.some.members
        if self.reason is not None:
            if self.sink is not None:
                self.sink.leave_out()
            return Masked(rows, members, None, self.reason)
        if self.run is None:
            batch = self.resume if self.batch is None else self.batch
            return Masked(rows, members, batch, NOT_REACHED if self.batch is None else "")
        whole = bool(self.run.reached.all())
        return Masked(rows, members, self.run.found(not whole), "" if whole else NOT_REACHED)


def fit_masks(
    model: Model,
    empty: Callable[[Model, int, Any], B],
    masks: list[tuple[NDArray[np.intp], NDArray[np.intp]]],
    Y: Array,
    options: MaskOptions,
    known: Mapping[bytes, B],
) -> list[Masked[B]]:
    """Fit the responses of masks.

    What breaks the run off carries what has been found as its attribute `masks`.

    Parameters
    ----------
    model : Model
    empty : callable
        Makes an empty batch of a model for so many responses, which are kept.
    masks : list of (int array, int array)
        Rows and members, see `Masked`.
    Y : (n_responses, nobs) array
        All responses.
    options : MaskOptions
    known : mapping
        What an earlier run has left, by the bytes of the members.
    """
    jobs = thread_count(options.n_jobs)
    mine = [
        _Open(model, empty, ResponsesOfMask(Y, members, rows), options, known.get(members.tobytes()))
        for rows, members in masks
    ]

    def tasks() -> Iterator[tuple[Any, ...]]:
        """Pieces of all masks: the design of the next one is made while other threads fit what is left of this one."""
        beyond = sum(len(one.some) for one in mine)
        for one in mine:
            beyond -= len(one.some)
            run = one.begin(jobs, beyond)
            for piece in () if run is None else run.tasks():
                yield one, *piece

    try:
        if for_lanes(model):
            in_threads(lambda one, *piece: one.fit(*piece), tasks(), jobs)
            return [one.masked() for one in mine]
        for one in mine:
            run = one.begin(jobs, 0)
            try:
                if run is not None:
                    run.make(False)
            except LMMError as error:
                one.reason = str(error)
        return [one.masked() for one in mine]
    except BaseException as error:
        error.masks = [one.masked() for one in mine]  # type: ignore[attr-defined]
        raise
