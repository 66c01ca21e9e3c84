"""Many problems, each with a design of its own: their rows, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...covariance.parameters import CovarianceStructure
from ...design.design import Design
from ...design.grouping import Codes, Grouping
from ...design.ownership import Seals
from ...design.terms import RandomPart
from ...engines.protocol import CAREFUL, EASY, HARD
from ...formula.coding import FixedTerm, fixed_terms
from ...kernels.records.stacks import SharedLines, StackedRows, StackSearch
from ...kernels.stacks import ProblemStack
from ...support.types import Array
from ..model import Model
from ..search import DESCENTS, LOWEST_POINTS, NARROWED, SPREAD, spread_points
from .flat_rows import FlatRows

__all__ = ["Problems", "Stack", "numbered", "same_columns", "same_values", "search_of"]


class Problems(Protocol):
    """Many problems: the columns that they share, and each by itself.

    Attributes
    ----------
    one : str
        What one of them is called in tables.
    n_rows : int
        Of all problems together.
    seals : Seals or None
        Of arrays that are the caller's, who may change them.
    """

    one: str
    design: Design
    labels: NDArray[Any]
    kind: type[Model]
    n_rows: int
    seals: Seals | None

    @property
    def kernel(self) -> ProblemStack | None:
        """What fits them in lanes; None where each is fitted by itself."""

    def __len__(self) -> int: ...

    def lines(self) -> SharedLines | None:
        """What those share that are responses on one design with covariates; None for others."""

    def model(self, i: int) -> Model:
        """The model of one problem."""

    def flat(self, chosen: NDArray[np.intp]) -> FlatRows:
        """The rows of some of the problems."""

    def some(self, chosen: NDArray[np.intp]) -> Problems:
        """Some of the problems, in this order."""

    def joined(self, stacks: Sequence[Any]) -> Problems:
        """The problems of several stacks of this kind, one after the other."""

    def same(self, other: Any) -> bool:
        """Whether another stack holds the same problems: rows, values and labels."""

    def with_random(self, random: RandomPart) -> Problems:
        """The same problems with other random effects of the same groups."""

    def terms(self) -> tuple[FixedTerm, ...]:
        """Terms of the fixed part, in the order of the columns."""

    def whole(self) -> Model:
        """A model of the columns that all problems have, of which the names and linear functions are taken."""


class Stack:
    """Rows of many problems that have the same columns.

    Parameters
    ----------
    design : Design
        Of all rows.  The lanes fit problems with one grouping factor; others are fitted by themselves.
    y : (n,) array
    each : Grouping
        Which problem each row belongs to.
    kind : type
        Of the models of single problems.

    Attributes
    ----------
    order : (n,) int array or None
        Rows sorted by problem; None where they are.
    start : (n_problems + 1,) int array
        First of the sorted rows of each problem.
    labels : (n_problems,) array
        Of the problems, sorted.
    """

    one = "problem"

    def __init__(self, design: Design, y: Array, each: Grouping, kind: type[Model]) -> None:
        self.design, self.y, self.each, self.kind = design, y, each, kind
        self.labels, self.n_rows = each.labels, len(y)
        self.seals: Seals | None = None
        self.order: NDArray[np.intp] | None = None
        if each.runs is not None and len(each.runs) == each.m + 1:
            self.start = each.runs
        else:
            self.order = np.argsort(each.index, kind="stable")
            self.start = np.append(0, np.cumsum(np.bincount(each.index, minlength=each.m))).astype(np.int64)
        self.kernel: ProblemStack | None = None
        if len(design.random.codes) > 1:
            return
        read = design.random.codes[0]
        self.kernel = ProblemStack(
            StackedRows(
                X=self._sorted(design.exog),
                y=self._sorted(y),
                Z=self._sorted(design.exog_re),
                start=self.start,
                codes=np.ascontiguousarray(self._sorted(read.codes), dtype=np.int64),
                base=read.base,
                n_slots=read.n_slots,
                weights=None if design.weights is None else np.ascontiguousarray(self._sorted(design.weights)),
                offset=None if design.offset is None else np.ascontiguousarray(self._sorted(design.offset)),
            ),
            search_of(design.structure),
        )

    def lines(self) -> None:
        """Nothing is shared."""

    def _sorted(self, values: NDArray[Any]) -> NDArray[Any]:
        return values if self.order is None else values[self.order]

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, i: int) -> NDArray[np.intp]:
        """The caller's rows of a problem."""
        rows = np.arange(self.start[i], self.start[i + 1])
        return rows if self.order is None else self.order[rows]

    def flat(self, chosen: NDArray[np.intp]) -> FlatRows:
        """The rows of some of the problems."""
        design, rows = self.design, self._rows_of(chosen)
        counts = np.diff(self.start)[chosen]
        read = design.random.codes[0]
        place = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        given = [None if values is None else values[rows] for values in (design.weights, design.offset)]
        return FlatRows.sorted_by_group(
            (design.exog[rows], design.exog_re[rows], self.y[rows]), (given[0], given[1]),
            (np.repeat(np.arange(len(chosen)), counts), np.asarray(read.codes[rows] - read.base)), (rows, place),
            (int(counts.max(initial=0)), len(chosen)),
        )  # fmt: skip

    def _rows_of(self, chosen: NDArray[np.intp]) -> NDArray[np.intp]:
        """The caller's rows of some of the problems, one after the other."""
        return np.concatenate([np.zeros(0, dtype=np.intp), *(self.rows(i) for i in chosen.tolist())])

    def some(self, chosen: NDArray[np.intp]) -> Stack:
        """Some of the problems, in this order."""
        rows, counts = self._rows_of(chosen), np.diff(self.start)[chosen]
        each = numbered(np.repeat(np.arange(len(chosen)), counts), self.labels[chosen])
        return Stack(self.design.rows(rows), self.y[rows], each, self.kind)

    def joined(self, stacks: Sequence[Any]) -> Stack:
        """The problems of several stacks of the same columns, one after the other."""
        designs, y = [one.design for one in stacks], np.concatenate([one.y for one in stacks])
        given = {}
        for what in ("weights", "offset"):
            found = [getattr(design, what) for design in designs]
            missing = 1.0 if what == "weights" else 0.0
            filled = [np.full(len(d.exog), missing) if v is None else v for d, v in zip(designs, found, strict=True)]
            given[what] = None if all(values is None for values in found) else np.concatenate(filled)
        each = [[f.grouping for f in d.factors] for d in designs]
        labels = {
            parts[0].name: np.concatenate([one.labels[one.index] for one in parts]) for parts in zip(*each, strict=True)
        }
        whole = self.design.other(
            np.concatenate([d.exog for d in designs]), np.concatenate([d.exog_re for d in designs]), labels,
            given["weights"], given["offset"],
        )  # fmt: skip
        first = np.cumsum([0, *(len(one) for one in stacks)])
        index = np.concatenate([one.each.index + begin for one, begin in zip(stacks, first, strict=False)])
        return Stack(whole, y, numbered(index, np.concatenate([one.labels for one in stacks])), self.kind)

    def same(self, other: Any) -> bool:
        """Whether another stack holds the same problems, with their rows in the same order."""
        if not isinstance(other, Stack) or not same_columns(self.design, other.design):
            return False
        one, two = self.design, other.design
        if [read.name for read in one.random.codes] != [read.name for read in two.random.codes]:
            return False
        alike = all(a.agrees(b) for a, b in zip(one.random.codes, two.random.codes, strict=True))
        return alike and all(
            same_values(a, b)
            for a, b in (
                (self.y, other.y), (self.each.index, other.each.index), (self.labels, other.labels),
                (one.exog, two.exog), (one.exog_re, two.exog_re), (one.weights, two.weights), (one.offset, two.offset),
            )
        )  # fmt: skip

    def with_random(self, random: RandomPart) -> Stack:
        """The same problems with other random effects of the same groups."""
        out = Stack(self.design.with_random(random), self.y, self.each, self.kind)
        out.seals = self.seals
        return out

    def terms(self) -> tuple[FixedTerm, ...]:
        """Terms of the fixed part."""
        return fixed_terms(self.design)

    @cached_property
    def _whole(self) -> Model:
        return self.kind.of(self.design, None).fittable()

    def whole(self) -> Model:
        """A model of all rows."""
        return self._whole

    def with_response(self, y: Array) -> Stack:
        """The same problems with other responses (n,)."""
        return Stack(self.design, y, self.each, self.kind)

    def model(self, i: int) -> Model:
        """The model of one problem.

        Raises
        ------
        LMMError
            For a problem that cannot be fitted.
        """
        rows, design = self.rows(i), self.design
        labels = {}
        for read in design.random.codes:
            codes = read.codes[rows]
            labels[read.name] = codes if read.slot_labels is None else read.slot_labels[codes - read.base]
        weights, offset = (None if v is None else v[rows] for v in (design.weights, design.offset))
        own = design.other(design.exog[rows], design.exog_re[rows], labels, weights, offset)
        return self.kind.of(own, self.y[rows])


def numbered(index: NDArray[np.intp], labels: NDArray[Any]) -> Grouping:
    """Problems by number, all of which have rows; labels need not differ."""
    return Codes("each", index, 0, len(labels), labels).count()


def search_of(structure: CovarianceStructure) -> StackSearch:
    """How the optimum of each problem is looked for; other minima by the screens of `estimation.search`."""
    screens = [spread_points(structure.blocks, effort, 1.0) for effort in (EASY, CAREFUL, HARD)]
    return StackSearch(
        blocks=[(block.start, block.stop, block.correlated) for block in structure.blocks],
        rows=structure.positions[0],
        columns=structure.positions[1],
        structure=np.ascontiguousarray(structure.free, dtype=np.intc),
        points=[np.ascontiguousarray(screen.thetas) for screen in screens],
        neighbours=[np.ascontiguousarray(screen.neighbours) for screen in screens],
        starts=(DESCENTS[HARD], LOWEST_POINTS[HARD], SPREAD[HARD], NARROWED),
    )


def same_columns(one: Design, other: Design) -> bool:
    """Whether two designs have columns and random effects of the same names."""
    names = (one.exog_names == other.exog_names, one.exog_re_names == other.exog_re_names)
    return all(names) and one.structure.blocks == other.structure.blocks


def same_values(one: NDArray[Any] | None, other: NDArray[Any] | None) -> bool:
    """Whether both are arrays with the same values, missing ones at the same places, or neither is there."""
    if one is None or other is None:
        return one is other
    return np.array_equal(one, other, equal_nan=one.dtype.kind == "f" and other.dtype.kind == "f")
