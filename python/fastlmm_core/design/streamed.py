"""Designs of rows that are not held: names, levels and covariances, and a refusal of what needs rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from ..errors import LMMError
from .design import Design, Source
from .grouping import Codes, Grouping
from .terms import NamedTerm, RandomPart, side_by_side

__all__ = ["StreamedDesign", "grouping_of", "named_columns", "random_without_rows", "refuse_rows"]


def refuse_rows(what: str) -> NoReturn:
    """Say that rows are needed that are not there, and what to do.

    Raises
    ------
    LMMError
    """
    raise LMMError(
        f"{what} cannot be given: the rows of this model were read in pieces and summed, not held; "
        "result.augment(source) gives fitted values and residuals piece by piece, and for all else that needs rows fit "
        "a table in memory"
    )


class _NotHeld:
    """An attribute with a value for each row."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __get__(self, owner: Any, kind: Any = None) -> Any:
        if owner is None:
            return self
        refuse_rows(self.what)

    def __set__(self, owner: Any, value: Any) -> None:
        """The constructor of the class above sets all its fields."""


NAMED = 256
"""Columns whose names can be told apart."""


def named_columns(names: Sequence[str]) -> NDArray[np.float64]:
    """Columns that stand for those of these names, the same for a name in every model (2 NAMED, k).

    They are drawn, so that columns of different names are independent: of two models whose rows are not held, what has
    the same name is the same.

    Raises
    ------
    LMMError
        For too many of them.
    """
    if len(names) > NAMED:
        raise LMMError(f"{len(names)} columns are too many to be compared by their names; fit tables in memory")
    drawn = [np.random.default_rng(list(name.encode())).standard_normal(2 * NAMED) for name in names]
    return np.array(drawn).reshape(len(names), 2 * NAMED).T.copy()


class StreamedCodes(Codes):
    """Levels of a factor without the codes of the rows."""

    codes: Any = _NotHeld("the level of each row")


class StreamedPart(RandomPart):
    """Random-effects terms without their columns."""

    parts: Any = _NotHeld("Z, the columns of the random effects,")
    Z: Any = _NotHeld("Z, the columns of the random effects,")


@dataclass(frozen=True, eq=False)
class StreamedDesign(Design):
    """A design whose rows were read in pieces and are not held.

    Attributes
    ----------
    passes : int
        How often all rows were read.
    missing : dict
        Missing values of each column that has any.
    weighted : bool
    offset_mean : float or None
        None where there is no offset.
    constant : int
        The constant column of X, -1 for none.
    exog_root : (r, p) array
        R with R'R = X'WX.
    mean_squares : (q, q) array
        Z'WZ / n.
    squares, log_weights : float
        Sum of w (y - offset)^2, and of the logarithms of the weights.
    recipe : Recipe
        What turns other pieces into columns.
    """

    passes: int = 1
    missing: Any = None
    weighted: bool = False
    offset_mean: float | None = None
    constant: int = -1
    exog_root: Any = None
    mean_squares: Any = None
    squares: float = 0.0
    log_weights: float = 0.0
    recipe: Any = None

    def origin(self, data: Any = None) -> Source:
        """See `Design.origin`; there is no table unless one is given."""
        if data is None:
            raise LMMError(
                "data is missing: the rows of this model were read in pieces and summed, not held; give data=, or fit "
                "another formula to the source, lmm(formula, source)"
            )
        return Source(data, {"weights": self.recipe.weights, "offset": self.recipe.offset, "sigma": self.sigma})

    def rows(self, rows: Any, levels: Any = None) -> NoReturn:
        """Refuse a design of some of the rows."""
        refuse_rows("a part of the rows")

    @property
    def caller_rows(self) -> NoReturn:
        """Refuse what is about rows of a table."""
        refuse_rows("the table")


for _name, _what in (
    ("exog", "X, the columns of the fixed effects,"), ("weights", "the weights"), ("offset", "the offset"),
):  # fmt: skip
    setattr(StreamedDesign, _name, _NotHeld(_what))


def grouping_of(name: str, labels: NDArray[Any]) -> Grouping:
    """A grouping factor with these levels, in order."""
    return Grouping(StreamedCodes(name, np.empty(0, dtype=np.int64), 0, len(labels), labels))


def random_without_rows(terms: Sequence[NamedTerm], codes: Sequence[Codes] = ()) -> RandomPart:
    """The terms of each grouping factor side by side; the factors in the order of their codes, else as they come."""
    names = [read.name for read in codes] or list(dict.fromkeys(term.name for term in terms))
    order, rest = side_by_side(names, terms)
    return StreamedPart((), tuple(codes), *rest, order)
