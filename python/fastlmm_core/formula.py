"""Model arrays from a formula in lme4's syntax and a table.

The bars are split off here; what stands before, between and inside them is parsed by formulaic. A part made of an
intercept and plain numeric columns is built straight from the columns, every other part by formulaic. Neither
formulaic nor pandas is imported before a formula or a table needs it.
"""

from __future__ import annotations

import builtins
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .errors import LMMError
from .frames import Column, Table, first_rows, native_frame
from .grouping import integer_codes
from .syntax import C_OF_COLUMN, Side, capital, first_line, parse, terms_of

__all__ = ["FormulaSpec", "ModelData", "Numbers", "RandomTermData", "model_data"]

Array = NDArray[Any]

_BLOCK = 2048  # rows of a wide matrix filled at a time, so that its cache lines are written once


@dataclass(frozen=True)
class RandomTermData:
    """The arrays of one random-effects term.

    Attributes
    ----------
    name : str
        The grouping factor as written, e.g. ``"Subject"`` or ``"class:school"``.
    Z : ndarray of shape (n, q)
        Random-effects design in float64; the very array ``X`` where the columns are the same.
    columns : tuple of str
        Names of the columns of `Z`.
    codes : ndarray of shape (n,)
        Index of each row's label in `labels`.
    labels : ndarray of shape (m,)
        The labels in use: sorted, or in the order of the categories. Labels of an interaction are joined by ``":"``
        and follow the order of the first factor, then of the second, and so on.
    structure : {"full", "diagonal"}
        Covariance of the columns; ``"diagonal"`` for ``(x || g)``, where the columns of a categorical `x` are
        independent of each other too.
    """

    name: str
    Z: Array
    columns: tuple[str, ...]
    codes: Array
    labels: Array
    structure: str


@dataclass(frozen=True)
class ModelData:
    """The arrays of a model, rows with missing values left out.

    Attributes
    ----------
    y : ndarray of shape (n,)
        Response.
    X : ndarray of shape (n, p)
        Fixed-effects design.
    x_names : tuple of str
        Names of the columns of `X`.
    response : str
        Name of the response, as written.
    terms : tuple of RandomTermData
        Random-effects terms in the order of the formula; ``(x | a/b)`` gives the terms ``a`` and ``a:b``.
    weights, offset : ndarray of shape (n,) or None
        Prior weights and offset.
    n_dropped : int
        Number of rows left out because of missing values.
    kept : ndarray or None
        Indices of the rows kept, None when none was left out.
    spec : FormulaSpec
        Evaluates the formula on new data as in the fit.
    """

    y: Array
    X: Array
    x_names: tuple[str, ...]
    response: str
    terms: tuple[RandomTermData, ...]
    weights: Array | None
    offset: Array | None
    n_dropped: int
    kept: Array | None
    spec: FormulaSpec


@dataclass(frozen=True)
class Numbers:
    """Mean and range of a numeric column over the rows of the fit."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class FormulaSpec:
    """What a fitted formula remembers to be evaluated on new data; it can be pickled.

    Attributes
    ----------
    formula : str
        The formula as written.
    library : {"pandas", "polars", "pyarrow", "dict"}
        Library of the caller's table.
    offset_name : str or None
        Column of the offset, where it was given by name.
    states : tuple
        For response, fixed part and each bar's left side formulaic's ModelSpec (transforms, levels, contrasts), or
        None where the part is made of plain numeric columns.
    integer_groups : frozenset of str
        Grouping columns whose labels were integers.
    reference : dict
        For each column that the fixed part uses a `Numbers`, or the tuple of its levels in use: of a categorical
        column in order, of a logical one False and True.
    """

    formula: str
    library: str
    offset_name: str | None
    states: tuple[Any, ...]
    integer_groups: frozenset[str]
    reference: Mapping[str, Numbers | tuple[Any, ...]]

    def fixed(self, new_data: Any) -> Array:
        """The fixed-effects design of new data, coded as in the fit; response and groups are not needed."""
        table = Table(new_data, "new_data")
        return _evaluate_new(parse(self.formula).fixed, table, self.states[1])

    def random(self, new_data: Any) -> list[tuple[Array, Array]]:
        """For each term the random-effects design of new data, coded as in the fit, and each row's group label."""
        table = Table(new_data, "new_data")
        found = []
        for bar, state in zip(parse(self.formula).bars, self.states[2:], strict=True):
            columns = [table.column(name, bar.where) for name in bar.factors]
            _complete_rows(columns, table.n_rows, "raise")
            for name, column in zip(bar.factors, columns, strict=True):
                number = column.number
                is_float = number is not None and number.dtype.kind == "f"
                if name in self.integer_groups and number is not None and is_float and (number % 1 == 0).all():
                    column.number = number.astype(np.int64)  # 3.0 is the group 3 of the fit
            codes, labels = _group(bar.factors, columns, None)
            found.append((_evaluate_new(bar.left, table, state), labels[codes]))
        return found

    def random_design(self, new_data: Any) -> Array:
        """The random-effects designs of all terms side by side; groups are not needed."""
        table = Table(new_data, "new_data")
        sides = zip(parse(self.formula).bars, self.states[2:], strict=True)
        return np.column_stack([_evaluate_new(bar.left, table, state) for bar, state in sides])

    def response(self, new_data: Any) -> Array:
        """The response of new data."""
        return _evaluate_new(parse(self.formula).response, Table(new_data, "new_data"), self.states[0])[:, 0]

    def offset(self, new_data: Any) -> Array | None:
        """The offset of new data, None unless it was given as the name of a column."""
        if self.offset_name is None:
            return None
        table = Table(new_data, "new_data")
        column = table.column(self.offset_name, "`offset`").settle()
        _complete_rows([column], table.n_rows, "raise")
        return _floats(column, None)

    def frame(self, columns: Mapping[str, Any]) -> Any:
        """A table in the caller's own library (a dict of arrays for a dict)."""
        return native_frame(self.library, columns)


def model_data(
    formula: str,
    data: Any,
    *,
    weights: Any = None,
    offset: Any = None,
    missing: Literal["drop", "raise"] = "drop",
) -> ModelData:
    """Turn a formula and a table into the arrays of a linear mixed model.

    Parameters
    ----------
    formula : str
        lme4's syntax, e.g. ``"y ~ x + (x | g)"``. The response, the fixed part and each bar's left side may use
        formulaic's transforms; the right side of a bar names a column, ``a:b`` or ``a/b``. ``(x || g)`` makes the
        random effects independent of each other.
    data : pandas.DataFrame, polars.DataFrame, pyarrow.Table or mapping of one-dimensional arrays
        The table; only the columns in use are read.
    weights, offset : str or array-like of length ``len(data)``, optional
        The name of a column, or the values.
    missing : {"drop", "raise"}
        Whether rows with a missing value in a used column are left out and counted, or refused.

    Returns
    -------
    ModelData
        Response, designs, groups, and the specification that evaluates the formula on new data.

    Raises
    ------
    LMMError
        For any formula or table that cannot be used; the message names the place and the remedy.
    """
    if missing not in ("drop", "raise"):
        raise LMMError(f"`missing` must be 'drop' or 'raise', not {missing!r}.")
    parsed = parse(formula)
    table = Table(data)
    used: dict[str, Column] = {}
    for side in (parsed.response, parsed.fixed, *(bar.left for bar in parsed.bars)):
        for name in _needed(side, table):
            used[name] = table.column(name, side.where).settle()
    for bar in parsed.bars:
        for name in bar.factors:
            used[name] = table.column(name, bar.where)
    extra = {
        argument: _argument_column(argument, given, table)
        for argument, given in (("weights", weights), ("offset", offset))
        if given is not None
    }
    rows = _complete_rows([*used.values(), *extra.values()], table.n_rows, missing)

    parts: dict[tuple[str, ...], _Part] = {}
    y = _evaluate(parsed.response, table, rows, parts)
    x = _evaluate(parsed.fixed, table, rows, parts)
    groups: dict[tuple[str, ...], tuple[Array, Array]] = {}
    terms, states = [], [y.state, x.state]
    for bar in parsed.bars:
        z = _evaluate(bar.left, table, rows, parts)
        if z.matrix.shape[1] == 0:
            raise LMMError(f"{capital(bar.where)} has no columns on its left side; write e.g. (1 | {bar.name}).")
        if bar.factors not in groups:
            groups[bar.factors] = _group(bar.factors, [used[name] for name in bar.factors], rows)
        terms.append(RandomTermData(bar.name, z.matrix, z.names, *groups[bar.factors], bar.structure))
        states.append(z.state)

    w = _floats(extra["weights"], rows) if "weights" in extra else None
    if w is not None and not (w > 0).all():
        at = np.flatnonzero(w <= 0)
        raise LMMError(
            f"`weights` must be positive, which they are not at {first_rows(at if rows is None else rows[at])}. Drop "
            "the rows that are to have no weight."
        )
    spec = FormulaSpec(
        formula,
        table.library,
        offset if isinstance(offset, str) else None,
        tuple(states),
        frozenset(name for key in groups for name in key if _is_integer(used[name])),
        {name: _typical(name, used[name], rows, x.state) for name in _needed(parsed.fixed, table)},
    )
    return ModelData(
        y=y.matrix[:, 0],
        X=x.matrix,
        x_names=x.names,
        response=parsed.response.label,
        terms=tuple(terms),
        weights=w,
        offset=_floats(extra["offset"], rows) if "offset" in extra else None,
        n_dropped=0 if rows is None else table.n_rows - len(rows),
        kept=rows,
        spec=spec,
    )


@dataclass(frozen=True)
class _Part:
    """An evaluated side: its matrix, the names of the columns, and formulaic's ModelSpec if it took part."""

    matrix: Array
    names: tuple[str, ...]
    state: Any


def _typical(name: str, column: Column, rows: Array | None, state: Any) -> Numbers | tuple[Any, ...]:
    """Mean and range of a numeric column, or the levels in use of a categorical one."""
    encoder = {} if state is None else state.encoder_state
    for expression, (_, encoding) in encoder.items():
        call = C_OF_COLUMN.match(expression)
        if encoding.get("categories") is not None and name == (call[1].strip("`") if call else expression):
            levels = tuple(encoding["categories"])
            if not column.is_category:
                return levels
            used = set(column.codes(rows)[1].tolist())
            return tuple(level for level in levels if level in used)
    if column.number is None:
        return tuple(column.codes(rows)[1].tolist())
    if column.number.dtype.kind == "b":
        return (False, True)
    values = column.number if rows is None else column.number[rows]
    return Numbers(float(values.mean(dtype=np.float64)), float(values.min()), float(values.max()))


# --- evaluation -----------------------------------------------------------------------------------------------------


def _needed(side: Side, table: Table) -> list[str]:
    """The columns that a part uses; names that are neither columns nor known functions are refused."""
    if side.plan is not None:
        return [name for name, _ in side.names]
    from formulaic.transforms import TRANSFORMS  # type: ignore[import-untyped]

    from .centering import formula_functions

    needed = []
    for name, optional in side.names:
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


def _complete_rows(columns: Sequence[Column], n_rows: int, missing: str) -> Array | None:
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


def _evaluate(side: Side, table: Table, rows: Array | None, parts: dict[tuple[str, ...], _Part]) -> _Part:
    """The matrix of one part in the fit; equal parts share one matrix."""
    known = parts.get(side.key)
    if known is not None:
        return known
    response = side.where == "the response"
    if side.plan is not None and all(table.column(name).number is not None for name, _ in side.names):
        part = _Part(_plain_matrix(side, table, rows), side.columns, None)
    else:
        from formulaic import ModelSpec  # type: ignore[import-untyped]

        if response and side.plan is not None:
            _refuse_labels(side.label, table.column(side.names[0][0]).dtype)
        fresh = ModelSpec(formula=terms_of(side.text, side.where, not response), na_action="ignore", output="numpy")
        part = _formulaic_matrix(side, table, rows, fresh)
        if response and any(kind.value == "categorical" for kind, _ in part.state.encoder_state.values()):
            _refuse_labels(side.label, "categorical")
    if response and part.matrix.shape[1] != 1:
        raise LMMError(
            f"The response {side.label!r} makes {part.matrix.shape[1]} columns; it must be one. Write arithmetic "
            "inside I(), e.g. I(a + b)."
        )
    parts[side.key] = part
    return part


def _evaluate_new(side: Side, table: Table, state: Any) -> Array:
    """The matrix of one part on new data, coded as in the fit."""
    columns = [table.column(name, side.where).settle() for name in _needed(side, table)]
    _complete_rows(columns, table.n_rows, "raise")
    if state is not None:
        _refuse_new_levels(side, table, state)
        return _formulaic_matrix(side, table, None, state).matrix
    for column in columns:
        if column.number is None:
            raise LMMError(
                f"{column.title} holds values of type {column.dtype}, but in the fit it held numbers; convert it to "
                "numbers."
            )
    return _plain_matrix(side, table, None)


def _plain_matrix(side: Side, table: Table, rows: Array | None) -> Array:
    """Matrix of products of numeric columns."""
    plan = side.plan or ()
    n = table.n_rows if rows is None else len(rows)
    matrix = np.empty((n, len(plan)))
    sources = {name: _numbers(table.column(name), rows) for name, _ in side.names}
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


def _formulaic_matrix(side: Side, table: Table, rows: Array | None, state: Any) -> _Part:
    """Matrix of any part, by formulaic."""
    import pandas as pd
    from formulaic.errors import DataMismatchWarning  # type: ignore[import-untyped]

    from .centering import formula_functions

    needed = _needed(side, table)
    columns = {name: table.column(name).for_formulaic(rows, name in side.computed) for name in needed}
    bare = {str(factor.expr) for term in state.formula for factor in term.factors}
    for name, values in columns.items():
        if name in bare and getattr(values.dtype, "kind", "O") in "mM":
            raise LMMError(
                f"Column {name!r} in {side.where} of the formula holds dates or times; make it a number, e.g. the days "
                f"since a date, or write C({name})."
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
        raise LMMError(
            f"{capital(side.where)} of the formula, {side.text!r}, cannot be evaluated: {first_line(error)}"
        ) from error
    names = tuple(map(str, made.model_spec.column_names))
    _refuse_non_finite(matrix, names, side, rows)
    return _Part(matrix, names, made.model_spec)


def _group(factors: tuple[str, ...], columns: Sequence[Column], rows: Array | None) -> tuple[Array, Array]:
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


def _argument_column(argument: str, given: Any, table: Table) -> Column:
    """The column for `weights` or `offset`, given by name or as values."""
    if isinstance(given, str):
        column = table.column(given, f"`{argument}`").settle()
    else:
        column = Column(f"`{argument}`", given).settle()
        if len(column) != table.n_rows:
            raise LMMError(
                f"`{argument}` has {len(column)} values, but `data` has {table.n_rows} rows; give one per row."
            )
    _numbers(column, None)
    return column


def _numbers(column: Column, rows: Array | None) -> Array:
    if column.number is None:
        raise LMMError(f"{column.title} must hold numbers, but its type is {column.dtype}; convert it.")
    return column.number if rows is None else column.number[rows]


def _floats(column: Column, rows: Array | None) -> Array:
    return np.array(_numbers(column, rows), dtype=np.float64)


def _is_integer(column: Column) -> bool:
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


def _refuse_labels(response: str, dtype: str) -> None:
    raise LMMError(
        f"The response {response!r} is not numeric (its type is {dtype}). A linear mixed model needs a numeric "
        "response; convert the column to numbers."
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
