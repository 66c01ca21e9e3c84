"""Group labels and codes."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import LMMError

__all__ = ["Grouping", "group_codes"]


@dataclass
class Grouping:
    """The grouping factor of a model.

    Integer labels of a modest range serve as codes as they are: nothing is copied or sorted.

    Attributes
    ----------
    name : str
    codes : (n,) int32 or int64 array
        base <= codes < base + n_slots.
    slot_labels : (n_slots,) array or None
        Labels of the slots; None where the code itself is the label.
    present : array or None
        Slots that occur in the data, increasing; None if all do.  Set when the rows have been read.
    """

    name: str
    codes: NDArray[Any]
    base: int
    n_slots: int
    slot_labels: NDArray[Any] | None = None
    present: NDArray[np.intp] | None = field(default=None)

    @cached_property
    def labels(self) -> NDArray[Any]:
        """Labels of the groups that occur, in order."""
        slots = np.arange(self.n_slots) if self.present is None else self.present
        if self.slot_labels is None:
            return (slots + self.base).astype(self.codes.dtype)
        return self.slot_labels[slots]

    @cached_property
    def index(self) -> NDArray[np.intp]:
        """Position of each row's group in `labels`, (n,)."""
        shifted = np.asarray(self.codes, dtype=np.intp) - self.base
        if self.present is None:
            return shifted
        rank = np.full(self.n_slots, -1, dtype=np.intp)
        rank[self.present] = np.arange(len(self.present))
        return rank[shifted]

    def locate(self, labels: NDArray[Any]) -> NDArray[np.intp]:
        """Position of each of `labels`, -1 for those that do not occur in the data."""
        known = {label: i for i, label in enumerate(self.labels.tolist())}
        wanted = np.asarray(labels)
        return np.array([known.get(label, -1) for label in wanted.tolist()], dtype=np.intp)


def group_codes(groups: Any, name: str) -> Grouping:
    """Codes of an array of labels.

    Parameters
    ----------
    groups : (n,) array
        Integers, strings, or anything that can be sorted.
    name : str

    Returns
    -------
    Grouping

    Raises
    ------
    LMMError
        If it is not one-dimensional or labels are missing.
    """
    values = np.asarray(groups)
    if values.ndim != 1:
        raise LMMError(f"groups must be one-dimensional, not of shape {values.shape}; give one label per row")
    if values.size == 0:
        raise LMMError("groups is empty: there are no observations")
    if values.dtype.kind in "iu":
        low, high = int(values.min()), int(values.max())
        if high - low < 4 * values.size + 1000 and high < 2**62:
            codes = values if values.dtype in (np.int32, np.int64) else values.astype(np.int64)
            return Grouping(name, codes, low, high - low + 1)
    if values.dtype.kind == "f" and np.isnan(values).any():
        row = int(np.flatnonzero(np.isnan(values))[0])
        raise LMMError(f"groups has missing labels (first: row {row}); remove these rows or give them a label")
    if values.dtype.kind == "O" or (values.dtype.kind in "US" and values.size > 10_000):
        # hashing beats sorting; pandas comes with formulaic
        from pandas import factorize

        codes, found = factorize(values)
        if (codes < 0).any():
            row = int(np.flatnonzero(codes < 0)[0])
            raise LMMError(f"groups has missing labels (first: row {row}); remove these rows or give them a label")
        try:
            order = np.argsort(found, kind="stable")
        except TypeError:
            raise LMMError("groups mixes labels that cannot be sorted, such as text and numbers; use one type") from None
        rank = np.empty(len(order), dtype=np.int64)
        rank[order] = np.arange(len(order))
        return Grouping(name, rank[codes], 0, len(order), np.asarray(found)[order])
    found, codes = np.unique(values, return_inverse=True)
    return Grouping(name, codes.astype(np.int64), 0, len(found), found)
