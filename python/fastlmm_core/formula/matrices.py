"""The sides of a formula, evaluated on a table: matrices, group codes and the rows that are complete.

A part made of an intercept and plain numeric columns is built straight from the columns, every other part by formulaic,
which with pandas is imported only then.
"""

from __future__ import annotations

import builtins
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import LMMError
from ..support.checks import exact_floats
from ..support.hints import function
from ..tables.alignment import aligned
from ..tables.columns import Column, Table, first_rows
from ..tables.labels import integer_codes
from .coded_rows import Coding, coded_rows
from .syntax import C_OF_COLUMN, Side, capital, first_line, sum_of_truths, terms_of

__all__ = [
    "Part",
    "argument_column",
    "complete_rows",
    "completed_state",
    "evaluate",
    "evaluate_new",
    "evaluate_piece",
    "factor_codes",
    "floats",
    "is_integer",
    "needed_columns",
    "refuse_text",
]

Array = NDArray[Any]

_BLOCK = 2048  # rows of a wide matrix filled at a time, so that its cache lines are written once


@dataclass(frozen=True)
class Part:
    """An evaluated side: its matrix, the names of the columns, and formulaic's ModelSpec if it took part."""

    matrix: Array
    names: tuple[str, ...]
    state: Any


def needed_columns(side: Side, table: Table) -> list[str]:
    """The columns that a part uses; names that are neither columns nor known functions are refused."""
    if side.plan is not None:
        return [name for name, _ in side.names]
    from formulaic.transforms import TRANSFORMS  # type: ignore[import-untyped]

    from .group_means import formula_functions

    needed = []
    for name, optional in side.names:
        instead = function(name) if optional and name not in table else None
        if instead is not None and not (name in formula_functions() or hasattr(builtins, name)):
            raise LMMError(f"{capital(side.where)} of the formula uses {name}(): {instead}.")
        known = name in TRANSFORMS or name in formula_functions() or hasattr(builtins, name)
        if known and (optional or name not in table):
            continue
        if optional and name not in table:
            raise LMMError(
                f"{capital(side.where)} of the formula uses {name!r}, which is neither a column of "
                f"`{table.argument}` nor a function that formulas know. Compute the result as a column first."
            )
        needed.append(name)
    return needed


def complete_rows(columns: Sequence[Column], n_rows: int, missing: str) -> Array | None:
    """Indices of the rows with nothing missing, None when that is all of them."""
    if n_rows == 0:
        raise LMMError("The table given as data has no rows; give it at least one.")
    gaps = [(column, gap) for column in dict.fromkeys(columns) if (gap := column.missing()) is not None]
    if not gaps:
        return None
    if missing == "raise":
        listed = "; ".join(f"{column.title} at {first_rows(np.flatnonzero(gap))}" for column, gap in gaps)
        raise LMMError(f"Values are missing. {listed}. Fill them in or drop these rows.")
    mask = gaps[0][1]
    for _, gap in gaps[1:]:
        mask = mask | gap
    if mask.all():
        listed = "; ".join(column.title for column, _ in gaps)
        raise LMMError(f"Every row has a missing value ({listed}); no row is left to fit.")
    return np.flatnonzero(~mask)


def evaluate(
    side: Side, table: Table, rows: Array | None, parts: dict[tuple[str, ...], Part], by_columns: bool = False
) -> Part:
    """The matrix of one part in the fit, in memory by rows or by columns; equal parts share one matrix."""
    known = parts.get(side.key)
    if known is not None:
        return known
    response = side.where == "the response"
    if side.plan is not None and all(table.column(name).number is not None for name, _ in side.names):
        part = Part(_plain_matrix(side, table, rows, by_columns), side.columns, None)
    else:
        from formulaic import ModelSpec  # type: ignore[import-untyped]

        fresh = ModelSpec(formula=terms_of(side.text, side.where, not response), na_action="ignore", output="numpy")
        part = _formulaic_matrix(side, table, rows, fresh)
        if not response:
            _refuse_single_levels(side, part.state, table.declared)
        elif any(kind.value == "categorical" for kind, _ in part.state.encoder_state.values()):
            _refuse_labels(side.label, "categorical")
    if response and part.matrix.shape[1] != 1:
        raise LMMError(
            f"The response {side.label!r} makes {part.matrix.shape[1]} columns; it must be one. Write arithmetic "
            "inside I(), e.g. I(a + b)."
        )
    parts[side.key] = part
    return part


def evaluate_new(side: Side, table: Table, state: Any, coding: Coding | None = None) -> Array:
    """The matrix of one part on new data, coded as in the fit; `coding` is that of the state, where it is known."""
    columns = [table.column(name, side.where).settle() for name in needed_columns(side, table)]
    complete_rows(columns, table.n_rows, "raise")
    if state is not None:
        _refuse_new_levels(side, table, state)
        matrix = None if coding is None else coded_rows(coding, side, table, state)
        if matrix is None:
            return _formulaic_matrix(side, table, None, state).matrix
        _refuse_non_finite(matrix, tuple(map(str, state.column_names)), side, None)
        return matrix
    _need_numbers(columns)
    return _plain_matrix(side, table, None)


def _need_numbers(columns: Sequence[Column]) -> None:
    """Refuse columns that held numbers in the fit and hold none now."""
    for column in columns:
        if column.number is None:
            raise LMMError(
                f"{column.title} holds values of type {column.dtype}, but in the fit it held numbers; convert it to "
                f"numbers (it holds {column.other()})."
            )


def evaluate_piece(
    side: Side, table: Table, rows: Array | None, state: Any, parts: dict[tuple[str, ...], Part]
) -> Part:
    """The matrix of one part on some rows of a fit that is read in pieces, with the states of all rows."""
    if state is None:
        _need_numbers([table.column(name) for name in needed_columns(side, table)])
        # copied from column to column
        return evaluate(side, table, rows, parts, by_columns=True)
    if side.key not in parts:
        kinds = {name: kind.value for name, (kind, _) in state.encoder_state.items()}
        _need_numbers([table.column(name) for name in needed_columns(side, table) if kinds.get(name) == "numerical"])
        _refuse_new_levels(side, table, state)
        parts[side.key] = _formulaic_matrix(side, table, rows, state)
    return parts[side.key]


def completed_state(side: Side, table: Table, state: Any) -> Any:
    """The ModelSpec of one part with the structure of its columns, from any rows on which it can be evaluated."""
    return _formulaic_matrix(side, table, None, state).state


def _plain_matrix(side: Side, table: Table, rows: Array | None, by_columns: bool = False) -> Array:
    """Matrix of products of numeric columns."""
    plan = side.plan or ()
    n = table.n_rows if rows is None else len(rows)
    matrix = np.empty((n, len(plan)), order="F" if by_columns else "C")
    sources = {name: _plain_numbers(table.column(name), rows) for name, _ in side.names}
    step = _BLOCK if len(plan) > 4 else n
    for start in range(0, n, step):
        block = slice(start, start + step)
        for j, product in enumerate(plan):
            out = matrix[block, j]
            out[...] = sources[product[0]][block] if product else 1.0
            for name in product[1:]:
                with np.errstate(over="ignore"):
                    out *= sources[name][block]
    if any(len(product) > 1 for product in plan):
        _refuse_non_finite(matrix, side.columns, side, rows)
    return matrix


def _formulaic_matrix(side: Side, table: Table, rows: Array | None, state: Any) -> Part:
    """Matrix of any part, by formulaic."""
    import pandas as pd
    from formulaic.errors import DataMismatchWarning  # type: ignore[import-untyped]

    from .group_means import formula_functions

    needed = needed_columns(side, table)
    columns = {
        name: table.column(name).for_formulaic(rows, name in side.computed, name in side.labels, name in side.numbers)
        for name in needed
    }
    truths = frozenset(name for name, values in columns.items() if getattr(values.dtype, "kind", "O") == "b")
    bare = {str(factor.expr) for term in state.formula for factor in term.factors}
    for name, values in columns.items():
        if name in bare and getattr(values.dtype, "kind", "O") in "mM":
            raise LMMError(
                f"Column {name!r} in {side.where} of the formula holds dates or times; make it a number, e.g. the days "
                f"since a date, or write C({name})."
            )
    for expression in sorted(bare):
        found = sum_of_truths(expression, truths) if "+" in expression else None
        if found:
            raise LMMError(
                f"{capital(side.where)} of the formula adds truth values in {found!r}; write 1 * before each of them "
                "so that they are counted."
            )
    frame = pd.DataFrame(columns, index=pd.RangeIndex(table.n_rows if rows is None else len(rows)))
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("error", DataMismatchWarning)
            warnings.simplefilter("error", np.exceptions.ComplexWarning)
            made = state.get_model_matrix(frame, context=formula_functions())
            matrix = np.ascontiguousarray(made, dtype=np.float64)
    except DataMismatchWarning as warning:
        raise LMMError(
            f"A categorical term in {side.where} of the formula, {side.text!r}, meets levels that its levels= or the "
            "fit does not know; drop these rows or recode them."
        ) from warning
    except Exception as error:  # whatever a transform may raise
        own = error.__cause__ or error.__context__
        contrast = re.search(r"C\(([^,()]+),\s*(?:ref|reference|base|baseline)\s*=\s*([^,()]+)\)", side.text)
        if contrast and "unexpected keyword" in str(error):
            raise LMMError(
                f"{capital(side.where)} of the formula has {contrast[0]!r}; write C({contrast[1]}, "
                f"Treatment({contrast[2]}))."
            ) from error
        if isinstance(own, LMMError):
            raise LMMError(f"{capital(side.where)} of the formula, {side.text!r}: {own}") from error
        raise LMMError(
            f"{capital(side.where)} of the formula, {side.text!r}, cannot be evaluated: {first_line(error)}"
        ) from error
    names = tuple(map(str, made.model_spec.column_names))
    _refuse_non_finite(matrix, names, side, rows)
    return Part(matrix, names, made.model_spec)


def factor_codes(factors: tuple[str, ...], columns: Sequence[Column], rows: Array | None) -> tuple[Array, Array]:
    """Codes and labels of a grouping factor or of an interaction of several."""
    codes, labels = columns[0].codes(rows)
    for column in columns[1:]:
        codes_next, labels_next = column.codes(rows)
        codes, used = integer_codes(codes * len(labels_next) + codes_next)
        pairs = zip(labels[used // len(labels_next)], labels_next[used % len(labels_next)], strict=True)
        labels = np.empty(len(used), dtype=object)
        labels[:] = [f"{a}:{b}" for a, b in pairs]
    if len(columns) > 1 and len(set(labels)) < len(labels):
        raise LMMError(
            f"Labels of the grouping factor {':'.join(factors)!r} are ambiguous, because labels of {factors[0]!r} or "
            "another of its columns hold ':' themselves; rename them."
        )
    return codes, labels


def argument_column(argument: str, given: Any, table: Table) -> Column:
    """The column for `weights` or `offset`, given by name or as values."""
    if isinstance(given, str):
        column = table.column(given, f"`{argument}`").settle()
    else:
        column = Column(f"`{argument}`", aligned(given, table.index, argument)).settle()
        if len(column) != table.n_rows:
            raise LMMError(
                f"`{argument}` has {len(column)} values, but `data` has {table.n_rows} rows; give one per row."
            )
    _numbers(column, None)
    return column


def _numbers(column: Column, rows: Array | None) -> Array:
    if column.number is None:
        raise LMMError(
            f"{column.title} must hold numbers, but its type is {column.dtype}: it holds {column.other()}; convert it."
        )
    return column.number if rows is None else column.number[rows]


def floats(column: Column, rows: Array | None) -> Array:
    return exact_floats(_numbers(column, rows), column.title)


def _plain_numbers(column: Column, rows: Array | None) -> Array:
    """Numbers that a matrix of float64 takes as they are; those that would lose digits are refused."""
    values = _numbers(column, rows)
    return exact_floats(values, column.title) if values.dtype.kind in "iu" and values.dtype.itemsize == 8 else values


def is_integer(column: Column) -> bool:
    return column.number is not None and column.number.dtype.kind in "iu"


def _refuse_non_finite(matrix: Array, names: Sequence[str], side: Side, rows: Array | None) -> None:
    with np.errstate(all="ignore"):
        total = matrix.sum()
    if np.isfinite(total):
        return
    bad: Array = ~np.isfinite(matrix)
    if bad.any():
        bad_rows: Array = np.flatnonzero(bad.any(axis=1))
        listed = ", ".join(repr(name) for name, column in zip(names, bad.T, strict=True) if column.any())
        raise LMMError(
            f"{listed} in {side.where} of the formula has no finite value at "
            f"{first_rows(bad_rows if rows is None else rows[bad_rows])}. Correct these rows or mark their values as "
            "missing (NaN), or change the transform."
        )


def _refuse_labels(response: str, dtype: str, holds: str = "") -> None:
    raise LMMError(
        f"The response {response!r} is not numeric (its type is {dtype}){holds}. A linear mixed model needs a numeric "
        "response; convert the column to numbers."
    )


def refuse_text(side: Side, name: str, column: Column) -> None:
    """Refuse text as a response, and text that is numbers, or nearly, where a part would take each value for a level.

    A column named in `C()` and one with declared categories are meant as levels.
    """
    if side.where == "the response":
        if side.plan:
            _refuse_labels(side.label, column.dtype, f": it holds {column.other()}")
        return
    found = column.numerals() if name in side.bare else None
    if found is None:
        return
    shown = name if name.isidentifier() else f"`{name}`"
    if found.row is None:
        holds, remedy = "holds numbers written as text", "convert it to numbers"
    else:
        holds = f"is text, although its values are numbers but for {found.value!r} at row {found.row} (counting from 0)"
        remedy = "mark that value as missing, or correct it, and convert the column to numbers"
        if found.comma:
            remedy = "read the file with a decimal comma (decimal=',' in pandas), or convert the column to numbers"
    raise LMMError(
        f"{column.title}, which {side.where} uses, {holds}; {remedy}. If the values are labels, write C({shown})."
    )


def _refuse_single_levels(side: Side, state: Any, declared: bool) -> None:
    """A factor of one level has no contrasts: its terms would vanish without a word."""
    for expression, (_, encoding) in state.encoder_state.items():
        levels = encoding.get("categories")
        if levels is not None and len(levels) == 1:
            only = next(iter(levels))
            remedy = (
                "make it a categorical column with all its levels" if declared else "use rows with other levels of it"
            )
            raise LMMError(
                f"{expression!r} in {side.where} of the formula has one level, {only!r}, in the rows used; leave it "
                f"out of the formula, or {remedy}."
            )


def _refuse_new_levels(side: Side, table: Table, state: Any) -> None:
    """Name the levels of categorical columns that the fit has not seen."""
    for expression, (_, encoding) in state.encoder_state.items():
        call = C_OF_COLUMN.match(expression)
        name = call[1].strip("`") if call else expression
        if encoding.get("categories") is None or name not in table:
            continue
        labels = table.column(name).codes(None)[1]
        known = set(encoding["categories"])
        unseen = [label for label in labels.tolist() if label not in known] if labels.dtype.kind not in "mM" else []
        if unseen:
            raise LMMError(
                f"Column {name!r} of `{table.argument}`, which {side.where} uses, has the level"
                f"{'s' if len(unseen) > 1 else ''} {', '.join(map(repr, unseen[:5]))} that the fit has not seen; drop "
                "these rows or recode them."
            )
