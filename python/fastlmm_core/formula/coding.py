"""Terms of the fixed part and how their columns are coded.

Every column of X is a numeric part (a product of numeric columns, or 1) times a function of the levels of the factors
of its term.  Written out, a term has one column per numeric part and combination of levels: the overparametrised
design R = X M, X = R N.  M and N depend on the contrasts only, not on the data.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..support.types import Array
from .syntax import C_OF_COLUMN, names_in, parse

if TYPE_CHECKING:
    from ..design.design import Design, Specification

__all__ = ["FixedTerm", "Overparametrised", "contains", "fixed_terms", "overparametrised", "reference_level"]

Key = tuple[tuple[str, int], ...]

_ROUNDING = 1e-9  # of the small matrices made of contrasts


@dataclass(frozen=True)
class FixedTerm:
    """One term of the fixed part.

    Attributes
    ----------
    name : str
        As in the formula, e.g. ``"a:b"``; for a model from arrays the name of the column.
    columns : range
        Its columns of X.
    variables : frozenset of str
        Columns of the data that it uses.
    factors, numeric : frozenset of str
        Its categorical and numeric factors, as written.
    """

    name: str
    columns: range
    variables: frozenset[str]
    factors: frozenset[str]
    numeric: frozenset[str]

    @property
    def is_intercept(self) -> bool:
        """Whether it is the column of ones."""
        return not self.factors and not self.numeric


class Overparametrised(NamedTuple):
    """The design with one column per combination of levels, R = X M and X = R N.

    Attributes
    ----------
    M : (p, r) array
    N : (r, p) array
    term : (r,) array of int
        Term of each column of R.
    treatment : (p,) array of int
        The columns of R that make the design in treatment contrasts (first level left out), in the order of X.
    cells : tuple of str
        Levels that each column of R stands for.
    """

    M: Array
    N: Array
    term: NDArray[np.intp]
    treatment: NDArray[np.intp]
    cells: tuple[str, ...]


def contains(outer: FixedTerm, inner: FixedTerm) -> bool:
    """Whether `outer` has the factors of `inner` and more of them, and the same numeric part."""
    return inner.factors < outer.factors and inner.numeric == outer.numeric and not inner.is_intercept


def fixed_terms(design: Design) -> tuple[FixedTerm, ...]:
    """The terms of the fixed part in the order of the columns of X, with the intercept.

    Parameters
    ----------
    design : Design

    Returns
    -------
    tuple of FixedTerm
        One term per column for a model from arrays; a constant column is its intercept.
    """
    spec = design.spec
    if spec is None:
        constant = (design.exog == design.exog[:1]).all(axis=0) & (design.exog[0] != 0.0)
        nothing: frozenset[str] = frozenset()
        names = design.exog_names
        unique = [name if names.count(name) == 1 else f"{name} (column {j})" for j, name in enumerate(names)]
        return tuple(
            FixedTerm(name, range(j, j + 1), nothing, nothing, nothing if constant[j] else frozenset((f"{j}",)))
            for j, name in enumerate(unique)
        )
    state = spec.states[1]
    if state is None:
        plan = parse(spec.formula).fixed.plan or ()
        logical = {name for name in spec.reference if _is_logical(spec.reference, name)}
        return tuple(
            FixedTerm(
                design.exog_names[j], range(j, j + 1), frozenset(names), frozenset(names) & logical,
                frozenset(names) - logical,
            )
            for j, names in enumerate(plan)
        )  # fmt: skip
    found, start = [], 0
    for entry in state.structure:
        stop = start + len(entry.columns)
        expressions = [str(f.expr) for f in entry.term.factors if str(f.expr) != "1"]
        factors = frozenset(e for e in expressions if _levels(design, e) is not None)
        variables = frozenset(name for e in expressions for name in variables_of(e, spec.reference))
        found.append(
            FixedTerm(
                ":".join(expressions) or "Intercept", range(start, stop), variables, factors,
                frozenset(expressions) - factors,
            )
        )  # fmt: skip
        start = stop
    return tuple(found)


def variables_of(expression: str, known: Any) -> list[str]:
    """Columns of the data that a factor of a term uses."""
    if expression in known:
        return [expression]
    call = C_OF_COLUMN.match(expression)
    names = [call[1].strip("`")] if call else list(names_in(expression))
    return [name for name in names if name in known]


def reference_level(spec: Specification, name: str) -> Any:
    """The level of a factor with which its coefficients compare; None where its coding has no such level.

    Parameters
    ----------
    spec : Specification
    name : str
        Of the column.
    """
    state = spec.states[1]
    for expression, (kind, encoding) in ({} if state is None else state.encoder_state).items():
        call = C_OF_COLUMN.match(expression)
        if kind.value != "categorical" or name != (call[1].strip("`") if call else expression):
            continue
        coding = np.asarray(encoding["contrasts"].get_coding_matrix(reduced_rank=True), dtype=float)
        zero = np.flatnonzero(~coding.any(axis=1))
        return list(encoding["categories"])[zero[0]] if len(zero) == 1 else None
    return None


def _levels(design: Design, expression: str) -> list[Any] | None:
    """Levels of a factor of a term, None for a numeric one; a logical column has the levels False and True."""
    spec = design.spec
    assert spec is not None
    state = spec.states[1]
    encoding = None if state is None else state.encoder_state.get(expression)
    if encoding is not None and encoding[0].value == "categorical":
        return list(encoding[1]["categories"])
    return [False, True] if _is_logical(spec.reference, expression) else None


def _is_logical(reference: Any, name: str) -> bool:
    levels = reference.get(name)
    return isinstance(levels, tuple) and all(isinstance(level, bool) for level in levels)


class _Column(NamedTuple):
    """A column of X: its term, numeric part, contrasts of factors (over their levels), and treatment levels."""

    term: int
    key: Key
    contrasts: dict[str, Array]
    treatment: dict[str, int]


def overparametrised(design: Design, terms: Sequence[FixedTerm]) -> Overparametrised | None:
    """The design written out by levels.

    Parameters
    ----------
    design : Design
    terms : sequence of FixedTerm

    Returns
    -------
    Overparametrised or None
        None where the columns of X do not span all levels, as with contrasts fewer than levels less one.
    """
    columns = _columns(design, terms)
    if columns is None:
        return None
    levels = {e: _levels(design, e) or [] for term in terms for e in term.factors}
    blocks: list[tuple[int, Key, tuple[str, ...]]] = []
    for t, term in enumerate(terms):
        names = tuple(sorted(term.factors))
        keys = dict.fromkeys(column.key for column in columns if column.term == t)
        blocks += [(t, key, names) for key in keys]
    sizes = [int(np.prod([len(levels[name]) for name in names])) for _, _, names in blocks]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    p, total = len(columns), int(starts[-1])
    M, N = np.zeros((p, total)), np.zeros((total, p))
    treatment = np.zeros(p, dtype=np.intp)
    for (t, key, names), start, size in zip(blocks, starts[:-1].tolist(), sizes, strict=True):
        # without an intercept the first term of the same numeric part stands in for it
        first = next(other for _, same, other in blocks if same == key)
        for wider in (names, (*names, *(name for name in first if name not in names))):
            inside = [j for j, c in enumerate(columns) if c.key == key and set(c.contrasts) <= set(wider)]
            grid = np.column_stack([_over_grid(columns[j].contrasts, wider, levels) for j in inside])
            wanted = np.repeat(np.eye(size), len(grid) // size, axis=0)
            solved = np.linalg.lstsq(grid, wanted, rcond=None)[0]
            if np.abs(grid @ solved - wanted).max() < _ROUNDING:
                break
        else:
            return None
        solved[np.abs(solved) < _ROUNDING] = 0.0
        M[inside, start : start + size] = solved
        for j in (j for j in inside if columns[j].term == t):
            column = columns[j]
            N[start : start + size, j] = _over_grid(column.contrasts, names, levels)
            # a factor that a column does not involve stands at its first level
            at = [column.treatment.get(name, 0) for name in names]
            treatment[j] = start + int(np.ravel_multi_index(at, [len(levels[n]) for n in names])) if names else start
    term_of = np.repeat(np.array([t for t, _, _ in blocks], dtype=np.intp), sizes)
    if np.linalg.matrix_rank(M[:, treatment], tol=_ROUNDING) < p:
        return None
    cells = tuple(
        ", ".join(f"{name} {level}" for name, level in zip(names, combination, strict=True))
        for _, _, names in blocks
        for combination in product(*(levels[name] for name in names))
    )
    return Overparametrised(M, N, term_of, treatment, cells)


def _over_grid(contrasts: dict[str, Array], names: tuple[str, ...], levels: dict[str, list[Any]]) -> Array:
    """A product of contrasts over all combinations of the levels of `names`, the last varying fastest."""
    parts = [contrasts.get(name, np.ones(len(levels[name]))) for name in names]
    return reduce(lambda a, b: np.multiply.outer(a, b).ravel(), parts, np.ones(1))


def _columns(design: Design, terms: Sequence[FixedTerm]) -> list[_Column] | None:
    spec = design.spec
    if spec is None or spec.states[1] is None:
        return [
            _Column(
                t,
                tuple((name, 0) for name in sorted(term.numeric)),
                {name: np.array([0.0, 1.0]) for name in term.factors},
                dict.fromkeys(term.factors, 1),
            )
            for t, term in enumerate(terms)
        ]
    state = spec.states[1]
    out: list[_Column] = []
    for t, (entry, term) in enumerate(zip(state.structure, terms, strict=True)):
        for scoped in entry.scoped_terms:
            pieces: list[list[tuple[str, int, Array | None]]] = []
            for item in scoped.factors:
                expression = str(item.factor.expr)
                pieces.append(_pieces(state, expression, bool(item.reduced), entry.columns, term))
            # formulaic lets the first factor vary fastest
            for combination in product(*reversed(pieces)):
                key = tuple(sorted((e, i) for e, i, contrast in combination if contrast is None))
                contrasts = {e: contrast for e, _, contrast in combination if contrast is not None}
                out.append(_Column(t, key, contrasts, {e: i for e, i, c in combination if c is not None}))
        if len(out) != term.columns.stop:
            return None
    return out


def _pieces(
    state: Any, expression: str, reduced: bool, names: Sequence[str], term: FixedTerm
) -> list[tuple[str, int, Array | None]]:
    """The columns of one factor: for a numeric one their numbers, else level in treatment contrasts and contrast."""
    if expression not in term.factors:
        shown = {match for name in names for match in re.findall(re.escape(expression) + r"(\[[^\]]*\])", name)}
        return [(expression, i, None) for i in range(max(len(shown), 1))]
    encoding = state.encoder_state[expression]
    if encoding[0].value != "categorical":  # a logical column
        return [(expression, 1, np.array([0.0, 1.0]))]
    contrasts = encoding[1]["contrasts"].get_coding_matrix(reduced_rank=reduced)
    matrix = np.asarray(contrasts, dtype=float)
    return [(expression, i + reduced, matrix[:, i]) for i in range(matrix.shape[1])]
