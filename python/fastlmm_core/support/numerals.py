"""Numbers written as text: what a missing code or a decimal comma in a file makes of a numeric column."""

from __future__ import annotations

import re
from collections.abc import Iterable
from numbers import Number
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Numerals", "first_other", "numerals"]

_NUMERAL = re.compile(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*")
_COMMA = re.compile(r"\s*[-+]?(\d+,\d*|,\d+|\d{1,3}([., ]\d{3})+([.,]\d+)?)([eE][-+]?\d+)?\s*")
"""Numbers with a decimal comma, or with their thousands marked."""

_GAPS = frozenset(
    {"", ".", "..", "...", "-", "--", "?", "na", "n/a", "n.a.", "#n/a", "nan", "null", "none", "nil", "missing",
     "inf", "-inf", "#value!", "#div/0!", "#ref!"}
)  # fmt: skip
"""What stands in files where a value is missing, in lower case."""

_FEW = 10
"""So many distinct numbers, and nothing else, may be levels that somebody made text of; more are measurements."""

_NEARLY = 0.9
"""Share of the values, missing ones aside, that are numbers in a column that is one of numbers."""


class Numerals(NamedTuple):
    """What the text of a column amounts to.

    Attributes
    ----------
    row : int or None
        The first row that holds something else than a plain number; None where there is none.
    value : object
        What it holds.
    comma : bool
        Whether that is a number with a decimal comma, or with its thousands marked.
    """

    row: int | None
    value: Any
    comma: bool


def numerals(codes: NDArray[Any], labels: NDArray[Any]) -> Numerals | None:
    """Whether nearly all values of a column of text are numbers, and the first that is none.

    Parameters
    ----------
    codes : (n,) array of int
        Place of each row's value in `labels`, -1 where it is missing.
    labels : (m,) array
        The distinct values.

    Returns
    -------
    Numerals or None
        None where the values are labels: where less than nine tenths are numbers, codes for missing values aside;
        where numbers are padded with zeros to one length, as those of identifiers are; and where there is nothing but
        plain numbers, at most ten of them, each in several rows.
    """
    kinds = [_kind(label) for label in labels.tolist()]
    count = np.bincount(codes[codes >= 0], minlength=len(kinds))
    total = {kind: int(sum(c for c, k in zip(count.tolist(), kinds, strict=True) if k == kind)) for kind in "nco-"}
    numbers = total["n"] + total["c"]
    if numbers == 0 or numbers < _NEARLY * (numbers + total["o"]) or _padded(labels):
        return None
    other = np.array([kind != "n" for kind in kinds])
    rows = np.flatnonzero(other[codes] & (codes >= 0))
    if not len(rows):
        few = len(kinds) <= _FEW and 2 * len(kinds) <= numbers
        return None if few else Numerals(None, None, False)
    row = int(rows[0])
    return Numerals(row, labels[codes[row]], kinds[codes[row]] == "c")


def first_other(values: Iterable[Any]) -> str:
    """A clause on the first of some values that is no number, with its row; on the first of all where all are.

    Missing values (None, NaN) are passed over.
    """
    first = None
    for row, value in enumerate(values):
        if value is None or value != value or str(value) in ("<NA>", "NaT"):
            continue
        if first is None:
            first = f"numbers written as text, {str(value)!r} at row {row} (counting from 0)"
        if _kind(value) != "n":
            return f"{str(value)!r} at row {row} (counting from 0)"
    return "nothing" if first is None else first


def _kind(value: Any) -> str:
    """n: number, c: number with a comma or marked thousands, -: code for a missing value, o: anything else."""
    if not isinstance(value, str):
        return "n" if isinstance(value, Number) and type(value).__name__ not in ("bool", "bool_") else "o"
    if _NUMERAL.fullmatch(value):
        return "n"
    if _COMMA.fullmatch(value):
        return "c"
    return "-" if value.strip().lower() in _GAPS else "o"


def _padded(labels: NDArray[Any]) -> bool:
    """Whether the numbers are digits of one length, of which some begin with 0: identifiers such as 007."""
    digits = [label for label in labels.tolist() if isinstance(label, str) and _kind(label) == "n"]
    return (
        len({len(label) for label in digits}) == 1
        and len(digits[0]) > 1
        and all(label.isdecimal() for label in digits)
        and any(label[0] == "0" for label in digits)
    )
