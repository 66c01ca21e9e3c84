"""Linear hypotheses about coefficients, L beta = r, from text, names or arrays."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..errors import LMMError
from ..support.checks import plain_array
from ..support.types import Array

__all__ = ["Hypothesis", "parse_hypothesis"]


_NUMBER = re.compile(r"(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_WORD = re.compile(r"[^\s=,+*/()`-](?:[^\s=,+*/`-]*[^\s=,+*/()`-])?")


class Hypothesis(NamedTuple):
    """L beta = rhs.

    Attributes
    ----------
    L : (m, p) array
    rhs : (m,) array
    names : tuple of str
        What each row says, e.g. ``"2*Days - Age"``.
    """

    L: Array
    rhs: Array
    names: tuple[str, ...]


def parse_hypothesis(hypothesis: Any, names: Sequence[str], rhs: Any = None) -> Hypothesis:
    """Rows of a linear hypothesis.

    Parameters
    ----------
    hypothesis : str, sequence of str, mapping, or (m, p) or (p,) array
        Text: linear expressions in the coefficient names, ``"Days = 0"``, ``"recipeB - recipeC"`` (= 0),
        ``"2*a + b = 3"``, ``"a = b = 0"``, several separated by commas.  Names are read as they stand, the longest that
        fits first (``recipe[T.B]:temperature``); between backticks anything is a name.  A mapping gives the right-hand
        side of each expression; an array has the coefficients of L.
    names : sequence of str
        Names of the p coefficients.
    rhs : float or (m,) array, optional
        Right-hand sides, where `hypothesis` does not give them; zero by default.

    Returns
    -------
    Hypothesis

    Raises
    ------
    LMMError
        For unknown names, expressions that are not linear, arrays of another shape or values that are not finite.
    """
    given = rhs
    if isinstance(hypothesis, Mapping):
        if not hypothesis:
            raise LMMError("hypothesis is empty: give at least one coefficient")
        if rhs is not None:
            raise LMMError("rhs is given twice: a mapping already holds the right-hand sides")
        given = list(hypothesis.values())
        hypothesis = list(hypothesis)
    if isinstance(hypothesis, str):
        hypothesis = [hypothesis]
    if not isinstance(hypothesis, np.ndarray) and _all_text(hypothesis):
        rows, constants, labels, equations = _from_text(list(hypothesis), list(names))
        if equations and given is not None:
            raise LMMError("rhs is given twice: leave it out, or leave '=' out of the hypothesis")
    else:
        rows = _matrix(hypothesis, len(names))
        constants = np.zeros(len(rows))
        labels = [_label(row, names) for row in rows]
    if given is not None:
        constants = constants + _right_hand_side(given, len(rows))
    empty = np.flatnonzero(~rows.any(axis=1))
    if len(empty):
        raise LMMError(f"hypothesis: row {int(empty[0])} ({labels[empty[0]]!r}) involves no coefficient; remove it")
    return Hypothesis(rows, constants, tuple(labels))


def _all_text(hypothesis: Any) -> bool:
    return (
        isinstance(hypothesis, Sequence) and len(hypothesis) > 0 and all(isinstance(piece, str) for piece in hypothesis)
    )


def _matrix(hypothesis: Any, p: int) -> Array:
    try:
        rows = np.atleast_2d(np.array(plain_array(hypothesis, "hypothesis"), dtype=float))
    except (TypeError, ValueError, OverflowError) as error:
        if isinstance(error, LMMError):
            raise
        raise LMMError(
            f"hypothesis must be text, a list of names, a mapping or a matrix with {p} columns, "
            f"not {type(hypothesis).__name__}"
        ) from None
    if rows.ndim != 2 or rows.shape[1] != p or not len(rows):
        raise LMMError(
            f"hypothesis has the shape {np.shape(hypothesis)}; give one row of {p} coefficients per equation"
        )
    if not np.isfinite(rows).all():
        row, column = np.argwhere(~np.isfinite(rows))[0]
        raise LMMError(f"hypothesis has a value that is not finite at row {row}, column {column}; give finite numbers")
    return rows


def _right_hand_side(rhs: Any, m: int) -> Array:
    try:
        values = np.array(plain_array(rhs, "rhs"), dtype=float)
    except (TypeError, ValueError, OverflowError) as error:
        if isinstance(error, LMMError):
            raise
        raise LMMError(f"rhs must be a number or {m} numbers, not {rhs!r}") from None
    if values.ndim > 1 or (values.ndim == 1 and len(values) != m):
        raise LMMError(f"rhs has the shape {values.shape} for {m} rows; give a number or one per row")
    if not np.isfinite(values).all():
        raise LMMError("rhs has values that are not finite; give finite numbers")
    return np.broadcast_to(values, (m,)).copy()


def _label(row: Array, names: Sequence[str]) -> str:
    """A row in words."""
    out = ""
    for value, name in zip(row.tolist(), names, strict=True):
        if value == 0.0:
            continue
        size = "" if abs(value) == 1.0 else f"{abs(value):.6g}*"
        sign = (" - " if value < 0.0 else " + ") if out else ("-" if value < 0.0 else "")
        out += f"{sign}{size}{name}"
    return out or "0"


# ---- text --------------------------------------------------------------------------------------


class _Linear(NamedTuple):
    """A linear expression: coefficients of the names, and a constant."""

    row: Array
    constant: float

    def times(self, factor: float) -> _Linear:
        return _Linear(self.row * factor, self.constant * factor)

    def plus(self, other: _Linear, sign: float) -> _Linear:
        return _Linear(self.row + sign * other.row, self.constant + sign * other.constant)


def _from_text(pieces: list[str], names: list[str]) -> tuple[Array, Array, list[str], bool]:
    """Rows, right-hand sides, labels, and whether there was an '='."""
    rows: list[Array] = []
    constants: list[float] = []
    equations = False
    for piece in pieces:
        for sides in _Parser(piece, names).statements():
            equations |= len(sides) > 1
            sides = sides if len(sides) > 1 else [*sides, _Linear(np.zeros(len(names)), 0.0)]
            # a = b = c: each side against the last, which is usually the number
            for side in sides[:-1]:
                difference = side.plus(sides[-1], -1.0)
                rows.append(difference.row)
                constants.append(-difference.constant)
    L = np.array(rows)
    return L, np.array(constants) + 0.0, [_label(row, names) for row in L], equations


class _Parser:
    """Linear expressions by recursive descent; the names are matched before anything else."""

    def __init__(self, text: str, names: list[str]) -> None:
        self.text = text
        self.names = names
        self.tokens = self._tokens()
        self.at = 0

    def _refuse(self, why: str) -> LMMError:
        return LMMError(f"hypothesis {self.text!r}: {why}")

    def _unknown(self, name: str) -> LMMError:
        parts = set(name.split(":"))
        own = [other for other in self.names if set(re.sub(r"\[[^\]]*\]", "", other).split(":")) == parts]
        if own:
            what = "a term" if len(parts) > 1 else "a factor"
            return self._refuse(
                f"{name!r} is {what} with the coefficients {', '.join(own)}; name these, or test it by anova()"
            )
        close = difflib.get_close_matches(name, self.names, n=3, cutoff=0.4)
        hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
        shown = ", ".join(self.names[:12]) + (", ..." if len(self.names) > 12 else "")
        return self._refuse(f"there is no coefficient {name!r}{hint} (coefficients: {shown})")

    def _tokens(self) -> list[tuple[str, Any]]:
        text, i = self.text, 0
        out: list[tuple[str, Any]] = []
        order = sorted(range(len(self.names)), key=lambda j: -len(self.names[j]))
        while i < len(text):
            if text[i].isspace():
                i += 1
                continue
            if text[i] == "`":
                end = text.find("`", i + 1)
                if end < 0:
                    raise self._refuse("a backtick is not closed")
                name = text[i + 1 : end]
                if name not in self.names:
                    raise self._unknown(name)
                out.append(("name", self.names.index(name)))
                i = end + 1
                continue
            found = next((j for j in order if self._name_at(self.names[j], i)), None)
            if found is not None:
                out.append(("name", found))
                i += len(self.names[found])
                continue
            number = _NUMBER.match(text, i)
            if number is not None:
                out.append(("number", float(number.group())))
                i = number.end()
                continue
            if text[i] in "+-*/()=,":
                out.append((text[i], None))
                i += 1
                continue
            word = _WORD.match(text, i)
            raise self._unknown(word.group() if word is not None else text[i])
        return out

    def _name_at(self, name: str, i: int) -> bool:
        """Whether the name stands at position i and does not go on after its end."""
        if not name or not self.text.startswith(name, i):
            return False
        end = i + len(name)
        if end == len(self.text):
            return True
        after = self.text[end]
        return not (after in "[:." or ((after.isalnum() or after == "_") and (name[-1].isalnum() or name[-1] == "_")))

    def _peek(self) -> str:
        return self.tokens[self.at][0] if self.at < len(self.tokens) else ""

    def statements(self) -> list[list[_Linear]]:
        """The sides of each equation."""
        if not self.tokens:
            raise self._refuse("it is empty; give e.g. a coefficient's name")
        out = []
        while True:
            sides = [self._sum()]
            while self._peek() == "=":
                self.at += 1
                sides.append(self._sum())
            out.append(sides)
            if not self._peek():
                return out
            if self._peek() != ",":
                raise self._refuse("expected an operator, '=' or ',' between two terms (write 2*x for twice x)")
            self.at += 1

    def _sum(self) -> _Linear:
        value = self._product()
        while self._peek() in ("+", "-"):
            sign = 1.0 if self._peek() == "+" else -1.0
            self.at += 1
            value = value.plus(self._product(), sign)
        return value

    def _product(self) -> _Linear:
        value = self._signed()
        while self._peek() in ("*", "/"):
            division = self._peek() == "/"
            self.at += 1
            other = self._signed()
            if division:
                if other.row.any():
                    raise self._refuse("it divides by a coefficient; hypotheses must be linear")
                if other.constant == 0.0:
                    raise self._refuse("it divides by zero")
                value = value.times(1.0 / other.constant)
            elif not other.row.any():
                value = value.times(other.constant)
            elif not value.row.any():
                value = other.times(value.constant)
            else:
                raise self._refuse("it multiplies coefficients; hypotheses must be linear")
        return value

    def _signed(self) -> _Linear:
        kind = self._peek()
        if not kind:
            raise self._refuse("it ends where a coefficient or number is expected")
        value = self.tokens[self.at][1]
        self.at += 1
        if kind in ("+", "-"):
            return self._signed().times(1.0 if kind == "+" else -1.0)
        if kind == "name":
            row = np.zeros(len(self.names))
            row[value] = 1.0
            return _Linear(row, 0.0)
        if kind == "number":
            return _Linear(np.zeros(len(self.names)), value)
        if kind == "(":
            inner = self._sum()
            if self._peek() != ")":
                raise self._refuse("a parenthesis is not closed")
            self.at += 1
            return inner
        hint = "; write one '='" if kind == "=" else ""
        raise self._refuse(f"{kind!r} stands where a coefficient or number is expected{hint}")
