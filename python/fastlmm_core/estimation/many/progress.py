"""What becomes of a long run: results written to arrays of the caller's block by block, and runs that go on later."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from copy import copy
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ...errors import LMMError
from .batch_fit import BatchFit
from .parts import FIELDS, same_design

__all__ = ["UNREACHED", "Sink", "begun", "unfinished"]

B = TypeVar("B", bound=BatchFit)

UNREACHED = -9
"""Status of responses that a run which was broken off has not come to."""

WRITTEN = (
    "params", "bse", "df", "sigma2", "criterion", "theta", "covariance", "converged", "singular", "nobs", "n_groups",
)  # fmt: skip
"""What can be written to arrays of the caller's."""

SPAN = 1024
"""Responses that are read and written back where only some of them have estimates."""


class Sink:
    """Arrays of the caller's, which take the estimates of each block when it is finished.

    Parameters
    ----------
    out : mapping of str to array-like
        Anything that takes slices: numpy arrays, memory maps, data sets of h5py and zarr.
    none : BatchFit or StackFit
        Without fits.
    count : int or None

    Raises
    ------
    LMMError
        For names that no estimates have, and arrays of another shape.
    """

    def __init__(self, out: Any, none: Any, count: int | None) -> None:
        if not isinstance(out, Mapping):
            raise LMMError(f"out must be names to arrays, e.g. {{'params': array}}, not {type(out).__name__!r}")
        self.out, self.lock = dict(out), threading.Lock()
        self.places: NDArray[np.intp] | None = None
        for name, target in self.out.items():
            if name not in WRITTEN:
                raise LMMError(f"out: there is no {name!r}; use {', '.join(WRITTEN)}")
            shape = np.shape(_values(none, name))[1:]
            found = tuple(getattr(target, "shape", ()))
            short = not found or found[1:] != shape or (count is not None and found[0] != count)
            if short or not hasattr(target, "__setitem__"):
                rows = "n_responses" if count is None else count
                wanted = f"({', '.join(map(str, (rows, *shape)))}{',' if not shape else ''})"
                raise LMMError(f"out[{name!r}] must be an array of shape {wanted}, not {found}")

    def at(self, places: NDArray[np.intp]) -> Sink:
        """The same arrays for a run of some of the responses, which are at these places, in increasing order."""
        own = copy(self)
        own.places = places
        return own

    def write(self, part: Any, begin: int) -> None:
        """The estimates of a batch, or of a stack, of the responses begin, begin + 1, ... of the run."""
        places = np.arange(begin, begin + len(part))
        places = places if self.places is None else self.places[places]
        with self.lock:
            for name, target in self.out.items():
                _put(target, places, _values(part, name))

    def leave_out(self) -> None:
        """NaN for all responses of the run: they cannot be fitted."""
        assert self.places is not None
        with self.lock:
            for target in self.out.values():
                blank = np.nan if np.dtype(target.dtype).kind == "f" else 0
                _put(target, self.places, np.full((len(self.places), *target.shape[1:]), blank))


def _put(target: Any, places: NDArray[np.intp], values: NDArray[Any]) -> None:
    """Write rows to places, in increasing order; stores write slices."""
    if isinstance(target, np.ndarray):
        target[places] = values
        return
    for begin in range(int(places[0]), int(places[-1]) + 1, SPAN) if len(places) else ():
        first, last = np.searchsorted(places, (begin, begin + SPAN)).tolist()
        if first == last:
            continue
        start, stop = int(places[first]), int(places[last - 1]) + 1
        own = values[first:last]
        if stop - start > last - first:
            # responses between them are of other runs
            own = np.array(target[start:stop])
            own[places[first:last] - start] = values[first:last]
        target[start:stop] = own


def _values(fits: Any, name: str) -> NDArray[Any]:
    if name == "df":
        name = "satterthwaite"
    elif isinstance(fits, BatchFit) and name in ("nobs", "n_groups"):
        model = fits.model
        return np.full(len(fits), model.nobs if name == "nobs" else model.factors[0].grouping.m if model.factors else 0)
    return np.asarray(getattr(fits, name))


def begun(batch: B, resume: BatchFit) -> NDArray[np.bool_]:
    """Take the results of a run that was broken off; which responses it has reached.

    Raises
    ------
    LMMError
        For a run of another design, criterion or number of responses.
    """
    if not isinstance(resume, BatchFit):
        raise LMMError(f"resume is a {type(resume).__name__}; give the batch that the error carries, error.batch")
    if len(resume) != len(batch) or resume.reml != batch.reml or not same_design(resume.model, batch.model):
        raise LMMError("resume is of another design, criterion or number of responses than this run")
    for name in FIELDS:
        getattr(batch, name)[:] = getattr(resume, name)
    if batch.seals is not None and resume.seals is not None:
        batch.seals[:] = resume.seals
    return np.asarray(resume.status != UNREACHED)


def unfinished(batch: B, reached: NDArray[np.bool_]) -> B:
    """The batch of a run that is broken off, with NaN for the responses that it has not reached."""
    lost = ~reached
    batch.status[lost] = UNREACHED
    batch.n_evaluations[lost], batch.alone[lost] = 0, False
    # a run of them at a time: most are those after the last that was reached
    edges = np.flatnonzero(np.diff(lost, prepend=False, append=False))
    for start, stop in edges.reshape(-1, 2).tolist():
        for name in ("theta_o", "params", "bse", "sigma2", "criterion", "gradient_norm", "satterthwaite"):
            getattr(batch, name)[start:stop] = np.nan
        if batch.seals is not None:
            batch.seals[start:stop] = 0.0
    return batch
