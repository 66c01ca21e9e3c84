"""How a piece of a table becomes columns: the states of a formula, the same for all pieces.

What a formula has to learn from all rows before any of them can become columns, levels of categorical columns, means
for ``center()`` and ``within()``, is learnt in a pass of its own, from complete rows as in memory.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import LMMError
from ..formula.matrices import (
    argument_column,
    complete_rows,
    evaluate,
    evaluate_piece,
    floats,
    is_integer,
    needed_columns,
)
from ..formula.specification import FormulaSpec, Numbers, columns_in_use
from ..formula.syntax import Bar, Parsed, parse
from ..tables.columns import Column, Table, first_rows

__all__ = ["Piece", "Recipe", "Seen", "SharedTerms", "TermColumns", "Wanted", "learn"]

Array = NDArray[Any]

HEAD = 1000
"""Rows on which states are made, and functions tried."""

_REMEMBERS = re.compile(r"(?<![\w.])(?:center|scale|standardize|within|between|poly|bs|cc|cr|cs|lag)\s*\(")
_CALL = re.compile(r"(\w+)\(\s*([^()]*?)\s*\)")


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
        used = _used(self.parsed, table, self.weights, self.offset)
        rows = _complete(used, table.n_rows, self.missing, seen)
        if rows is not None and not len(rows):
            return None
        parsed = self.parsed
        parts: dict[tuple[str, ...], Any] = {}
        y, X, *Z = (
            evaluate_piece(side, table, rows, state, parts).matrix
            for side, state in zip(parsed.sides, self.states, strict=True)
        )
        groups = {bar.name: (bar.factors, [used[name] for name in bar.factors]) for bar in parsed.bars}
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
        shared = self.shared
        alike = len(Z) == 1 and Z[0] is X
        if len(shared.names) > 1:
            alike = tuple(self.terms[t].columns[j] for t, j in shared.sources) == self.x_names
        return Piece(y[:, 0], X, tuple(Z), alike, groups, rows, w, o, table)

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
            self.formula, self.library, self.offset, self.states, self.integer_groups, reference, {}, dict(seen.gaps)
        )


def _used(parsed: Parsed, table: Table, weights: str | None, offset: str | None) -> dict[str, Column]:
    """The columns in use."""
    used = columns_in_use(parsed, table, parsed.sides)
    for argument, given in (("weights", weights), ("offset", offset)):
        if given is not None:
            used[given] = argument_column(argument, given, table)
    return used


def _complete(used: Mapping[str, Column], n: int, missing: str, seen: Seen) -> Array | None:
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


# ---- learning ---------------------------------------------------------------------------------------------


class Wanted:
    """What the states of a formula need of all rows; what is seen in different places adds up.

    Attributes
    ----------
    labelled : list of str
        Columns whose levels are wanted.
    calls : list of str
        Calls that remember something of all rows.
    """

    def __init__(self, formula: str, weights: str | None, offset: str | None, levels: Mapping[str, Any]) -> None:
        self.parsed = parse(formula)
        self.weights, self.offset = weights, offset
        self.given = {name: list(values) for name, values in levels.items()}
        self.levels: dict[str, list[Any]] = {name: list(values) for name, values in self.given.items()}
        self.declared: dict[str, list[Any]] = {}  # categories in their order; none where pieces differ
        self.labelled: list[str] = []
        self.calls: list[str] = []
        self.moments: dict[str, list[float]] = {}  # n, reference, sum, sum of squares
        self.means: dict[tuple[str, ...], dict[Any, list[float]]] = {}

    def ask(self, table: Table) -> bool:
        """Find out from some rows what is wanted, and whether all have to be seen for it."""
        labelled = self.labelled
        for side in self.parsed.sides:
            if side.plan is not None and all(table.column(name).number is not None for name, _ in side.names):
                continue
            for name in needed_columns(side, table):
                number = table.column(name).number
                if name not in labelled and (number is None or number.dtype.kind == "b" or name in side.labels):
                    labelled.append(name)
        self.calls = list(dict.fromkeys(call for side in self.parsed.sides for call in _calls(side.text)))
        for call in self.calls:
            _arguments(call)
        return bool(self.calls) or any(name not in self.given for name in labelled)

    def states(self, table: Table) -> list[Any]:
        """States made on a few rows in which all levels known occur."""
        used = _used(self.parsed, table, self.weights, self.offset)
        rows = _complete(used, table.n_rows, "drop", Seen.nothing())
        rows = np.arange(table.n_rows) if rows is None else rows
        sides = self.parsed.sides
        names = list(dict.fromkeys(name for side in sides for name in needed_columns(side, table)))
        length = max([min(len(rows), HEAD), 1, *(len(levels) for levels in self.levels.values())])
        at = np.resize(rows[:HEAD], length)
        data: dict[str, Any] = {}
        for name in names:
            column = table.column(name)
            if name in self.levels:
                data[name] = _with_all(column, self.levels[name], length)
            elif column.number is not None:
                data[name] = column.number[at]
            else:
                codes, labels = column.codes(at)
                data[name] = labels[codes]
        example = Table(data, table.argument, declared=True)
        parts: dict[tuple[str, ...], Any] = {}
        for name in names:
            example.column(name).settle()
        return [evaluate(side, example, None, parts).state for side in sides]

    def see(self, table: Table) -> None:
        """Learn from the complete rows of a table."""
        used = _used(self.parsed, table, self.weights, self.offset)
        rows = _complete(used, table.n_rows, "drop", Seen.nothing())
        if rows is not None and not len(rows):
            return
        for name in self.labelled:
            if name in self.given:
                continue
            column = used[name]
            category = column.number is None and column.is_category
            declared = column.categories()[1].tolist() if category else []
            self._levels(name, column.codes(rows)[1].tolist(), declared)
        read = [_arguments(call) for call in self.calls]
        for arguments in dict.fromkeys(tuple(names) for f, names in read if f in ("within", "between")):
            self._group_means(arguments, np.asarray(floats(used[arguments[0]], rows)), used, rows)
        for arguments in dict.fromkeys(tuple(names) for f, names in read if f not in ("within", "between")):
            x = np.asarray(floats(used[arguments[0]], rows))
            sums = self.moments.setdefault(arguments[0], [0.0, float(x[0]), 0.0, 0.0])
            rest = x - sums[1]
            sums[0] += len(x)
            sums[2] += float(rest.sum())
            sums[3] += float(rest @ rest)

    def _levels(self, name: str, found: list[Any], declared: list[Any]) -> None:
        known = self.levels.setdefault(name, [])
        fresh = set(found).difference(known)
        known += [level for level in found if level in fresh]
        if self.declared.setdefault(name, declared) != declared:
            self.declared[name] = []

    def take(self, other: Wanted) -> None:
        """Add what has been seen of other rows."""
        for name, found in other.levels.items():
            if name not in self.given:
                self._levels(name, found, other.declared[name])
        for column, (n, reference, total, squares) in other.moments.items():
            sums = self.moments.setdefault(column, [0.0, reference, 0.0, 0.0])
            step = reference - sums[1]
            sums[0] += n
            sums[2] += total + n * step
            sums[3] += squares + 2.0 * step * total + n * step * step
        for names, groups in other.means.items():
            store = self.means.setdefault(names, {})
            for label, (n, reference, total) in groups.items():
                own = store.setdefault(label, [0.0, reference, 0.0])
                own[0] += n
                own[2] += total + n * (reference - own[1])

    def _group_means(self, names: tuple[str, ...], x: Array, used: Mapping[str, Column], rows: Array | None) -> None:
        read = [used[name].codes(rows) for name in names[1:]]
        codes = read[0][0]
        for own, labels in read[1:]:
            codes = codes * len(labels) + own
        present, first, back = np.unique(codes, return_index=True, return_inverse=True)
        places = np.unravel_index(present, [len(labels) for _, labels in read])
        groups = list(zip(*(labels[at].tolist() for (_, labels), at in zip(read, places, strict=True)), strict=True))
        store = self.means.setdefault(names, {})
        for label, value in zip(groups, x[first].tolist(), strict=True):
            store.setdefault(label, [0.0, value, 0.0])
        reference = np.array([store[label][1] for label in groups])
        count = np.bincount(back, minlength=len(groups))
        total = np.bincount(back, x - reference[back], len(groups))
        for label, c, t in zip(groups, count.tolist(), total.tolist(), strict=True):
            store[label][0] += c
            store[label][2] += t

    def settled(self, table: Table) -> list[Any]:
        """The states, with what has been learnt."""
        for name, levels in self.levels.items():
            if name in self.given:
                continue
            declared = self.declared.get(name)
            known = set(levels)
            self.levels[name] = [v for v in declared if v in known] if declared else sorted(levels)
        states = self.states(table)
        for state in states:
            if state is not None:
                for call, memory in state.transform_state.items():
                    self._settle(call, memory)
        return states

    def _settle(self, call: str, memory: dict[str, Any]) -> None:
        function, arguments = _arguments(call)
        if function in ("within", "between"):
            store = self.means[tuple(arguments)]
            memory["means"] = {label: ref + total / count for label, (count, ref, total) in store.items()}
            return
        n, ref, total, squares = self.moments[arguments[0]]
        memory["center"] = ref + total / n
        if memory.get("scale") is not None:
            memory["scale"] = float(np.sqrt((squares - total * total / n) / (n - memory["ddof"])))


def _calls(text: str) -> list[str]:
    """Calls in a part of a formula that remember something of all rows."""
    found = []
    for name in _REMEMBERS.finditer(text):
        call = _CALL.match(text, name.start())
        found.append(text[name.start() :] if call is None else call[0])
    return found


def _arguments(call: str) -> tuple[str, list[str]]:
    """Function and columns of a call that remembers something of all rows."""
    found = _CALL.fullmatch(call)
    names = [] if found is None else [part.strip().strip("`") for part in found[2].split(",")]
    if found is None or found[1] not in ("center", "scale", "standardize", "within", "between"):
        raise LMMError(
            f"{call} remembers something of all rows that a scan does not find; compute it as a column first, or use "
            "center(x), scale(x), within(x, g) or between(x, g) of columns"
        )
    if any("=" in name for name in names) or (found[1] in ("center", "scale", "standardize") and len(names) != 1):
        raise LMMError(f"{call}: options are not known to a scan; compute the result as a column first")
    return found[1], names


def _with_all(column: Column, levels: list[Any], length: int) -> Any:
    """A column in which all levels occur."""
    places = np.resize(np.arange(len(levels)), length)
    if column.number is not None:
        return np.array(levels)[places]
    import pandas as pd

    if column.is_category:
        return pd.Categorical.from_codes(places, categories=pd.Index(levels))
    labels = np.empty(len(levels), dtype=object)
    labels[:] = levels
    return labels[places]


def learn(
    formula: str,
    tables: Iterable[Table],
    see_all: Callable[[Wanted], None],
    weights: str | None,
    offset: str | None,
    missing: str,
    levels: Mapping[str, Any],
) -> Recipe:
    """The recipe of a formula.

    Parameters
    ----------
    formula : str
    tables : iterable of Table
        The rows; only the first table is read where that is enough.
    see_all : callable
        Shows all rows to its argument, where that has to see them.
    weights, offset : str or None
    missing : {"drop", "raise"}
    levels : dict
        Levels of categorical columns that are known; those of the other ones are looked for.

    Raises
    ------
    LMMError
        For a formula that cannot be used, and for functions that need all rows at once.
    """
    wanted = Wanted(formula, weights, offset, levels)
    parsed = wanted.parsed
    if not parsed.bars:
        raise LMMError(f"The formula {formula!r} has no random-effects term; a scan needs one such as (1 | g).")
    first = _first_complete(wanted, tables)
    if wanted.ask(first):
        see_all(wanted)
    states = wanted.settled(first)
    used = _used(parsed, first, weights, offset)
    rows = _complete(used, first.n_rows, "drop", Seen.nothing())
    head = (np.arange(first.n_rows) if rows is None else rows)[:HEAD]
    parts: dict[tuple[str, ...], Any] = {}
    made = [evaluate_piece(side, first, head, state, parts) for side, state in zip(parsed.sides, states, strict=True)]
    _refuse_whole_columns(parsed, first, head, states, made)
    return Recipe(
        formula,
        weights,
        offset,
        missing,
        first.library,
        tuple(states),
        tuple(used),
        made[1].names,
        tuple(_term(bar, part) for bar, part in zip(parsed.bars, made[2:], strict=True)),
        frozenset(name for bar in parsed.bars for name in bar.factors if is_integer(used[name])),
    )


def _term(bar: Bar, part: Any) -> TermColumns:
    if not part.names:
        raise LMMError(f"{bar.where} has no columns on its left side; write e.g. (1 | {bar.name}).")
    return TermColumns(bar.name, bar.factors, part.names, bar.structure)


def _first_complete(wanted: Wanted, tables: Iterable[Table]) -> Table:
    """The first table that has a complete row."""
    empty = True
    for table in tables:
        empty = False
        used = _used(wanted.parsed, table, wanted.weights, wanted.offset)
        rows = _complete(used, table.n_rows, "drop", Seen.nothing())
        if rows is None or len(rows):
            return table
    raise LMMError("the source has no rows" if empty else "every row has a missing value; no row is left to fit")


def _refuse_whole_columns(parsed: Parsed, table: Table, head: Array, states: list[Any], made: list[Any]) -> None:
    """Refuse functions whose value in a row depends on other rows, by a look at some of them."""
    middle = len(head) // 2
    for half in (slice(0, middle), slice(middle, len(head))):
        parts: dict[tuple[str, ...], Any] = {}
        for side, state, whole in zip(parsed.sides, states, made, strict=True):
            if state is None or not middle:
                continue
            found = evaluate_piece(side, table, head[half], state, parts).matrix
            if not np.array_equal(found, whole.matrix[half], equal_nan=True):
                raise LMMError(
                    f"{side.where} of the formula, {side.text!r}, has a function whose value in one row depends on "
                    "other rows; compute it as a column before the rows are read in pieces"
                )
