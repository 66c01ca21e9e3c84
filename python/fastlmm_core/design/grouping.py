"""Group labels and codes.

Labels become codes 0..m-1 in the order of the sorted labels. Integers of a modest range need no sorting; everything
else is hashed by pandas, and only the distinct labels are sorted.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import LMMError
from ..support.checks import plain_array
from ..support.records import at_once
from ..support.seals import own
from ..tables.labels import label_codes, modest_range

__all__ = ["Codes", "Factor", "Grouping", "alike_divided", "group_codes", "sorted_groups"]


@at_once
@dataclass(frozen=True, eq=False)
class Codes:
    """Labels as they were read: a code for each row, and room for levels that need not occur.

    Integer labels of a modest range serve as codes as they are: nothing is copied or sorted.  Which levels occur is not
    known before the rows have been counted, so that there are no labels, positions or number of levels here.

    Attributes
    ----------
    name : str
        Of the grouping factor.
    codes : (n,) int32 or int64 array
        base <= codes < base + n_slots.
    base : int
    n_slots : int
    slot_labels : (n_slots,) array or None
        Labels of the slots; None where the code itself is the label.
    """

    name: str
    codes: NDArray[Any]
    base: int
    n_slots: int
    slot_labels: NDArray[Any] | None = None

    def count(self) -> Grouping:
        """The factor with the levels that occur, by a pass over the codes."""
        codes = np.asarray(self.codes, dtype=np.intp)
        counts = np.bincount(codes - self.base if self.base else codes, minlength=self.n_slots)
        return Grouping(self, None if counts.all() else np.flatnonzero(counts))

    def dense(self) -> Codes:
        """The same labels with codes 0, 1, ... all of which occur."""
        counted = self.count()
        return Codes(self.name, counted.index, 0, counted.m, counted.labels)

    def agrees(self, other: Codes) -> bool:
        """Whether each row has the same label here and there."""
        return np.array_equal(self._row_labels(), other._row_labels())

    def _row_labels(self) -> NDArray[Any]:
        return self.codes if self.slot_labels is None else self.slot_labels[self.codes - self.base]


@at_once
@dataclass(frozen=True, eq=False)
class Grouping:
    """A grouping factor: codes, and which of their slots occur among the rows.

    Attributes
    ----------
    codes : Codes
    present : array or None
        Slots that occur in the data, increasing; None if all do.
    """

    codes: Codes
    present: NDArray[np.intp] | None = None

    @property
    def name(self) -> str:
        """Name of the grouping factor."""
        return self.codes.name

    @property
    def m(self) -> int:
        """Number of levels that occur."""
        return self.codes.n_slots if self.present is None else len(self.present)

    @cached_property
    def labels(self) -> NDArray[Any]:
        """Labels of the levels that occur, in order, (m,)."""
        read = self.codes
        slots = np.arange(read.n_slots) if self.present is None else self.present
        if read.slot_labels is None:
            return (slots + read.base).astype(read.codes.dtype)
        return read.slot_labels[slots]

    @cached_property
    def index(self) -> NDArray[np.intp]:
        """Position of each row's level in `labels`, (n,)."""
        shifted = np.asarray(self.codes.codes, dtype=np.intp) - self.codes.base
        if self.present is None:
            return shifted
        rank = np.full(self.codes.n_slots, -1, dtype=np.intp)
        rank[self.present] = np.arange(len(self.present))
        return rank[shifted]

    @cached_property
    def runs(self) -> NDArray[np.int64] | None:
        """Where the rows of each level begin, and the number of rows, (m + 1,); None where they are not sorted."""
        return _runs(self.codes.codes)

    def locate(self, labels: NDArray[Any]) -> NDArray[np.intp]:
        """Position of each of `labels`, -1 for those that do not occur in the data."""
        known = self._places
        return np.array([known.get(label, -1) for label in np.asarray(labels).tolist()], dtype=np.intp)

    @cached_property
    def _places(self) -> dict[Any, int]:
        return {label: i for i, label in enumerate(self.labels.tolist())}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_places"}

    def of_rows(self, rows: Any) -> Codes:
        """Codes of some of the rows; levels without any of them are left out."""
        return Codes(self.name, self.index[rows], 0, self.m, self.labels).dense()


class Factor(NamedTuple):
    """A grouping factor and the random effects that each of its levels has.

    Attributes
    ----------
    grouping : Grouping
    start, stop : int
        The columns of Z.
    """

    grouping: Grouping
    start: int
    stop: int

    @property
    def columns(self) -> slice:
        """The columns of Z."""
        return slice(self.start, self.stop)


def alike_divided(one: NDArray[np.intp], other: NDArray[np.intp], m: int) -> bool:
    """Whether two factors of m levels, all of which occur, divide the rows alike: by the level of each row (n,)."""
    of_one = np.empty(m, dtype=np.intp)
    of_one[one] = other
    return np.array_equal(of_one[one], other)


def _runs(codes: NDArray[Any]) -> NDArray[np.int64] | None:
    """First row of each code, and the number of rows, where codes do not decrease."""
    if not len(codes):
        return np.zeros(1, dtype=np.int64)
    start = np.flatnonzero(codes[1:] != codes[:-1]) + 1
    start = np.concatenate([[0], start, [len(codes)]]).astype(np.int64, copy=False)
    found = codes[start[:-1]]
    return start if (found[1:] > found[:-1]).all() else None


def sorted_groups(values: Any, name: str) -> Grouping | None:
    """The factor of integers that do not decrease, without a table of what is between them; None for other labels.

    Parameters
    ----------
    values
        As for `group_codes`.
    name : str
    """
    known = type(values) is np.ndarray and values.dtype in (np.int32, np.int64) and values.flags.aligned
    if not known or values.ndim != 1 or not len(values):
        return None
    runs = _runs(values)
    low, high = int(values[0]), int(values[-1])
    if runs is None or high - low >= 4 * len(values) or high >= 2**62:
        return None
    used = values[runs[:-1]].astype(np.intp) - low
    n_slots = high - low + 1
    found = Grouping(Codes(name, own(values), low, n_slots), None if len(used) == n_slots else used)
    found.__dict__["runs"] = runs
    return found


def group_codes(groups: Any, name: str) -> Codes:
    """Codes of an array of labels.

    Parameters
    ----------
    groups : (n,) array
        Integers, strings, or anything that can be sorted.
    name : str

    Returns
    -------
    Codes

    Raises
    ------
    LMMError
        If it is not one-dimensional, or labels are missing or masked.
    """
    values = plain_array(groups, "groups")
    if values.dtype.kind == "T":  # numpy's strings of any length, which pandas may not know
        values = np.array([text if isinstance(text, str) else None for text in values.tolist()], dtype=object)
    if values.ndim != 1:
        raise LMMError(f"groups must be one-dimensional, not of shape {values.shape}; give one label per row")
    if values.size == 0:
        raise LMMError("groups is empty: there are no observations")
    if values.dtype.kind in "iu":
        if not values.flags.aligned:
            values = values.copy()
        bounds = modest_range(values)
        if bounds is not None:
            codes = own(values) if values.dtype in (np.int32, np.int64) else values.astype(np.int64)
            return Codes(name, codes, bounds[0], bounds[1] - bounds[0] + 1)
    gap: NDArray[np.bool_] | None = None
    if values.dtype.kind in "OUS":
        codes, labels = label_codes(values, "groups")
        gap = codes < 0
    else:
        labels, codes = np.unique(values, return_inverse=True)
        if values.dtype.kind == "f":
            gap = ~np.isfinite(values)
        elif values.dtype.kind in "mM":
            gap = np.isnat(values)
    if gap is not None and gap.any():
        row = int(np.flatnonzero(gap)[0])
        raise LMMError(f"groups has missing labels (first: row {row}); remove these rows or give them a label")
    return Codes(name, codes.astype(np.int64, copy=False), 0, len(labels), labels)
