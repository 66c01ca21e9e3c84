"""What the states of a formula need of all rows, and the recipe that they make."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import LMMError
from ..formula.matrices import evaluate, evaluate_piece, floats, is_integer, needed_columns
from ..formula.syntax import Bar, Parsed, parse
from ..tables.columns import Column, Table
from .polynomials import PowerSums
from .recipe import Recipe, Seen, TermColumns, complete_of, used_columns

__all__ = [
    "HEAD",
    "Wanted",
    "alike",
    "degree_of",
    "first_complete",
    "learn",
    "read_call",
    "remembers",
    "settle",
    "without_states",
]

Array = NDArray[Any]

HEAD = 1000
"""Rows on which states are made, and functions tried."""

_REMEMBERS = re.compile(r"(?<![\w.])(?:center|scale|standardize|within|between|poly|bs|cc|cr|cs|lag)\s*\(")
_CALL = re.compile(r"(\w+)\(\s*([^()]*?)\s*\)")
_POLY = re.compile(
    r"poly\(\s*([^(),=]+?)\s*(?:,\s*(?:degree\s*=\s*)?(\d+)\s*)?(?:,\s*(?:raw\s*=\s*)?(True|False)\s*)?\)"
)
"""A column, its degree, and whether the powers themselves are meant."""


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
        self.formula, self.parsed = formula, parse(formula)
        self.weights, self.offset = weights, offset
        self.given = {name: list(values) for name, values in levels.items()}
        self.levels: dict[str, list[Any]] = {name: list(values) for name, values in self.given.items()}
        self.declared: dict[str, list[Any]] = {}  # categories in their order; none where pieces differ
        self.labelled: list[str] = []
        self.calls: list[str] = []
        self.moments: dict[str, list[float]] = {}  # n, reference, sum, sum of squares
        self.powers: dict[str, PowerSums] = {}
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
        self.calls = list(dict.fromkeys(call for side in self.parsed.sides for call in remembers(side.text)))
        for call in self.calls:
            read_call(call)
        return bool(self.calls) or any(name not in self.given for name in labelled)

    def states(self, table: Table) -> list[Any]:
        """States made on a few rows in which all levels known occur."""
        used = used_columns(self.parsed, table, self.weights, self.offset)
        rows = complete_of(used, table.n_rows, "drop", Seen.nothing())
        rows = np.arange(table.n_rows) if rows is None else rows
        sides = self.parsed.sides
        names = list(dict.fromkeys(name for side in sides for name in needed_columns(side, table)))
        degrees = self._degrees()
        least = [len(levels) for levels in self.levels.values()] + [degree + 1 for degree in degrees.values()]
        length = max([min(len(rows), HEAD), 1, *least])
        at = np.resize(rows[:HEAD], length)
        scaled = {of[0] for function, of in map(read_call, self.calls) if function in ("scale", "standardize")}
        data: dict[str, Any] = {}
        for name in names:
            column = table.column(name)
            if name in self.levels:
                data[name] = _with_all(column, self.levels[name], length)
            elif column.number is not None:
                data[name] = column.number[at]
                few = name in degrees and len(np.unique(data[name])) <= degrees[name]
                if few or (name in scaled and np.ptp(data[name]) == 0.0):
                    # what scales by these rows alone would divide by 0
                    data[name] = data[name] + np.arange(length)
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
        used = used_columns(self.parsed, table, self.weights, self.offset)
        rows = complete_of(used, table.n_rows, "drop", Seen.nothing())
        if rows is not None and not len(rows):
            return
        for name in self.labelled:
            if name in self.given:
                continue
            column = used[name]
            category = column.number is None and column.is_category
            declared = column.categories()[1].tolist() if category else []
            self._levels(name, column.codes(rows)[1].tolist(), declared)
        read = [read_call(call) for call in self.calls]
        for arguments in dict.fromkeys(tuple(names) for f, names in read if f in ("within", "between")):
            self._group_means(arguments, np.asarray(floats(used[arguments[0]], rows)), used, rows)
        for name, degree in self._degrees().items():
            x = np.asarray(floats(used[name], rows))
            self.powers.setdefault(name, PowerSums(float(x[0]), degree)).see(x)
        for arguments in dict.fromkeys(tuple(names) for f, names in read if f in ("center", "scale", "standardize")):
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
        for column, powers in other.powers.items():
            if column in self.powers:
                self.powers[column].take(powers)
            else:
                self.powers[column] = powers
        for names, groups in other.means.items():
            store = self.means.setdefault(names, {})
            for label, (n, reference, total) in groups.items():
                own = store.setdefault(label, [0.0, reference, 0.0])
                own[0] += n
                own[2] += total + n * (reference - own[1])

    def _degrees(self) -> dict[str, int]:
        """Columns whose polynomials are wanted, with the highest degree."""
        found: dict[str, int] = {}
        for call in self.calls:
            if (function := read_call(call))[0] == "poly":
                found[function[1][0]] = max(degree_of(call), found.get(function[1][0], 0))
        return found

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
        function, arguments = read_call(call)
        if function in ("within", "between"):
            store = self.means[tuple(arguments)]
            memory["means"] = {label: ref + total / count for label, (count, ref, total) in store.items()}
            return
        if function == "poly":
            # what few rows tell stays where they are all that there is to go by
            if arguments[0] in self.powers:
                powers = self.powers[arguments[0]]
                memory["alpha"], memory["norms2"] = powers.recurrence(call, degree_of(call))
            return
        n, ref, total, squares = self.moments[arguments[0]]
        memory["center"] = ref + total / n
        if memory.get("scale") is not None:
            memory["scale"] = float(np.sqrt((squares - total * total / n) / (n - memory["ddof"])))


def remembers(text: str) -> list[str]:
    """Calls in a part of a formula that remember something of all rows."""
    found = []
    for name in _REMEMBERS.finditer(text):
        call = _CALL.match(text, name.start())
        if call is None or not ((poly := _POLY.fullmatch(call[0])) and poly[3] == "True"):
            found.append(text[name.start() :] if call is None else call[0])
    return found


def alike(one: str, other: str) -> bool:
    """Whether two calls that remember something of all rows are the same but for how they are written."""
    same = read_call(one) == read_call(other)
    return same and (read_call(one)[0] != "poly" or degree_of(one) == degree_of(other))


def degree_of(call: str) -> int:
    """Of a call of ``poly``."""
    found = _POLY.fullmatch(call)
    assert found is not None
    return int(found[2] or 1)


def read_call(call: str) -> tuple[str, list[str]]:
    """Function and columns of a call that remembers something of all rows."""
    poly = _POLY.fullmatch(call)
    if poly is not None:
        return "poly", [poly[1].strip("`")]
    found = _CALL.fullmatch(call)
    names = [] if found is None else [part.strip().strip("`") for part in found[2].split(",")]
    if found is None or found[1] not in ("center", "scale", "standardize", "within", "between"):
        raise LMMError(
            f"{call} remembers something of all rows that a scan does not find; compute it as a column first, or use "
            "center(x), scale(x), poly(x, 2), within(x, g) or between(x, g) of columns"
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
    first = first_complete(wanted, tables)
    if wanted.ask(first):
        see_all(wanted)
    return settle(wanted, first, missing)


def settle(wanted: Wanted, first: Table, missing: str) -> Recipe:
    """The recipe of a formula that has seen what it wanted.

    Raises
    ------
    LMMError
        As `learn`.
    """
    parsed, states = wanted.parsed, wanted.settled(first)
    used = used_columns(parsed, first, wanted.weights, wanted.offset)
    rows = complete_of(used, first.n_rows, "drop", Seen.nothing())
    head = (np.arange(first.n_rows) if rows is None else rows)[:HEAD]
    parts: dict[tuple[str, ...], Any] = {}
    made = [evaluate_piece(side, first, head, state, parts) for side, state in zip(parsed.sides, states, strict=True)]
    _refuse_whole_columns(parsed, first, head, states, made)
    return Recipe(
        wanted.formula,
        wanted.weights,
        wanted.offset,
        missing,
        first.library,
        tuple(states),
        tuple(used),
        made[1].names,
        tuple(_term(bar, part) for bar, part in zip(parsed.bars, made[2:], strict=True)),
        frozenset(name for bar in parsed.bars for name in bar.factors if is_integer(used[name])),
    )


def without_states(wanted: Wanted, table: Table, missing: str) -> Recipe:
    """What is known of a formula before its states are: enough for `Recipe.taken`."""
    used = tuple(used_columns(wanted.parsed, table, wanted.weights, wanted.offset))
    return Recipe(wanted.formula, wanted.weights, wanted.offset, missing, table.library, (), used, (), (), frozenset())


def _term(bar: Bar, part: Any) -> TermColumns:
    if not part.names:
        raise LMMError(f"{bar.where} has no columns on its left side; write e.g. (1 | {bar.name}).")
    return TermColumns(bar.name, bar.factors, part.names, bar.structure)


def first_complete(wanted: Wanted, tables: Iterable[Table]) -> Table:
    """The first table that has a complete row."""
    if not wanted.parsed.bars:
        raise LMMError(f"The formula {wanted.formula!r} has no random-effects term; a scan needs one such as (1 | g).")
    empty = True
    try:
        for table in tables:
            empty = False
            used = used_columns(wanted.parsed, table, wanted.weights, wanted.offset)
            rows = complete_of(used, table.n_rows, "drop", Seen.nothing())
            if rows is None or len(rows):
                return table
    finally:  # a stream that is open may keep others from being opened
        if isinstance(tables, Generator):
            tables.close()
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
