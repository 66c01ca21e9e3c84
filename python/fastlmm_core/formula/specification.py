"""Model arrays from a formula in lme4's syntax and a table.

`syntax` splits a formula into its sides, `matrices` turns each into a matrix; here they are put together, and
what a fit must remember of them is kept.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..design.residual import ResidualPart
from ..errors import LMMError
from ..support.arguments import outside
from ..support.checks import row_values
from ..tables.columns import Column, Table, first_rows
from ..tables.lazy import collected
from .coded_rows import Coding, coding_of
from .matrices import (
    Part,
    argument_column,
    complete_rows,
    evaluate,
    evaluate_new,
    factor_codes,
    floats,
    is_integer,
    needed_columns,
    refuse_text,
)
from .syntax import C_OF_COLUMN, Parsed, Side, capital, parse, self_products

if TYPE_CHECKING:
    from .residual import ParsedResidual
    from .variance import ParsedVariance

__all__ = ["FormulaSpec", "ModelData", "Numbers", "RandomTermData", "columns_in_use", "model_data"]

Array = NDArray[Any]


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
    y : ndarray of shape (n,) or None
        Response; None where it may be absent and is.
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
    index : pandas.Index or None
        Labels of all rows of the table.
    residual : ResidualPart or None
        How the residuals of a subject vary together.
    """

    y: Array | None
    X: Array
    x_names: tuple[str, ...]
    response: str
    terms: tuple[RandomTermData, ...]
    weights: Array | None
    offset: Array | None
    n_dropped: int
    kept: Array | None
    spec: FormulaSpec
    index: Any
    residual: ResidualPart | None = None


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
    weights_name : str or None
        Column of the weights, where they were given by name.
    states : tuple
        For response, fixed part and each bar's left side formulaic's ModelSpec (transforms, levels, contrasts), or
        None where the part is made of plain numeric columns.
    integer_groups : frozenset of str
        Grouping columns whose labels were integers.
    reference : dict
        For each column that the fixed part uses a `Numbers`, or the tuple of its levels in use: of a categorical
        column in order, of a logical one False and True.
    unused : dict
        For each categorical column in use the levels that its type declares but no row has, where there are any.
    gaps : dict
        Number of missing values of each column in use that has any; their rows were left out.
    """

    formula: str
    library: str
    offset_name: str | None
    weights_name: str | None
    states: tuple[Any, ...]
    integer_groups: frozenset[str]
    reference: Mapping[str, Numbers | tuple[Any, ...]]
    unused: Mapping[str, tuple[Any, ...]]
    gaps: Mapping[str, int]

    def fixed(self, new_data: Any) -> Array:
        """The fixed-effects design of new data, coded as in the fit; response and groups are not needed."""
        table = Table.of(new_data, "new_data")
        return evaluate_new(parse(self.formula).fixed, table, self.states[1], self.codings[0])

    @cached_property
    def codings(self) -> tuple[Coding | None, ...]:
        """How the columns of the fixed part and of each bar's left side are made; None where formulaic is needed."""
        parsed = parse(self.formula)
        sides = [parsed.fixed, *(bar.left for bar in parsed.bars)]
        return tuple(coding_of(side, state) for side, state in zip(sides, self.states[1:], strict=True))

    @property
    def random_variables(self) -> tuple[str, ...]:
        """Columns of the data that the random-effects designs use."""
        sides = [bar.left for bar in parse(self.formula).bars]
        return tuple(dict.fromkeys(name for side in sides for name, optional in side.names if not optional))

    def random(self, new_data: Any, factors: Collection[str] | None = None) -> list[Array | None]:
        """The random-effects design of each term on new data, coded as in the fit; groups are not needed.

        Parameters
        ----------
        new_data : table
        factors : collection of str, optional
            Grouping factors whose terms are wanted; by default all.

        Returns
        -------
        list of (n, q_t) arrays, in the order of the formula
            None for the terms of other factors.
        """
        table = Table.of(new_data, "new_data")
        return [
            evaluate_new(bar.left, table, state, coding) if factors is None or bar.name in factors else None
            for bar, state, coding in zip(parse(self.formula).bars, self.states[2:], self.codings[1:], strict=True)
        ]

    def group_labels(self, new_data: Any, factors: Collection[str] | None = None) -> dict[str, Array]:
        """The label of each row of new data in each grouping factor, or in those named."""
        table = Table.of(new_data, "new_data")
        found: dict[str, Array] = {}
        for bar in parse(self.formula).bars:
            if bar.name in found or (factors is not None and bar.name not in factors):
                continue
            columns = [table.column(name, bar.where) for name in bar.factors]
            complete_rows(columns, table.n_rows, "raise")
            for name, column in zip(bar.factors, columns, strict=True):
                number = column.number
                is_float = number is not None and number.dtype.kind == "f"
                if name in self.integer_groups and number is not None and is_float and (number % 1 == 0).all():
                    column.number = number.astype(np.int64)  # 3.0 is the group 3 of the fit
            codes, labels = factor_codes(bar.factors, columns, None)
            found[bar.name] = labels[codes]
        return found

    def response(self, new_data: Any) -> Array:
        """The response of new data."""
        side, table = parse(self.formula).response, Table.of(new_data, "new_data")
        if side.plan is None and self.states[0] is None:  # there was none when the parameters were stated
            columns = [table.column(name, side.where).settle() for name in needed_columns(side, table)]
            complete_rows(columns, table.n_rows, "raise")
            return evaluate(side, table, None, {}).matrix[:, 0]
        return evaluate_new(side, table, self.states[0])[:, 0]

    def has_response(self, new_data: Any) -> bool:
        """Whether new data hold the response."""
        return not _absent(parse(self.formula).response, Table.of(new_data, "new_data"))

    def offset(self, new_data: Any) -> Array | None:
        """The offset of new data, None unless it was given as the name of a column."""
        if self.offset_name is None:
            return None
        table = Table.of(new_data, "new_data")
        column = table.column(self.offset_name, "`offset`").settle()
        complete_rows([column], table.n_rows, "raise")
        return floats(column, None)

    def weights(self, new_data: Any) -> Array | None:
        """The weights of new data, None unless they were given as the name of a column that these have, too."""
        table = Table.of(new_data, "new_data")
        if self.weights_name is None or self.weights_name not in table:
            return None
        column = table.column(self.weights_name, "`weights`").settle()
        complete_rows([column], table.n_rows, "raise")
        return row_values(floats(column, None), f"the weights in column {self.weights_name!r}", table.n_rows, True)


def model_data(
    formula: str,
    data: Any,
    *,
    weights: Any = None,
    offset: Any = None,
    residual: str | None = None,
    variance: str | None = None,
    missing: Literal["drop", "raise"] = "drop",
    optional: bool = False,
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
    residual : str, optional
        Structure of the residuals of a subject, e.g. ``"us(visit | id)"``; a formula without bars is then complete.
    variance : str, optional
        Standard deviations of the residuals by covariates, e.g. ``"power(x)"`` or ``"~ 0 + arm"``.
    missing : {"drop", "raise"}
        Whether rows with a missing value in a used column are left out and counted, or refused.
    optional : bool
        Whether the response may be absent, its columns or all values of one, and levels may be declared that no row
        has: where parameters are stated, not estimated.

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
    text: Any = formula
    if not isinstance(text, str):
        if isinstance(data, str):
            raise LMMError("`formula` and `data` are swapped; write lmm(formula, data).")
        raise LMMError(f"`formula` must be a string such as 'y ~ x + (x | g)', not {type(text).__name__!r}.")
    parsed = parse(formula)
    # structures of residuals are loaded by the formulas that have them
    bound: ParsedResidual | None = None
    varied: ParsedVariance | None = None
    if residual is not None:
        from .residual import parse_residual

        bound = parse_residual(residual)
    if variance is not None:
        from .variance import parse_variance

        varied = parse_variance(variance)
    if not parsed.bars and bound is None and varied is None:
        raise LMMError(
            f"The formula {formula!r} has no random-effects term; add one such as (1 | g), where g is the column that "
            "holds the groups."
        )
    _warn_of_powers(parsed)
    table = Table(collected(data, _names(parsed, bound, varied, weights, offset)), declared=optional)
    absent = optional and _absent(parsed.response, table)
    used = columns_in_use(parsed, table, parsed.sides[1:] if absent else parsed.sides)
    for name in () if bound is None else bound.columns:
        used[name] = table.column(name, "`residual`").settle()
    for name in () if varied is None else (*varied.columns, *_needed_by(varied, table)):
        used[name] = table.column(name, "`variance`").settle()
    extra = {
        argument: argument_column(argument, given, table)
        for argument, given in (("weights", weights), ("offset", offset))
        if given is not None
    }
    rows = complete_rows([*used.values(), *extra.values()], table.n_rows, missing)

    parts: dict[tuple[str, ...], Part] = {}
    y = None if absent else evaluate(parsed.response, table, rows, parts)
    x = evaluate(parsed.fixed, table, rows, parts)
    groups: dict[tuple[str, ...], tuple[Array, Array]] = {}
    terms, states = [], [None if y is None else y.state, x.state]
    for bar in parsed.bars:
        z = evaluate(bar.left, table, rows, parts)
        if z.matrix.shape[1] == 0:
            raise LMMError(f"{capital(bar.where)} has no columns on its left side; write e.g. (1 | {bar.name}).")
        if bar.factors not in groups:
            groups[bar.factors] = factor_codes(bar.factors, [used[name] for name in bar.factors], rows)
        terms.append(RandomTermData(bar.name, z.matrix, z.names, *groups[bar.factors], bar.structure))
        states.append(z.state)

    w = floats(extra["weights"], rows) if "weights" in extra else None
    if w is not None and not (w > 0).all():
        at = np.flatnonzero(w <= 0)
        raise LMMError(
            f"`weights` must be positive, which they are not at {first_rows(at if rows is None else rows[at])}. Drop "
            "the rows that are to have no weight."
        )
    part = None
    if bound is not None:
        from .residual import bind_residual

        by = None if bound.by is None else used[bound.by]
        part = bind_residual(bound, [used[n] for n in bound.time], [used[n] for n in bound.subject], by, rows)
        part = replace(part, written=residual)
    if varied is not None:
        from .variance import bind_variance

        part = bind_variance(varied, part, lambda side: evaluate(side, table, rows, parts), used, rows, len(x.matrix))
    spec = FormulaSpec(
        formula,
        table.library,
        offset if isinstance(offset, str) else None,
        weights if isinstance(weights, str) else None,
        tuple(states),
        frozenset(name for key in groups for name in key if is_integer(used[name])),
        {name: _typical(name, used[name], rows, x.state) for name in needed_columns(parsed.fixed, table)},
        {name: levels for name, column in used.items() if (levels := column.unused(rows))},
        {} if rows is None else _gaps({**used, **extra}),
    )
    return ModelData(
        y=None if y is None else y.matrix[:, 0],
        X=x.matrix,
        x_names=x.names,
        response=parsed.response.label,
        terms=tuple(terms),
        weights=w,
        offset=floats(extra["offset"], rows) if "offset" in extra else None,
        n_dropped=0 if rows is None else table.n_rows - len(rows),
        kept=rows,
        spec=spec,
        index=table.index,
        residual=part,
    )


def columns_in_use(parsed: Parsed, table: Table, sides: Sequence[Side]) -> dict[str, Column]:
    """The columns of some sides of a formula, and of all its factors, by name.

    Raises
    ------
    LMMError
        For columns that are not there, and text where numbers are needed.
    """
    used: dict[str, Column] = {}
    for side in sides:
        for name in needed_columns(side, table):
            used[name] = column = table.column(name, side.where).settle()
            if column.number is None:
                refuse_text(side, name, column)
    for bar in parsed.bars:
        for name in bar.factors:
            used[name] = table.column(name, bar.where)
    return used


def _names(
    parsed: Parsed, bound: ParsedResidual | None, varied: ParsedVariance | None, weights: Any, offset: Any
) -> dict[str, bool]:
    """Names that may be columns in use, and whether they must be."""
    sides = [parsed.response, parsed.fixed, *(bar.left for bar in parsed.bars)]
    out: dict[str, bool] = {}
    if varied is not None:
        sides += [] if varied.side is None else [varied.side]
        out |= dict.fromkeys(varied.columns, True)
    for side in sides:
        for name, optional in side.names:
            out[name] = out.get(name, False) or not optional
    for bar in parsed.bars:
        out |= dict.fromkeys(bar.factors, True)
    out |= dict.fromkeys(() if bound is None else bound.columns, True)
    return out | {given: True for given in (weights, offset) if isinstance(given, str)}


def _needed_by(varied: ParsedVariance, table: Table) -> list[str]:
    """Columns that the formula of a variance function uses."""
    return [] if varied.side is None else needed_columns(varied.side, table)


def _absent(response: Side, table: Table) -> bool:
    """Whether a column of the response is not there, or empty."""
    for name, optional in response.names:
        if name not in table:
            if not optional:
                return True
        elif (gap := table.column(name, response.where).missing()) is not None and gap.all():
            return True
    return False


def _gaps(columns: Mapping[str, Column]) -> dict[str, int]:
    """Number of missing values of each column that has any."""
    found = {name: column.missing() for name, column in columns.items()}
    return {name: int(gap.sum()) for name, gap in found.items() if gap is not None}


def _warn_of_powers(parsed: Parsed) -> None:
    for side in (parsed.fixed, *(bar.left for bar in parsed.bars)):
        for base, power in self_products(side.text):
            warnings.warn(
                f"{base}**{power} in {side.where} of the formula is {base} crossed with itself, which is {base}; write "
                f"I({base}**{power}) for the power",
                UserWarning,
                stacklevel=outside(),
            )


def _typical(name: str, column: Column, rows: Array | None, state: Any) -> Numbers | tuple[Any, ...]:
    """Mean and range of a numeric column, or the levels in use of a categorical one."""
    encoder = {} if state is None else state.encoder_state
    for expression, (_, encoding) in encoder.items():
        call = C_OF_COLUMN.match(expression)
        if encoding.get("categories") is not None and name == (call[1].strip("`") if call else expression):
            used = set(column.codes(rows)[1].tolist())
            return tuple(level for level in encoding["categories"] if level in used)
    if column.number is None:
        return tuple(column.codes(rows)[1].tolist())
    if column.number.dtype.kind == "b":
        return (False, True)
    values = column.number if rows is None else column.number[rows]
    return Numbers(float(values.mean(dtype=np.float64)), float(values.min()), float(values.max()))
