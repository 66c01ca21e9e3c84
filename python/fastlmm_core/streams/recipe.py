"""How a piece of a table becomes columns: the states of a formula, the same for all pieces.

What a formula has to learn from all rows before any of them can become columns, levels of categorical columns, means
for ``center()`` and ``within()``, is learnt in a pass of its own, from complete rows as in memory.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import LMMError
from ..formula.matrices import (
    argument_column,
    complete_rows,
    evaluate_piece,
    floats,
    needed_columns,
)
from ..formula.specification import FormulaSpec, Numbers, columns_in_use
from ..formula.syntax import Parsed, parse
from ..tables.columns import Column, Table, first_rows

__all__ = ["Piece", "Recipe", "Seen", "SharedTerms", "Taken", "TermColumns", "complete_of", "used_columns"]

Array = NDArray[Any]


class TermColumns(NamedTuple):
    """A random-effects term: grouping factor, the columns that make it up, names of its effects, structure."""

    name: str
    factors: tuple[str, ...]
    columns: tuple[str, ...]
    structure: str


class SharedTerms(NamedTuple):
    """The grouping factors of terms, and the different columns that they have.

    Attributes
    ----------
    names : tuple of str
        Of the factors, as they come.
    sources : tuple of (int, int)
        Term and column of each different column; of one factor all of them.
    which : tuple of tuple of int
        The columns of each factor among the different ones, term by term.
    columns : tuple of tuple of str
        Their names.
    """

    names: tuple[str, ...]
    sources: tuple[tuple[int, int], ...]
    which: tuple[tuple[int, ...], ...]
    columns: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, terms: Sequence[TermColumns], x_names: tuple[str, ...]) -> SharedTerms:
        """Of some terms: columns of one name are the same; those of X come first, then others by name, as in memory."""
        names = tuple(dict.fromkeys(term.name for term in terms))
        own = [
            [(t, j) for t, term in enumerate(terms) if term.name == f for j in range(len(term.columns))] for f in names
        ]
        columns = tuple(tuple(terms[t].columns[j] for t, j in mine) for mine in own)
        if len(names) == 1:
            return cls(names, tuple(own[0]), (tuple(range(len(own[0]))),), columns)
        sources = {terms[t].columns[j]: (t, j) for mine in reversed(own) for t, j in reversed(mine)}
        known = {name: i for i, name in enumerate(x_names)}
        order = sorted(sources, key=lambda name: (known.get(name, len(known)), name))
        which = tuple(tuple(order.index(name) for name in mine) for mine in columns)
        return cls(names, tuple(sources[name] for name in order), which, columns)


class Taken(NamedTuple):
    """The complete rows of a table.

    Attributes
    ----------
    used : dict
        Columns in use.
    rows : int array or None
        Rows of the table that are complete, None for all.
    n : int
        Their number.
    groups : dict
        The columns of each grouping factor.
    weights, offset : (n,) arrays or None
    """

    used: dict[str, Column]
    rows: Array | None
    n: int
    groups: dict[str, tuple[tuple[str, ...], list[Column]]]
    weights: Array | None
    offset: Array | None


class Piece(NamedTuple):
    """Some rows as columns, those with missing values left out.

    Attributes
    ----------
    y, X : (n,), (n, p) arrays
    Z : tuple of (n, q_t) arrays
        Of each term.
    alike : bool
        Whether the different columns of Z are X.
    groups : dict
        The columns of each grouping factor.
    rows : int array or None
        Rows of the table that are complete, None for all.
    weights, offset : (n,) arrays or None
    table : Table
    """

    y: Array
    X: Array
    Z: tuple[Array, ...]
    alike: bool
    groups: dict[str, tuple[tuple[str, ...], list[Column]]]
    rows: Array | None
    weights: Array | None
    offset: Array | None
    table: Table


@dataclass
class Seen:
    """What a fit remembers of the columns of all rows; it adds up.

    Attributes
    ----------
    n, dropped : int
        Rows used, and left out for missing values.
    gaps : dict
        Missing values of each column that has any.
    numbers : dict
        For numeric columns of the fixed part: sum, least and largest value.
    levels : dict
        For other columns of the fixed part: the levels in use.
    offset : float
        Sum of the offset.
    """

    n: int
    dropped: int
    gaps: dict[str, int]
    numbers: dict[str, tuple[float, float, float]]
    levels: dict[str, dict[Any, None]]
    offset: float = 0.0

    @classmethod
    def nothing(cls) -> Seen:
        """Of no rows."""
        return cls(0, 0, {}, {}, {})

    def add(self, other: Seen) -> None:
        """Take in what has been seen of other rows."""
        self.n += other.n
        self.dropped += other.dropped
        self.offset += other.offset
        for name, count in other.gaps.items():
            self.gaps[name] = self.gaps.get(name, 0) + count
        for name, (total, low, high) in other.numbers.items():
            before = self.numbers.get(name, (0.0, np.inf, -np.inf))
            self.numbers[name] = (before[0] + total, min(before[1], low), max(before[2], high))
        for name, levels in other.levels.items():
            self.levels.setdefault(name, {}).update(levels)


@dataclass(frozen=True)
class Recipe:
    """What turns a piece of a table into the columns of a model; it can be pickled.

    Attributes
    ----------
    formula : str
    weights, offset : str or None
        Columns of the data.
    missing : {"drop", "raise"}
    library : str
        Library of the pieces.
    states : tuple
        As of `FormulaSpec`.
    columns : tuple of str
        Columns of the data in use.
    x_names : tuple of str
    terms : tuple of TermColumns
    integer_groups : frozenset of str
    """

    formula: str
    weights: str | None
    offset: str | None
    missing: str
    library: str
    states: tuple[Any, ...]
    columns: tuple[str, ...]
    x_names: tuple[str, ...]
    terms: tuple[TermColumns, ...]
    integer_groups: frozenset[str]

    @cached_property
    def shared(self) -> SharedTerms:
        """The grouping factors, and the different columns that they have."""
        return SharedTerms.of(self.terms, self.x_names)

    @property
    def parsed(self) -> Parsed:
        """The formula, split."""
        return parse(self.formula)

    def piece(self, table: Table, seen: Seen) -> Piece | None:
        """The columns of some rows, which are added to what has been seen; None where no row is complete."""
        taken = self.taken(table, seen)
        if taken is None:
            return None
        parts: dict[tuple[str, ...], Any] = {}
        y, X, *Z = (
            evaluate_piece(side, table, taken.rows, state, parts).matrix
            for side, state in zip(self.parsed.sides, self.states, strict=True)
        )
        shared = self.shared
        alike = len(Z) == 1 and Z[0] is X
        if len(shared.names) > 1:
            alike = tuple(self.terms[t].columns[j] for t, j in shared.sources) == self.x_names
        return Piece(y[:, 0], X, tuple(Z), alike, taken.groups, taken.rows, taken.weights, taken.offset, table)

    def taken(self, table: Table, seen: Seen) -> Taken | None:
        """The complete rows of a table, which are added to what has been seen; None where no row is complete."""
        used = used_columns(self.parsed, table, self.weights, self.offset)
        rows = complete_of(used, table.n_rows, self.missing, seen)
        if rows is not None and not len(rows):
            return None
        groups = {bar.name: (bar.factors, [used[name] for name in bar.factors]) for bar in self.parsed.bars}
        w = None if self.weights is None else floats(used[self.weights], rows)
        if w is not None and not (w > 0.0).all():
            at = np.flatnonzero(w <= 0.0)
            raise LMMError(
                f"`weights` must be positive, which they are not at {first_rows(at if rows is None else rows[at])} of "
                f"{table.argument}. Drop the rows that are to have no weight."
            )
        o = None if self.offset is None else floats(used[self.offset], rows)
        seen.offset += 0.0 if o is None else float(o.sum())
        self._note(table, rows, seen)
        return Taken(used, rows, table.n_rows if rows is None else len(rows), groups, w, o)

    def _note(self, table: Table, rows: Array | None, seen: Seen) -> None:
        """Remember means, ranges and levels of the columns of the fixed part."""
        found = Seen.nothing()
        for name in needed_columns(self.parsed.fixed, table):
            column = table.column(name)
            number = column.number
            if number is None or number.dtype.kind == "b":
                found.levels[name] = dict.fromkeys(column.label_codes(rows)[1].tolist())
                continue
            values = number if rows is None else number[rows]
            found.numbers[name] = (float(values.sum(dtype=np.float64)), float(values.min()), float(values.max()))
            if name in self.parsed.fixed.labels:
                found.levels[name] = dict.fromkeys(np.unique(values).tolist())
        seen.add(found)

    def specification(self, seen: Seen) -> FormulaSpec:
        """What a fit remembers of its formula."""
        reference: dict[str, Numbers | tuple[Any, ...]] = {}
        encoder = {} if self.states[1] is None else self.states[1].encoder_state
        coded = {_column_of(e): enc["categories"] for e, (_, enc) in encoder.items() if enc.get("categories")}
        for name in dict.fromkeys([*seen.levels, *seen.numbers]):
            if name in coded:
                used = set(seen.levels.get(name, ()))
                reference[name] = tuple(level for level in coded[name] if level in used)
            elif name in seen.numbers:
                total, low, high = seen.numbers[name]
                reference[name] = Numbers(total / seen.n, low, high)
            else:
                kept = seen.levels[name]
                reference[name] = (False, True) if all(isinstance(v, bool) for v in kept) else tuple(sorted(kept))
        return FormulaSpec(
            self.formula,
            self.library,
            self.offset,
            self.weights,
            self.states,
            self.integer_groups,
            reference,
            {},
            dict(seen.gaps),
        )


def used_columns(parsed: Parsed, table: Table, weights: str | None, offset: str | None) -> dict[str, Column]:
    """The columns in use."""
    used = columns_in_use(parsed, table, parsed.sides)
    for argument, given in (("weights", weights), ("offset", offset)):
        if given is not None:
            used[given] = argument_column(argument, given, table)
    return used


def complete_of(used: Mapping[str, Column], n: int, missing: str, seen: Seen) -> Array | None:
    """Rows without missing values, None for all; they are counted."""
    gaps = {name: gap for name, column in used.items() if (gap := column.missing()) is not None}
    if not gaps:
        seen.n += n
        return None
    if missing == "raise":
        return complete_rows(list(used.values()), n, missing)
    incomplete = np.zeros(n, dtype=bool)
    for name, gap in gaps.items():
        incomplete |= gap
        seen.gaps[name] = seen.gaps.get(name, 0) + int(gap.sum())
    rows = np.flatnonzero(~incomplete)
    seen.n += len(rows)
    seen.dropped += n - len(rows)
    return rows


def _column_of(expression: str) -> str:
    """The column of a categorical factor, as in ``C(x)``."""
    call = re.match(r"C\(\s*(`[^`]+`|[^\W\d][\w.]*)\s*[,)]", expression)
    return call[1].strip("`") if call else expression
