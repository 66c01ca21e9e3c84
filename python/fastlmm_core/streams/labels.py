"""Group labels of pieces to slots, which are given out in the order in which labels first occur.

Whole numbers of a modest range look their slot up in a table, others by their hash, as text of Arrow does; other text
is coded piece by piece, and only the labels of a piece are looked up.  At the end labels are sorted, as those of a
table in memory are.  Several grouping factors have a slot for each cell, a combination of their levels that occurs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import LMMError
from ..kernels.reading import SlotTable, TextTable
from ..support.types import Int64
from ..tables.columns import Column
from ..tables.labels import in_order, integer_codes, label_array

__all__ = ["CellSlots", "GroupSlots", "joined", "labels_of"]

Array = NDArray[Any]

NARROW, SPARSE = 1 << 16, 32
"""Range of whole numbers up to which a table of all of them is kept, whatever the labels and for each label."""


def labels_of(factors: Sequence[str], columns: Sequence[Column], rows: Array | None) -> tuple[Array, Array]:
    """Codes and labels of a grouping factor in some rows (None: all); labels in any order.

    Those of several columns are tuples, which sort as in memory: by the first column, then by the second.
    """
    read = [column.label_codes(rows) for column in columns]
    if len(read) == 1:
        return read[0]
    codes, used = integer_codes(np.ravel_multi_index([own for own, _ in read], [len(names) for _, names in read]))
    places = np.unravel_index(used, [len(names) for _, names in read])
    labels = np.empty(len(used), dtype=object)
    labels[:] = list(zip(*(names[at].tolist() for (_, names), at in zip(read, places, strict=True)), strict=True))
    return codes, labels


def joined(name: str, labels: Array) -> Array:
    """Labels of a factor made up of several columns as text, as they are in memory; others as they are.

    Raises
    ------
    LMMError
        Where two of them become the same.
    """
    if not len(labels) or not isinstance(labels[0], tuple):
        return labels
    out = np.empty(len(labels), dtype=object)
    out[:] = [":".join(map(str, label)) for label in labels.tolist()]
    if len(set(out.tolist())) < len(out):
        raise LMMError(
            f"Labels of the grouping factor {name!r} are ambiguous, because labels of one of its columns hold ':' "
            "themselves; rename them."
        )
    return out


class GroupSlots:
    """Slots of the labels of one grouping factor.

    Parameters
    ----------
    name : str
        Of the factor.

    Attributes
    ----------
    n : int
        Labels known.
    kind : str
        "numbers" (whole ones), "other numbers" or "text"; empty before any are known.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.n = 0
        self.kind = ""
        self._base = 0
        self._table = np.empty(0, dtype=np.int64)  # slot of each whole number from the base on, -1 for none
        self._text: dict[Any, int] = {}
        self._arrow: TextTable | None = None  # of text while all of it is Arrow's
        self._numbers: list[Int64] = []
        self._sparse: SlotTable | None = None  # of whole numbers of a wide range
        self._order: list[Any] | None = None

    def codes(self, factors: Sequence[str], columns: Sequence[Column], rows: Array | None) -> Int64:
        """The slot of each row (None: of all rows); labels that are new get the next ones.

        Parameters
        ----------
        factors : sequence of str
            The columns that make up the factor; several of them are joined as in a table in memory.
        columns : sequence of Column
        rows : int array or None

        Raises
        ------
        LMMError
            For labels that are numbers in one piece and text in another.
        """
        column = columns[0]
        number = column.number
        if len(columns) == 1 and number is not None and number.dtype.kind in "iu" and number.dtype != np.uint64:
            self._be("numbers", column)
            return self._of_numbers((number if rows is None else number[rows]).astype(np.int64, copy=False))
        if len(columns) == 1 and number is None and not self._text:
            table = self._arrow or TextTable()
            slots = column.text_slots(table, rows)
            if slots is not None:
                self._be("text", column)
                self._arrow, self.n = table, table.n
                return slots
        if self._arrow is not None:
            self._text = {label: slot for slot, label in enumerate(self._arrow.labels().tolist())}
            self._arrow = None
        found, labels = labels_of(factors, columns, rows)
        self._be("other numbers" if number is not None and len(columns) == 1 else "text", column)
        if len(columns) == 1 and column.is_category:
            declared = column.categories()[1].tolist()
            if self._order is None and not self.n:
                self._order = declared
            elif self._order != declared:
                self._order = []
        known, listed = self._text, labels.tolist()
        places: list[Any] = list(map(known.get, listed))
        if None in places:
            new = [label for label, slot in zip(listed, places, strict=True) if slot is None]
            known.update(zip(new, range(self.n, self.n + len(new)), strict=True))
            self.n = len(known)
            places = list(map(known.get, listed))
        return np.array(places, dtype=np.int64)[found]

    def _be(self, kind: str, column: Column) -> None:
        if self.kind and kind != self.kind:
            raise LMMError(
                f"{column.title}: the labels of {self.name!r} are {kind} here and were {self.kind} before; write them "
                "in one type in all pieces"
            )
        self.kind = kind

    def _of_numbers(self, values: Int64) -> Int64:
        starts = np.flatnonzero(values[1:] != values[:-1]) + 1
        if 2 * len(starts) < len(values):
            # runs of one label: one look for each
            starts = np.concatenate([[0], starts])
            return np.repeat(self._look_up(values[starts]), np.diff(np.append(starts, len(values))))
        return self._look_up(values)

    def _look_up(self, values: Int64) -> Int64:
        low, high = int(values.min()), int(values.max())
        if self._sparse is None and self._cover(low, high, SPARSE * (self.n + len(values))):
            slots = self._table[values - self._base]
            fresh = slots < 0
            if fresh.any():
                new = values[fresh]
                if not (new[1:] > new[:-1]).all():
                    new = np.sort(new)
                    new = new[np.append(True, new[1:] != new[:-1])]
                self._table[new - self._base] = np.arange(self.n, self.n + len(new))
                self._numbers.append(new)
                self.n += len(new)
                slots[fresh] = self._table[values[fresh] - self._base]
            return slots
        if self._sparse is None:
            self._sparse = SlotTable()
            if self.n:
                self._sparse.slots(np.concatenate(self._numbers))
            self._table, self._numbers = np.empty(0, dtype=np.int64), []
        slots = self._sparse.slots(np.ascontiguousarray(values))
        self.n = self._sparse.n
        return slots

    def _cover(self, low: int, high: int, widest: int) -> bool:
        """Whether a table of all numbers from low to high, and those before, is kept."""
        size = len(self._table)
        if size and low >= self._base and high < self._base + size:
            return True
        base = low if not size else min(low, self._base)
        stop = high + 1 if not size else max(high + 1, self._base + size)
        widest = max(widest, NARROW)
        if stop - base > widest:
            return False
        room = max(stop - base, min(2 * size, widest))
        table = np.full(room, -1, dtype=np.int64)
        if size:
            table[self._base - base : self._base - base + size] = self._table
        self._base, self._table = base, table
        return True

    def by_slots(self) -> Array:
        """The label of each slot."""
        if self.kind == "numbers":
            if self._sparse is not None:
                return np.asarray(self._sparse.pairs()[:, 0])
            return np.concatenate(self._numbers) if self._numbers else np.empty(0, dtype=np.int64)
        if self._arrow is not None:
            return self._arrow.labels()
        labels = np.empty(self.n, dtype=object)
        labels[:] = list(self._text)
        return labels if self.kind == "text" else label_array(labels.tolist())

    def labels(self) -> tuple[Array, NDArray[np.intp]]:
        """The labels in order, and the slot of each."""
        if self.kind == "numbers":
            found = self.by_slots()
            if (found[1:] > found[:-1]).all():
                return found, np.arange(len(found))
            order = np.argsort(found)
            return found[order], order
        labels = self.by_slots()
        known = None if self._arrow is None else self._arrow.order()
        if known is not None:
            return labels[known], known
        if self._order:
            rank = {label: i for i, label in enumerate(self._order)}
            order = np.argsort([rank[label] for label in labels.tolist()])
            return labels[order], order
        place, ordered = in_order(np.arange(len(labels)), labels, f"The grouping factor {self.name!r}")
        order = np.empty(len(labels), dtype=np.intp)
        order[place] = np.arange(len(labels))
        return ordered, order


class CellSlots:
    """Slots of the cells of some grouping factors; those of one factor are its levels.

    Parameters
    ----------
    names : sequence of str
        Of the factors.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._factors = [GroupSlots(name) for name in names]
        self._cells = [SlotTable() for _ in self._factors[1:]]

    @property
    def text(self) -> bool:
        """Whether labels of a factor are text."""
        return any(factor.kind == "text" for factor in self._factors)

    @property
    def n(self) -> int:
        """Cells known."""
        return self._cells[-1].n if self._cells else self._factors[0].n

    def codes(self, groups: Mapping[str, tuple[Sequence[str], Sequence[Column]]], rows: Array | None) -> Int64:
        """The slot of each row (None: of all rows).

        Parameters
        ----------
        groups : dict
            For each factor the names of its columns, and the columns.
        rows : int array or None
        """
        first, *others = (factor.codes(*groups[factor.name], rows) for factor in self._factors)
        for table, codes in zip(self._cells, others, strict=True):
            first = table.slots(first, codes)
        return first

    def labels_from(self, first: int) -> Array:
        """Of one grouping factor the labels of the slots from one on."""
        return self._factors[0].by_slots()[first:] if first < self.n else np.empty(0, dtype=object)

    def levels(self) -> tuple[tuple[Array, ...], Int64, NDArray[np.intp]]:
        """Labels of each factor in order; the levels of the cells, in order; the slot of each cell.

        Cells are in the order of the levels of the first factor, then of the second, and so on: (cells, factors).
        """
        found = [factor.labels() for factor in self._factors]
        labels = tuple(own for own, _ in found)
        if not self._cells:
            return labels, np.arange(len(labels[0]))[:, None], found[0][1]
        slot = np.arange(self.n)
        columns = []
        for table, (_, order) in zip(reversed(self._cells), found[:0:-1], strict=True):
            pairs = table.pairs()[slot]
            slot = pairs[:, 0]
            columns.append(_places(order)[pairs[:, 1]])
        columns.append(_places(found[0][1])[slot])
        cells = np.stack(columns[::-1], axis=1)
        order = np.lexsort(cells.T[::-1])
        return labels, cells[order], order


def _places(order: NDArray[np.intp]) -> Int64:
    """Where each number stands in an order."""
    out = np.empty(len(order), dtype=np.int64)
    out[order] = np.arange(len(order))
    return out
