"""A part of a formula on new rows, coded as in the fit, without a materialisation by formulaic.

Of a fit formulaic remembers which factors make each column, the levels of the categorical ones with their contrasts,
and the states of transforms.  With these a column is a product of columns of factors: numbers of the data, contrasts of
levels looked up, arithmetic, and transforms evaluated in their states.  A single row then takes a tenth of the time.
Whatever else a factor may be, logical columns and dates among it, is left to formulaic.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import lru_cache
from types import CodeType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..support.types import Array
from ..tables.columns import Table
from .syntax import C_OF_COLUMN, Side

__all__ = ["Coding", "coded_rows", "coding_of"]


MOST_LEVELS = 200
"""Levels of a factor up to which its contrasts are held as a matrix."""

_NUMPY = {
    "abs", "arccos", "arcsin", "arctan", "cbrt", "cos", "cosh", "exp", "exp2", "expm1", "log", "log10", "log1p", "log2",
    "sin", "sinh", "sqrt", "square", "tan", "tanh",
}  # fmt: skip

_OPERATIONS = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow, ast.USub, ast.UAdd)


@dataclass(frozen=True)
class Levels:
    """A categorical factor: its column, the place of each level, and contrasts over the levels, reduced or not."""

    name: str
    places: dict[Any, int]
    contrasts: dict[bool, Array]


@dataclass(frozen=True)
class Coding:
    """How the columns of a part are made.

    Attributes
    ----------
    factors : dict
        For each factor as written `Levels`, the name of a column of numbers, or None: an expression of such columns.
    terms : tuple of (scale, tuple of (factor, whether its contrasts are reduced))
        Their columns follow each other; within a term the first factor varies fastest.
    """

    factors: dict[str, Levels | str | None]
    terms: tuple[tuple[float, tuple[tuple[str, bool], ...]], ...]


def coding_of(side: Side, state: Any) -> Coding | None:
    """The coding that a fit's ModelSpec describes; None where formulaic is needed, or took no part.

    Parameters
    ----------
    side : Side
    state : ModelSpec or None
    """
    if state is None or not state.structure:
        return None
    columns = {name for name, optional in side.names if not optional}
    factors: dict[str, Levels | str | None] = {}
    terms = []
    for entry in state.structure:
        for scoped in entry.scoped_terms:
            used = tuple((str(item.factor.expr), bool(item.reduced)) for item in scoped.factors)
            for expression, reduced in used:
                kind, encoding = state.encoder_state.get(expression, (None, {}))
                if kind is not None and kind.value == "numerical":
                    factors[expression] = expression if expression in columns else None
                elif kind is None or kind.value != "categorical" or not _levels(factors, expression, encoding, reduced):
                    return None
            terms.append((float(scoped.scale), used))
    return Coding(factors, tuple(terms))


def _levels(factors: dict[str, Levels | str | None], expression: str, encoding: Any, reduced: bool) -> bool:
    """Add a categorical factor, or what it lacks; whether it can be."""
    call = C_OF_COLUMN.match(expression)
    levels, contrasts = encoding.get("categories"), encoding.get("contrasts")
    if levels is None or contrasts is None or len(levels) > MOST_LEVELS or not (call or expression.isidentifier()):
        return False
    known = factors.get(expression)
    if not isinstance(known, Levels):
        places = {level: place for place, level in enumerate(list(levels))}
        factors[expression] = known = Levels(call[1].strip("`") if call else expression, places, {})
    if reduced not in known.contrasts:
        matrix = np.asarray(contrasts.get_coding_matrix(reduced_rank=reduced), dtype=np.float64)
        known.contrasts[reduced] = matrix
    return len(known.contrasts[reduced]) == len(known.places)


def coded_rows(coding: Coding, side: Side, table: Table, state: Any) -> Array | None:
    """The matrix of a part on new rows; None where formulaic has to say what it is, or what is wrong.

    Parameters
    ----------
    coding : Coding
    side : Side
    table : Table
        Without missing values in what the part uses.
    state : ModelSpec
    """
    values: dict[str, NDArray[Any]] = {}
    for expression, factor in coding.factors.items():
        found = (
            _codes(factor, table) if isinstance(factor, Levels) else _numbers(expression, factor, side, table, state)
        )
        if found is None:
            return None
        values[expression] = found
    columns = []
    for scale, used in coding.terms:
        product = np.full((1, table.n_rows), scale)
        for expression, reduced in used:
            factor, value = coding.factors[expression], values[expression]
            own = factor.contrasts[reduced].T[:, value] if isinstance(factor, Levels) else value
            with np.errstate(over="ignore", invalid="ignore"):
                product = (own[:, None, :] * product).reshape(-1, table.n_rows)
        columns.append(product)
    out = np.ascontiguousarray(np.concatenate(columns).T)
    return out if out.shape[1] == len(state.column_names) else None


def _codes(factor: Levels, table: Table) -> NDArray[np.intp] | None:
    """The place of each row's level."""
    column = table.column(factor.name)
    if column.number is not None and column.number.dtype.kind == "b":
        return None
    codes, labels = column.codes(None)
    if labels.dtype.kind in "mM":
        return None
    try:
        return np.asarray(np.array([factor.places[label] for label in labels.tolist()], dtype=np.intp)[codes])
    except KeyError:
        return None


def _numbers(expression: str, name: str | None, side: Side, table: Table, state: Any) -> Array | None:
    """The columns of a numeric factor (k, n)."""
    names = frozenset(used for used, optional in side.names if not optional or used in table)
    code, used = (None, (name,)) if name is not None else _read(expression, names)
    if not used:
        return None
    columns: dict[str, Array] = {}
    for one in used:
        values = _column(one, side, table)
        if values is None:
            return None
        columns[one] = values
    if name is not None:
        return columns[name][None, :]
    try:
        with np.errstate(all="ignore"):
            made: list[Any] | None
            if code is not None:
                made = [eval(code, {"__builtins__": {}, "np": np, **_functions()}, columns)]
            else:
                made = _transformed(expression, columns, state)
            return None if made is None else np.asarray(np.array(made, dtype=float).reshape(-1, table.n_rows))
    except Exception:  # formulaic meets it again, and tells what it is
        return None


def _column(name: str, side: Side, table: Table) -> Array | None:
    """A column of numbers, None for any other."""
    column = table.column(name)
    if column.number is None or column.number.dtype.kind not in "iuf":
        return None
    values = column.for_formulaic(None, name in side.computed, name in side.labels, name in side.numbers)
    return np.asarray(values, dtype=np.float64)


@lru_cache(maxsize=256)
def _read(expression: str, known: frozenset[str]) -> tuple[CodeType | None, tuple[str, ...]]:
    """The code of an expression where it is plain arithmetic, and the columns that it uses."""
    try:
        tree = ast.parse(expression, mode="eval")
    except SyntaxError:  # names in backticks
        return None, ()
    nodes = list(ast.walk(tree))
    called = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
    found = [node for node in nodes if isinstance(node, ast.Name) and node.id in known]
    if any(id(node) in called for node in found):
        return None, ()
    plain = all(_is_plain(node, known) for node in nodes)
    return compile(tree, "<formula>", "eval") if plain else None, tuple(dict.fromkeys(node.id for node in found))


def _is_plain(node: ast.AST, known: frozenset[str]) -> bool:
    """Whether it is a piece of arithmetic of columns and functions without a state."""
    if isinstance(node, ast.Constant):
        return type(node.value) in (int, float)
    if isinstance(node, ast.Name):
        return node.id in known or node.id == "np" or node.id in _functions()
    if isinstance(node, ast.Attribute):
        return isinstance(node.value, ast.Name) and node.value.id == "np" and node.attr in _NUMPY
    if isinstance(node, ast.Call):
        return not node.keywords
    return isinstance(node, (ast.Expression, ast.BinOp, ast.UnaryOp, ast.Load, *_OPERATIONS))


def _functions() -> dict[str, Any]:
    """Functions without a state that formulas know by themselves."""
    return {name: getattr(np, name) for name in ("log", "log10", "log2", "exp", "exp2")} | {"I": lambda x: x}


def _transformed(expression: str, columns: dict[str, Array], state: Any) -> list[Any] | None:
    """The columns of a transform in the state of the fit."""
    import pandas as pd
    from formulaic.transforms import TRANSFORMS  # type: ignore[import-untyped]
    from formulaic.utils.cast import as_columns  # type: ignore[import-untyped]
    from formulaic.utils.stateful_transforms import stateful_eval  # type: ignore[import-untyped]

    from .group_means import formula_functions

    around = {**TRANSFORMS, **formula_functions(), **{name: pd.Series(values) for name, values in columns.items()}}
    made = stateful_eval(expression, around, {expression: {}}, state.transform_state, state)
    about = getattr(made, "__formulaic_metadata__", None)
    if about is not None and (about.spans_intercept or about.encoder is not None or about.kind.value == "categorical"):
        return None
    made = as_columns(made)
    if not isinstance(made, dict):
        return [made]
    own = [values for name, values in made.items() if not (isinstance(name, str) and name.startswith("__"))]
    return None if any(isinstance(values, dict) for values in own) else own
