"""Residual structures as users write them: ``us(visit | id)``, ``ar1(week | id, by=arm)``, ``us(visit | arm / id)``.

`parse_residual` reads the text, `bind_residual` brings it together with columns: which subject a row belongs to, and
its position among the visits, or its coordinates.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..covariance.residual.catalogue import (
    coordinate_names,
    kind_of,
    of_coordinates,
    of_positions,
    of_responses,
    position_names,
)
from ..covariance.residual.structure import ResidualStructure
from ..design.grouping import Codes
from ..design.residual import ResidualPart, residual_part
from ..errors import LMMError
from ..support.arguments import near
from ..tables.columns import Column
from ..tables.labels import integer_codes
from .matrices import factor_codes, floats

__all__ = ["ParsedResidual", "bind_residual", "other_structures", "parse_residual", "refuse_unknown", "split_mmrm"]

_COLUMN = r"(?:`[^`]+`|[^\W\d][\w.]*)"
_CALL = re.compile(r"\s*([^\W\d][\w@]*)\s*\(\s*(.*?)\s*\|\s*(.*?)\s*\)\s*", re.DOTALL)
_SUBJECT = re.compile(
    rf"(?:({_COLUMN})\s*/\s*)?({_COLUMN}(?:\s*:\s*{_COLUMN})*)((?:\s*,\s*\w+\s*=\s*(?:{_COLUMN}|\d+))*)"
)
_OPTION = re.compile(rf"\s*(\w+)\s*=\s*({_COLUMN}|\d+)\s*")

SUBJECTS, ROWS = 500, 200
"""Subjects, and rows of each, from which distances are taken."""


@dataclass(frozen=True)
class ParsedResidual:
    """A residual structure as written.

    Attributes
    ----------
    text : str
    name : str
        Of the structure.
    time : tuple of str
        Columns that tell where a row stands.
    subject : tuple of str
        The column of the subjects, or those whose combinations they are.
    by : str or None
        Column of the groups with parameters of their own.
    factors : int or None
        Of the structures fa and fa0; None where none are given, for one factor and for as many as visits.
    nugget : bool
        Whether a structure of distances has a share of the variance that no two rows have in common.
    """

    text: str
    name: str
    time: tuple[str, ...]
    subject: tuple[str, ...]
    by: str | None = None
    factors: int | None = None
    nugget: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns in use."""
        return (*self.time, *self.subject, *(() if self.by is None else (self.by,)))


@lru_cache(maxsize=64)
def parse_residual(text: str) -> ParsedResidual:
    """Read a residual structure.

    Raises
    ------
    LMMError
        For an unknown structure, or what is no structure at all.
    """
    found = _CALL.fullmatch(text)
    right = _SUBJECT.fullmatch(found[3]) if found else None
    if found is None or right is None:
        raise LMMError(
            f"residual={text!r} cannot be read; write the structure, the column of the visits and that of the "
            "subjects, e.g. 'us(visit | id)' or 'ar1(week | id, by=arm)'"
        )
    refuse_unknown(found[1])
    time = tuple(_bare(part) for part in found[2].split(","))
    for name in time:
        if not re.fullmatch(r"[^`(){}+*]+", name):
            raise LMMError(f"residual={text!r}: {name!r} is no column; make a column of what has to be computed")
    options = {"by": right[1]} if right[1] else {}
    for key, value in _OPTION.findall(right[3]):
        if key in options:
            raise LMMError(f"residual={text!r} gives {key} twice; write it once, as 'arm / id' or by=arm")
        if key not in ("by", "q", "nugget"):
            raise LMMError(f"residual={text!r}: {key}= is unknown; {near(key, ('by', 'q', 'nugget'))}")
        options[key] = value
    if "nugget" in options and options["nugget"] not in ("True", "False"):
        raise LMMError(f"residual={text!r}: nugget is True or False, not {options['nugget']}")
    if "q" in options and not options["q"].isdigit():
        raise LMMError(f"residual={text!r}: q is a number of factors, not {options['q']}")
    return ParsedResidual(
        text.strip(),
        found[1],
        time,
        tuple(_bare(part) for part in right[2].split(":")),
        _bare(options["by"]) if "by" in options else None,
        int(options["q"]) if "q" in options else None,
        options.get("nugget") == "True",
    )


def _bare(text: str) -> str:
    return text.strip().strip("`")


def refuse_unknown(name: str) -> None:
    """Refuse a name that no structure has."""
    known = structure_names()
    if name not in known and not name.startswith("us@"):
        raise LMMError(f"residual: there is no structure {name!r}; {near(name, known)}")


def structure_names() -> tuple[str, ...]:
    """All names of structures but products."""
    return (*position_names(), "fa", "fa0", *coordinate_names())


def bind_residual(
    parsed: ParsedResidual, time: Sequence[Column], subject: Sequence[Column], by: Column | None, rows: Any
) -> ResidualPart:
    """Bring a residual structure together with its columns.

    Parameters
    ----------
    parsed : ParsedResidual
    time, subject : sequences of Column
    by : Column or None
    rows : (n,) int array or None
        Rows in use, None for all.

    Raises
    ------
    LMMError
        For times that the structure does not take, two rows of a subject at one time, or a `by` that varies within a
        subject.
    """
    codes, labels = factor_codes(parsed.subject, subject, rows)
    subjects = Codes(":".join(parsed.subject), codes.astype(np.int64, copy=False), 0, len(labels), labels)
    strata = None
    if by is not None:
        found, names = by.codes(rows)
        strata = Codes(parsed.by or "by", found.astype(np.int64, copy=False), 0, len(names), names)
    structure, where, names_of = _placed(parsed, time, subjects, rows)
    return residual_part(structure, parsed.text, subjects, where, names_of, " and ".join(parsed.time), strata)


def _placed(
    parsed: ParsedResidual, time: Sequence[Column], subjects: Codes, rows: Any
) -> tuple[ResidualStructure, NDArray[Any], list[str]]:
    """The structure, where its rows stand, and the labels of positions."""
    name = parsed.name
    where: NDArray[Any]
    if name in coordinate_names():
        where = np.column_stack([floats(column, rows) for column in time])
        if kind_of(name).one_coordinate and len(time) > 1:
            raise LMMError(f"residual={parsed.text!r}: {name} takes one column of times; use sp_exp for several")
        near_by, far = _distances(where, np.asarray(subjects.codes))
        return of_coordinates(name, near_by, far, nugget=parsed.nugget), where, []
    if parsed.nugget:
        raise LMMError(f"residual={parsed.text!r}: nugget= is for structures of distances, such as sp_exp")
    if name.startswith("us@"):
        if len(time) != 2:
            raise LMMError(f"residual={parsed.text!r}: write the column of the responses and that of the visits")
        codes, responses = time[0].codes(rows)
        where, labels = _positions(parsed, time[1], rows)
        product = of_responses(name[3:], [str(label) for label in responses.tolist()], len(labels))
        return product, codes.astype(np.intp) * len(labels) + where, labels
    if len(time) > 1:
        raise LMMError(
            f"residual={parsed.text!r}: {name} takes one column of visits, not {len(time)}; leave the others out"
        )
    where, labels = _positions(parsed, time[0], rows)
    return of_positions(name, len(labels), parsed.factors), where, labels


def _distances(where: NDArray[np.float64], subjects: NDArray[Any]) -> tuple[float, float]:
    """Smallest and largest distance of rows of a subject, from some of them."""
    order = np.argsort(subjects, kind="stable")
    starts = np.flatnonzero(np.append(True, np.diff(subjects[order]) != 0))
    least, most = np.inf, 0.0
    for mine in np.split(order, starts[1:])[:SUBJECTS]:
        part = where[mine[:ROWS]]
        apart = np.sqrt(((part[:, None] - part) ** 2).sum(axis=2))[np.triu_indices(len(part), 1)]
        apart = apart[apart > 0.0]
        if len(apart):
            least, most = min(least, float(apart.min())), max(most, float(apart.max()))
    return (least, most) if most > 0.0 else (1.0, 1.0)


def _positions(parsed: ParsedResidual, column: Column, rows: Any) -> tuple[NDArray[np.intp], list[str]]:
    """Position of each row, and the labels of the positions."""
    numbers, kind = column.number, kind_of(parsed.name)
    if numbers is not None and numbers.dtype.kind == "f":
        raise LMMError(
            f"residual={parsed.text!r}: {column.title} holds numbers with fractions, and {parsed.name} counts visits; "
            "make the column categorical or integer, or use a structure of distances in time, such as car1 or sp_exp"
        )
    if numbers is not None and numbers.dtype.kind in "iu":
        values = numbers if rows is None else numbers[rows]
        low, high = int(values.min()), int(values.max())
        if kind.by_lag:
            return (values - low).astype(np.intp), [str(v) for v in range(low, high + 1)]
        where, levels = integer_codes(values)
        if kind.each_lag and len(set(np.diff(levels).tolist())) > 1:
            raise LMMError(
                f"residual={parsed.text!r}: the values of {column.title} are not evenly spaced ({_listed(levels)}), "
                f"and {parsed.name} has parameters for each; make the column categorical if its levels are to be "
                "consecutive, or use ar1"
            )
        return where, [str(v) for v in levels.tolist()]
    if column.is_category and (kind.by_lag or kind.each_lag):
        every, categories = column.categories()
        every = every if rows is None else every[rows]
        names = [str(label) for label in categories.tolist()]
        unseen = np.setdiff1d(np.arange(len(names)), every)
        if len(unseen) and kind.each_lag:
            raise LMMError(
                f"residual={parsed.text!r}: no row is at the level {names[unseen[0]]!r} of {column.title}, so that the "
                f"parameters of {parsed.name} there are not determined; remove the level, or use ar1"
            )
        return every.astype(np.intp), names
    codes, labels = column.codes(rows)
    return codes.astype(np.intp), [str(label) for label in labels.tolist()]


def _listed(levels: NDArray[Any]) -> str:
    shown = ", ".join(str(v) for v in levels[:6].tolist())
    return f"{shown}, ..." if len(levels) > 6 else shown


def split_mmrm(formula: str) -> tuple[str, str]:
    """The formula without its structure term, and that term: R's mmrm formulas hold it among the fixed effects.

    Raises
    ------
    LMMError
        For a formula with no structure term, or with several.
    """
    found = []
    for call in re.finditer(r"(?<![\w.])([^\W\d][\w@]*)\s*\(", formula):
        if call[1] not in structure_names() and not call[1].startswith("us@"):
            continue
        depth, at = 1, call.end()
        while at < len(formula) and depth:
            depth += {"(": 1, ")": -1}.get(formula[at], 0)
            at += 1
        if "|" in formula[call.start() : at]:
            found.append((call.start(), at))
    if len(found) != 1:
        count = "no structure term" if not found else f"{len(found)} structure terms"
        raise LMMError(
            f"The formula {formula!r} has {count}; write one for the residuals, e.g. 'y ~ arm * visit + us(visit | id)'"
        )
    start, stop = found[0]
    before, term, after = formula[:start].rstrip(), formula[start:stop], formula[stop:].strip()
    if before.endswith("+"):
        before = before[:-1].rstrip()
    elif before.endswith("~"):
        after = after.removeprefix("+").strip() or "1"
    else:
        raise LMMError(f"The term {term} of the formula must stand by itself; join it to the other terms with '+'")
    return f"{before} {after}".strip(), term


def other_structures(text: str, names: Sequence[str]) -> tuple[str, ...]:
    """A residual structure with other names in the place of its own; names of its own are left out.

    Raises
    ------
    LMMError
        For unknown names.
    """
    parsed = parse_residual(text)
    for name in names:
        refuse_unknown(name)
    start = text.index(parsed.name)
    return tuple(text[:start] + name + text[start + len(parsed.name) :] for name in names if name != parsed.name)
