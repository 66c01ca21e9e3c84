"""Parts of batches, and batches put together: arrays are copied, responses stay where they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ...errors import LMMError
from ...tables.responses import ResponseColumns, is_table
from ...tables.stored import stored
from ..model import Model
from .batch_fit import BatchFit, Curvature

__all__ = [
    "FIELDS",
    "check_labels",
    "chosen_places",
    "chosen_responses",
    "concatenated",
    "part_of",
    "same_design",
    "with_responses",
]

B = TypeVar("B", bound=BatchFit)

FIELDS = (
    "theta_o", "params", "bse", "sigma2", "criterion", "gradient_norm", "status", "n_evaluations", "satterthwaite",
    "alone",
)  # fmt: skip
"""Arrays of a batch with an axis over responses."""


class _Some:
    """Some of the responses that others hold, by position."""

    def __init__(self, whole: Any, chosen: NDArray[np.intp]) -> None:
        if isinstance(whole, _Some):
            whole, chosen = whole._whole, whole._chosen[chosen]
        self._whole: Any = whole
        self._chosen = chosen
        if hasattr(whole, "draws_again"):
            self.draws_again = True

    def __getitem__(self, at: Any) -> Any:
        return self._whole[self._chosen[at]]

    def scores(self, at: NDArray[np.intp]) -> Any:
        """See `BatchFit.seen`."""
        return self._whole.scores(self._chosen[at]) if hasattr(self._whole, "scores") else None


class _Chain:
    """Responses of several batches, one after the other."""

    def __init__(self, wholes: Sequence[Any], counts: Sequence[int]) -> None:
        self._wholes, self._ends = wholes, np.cumsum(counts)

    def __getitem__(self, at: NDArray[np.intp]) -> Any:
        owner = np.searchsorted(self._ends, at, side="right")
        parts, places = [], []
        for k in np.unique(owner):
            mine = np.flatnonzero(owner == k)
            first = self._ends[k - 1] if k else 0
            parts.append(np.asarray(self._wholes[k][at[mine] - first], dtype=np.float64))
            places.append(mine)
        if not parts:
            return np.asarray(self._wholes[0][at], dtype=np.float64)
        out = np.empty((len(at), parts[0].shape[1]))
        for mine, part in zip(places, parts, strict=True):
            out[mine] = part
        return out


def chosen_responses(batch: BatchFit, which: Any) -> NDArray[np.intp]:
    """Positions of the responses that a slice, positions, a mask or labels choose.

    Raises
    ------
    LMMError
        For an unknown label, positions outside the batch or a mask of another length.
    """
    if batch.labels is None:
        pass
    elif isinstance(which, str):
        which = [batch.place(which)]
    elif isinstance(which, (list, tuple)) and any(isinstance(i, str) for i in which):
        which = [batch.place(label) for label in which]
    return chosen_places(which, len(batch))


def chosen_places(which: Any, n: int) -> NDArray[np.intp]:
    """Positions below n that a slice, positions or a mask choose; None chooses all.

    Raises
    ------
    LMMError
        For positions outside, or a mask of another length.
    """
    try:
        if which is None:
            which = slice(None)
        elif not isinstance(which, slice):
            which = np.asarray(which)
            which = which.astype(np.intp) if which.size == 0 else which
        found = np.atleast_1d(np.arange(n)[which])
        if found.ndim != 1:
            raise IndexError
    except Exception as error:  # whatever an index may raise
        raise LMMError(f"which must be positions below {n}, a mask of so many values or a slice") from error
    return found


def part_of(batch: B, chosen: NDArray[np.intp]) -> B:
    """A batch of some of the responses.

    Parameters
    ----------
    batch : BatchFit
    chosen : int array
        Positions, in any order and several times over.
    """
    responses = None if batch.responses is None else _Some(batch.responses, chosen)
    out = type(batch)(batch.model, batch.kind, batch.reml, len(chosen), responses)
    for name in FIELDS:
        setattr(out, name, getattr(batch, name)[chosen])
    out.labels = None if batch.labels is None else batch.labels[chosen]
    out.seals = None if batch.seals is None else batch.seals[chosen]
    out.gone = batch.gone
    out.curvature = None if batch.curvature is None else batch.curvature.some(chosen)
    return out


def with_responses(batch: B, Y: Any) -> B:
    """The batch with the responses that it was fitted to, which it does not hold.

    Raises
    ------
    LMMError
        For responses of another number or length.
    """
    rows = batch.model.design.caller_rows
    found = ResponseColumns(Y, rows) if is_table(Y) else stored(Y, rows) or Y
    shape = (len(batch), batch.model.nobs)
    if tuple(getattr(found, "shape", ())) != shape:
        raise LMMError(f"Y must be the array or table that was fitted, of shape {shape}: one response per row")
    check_labels(batch.labels, getattr(found, "labels", None))
    out = part_of(batch, np.arange(len(batch)))
    out.responses = found
    return out


def check_labels(known: NDArray[Any] | None, given: NDArray[Any] | None) -> None:
    """Refuse responses that have other labels than those that were fitted.

    Raises
    ------
    LMMError
        Naming the first of them.
    """
    if known is None or given is None:
        return
    other = np.flatnonzero(np.asarray(known) != np.asarray(given))
    if len(other):
        i = int(other[0])
        raise LMMError(f"Y has the label {given[i]!r} where {known[i]!r} was fitted: give responses in the same order")


def concatenated(batches: Sequence[B]) -> B:
    """One batch of the responses of several on the same design.

    Raises
    ------
    LMMError
        For no batch, batches by REML and ML, or of different designs.
    """
    if not batches:
        raise LMMError("concat needs at least one batch")
    first = batches[0]
    for k, other in enumerate(batches):
        if not isinstance(other, BatchFit):
            raise LMMError(f"batches[{k}] is a {type(other).__name__}; give results of fit_many or simulate_fit")
        if other.reml != first.reml:
            raise LMMError(f"batches[{k}] is by {'REML' if other.reml else 'ML'} and batches[0] is not; fit both alike")
        if not same_design(first.model, other.model):
            raise LMMError(f"batches[{k}] is on another design than batches[0]; use one model's fit_many for both")
    known = all(b.responses is not None for b in batches)
    responses = _Chain([b.responses for b in batches], [len(b) for b in batches]) if known else None
    out = type(first)(first.model, first.kind, first.reml, sum(map(len, batches)), responses)
    for name in FIELDS:
        setattr(out, name, np.concatenate([getattr(b, name) for b in batches]))
    out.gone = next((b.gone for b in batches if b.responses is None), out.gone)
    out.curvature = Curvature.joined([b.curvature for b in batches])
    if all(b.labels is not None for b in batches):
        out.labels = np.concatenate([b.labels for b in batches])
    if any(b.seals is not None for b in batches) and known:
        # zeros: nobody could have changed these
        out.seals = np.concatenate([np.zeros((len(b), 2), np.uint64) if b.seals is None else b.seals for b in batches])
    return out


def same_design(a: Model, b: Model) -> bool:
    """Whether theta means the same in both: the same columns, groups, weights and offset, conditioned alike."""
    if a is b or a.problem is b.problem:
        return True
    pairs: list[tuple[Any, Any]] = [
        (a.exog, b.exog),
        (a.exog_re, b.exog_re),
        (a.weights, b.weights),
        (a.offset, b.offset),
    ]
    pairs += [(a.problem.z_map, b.problem.z_map), (a.structure.positions, b.structure.positions)]
    if len(a.factors) != len(b.factors) or a.exog_names != b.exog_names or (a.residual is None) != (b.residual is None):
        return False
    pairs += [(f.grouping.index, g.grouping.index) for f, g in zip(a.factors, b.factors, strict=True)]
    for x, y in pairs:
        if (x is None) != (y is None) or (x is not None and not np.array_equal(x, y)):
            return False
    return a.residual is None or repr(a.residual) == repr(b.residual)
