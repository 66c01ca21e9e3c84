"""Rows that a model with structured residuals was not made of: whose they are, and where they stand among its own.

The structures, their parameters and the labels of their positions are those of the fit; subjects are those of the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..covariance.residual.catalogue import coordinate_names
from ..covariance.residual.grouped_variance import GroupedVariance
from ..covariance.residual.kronecker import Kronecker
from ..covariance.residual.varied import Varied
from ..design.grouping import Codes
from ..design.residual import ResidualPart
from ..errors import LMMError
from ..support.types import Array, Index
from ..tables.columns import Column, Table
from .matrices import complete_rows, evaluate_new, factor_codes, floats
from .residual import ParsedResidual, parse_residual
from .residual_arrays import Residual
from .variance import parse_variance, refuse_zeros
from .variance_arrays import LOG_LINEAR, Variance, array_column

__all__ = ["place_arrays", "place_rows"]


def place_rows(part: ResidualPart, table: Table, subjects: bool = True) -> ResidualPart:
    """The residual part of the rows of a table.

    Parameters
    ----------
    part : ResidualPart
        Of the fit, from a formula.
    table : Table
    subjects : bool
        Whether it matters which rows are of one subject; each is of its own otherwise.

    Raises
    ------
    LMMError
        For columns that are missing, and visits or groups that the fit does not have.
    """
    n = table.n_rows
    placed = _apart(part, n)
    if part.written is not None:
        parsed = parse_residual(part.written)
        names = parsed.columns if subjects else (*parsed.time, *(() if parsed.by is None else (parsed.by,)))
        columns = {name: table.column(name, "`residual`").settle() for name in names}
        complete_rows(list(columns.values()), n, "raise")
        subject = [columns[name] for name in parsed.subject] if subjects else None
        by = None if parsed.by is None else columns[parsed.by]
        placed = _placed(part, parsed, [columns[name] for name in parsed.time], subject, by, table.argument)
    if part.variance is None:
        return placed
    where = placed.where.reshape(n, -1).astype(float)
    return replace(placed, where=np.column_stack([where, _covariates(part, table)]))


def place_arrays(part: ResidualPart, given: Any, n: int, argument: str, in_order: bool) -> ResidualPart:
    """The residual part of rows that are given as arrays.

    Parameters
    ----------
    part : ResidualPart
        Of the fit, from arrays.
    given : Residual
    n : int
        Rows.
    argument : str
        What messages call the mapping that has it.
    in_order : bool
        Whether the visits may be left out, being the order of a subject's rows.

    Raises
    ------
    LMMError
        For another structure, arrays of another length, and visits or groups that the fit does not have.
    """
    if part.independent:
        if not isinstance(given, Variance):
            raise LMMError(
                f"{argument}['residual'] is of type {type(given).__name__!r}; give a Variance as the model was given, "
                "with the arrays of these rows"
            )
        return _varied(part, _apart(part, n), given, f"{argument}['residual']")
    if not isinstance(given, Residual):
        raise LMMError(
            f"{argument}['residual'] is of type {type(given).__name__!r}; give "
            f"Residual({part.written_name!r}, subject, time) with the arrays of these rows"
        )
    if given.name != part.written_name:
        raise LMMError(f"{argument}['residual'] has the structure {given.name}, and the model {part.written_name}")
    if given.time is None and not in_order:
        raise LMMError(
            f"{argument}['residual'] has no time: the order of these rows does not tell which of its subject's visits "
            "a row is; give time"
        )
    parsed, times, subject, by = given.columns(n)
    placed = _placed(part, parsed, times, [subject], by, f"{argument}['residual']")
    if part.variance is None and given.variance is None:
        return placed
    if part.variance is None or given.variance is None:
        has = "no variance function" if part.variance is None else f"the variance function {part.variance.text}"
        raise LMMError(f"{argument}['residual']: the model has {has}; give these rows the same")
    return _varied(part, placed, given.variance, f"{argument}['residual'].variance")


def _varied(part: ResidualPart, placed: ResidualPart, given: Variance, argument: str) -> ResidualPart:
    """Placed rows with the covariates of a variance function."""
    n, function, written = len(placed.where), part.strata[0].structure, part.variance
    assert isinstance(function, Varied) and written is not None
    matrix = given.matrix(n)[0]
    log_linear = written.columns is not None
    if given.name != (LOG_LINEAR if log_linear else written.text.partition("(")[0]):
        raise LMMError(f"{argument} is {given.name!r}, and the variance of the model {written.text!r}; give the same")
    if written.columns is not None:
        if matrix.shape[1] <= int(written.columns.max()):
            raise LMMError(f"{argument} has {matrix.shape[1]} columns; give all that the model was given")
        v = matrix[:, written.columns]
    else:
        refuse_zeros(given.name, matrix[:, 0], "covariate", argument)
        v = matrix[:, :1]
    if isinstance(function.function, GroupedVariance):
        if given.by is None:
            raise LMMError(f"{argument} has no by: the parameters of {written.text} are those of groups; give it")
        found, names = array_column("variance.by", given.by, n).codes(None)
        v = np.column_stack([v, _matched(list(function.function.levels), names, found, "by", argument)])
    return replace(placed, where=np.column_stack([placed.where.reshape(n, -1).astype(float), v]))


def _apart(part: ResidualPart, n: int) -> ResidualPart:
    """Rows of one position, each a subject of its own."""
    zeros = np.zeros(n, dtype=np.intp)
    subject = Codes(part.subject.name, np.arange(n, dtype=np.int64), 0, n, np.arange(n))
    return replace(part, subject=subject, stratum=zeros, where=zeros)


def _placed(
    part: ResidualPart, parsed: ParsedResidual, time: Sequence[Column], subject: Sequence[Column] | None,
    by: Column | None, argument: str,
) -> ResidualPart:  # fmt: skip
    n = len(time[0])
    out = _apart(part, n)
    if subject is not None:
        codes, labels = factor_codes(parsed.subject, subject, None)
        out = replace(out, subject=Codes(part.subject.name, codes.astype(np.int64), 0, len(labels), labels))
    if by is not None:
        found, names = by.codes(None)
        out = replace(out, stratum=_matched([own.label for own in part.strata], names, found, parsed.by, argument))
    elif len(part.strata) > 1:
        raise LMMError(f"{argument} has no by: the parameters of {part.term} are those of groups; give it")
    return replace(out, where=_where(part, parsed, time, argument))


def _where(part: ResidualPart, parsed: ParsedResidual, time: Sequence[Column], argument: str) -> NDArray[Any]:
    """Positions or coordinates of rows."""
    if parsed.name in coordinate_names():
        where = np.column_stack([floats(column, None) for column in time])
        expected = part.where.shape[1] - (0 if part.variance is None else _inner(part)[1])
        if where.shape[1] != expected:
            raise LMMError(f"{argument}: rows of {part.term} have {expected} coordinates, not {where.shape[1]}")
        return where
    structure = _inner(part)[0]
    visits = _visit(part.labels, time[-1], parsed.time[-1], argument)
    if not isinstance(structure, Kronecker):
        return visits
    found, names = time[0].codes(None)
    responses = _matched(list(structure.labels_of_responses), names, found, parsed.time[0], argument)
    return np.asarray(responses * len(part.labels) + visits)


def _inner(part: ResidualPart) -> tuple[Any, int]:
    """The structure without its variance function, and the number of covariates of that."""
    structure = part.strata[0].structure
    return (structure.inner, structure.function.n_columns) if isinstance(structure, Varied) else (structure, 0)


def _visit(labels: Sequence[str], column: Column, name: str, argument: str) -> Index:
    number = column.number
    if number is not None and number.dtype.kind == "f" and (number % 1.0 == 0.0).all():
        column.number = number.astype(np.int64)  # 3.0 is the visit 3 of the fit
    found, names = column.codes(None)
    return _matched(list(labels), names, found, name, argument)


def _covariates(part: ResidualPart, table: Table) -> Array:
    """What the variance function takes of rows (n, c)."""
    assert part.variance is not None
    parsed = parse_variance(part.variance.text)
    structure = part.strata[0].structure
    assert isinstance(structure, Varied)
    if parsed.side is not None:
        return np.asarray(evaluate_new(parsed.side, table, part.variance.state)[:, part.variance.columns])
    columns = [table.column(name, "`variance`").settle() for name in parsed.columns]
    complete_rows(columns, table.n_rows, "raise")
    x = floats(columns[0], None)
    refuse_zeros(parsed.name, x, parsed.columns[0], table.argument)
    if len(columns) == 1:
        return x[:, None]
    assert isinstance(structure.function, GroupedVariance)
    found, names = columns[1].codes(None)
    return np.column_stack([x, _matched(list(structure.function.levels), names, found, parsed.columns[1], "data")])


def _matched(known: list[str], names: NDArray[Any], codes: NDArray[Any], column: str | None, argument: str) -> Index:
    """Position among the known labels of each row's own."""
    place = {label: i for i, label in enumerate(known)}
    labels = [str(label) for label in names.tolist()]
    for label in labels:
        if label not in place:
            shown = ", ".join(known[:8]) + (", ..." if len(known) > 8 else "")
            raise LMMError(f"{argument}: {column} {label} is not among those of the fit ({shown})")
    out: Index = np.array([place[label] for label in labels], dtype=np.intp)[codes]
    return out
