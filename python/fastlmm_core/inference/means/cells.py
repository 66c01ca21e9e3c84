"""Rows of the data in each combination of the levels of the factors, which weigh the averages of marginal means."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import LMMError
from ...formula.coding import fixed_terms
from ...support.hints import option
from ...support.types import Array, Index

if TYPE_CHECKING:
    from ...estimation.model import Model

__all__ = ["WEIGHTS", "Cells", "check_weights", "levels_of_rows"]


WEIGHTS = ("equal", "proportional", "cells", "flat")
"""How averages over the levels of factors are weighted."""


def check_weights(weights: str) -> None:
    """Refuse unknown names of weights."""
    if weights not in WEIGHTS:
        raise LMMError(
            f"weights={weights!r} is unknown: use one of {', '.join(WEIGHTS)}{option('weights', weights, WEIGHTS)}"
        )


class Cells:
    """Combinations of levels that occur, with the number of their rows.

    Parameters
    ----------
    codes : mapping
        For each factor the places of the levels of all rows; -1 for levels that do not count.
    sizes : mapping
        Number of levels of these and of further variables, which have all their values in every cell.

    Attributes
    ----------
    names : tuple of str
    codes : (cells, variables) int array
    rows : (cells,) array
    """

    def __init__(self, codes: Mapping[str, Index], sizes: Mapping[str, int]) -> None:
        self.sizes = dict(sizes)
        rows = len(next(iter(codes.values()))) if codes else 1
        table = np.column_stack(list(codes.values())) if codes else np.zeros((rows, 0), dtype=np.intp)
        found, count = np.unique(table[(table >= 0).all(axis=1)], axis=0, return_counts=True)
        self.names = tuple(codes)
        for name, size in sizes.items():  # values that the data do not know stand beside each cell
            if name not in codes:
                value = np.tile(np.arange(size), len(found))
                found = np.column_stack([np.repeat(found, size, axis=0), value])
                count = np.repeat(count, size)
                self.names += (name,)
        self.codes, self.rows = found, count.astype(np.float64)

    def shares(self, kind: str, names: Sequence[str], others: Sequence[str]) -> Array:
        """Weights of the combinations of `others` within each combination of `names`; the first of each varies fastest.

        Parameters
        ----------
        kind : {"proportional", "cells", "flat"}
        names, others : sequence of str
            Factors whose combinations make the means, and those that are averaged over.

        Returns
        -------
        (combinations of others, combinations of names) array
            Columns add to one; equal where a mean has no rows.
        """
        outer, inner = self._place(others), self._place(names)
        n_outer, n_inner = (int(np.prod([self.sizes[name] for name in some], dtype=float)) for some in (others, names))
        amount = np.ones_like(self.rows) if kind == "flat" else self.rows
        out = np.zeros((n_outer, n_inner))
        if kind == "proportional":
            out += np.bincount(outer, amount, n_outer)[:, None]
        else:
            np.add.at(out, (outer, inner), amount)
        out[:, out.sum(axis=0) == 0.0] = 1.0
        return np.asarray(out / out.sum(axis=0))

    def _place(self, names: Sequence[str]) -> Index:
        place, stride = np.zeros(len(self.rows), dtype=np.intp), 1
        for name in names:
            place += stride * self.codes[:, self.names.index(name)]
            stride *= self.sizes[name]
        return place


def levels_of_rows(
    model: Model, name: str, levels: Mapping[str, Sequence[Any]], design: Callable[[dict[str, list[Any]]], Array]
) -> Index:
    """The place of the level of a factor in each row, read from the columns of its terms.

    Parameters
    ----------
    model : LinearMixedModel
        From a formula.
    name : str
    levels : mapping
        All levels of each factor.
    design : callable
        Fixed-effects design of some combinations of levels.

    Returns
    -------
    (n,) int array

    Raises
    ------
    LMMError
        For a factor whose levels are not seen in the design.
    """
    plain = [term for term in fixed_terms(model.design) if not term.numeric and term.variables <= levels.keys()]
    for term in sorted(plain, key=lambda term: len(term.variables)):
        if name not in term.variables:
            continue
        columns = [j for other in plain if other.variables <= term.variables for j in other.columns]
        used = [name, *sorted(term.variables - {name})]
        cells = list(product(*(levels[one] for one in used)))
        wanted = design({one: [cell[i] for cell in cells] for i, one in enumerate(used)})[:, columns]
        direction = np.random.default_rng(1).normal(size=len(columns))  # in which no two cells are the same
        known, found = wanted @ direction, model.exog[:, columns] @ direction
        order = np.argsort(known)
        tolerance = 1e-9 * (1.0 + float(np.abs(known).max()))
        if (np.diff(known[order]) < 10.0 * tolerance).any():
            continue
        middle = 0.5 * (known[order][1:] + known[order][:-1])
        place = order[np.searchsorted(middle, found)]
        if (np.abs(known[place] - found) < tolerance).all():
            return np.asarray(place // (len(cells) // len(levels[name])), dtype=np.intp)
    raise LMMError(
        f"weights: the rows of each level of {name!r} cannot be told from the fixed part, where it has no term of its "
        "own; use weights='equal'"
    )
