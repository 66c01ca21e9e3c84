"""One reading of rows whose formula has to see all of them first.

A column of a model is a product of numbers of its row and of what depends on levels: contrasts, and shifts by means.
So within a line, the rows of one group that have the same levels of all categorical columns, it is a linear function of
products of the numbers alone, about a centre that the first rows give.  Those are summed in twice the precision while
levels, means and moments are found; at the end the sums of the columns follow, whatever cancels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product as combinations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..engines.one_factor.reading import log_sum
from ..errors import LMMError
from ..formula.matrices import evaluate, evaluate_piece, floats
from ..formula.syntax import C_OF_COLUMN, Side, side_of
from ..kernels.reading import add_products
from ..kernels.records.rows import Rows
from ..support.double_double import Pairs, pairs, product, total
from ..support.types import Array, Index
from ..tables.columns import Column, Table
from .exact import ExactSums, unpacked
from .labels import CellSlots
from .plan import Plan, candidates, plan_of
from .polynomials import TOLD, PowerSums, basis
from .recipe import Recipe, Seen, Taken
from .reduce import first_chunk, room_for_lines
from .source import Scan, ahead
from .wanted import Wanted, alike, degree_of, first_complete, read_call, remembers, settle, without_states

__all__ = ["OnceSums", "read_once"]

CHUNK = 4096
"""Lines whose sums are turned at a time."""

Monomial = tuple[tuple[str, int], ...]
Combination = dict[Monomial, Any]
"""Coefficients of products of numbers, each a number or one for each line."""

Where = Mapping[str, tuple[NDArray[Any], NDArray[np.int64]]]
"""For each categorical column its labels, and which of them each line has."""


class OnceSums(NamedTuple):
    """What one reading has found.

    Attributes
    ----------
    head : Rows
        The first rows.
    levels : tuple of arrays
        Labels of each grouping factor, in order.
    cells : (m, factors) int array
        Their combinations that occur, in order.
    exact : ExactSums
        By these cells.
    seen : Seen
    constant, varies : bool
    log_weights : float
        See `PassSums`.
    """

    head: Rows
    levels: tuple[NDArray[Any], ...]
    cells: NDArray[np.int64]
    exact: ExactSums
    seen: Seen
    constant: bool
    varies: bool
    log_weights: float


def read_once(
    formula: str, source: Scan, weights: str | None, offset: str | None, missing: str
) -> tuple[Plan, OnceSums] | None:
    """The plan of a formula and its sums, by one reading; None for a formula that needs to see nothing first.

    Raises
    ------
    LMMError
        As `learn`, and for factors of terms that are no linear function of what one reading can sum.
    """
    names = candidates(formula, weights, offset)
    wanted = Wanted(formula, weights, offset, {})
    first = first_complete(wanted, source.look(names))
    if not wanted.ask(first):
        return None
    reading = _Reading(wanted, first, missing)
    for table in ahead(source.tables(names)):
        reading.add(table, source.memory)
    recipe = settle(wanted, first, missing)
    head = first_chunk(recipe, iter([first]))
    plan = plan_of(recipe, head)
    return plan, reading.sums(plan, head)


# ---- factors of terms -----------------------------------------------------------------------------------------------


class _Numbers(NamedTuple):
    """An expression that needs nothing of other rows, by itself as a side of a formula."""

    side: Side
    state: Any
    width: int


class _Moved(NamedTuple):
    """``center(x)``, ``scale(x)``, ``within(x, g)`` or ``between(x, g)``: x about a centre, and x about another."""

    call: str
    column: str
    groups: tuple[str, ...]
    centre: float


class _Powers(NamedTuple):
    """``poly(x, degree)``: powers of x about a centre."""

    call: str
    column: str
    degree: int
    centre: float


class _Labels(NamedTuple):
    """A categorical column."""

    column: str


def _terms(side: Side, state: Any) -> list[tuple[float, list[tuple[str, bool]]]]:
    """Scale, and factors with whether their contrasts are reduced, of each part of the columns of a side."""
    if state is None:
        return [(1.0, [(name, False) for name in names]) for names in side.plan or ()]
    return [
        (float(scoped.scale), [(str(item.factor.expr), bool(item.reduced)) for item in scoped.factors])
        for entry in state.structure
        for scoped in entry.scoped_terms
    ]


class _Factors:
    """The factors of all sides, as the first rows tell what they are."""

    def __init__(self, wanted: Wanted, first: Table, used: dict[str, Column], rows: Index | None) -> None:
        states = _provisional(wanted, first)
        self.response = states[0]
        self.known: dict[str, _Numbers | _Moved | _Powers | _Labels] = {}
        parsed = wanted.parsed
        if remembers(parsed.response.text):
            _refuse(parsed.response.text)
        self.sides = parsed.sides[1:]
        for side, state in zip(self.sides, states[1:], strict=True):
            kinds = {} if state is None else {e: kind.value for e, (kind, _) in state.encoder_state.items()}
            for _, factors in _terms(side, state):
                for expression, _ in factors:
                    if expression not in self.known:
                        kind = kinds.get(expression, "numerical")
                        self.known[expression] = self._factor(expression, kind, first, used, rows)
        self.front = self._monomials(self.sides[1:], states[2:])
        rest = self._monomials(self.sides[:1], states[1:2])
        self.by_groups = any(isinstance(f, _Moved) and f.groups for f in self.known.values())
        if self.by_groups:
            # means of groups need the products within groups of all that they multiply
            self.front = list(dict.fromkeys([*self.front, *rest]))
        self.order = list(dict.fromkeys([*self.front, *rest]))

    def _factor(
        self, expression: str, kind: str, first: Table, used: dict[str, Column], rows: Index | None
    ) -> _Numbers | _Moved | _Powers | _Labels:
        if kind == "categorical":
            call = C_OF_COLUMN.match(expression)
            name = call[1].strip("`") if call else expression.strip("`")
            if name not in used:
                _refuse(expression)
            return _Labels(name)
        if remembers(expression):
            calls = remembers(expression)
            if calls != [expression]:
                _refuse(expression)
            function, (column, *groups) = read_call(expression)
            centre = float(np.mean(floats(used[column], rows)))
            centre = centre if np.isfinite(centre) else 0.0
            if function == "poly":
                return _Powers(expression, column, degree_of(expression), centre)
            return _Moved(function, column, tuple(groups), centre)
        plain = expression.isidentifier() or expression.startswith("`")
        side = side_of(f"0 + {expression if plain else f'{{{expression}}}'}", "the fixed part")
        part = evaluate(side, first, rows, {}, by_columns=True)
        return _Numbers(side, part.state, part.matrix.shape[1])

    def _monomials(self, sides: Sequence[Side], states: Sequence[Any]) -> list[Monomial]:
        found: dict[Monomial, None] = {(): None}
        for side, state in zip(sides, states, strict=True):
            for _, factors in _terms(side, state):
                parts = [self._parts(expression) for expression, _ in factors]
                for chosen in combinations(*parts):
                    found[tuple(sorted(sum(chosen, ())))] = None
        return list(found)

    def _parts(self, expression: str) -> list[Monomial]:
        factor = self.known[expression]
        if isinstance(factor, _Labels):
            return [()]
        if isinstance(factor, _Moved):
            return [(), ((factor.column, -1),)]
        if isinstance(factor, _Powers):
            return [((factor.column, -1),) * j for j in range(factor.degree + 1)]
        return [((expression, i),) for i in range(factor.width)]

    def values(self, taken: Taken, table: Table) -> Array:
        """The products of numbers (n, monomials), with room for y behind."""
        n = taken.n
        out = np.empty((n, len(self.order) + 1))
        own: dict[tuple[str, int], Array] = {}
        for expression, factor in self.known.items():
            if isinstance(factor, _Moved | _Powers):
                own[factor.column, -1] = floats(taken.used[factor.column], taken.rows) - factor.centre
            elif isinstance(factor, _Numbers):
                part = evaluate_piece(factor.side, table, taken.rows, factor.state, {})
                own.update({(expression, i): column for i, column in enumerate(part.matrix.T)})
        for j, monomial in enumerate(self.order):
            out[:, j] = 1.0
            for one in monomial:
                out[:, j] *= own[one]
        return out

    @property
    def labels(self) -> list[str]:
        """Columns whose levels tell lines of a group apart: of categorical factors, and of the groups of means."""
        found: dict[str, None] = {}
        for factor in self.known.values():
            if isinstance(factor, _Labels):
                found[factor.column] = None
            elif isinstance(factor, _Moved):
                found.update(dict.fromkeys(factor.groups))
        return list(found)


def _refuse(expression: str) -> None:
    raise LMMError(
        f"{expression} remembers something of all rows in a way that one reading of them does not find; compute it as "
        "a column first, use center(x), scale(x), poly(x, 2), within(x, g) or between(x, g) by itself, or give scan() "
        "something that can be read again"
    )


def _provisional(wanted: Wanted, first: Table) -> list[Any]:
    """States by the first rows alone, which tell how columns are made up; a factor of one level is given another."""
    guess = Wanted(wanted.formula, wanted.weights, wanted.offset, {})
    guess.ask(first)
    guess.see(first)
    guess.powers.clear()
    for name, levels in guess.levels.items():
        if len(levels) == 1:
            one = levels[0]
            levels.append(not one if isinstance(one, bool) else f"{one} " if isinstance(one, str) else one + 1)
            guess.declared[name] = []
    return guess.settled(first)


# ---- reading --------------------------------------------------------------------------------------------------------


class _Reading:
    """Sums under way."""

    def __init__(self, wanted: Wanted, first: Table, missing: str) -> None:
        self._wanted = wanted
        self._recipe = without_states(wanted, first, missing)
        taken = self._recipe.taken(first, Seen.nothing())
        assert taken is not None
        self._factors = factors = _Factors(wanted, first, taken.used, taken.rows)
        self.seen = Seen.nothing()
        parsed = wanted.parsed
        self._groups = tuple(dict.fromkeys(bar.name for bar in parsed.bars))
        alone = {bar.name for bar in parsed.bars if len(bar.factors) == 1}
        self._extra = [name for name in factors.labels if name not in alone]
        self._slots = CellSlots([*self._groups, *(f"{name} " for name in self._extra)])
        self._kinds = CellSlots([f"{name} " for name in factors.labels] or [""])
        self._f, self._k = len(factors.front), len(factors.order)
        width = self._k - self._f + 1
        self._lines = np.zeros((2, 0, self._f * (self._f + 1) // 2 + self._f * width))
        self._by_kind = np.zeros((2, 0, self._k * (self._k + 1) // 2 + self._k))
        self._rest, self._squares = np.zeros((2, width * (width + 1) // 2)), np.zeros((2, 1))
        self._counts = np.zeros(0, dtype=np.int64)
        self._log_weights, self._first_y, self._varies = 0.0, float("nan"), False

    def add(self, table: Table, memory: float | None) -> None:
        """Take in the complete rows of a table."""
        self._wanted.see(table)
        taken = self._recipe.taken(table, self.seen)
        if taken is None:
            return
        factors, parsed = self._factors, self._wanted.parsed
        values = factors.values(taken, table)
        y = evaluate_piece(parsed.response, table, taken.rows, factors.response, {}).matrix[:, 0]
        values[:, -1] = y if taken.offset is None else y - taken.offset
        if np.isnan(self._first_y):
            self._first_y = float(y[0])
        self._varies = self._varies or bool((y != self._first_y).any())
        own = {f"{name} ": ((name,), [taken.used[name]]) for name in factors.labels}
        slots = self._slots.codes({**taken.groups, **own}, taken.rows)
        check = room_for_lines(memory, self._slots, self._lines.shape[2], True)
        if check is not None:
            check(self._slots.n)
        self._lines = _grown(self._lines, self._slots.n)
        if self._slots.n > len(self._counts):
            self._counts = np.append(self._counts, np.zeros(self._lines.shape[1] - len(self._counts), dtype=np.int64))
        weights = None if taken.weights is None else np.ascontiguousarray(taken.weights)
        add_products(values, weights, slots, self._f, self._lines, self._rest)
        self._counts += np.bincount(slots, minlength=len(self._counts))
        if not factors.by_groups:
            kinds = self._kinds.codes(own, taken.rows) if factors.labels else np.zeros(taken.n, dtype=np.int64)
            self._by_kind = _grown(self._by_kind, max(self._kinds.n, 1))
            add_products(values, weights, kinds, self._k, self._by_kind, self._squares)
        if weights is not None:
            self._log_weights = log_sum(weights, self._log_weights)

    def sums(self, plan: Plan, head: Rows) -> OnceSums:
        """The sums of the columns of a plan."""
        factors, columns = self._factors, plan.columns
        levels, cells, order = self._slots.levels()
        n_groups = len(self._groups)
        groups, starts = _runs(cells[:, :n_groups])
        names = [*self._groups, *self._extra]
        at = {name: names.index(name) for name in factors.labels}
        coding = _Coding(factors, plan.recipe, self._wanted.powers)
        found: list[tuple[Pairs, ...]] = []
        constant = True
        for start in range(0, len(order), CHUNK):
            some = order[start : start + CHUNK]
            where = {name: (levels[j], cells[start : start + CHUNK, j]) for name, j in at.items()}
            x, z = coding.x(where, len(some)), coding.z(where, len(some))[:, : self._f]
            constant = constant and _is_constant(x, columns.x_constant, plan.values[0])
            constant = constant and _is_constant(z, columns.z_constant, plan.values[1])
            inner, beside = unpacked(Pairs(*self._lines[:, some]), self._f, self._k - self._f + 1)
            turned = product(pairs(np.swapaxes(z, 1, 2)), _joined(inner, beside))
            A = product(turned[:, :, : self._f], pairs(z))
            C = _joined(product(turned[:, :, :-1], pairs(x)), turned[:, :, -1:])
            found.append((A, C, _whole(x, inner, beside)) if factors.by_groups else (A, C))
        parts = [Pairs(*(np.concatenate([getattr(p, half) for p in own]) for half in ("hi", "lo")))
                 for own in zip(*found, strict=True)]  # fmt: skip
        squares = Pairs(*(self._rest if factors.by_groups else self._squares)[:, -1])
        S = total(parts[2]) if factors.by_groups else self._by_kinds(coding)
        S.hi[-1, -1], S.lo[-1, -1] = squares.hi, squares.lo
        counts = np.add.reduceat(self._counts[order], starts)
        exact = ExactSums.of(columns, _summed(parts[0], starts), _summed(parts[1], starts), S, counts)
        return OnceSums(
            head, levels[:n_groups], groups, exact, self.seen, constant, self._varies, self._log_weights
        )  # fmt: skip

    def _by_kinds(self, coding: _Coding) -> Pairs:
        """[X y]'[X y], by levels of the categorical columns."""
        names = self._factors.labels
        n = max(self._kinds.n, 1)
        order, where = np.arange(n), {}
        if names:
            levels, cells, order = self._kinds.levels()
            where = {name: (levels[j], cells[:, j]) for j, name in enumerate(names)}
        inner, beside = unpacked(Pairs(*self._by_kind[:, order]), self._k, 1)
        return total(_whole(coding.x(where, n), inner, beside))


class _Coding:
    """The columns of a model as combinations of products of numbers.

    Parameters
    ----------
    factors : _Factors
    recipe : Recipe
        With the states of all rows.
    powers : dict
        Sums of the powers of columns.
    """

    def __init__(self, factors: _Factors, recipe: Recipe, powers: Mapping[str, PowerSums]) -> None:
        self._factors, self._states, self._sources = factors, recipe.states[1:], recipe.shared.sources
        self._powers = powers

    def x(self, where: Where, n: int) -> Array:
        """Coefficients (n, products, p) in lines of these levels."""
        return self._dense(self._columns(0, where), n)

    def z(self, where: Where, n: int) -> Array:
        """Coefficients (n, products, q)."""
        read = {term: self._columns(1 + term, where) for term in dict.fromkeys(term for term, _ in self._sources)}
        return self._dense([read[term][j] for term, j in self._sources], n)

    def _dense(self, columns: list[Combination], n: int) -> Array:
        out = np.zeros((n, len(self._factors.order), len(columns)))
        for j, column in enumerate(columns):
            for monomial, value in column.items():
                out[:, self._factors.order.index(monomial), j] = value
        return out

    def _columns(self, at: int, where: Where) -> list[Combination]:
        side, state = self._factors.sides[at], self._states[at]
        out: list[Combination] = []
        for scale, factors in _terms(side, state):
            columns: list[Combination] = [{(): scale}]
            for expression, reduced in factors:
                own = self._factor(expression, reduced, state, where)
                # the first factor varies fastest
                columns = [_multiplied(one, other) for other in own for one in columns]
            out += columns
        return out

    def _factor(self, expression: str, reduced: bool, state: Any, where: Where) -> list[Combination]:
        factor = self._factors.known[expression]
        if isinstance(factor, _Numbers):
            return [{((expression, i),): 1.0} for i in range(factor.width)]
        if isinstance(factor, _Labels):
            encoding = state.encoder_state[expression][1]
            places = {level: i for i, level in enumerate(list(encoding["categories"]))}
            contrasts = np.asarray(encoding["contrasts"].get_coding_matrix(reduced_rank=reduced), dtype=np.float64)
            labels, codes = where[factor.column]
            # levels that no line has may have no place
            at = np.array([places.get(level, 0) for level in labels.tolist()], dtype=np.intp)[codes]
            return [{(): column[at]} for column in contrasts.T]
        memory = next(held for call, held in state.transform_state.items() if alike(call, expression))
        number = ((factor.column, -1),)
        if isinstance(factor, _Powers):
            columns = basis(memory["alpha"], memory["norms2"], factor.degree, factor.centre)
            if self._powers[factor.column].amplified(factor.centre, columns) > TOLD:
                raise LMMError(
                    f"{expression}: the first rows lie so far from most others that powers about them have lost their "
                    "digits; center the column first, or give scan() something that can be read again"
                )
            return [{number * j: c for j, c in enumerate(column.tolist())} for column in columns.T]
        if not factor.groups:
            size = 1.0 if memory.get("scale") is None else 1.0 / float(memory["scale"])
            return [{number: size, (): (factor.centre - float(memory["center"])) * size}]
        own = [where[name] for name in factor.groups]
        told = zip(*(names[codes].tolist() for names, codes in own), strict=True)
        means = np.array([memory["means"][label] for label in told])
        return [{(): means}] if factor.call == "between" else [{number: 1.0, (): factor.centre - means}]


def _multiplied(one: Combination, other: Combination) -> Combination:
    out: Combination = {}
    for a, x in one.items():
        for b, y in other.items():
            key = tuple(sorted(a + b))
            out[key] = out.get(key, 0.0) + x * y
    return out


def _whole(x: Array, inner: Pairs, beside: Pairs) -> Pairs:
    """[X y]'[X y] by lines but for y'y, which is 0, from products of numbers among themselves and with y."""
    turned = product(pairs(np.swapaxes(x, 1, 2)), _joined(inner, beside))
    own, other = product(turned[:, :, :-1], pairs(x)), turned[:, :, -1:]
    corner = pairs(np.zeros((len(x), 1, 1)))
    upper, lower = _joined(own, other), _joined(other.T, corner)
    return Pairs(np.concatenate([upper.hi, lower.hi], axis=1), np.concatenate([upper.lo, lower.lo], axis=1))


def _joined(one: Pairs, other: Pairs) -> Pairs:
    return Pairs(np.concatenate([one.hi, other.hi], axis=2), np.concatenate([one.lo, other.lo], axis=2))


def _summed(values: Pairs, starts: Index) -> Pairs:
    """Sums of runs that begin at `starts`."""
    lengths = np.diff(np.append(starts, len(values.hi)))
    out = values[starts]
    for step in range(1, int(lengths.max(initial=1))):
        more = lengths > step
        added = out[more] + values[starts[more] + step]
        out.hi[more], out.lo[more] = added.hi, added.lo
    return out


def _runs(cells: NDArray[np.int64]) -> tuple[NDArray[np.int64], Index]:
    """Different rows of sorted ones, and where each begins."""
    fresh = np.ones(len(cells), dtype=bool)
    fresh[1:] = (cells[1:] != cells[:-1]).any(axis=1)
    return cells[fresh], np.flatnonzero(fresh)


def _is_constant(columns: Array, at: int, value: float) -> bool:
    """Whether a column has this value in all these lines."""
    return at < 0 or bool((columns[:, 1:, at] == 0.0).all() and (columns[:, 0, at] == value).all())


def _grown(lines: Array, count: int) -> Array:
    """Sums with room for so many lines."""
    if count <= lines.shape[1]:
        return lines
    out = np.zeros((2, max(count, 2 * lines.shape[1]), lines.shape[2]))
    out[:, : lines.shape[1]] = lines
    return out
