"""Variance functions as users write them: ``"power(x)"``, ``"exp(x, by=arm)"``, ``"~ 0 + arm"``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..covariance.residual.catalogue import of_covariate, of_positions, variance_names
from ..covariance.residual.grouped_variance import GroupedVariance
from ..covariance.residual.log_linear import LogLinear, relative_columns
from ..covariance.residual.variance_function import VarianceFunction
from ..covariance.residual.varied import Varied
from ..design.grouping import Codes
from ..design.residual import ResidualPart, WrittenVariance, strata_of
from ..errors import LMMError
from ..support.arguments import near
from ..tables.columns import Column
from .matrices import Part, floats
from .syntax import Side, side_of

__all__ = [
    "ParsedVariance",
    "bind_variance",
    "independent_rows",
    "parse_variance",
    "refuse_zeros",
    "with_variances",
]

Array = NDArray[Any]

_COLUMN = r"(?:`[^`]+`|[^\W\d][\w.]*)"
_CALL = re.compile(rf"\s*([^\W\d]\w*)\s*\(\s*({_COLUMN})(?:\s*,\s*by\s*=\s*({_COLUMN}))?\s*\)\s*")


@dataclass(frozen=True)
class ParsedVariance:
    """A variance function as written.

    Attributes
    ----------
    text : str
    name : str
        Of the function; ``"~"`` for a formula.
    side : Side or None
        The formula.
    columns : tuple of str
        The covariate of a function, and `by` where it is given.
    """

    text: str
    name: str
    side: Side | None
    columns: tuple[str, ...]


@lru_cache(maxsize=64)
def parse_variance(text: str) -> ParsedVariance:
    """Read a variance function.

    Raises
    ------
    LMMError
        For an unknown function, or what is none at all.
    """
    if text.lstrip().startswith("~"):
        return ParsedVariance(text.strip(), "~", side_of(text.lstrip()[1:].strip(), "`variance`"), ())
    found = _CALL.fullmatch(text)
    if found is None:
        raise LMMError(
            f"variance={text!r} cannot be read; write a formula for log standard deviations, e.g. '~ 0 + arm', or a "
            "function of a column, e.g. 'power(x)' or 'exp(x, by=arm)'"
        )
    if found[1] not in variance_names():
        raise LMMError(f"variance={text!r}: there is no function {found[1]!r}; {near(found[1], variance_names())}")
    names = tuple(name.strip("`") for name in found.groups()[1:] if name)
    return ParsedVariance(text.strip(), found[1], None, names)


def bind_variance(
    parsed: ParsedVariance,
    part: ResidualPart | None,
    evaluate: Callable[[Side], Part],
    columns: Mapping[str, Column],
    rows: Array | None,
    n: int,
) -> ResidualPart:
    """The residual part with standard deviations by covariates.

    Parameters
    ----------
    parsed : ParsedVariance
    part : ResidualPart or None
        The structure; None where the rows are independent.
    evaluate : callable
        The matrix of a side of a formula.
    columns : mapping of str to Column
    rows : (n,) int array or None
        Rows in use, None for all.
    n : int

    Raises
    ------
    LMMError
        For columns without information on variances, or zeros where the function is not defined.
    """
    function, v, written = _function(parsed, evaluate, columns, rows)
    return with_variances(independent_rows(parsed.text, n) if part is None else part, function, v, written)


def with_variances(part: ResidualPart, function: VarianceFunction, v: Array, written: WrittenVariance) -> ResidualPart:
    """The residual part with standard deviations by a function of covariates v (n, c)."""
    where = part.where.reshape(len(v), -1).astype(float)
    strata = strata_of([Varied(function, own.structure) for own in part.strata], [own.label for own in part.strata])
    term = part.term if part.term == written.text else f"{part.term}, variance {written.text}"
    return replace(part, term=term, strata=strata, where=np.column_stack([where, v]), variance=written)


def refuse_zeros(name: str, x: Array, covariate: str, argument: str) -> None:
    """Refuse zeros where a function is not defined.

    Parameters
    ----------
    name : str
        Of the function.
    x : (n,) array
    covariate, argument : str
        What messages call x, and where it was given.
    """
    if name != "exp" and not x.any():
        raise LMMError(f"{argument}: {covariate} is zero in all rows")
    if name == "power" and not x.all():
        raise LMMError(
            f"{argument}: {covariate} is zero in some rows, where a power is zero or infinite; use constpower or "
            "constprop, or a shifted column"
        )


def _function(
    parsed: ParsedVariance, evaluate: Callable[[Side], Part], columns: Mapping[str, Column], rows: Array | None
) -> tuple[VarianceFunction, Array, WrittenVariance]:
    if parsed.side is not None:
        made = evaluate(parsed.side)
        kept = relative_columns(made.matrix)
        if not len(kept):
            raise LMMError(f"variance={parsed.text!r} has no column that varies: leave it out")
        names = np.array(made.names, dtype=object)[kept]
        return (
            LogLinear(tuple(names.tolist())),
            made.matrix[:, kept],
            WrittenVariance(parsed.text, made.state, kept.astype(np.intp)),
        )
    x = floats(columns[parsed.columns[0]], rows)
    refuse_zeros(parsed.name, x, parsed.columns[0], f"variance={parsed.text!r}")
    function = of_covariate(parsed.name, float(np.abs(x).mean()))
    if len(parsed.columns) == 1:
        return function, x[:, None], WrittenVariance(parsed.text)
    codes, levels = columns[parsed.columns[1]].codes(rows)
    grouped = GroupedVariance(function, tuple(map(str, levels.tolist())))
    return grouped, np.column_stack([x, codes]), WrittenVariance(parsed.text)


def independent_rows(text: str, n: int) -> ResidualPart:
    """Rows that are independent of each other, each a subject of its own."""
    subject = Codes("Residual", np.arange(n, dtype=np.int64), 0, n, np.arange(n))
    strata = strata_of([of_positions("id", 1)], [""])
    zeros = np.zeros(n, dtype=np.intp)
    return ResidualPart(text, strata, subject, zeros, zeros, ("",), "row")
