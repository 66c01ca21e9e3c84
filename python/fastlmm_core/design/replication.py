"""Designs made of copies of the groups of a given one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..errors import LMMError
from ..support.types import Index
from .design import Design
from .independence import cluster_labels

__all__ = ["Rows", "Units", "independent_units", "levels_of", "observations", "subjects"]


Rows = tuple[Index, tuple[Index, ...]]
"""Rows of the given design, and their new levels of each factor, 0 to m - 1."""


def _distinct(unit: Index, level: Index) -> tuple[Index, Index]:
    """Number of each row's level within its unit, by first appearance, and the number of levels of each unit."""
    pairs, first, inverse = np.unique(unit * (int(level.max()) + 1) + level, return_index=True, return_inverse=True)
    owner = unit[first]
    number = np.empty(len(pairs), dtype=np.intp)
    number[np.lexsort((first, owner))] = np.arange(len(pairs))
    counts = np.bincount(owner)
    return number[inverse] - (np.cumsum(counts) - counts)[unit], counts


class Units:
    """Sets of rows of a design that can be taken several times.

    Parameters
    ----------
    design : Design
    labels : (n,) array
        Unit of each row, 0 to m - 1, all of them used.
    fresh : (n_factors,) sequence of bool
        Whether every copy of a unit has levels of its own of this factor; otherwise it keeps those that it has.
    """

    def __init__(self, design: Design, labels: Index, fresh: list[bool]) -> None:
        self.order = np.argsort(labels, kind="stable")
        self.sizes = np.bincount(labels)
        self.starts = np.cumsum(self.sizes) - self.sizes
        self.fresh = fresh
        unit = labels[self.order]
        # levels within units, of each factor, for the rows in their order by units
        self.levels: list[Index] = []
        self.counts: list[Index] = []
        for factor, own in zip(design.factors, fresh, strict=True):
            level, counts = factor.grouping.index[self.order], np.zeros(0, dtype=np.intp)
            if own:
                level, counts = _distinct(unit, level)
            self.levels.append(level)
            self.counts.append(counts)

    def __len__(self) -> int:
        return len(self.sizes)

    def copies(self, chosen: Index) -> Rows:
        """Rows and levels of a design of these units, in this order."""
        length = self.sizes[chosen]
        first = np.cumsum(length) - length
        copy = np.repeat(np.arange(len(chosen)), length)
        at = np.arange(int(length.sum())) + (self.starts[chosen] - first)[copy]
        codes = []
        for level, counts, own in zip(self.levels, self.counts, self.fresh, strict=True):
            if own:
                taken = counts[chosen]
                codes.append(level[at] + (np.cumsum(taken) - taken)[copy])
            else:
                codes.append(np.unique(level[at], return_inverse=True)[1])
        return self.order[at], tuple(codes)

    def cycle(self, design: Design, among: Index) -> Index:
        """Units in the order in which they are taken: kinds take turns in proportion to their numbers.

        Units with the same rows of X, Z, weights and offset, and the same levels within, are of one kind; within a
        kind they come in the order of their first rows.

        Parameters
        ----------
        among : (k,) array
            The units that take part.
        """
        parts = [design.exog, design.exog_re]
        parts += [column[:, None] for column in (design.weights, design.offset) if column is not None]
        table = np.column_stack([*(part[self.order] for part in parts), *self.levels])
        contents = np.split(table, self.starts[1:])
        members: dict[bytes, list[int]] = {}
        for unit in among[np.argsort(self.order[self.starts[among]], kind="stable")].tolist():
            members.setdefault(contents[unit].tobytes(), []).append(unit)
        # the i-th of c units of a kind comes at (i + 1/2) / c
        turns = [((i + 0.5) / len(kind), unit) for kind in members.values() for i, unit in enumerate(kind)]
        return np.array([unit for _, unit in sorted(turns, key=lambda turn: turn[0])], dtype=np.intp)


def independent_units(design: Design, why: str) -> Units:
    """The groups of the only factor, or the clusters of rows that share no level of any factor.

    Parameters
    ----------
    design : Design
    why : str
        What a message says before it tells that there are none.

    Raises
    ------
    LMMError
        Where crossed factors join all rows.
    """
    labels = cluster_labels(design)
    if not labels.any():
        names = " and ".join(repr(factor.grouping.name) for factor in design.factors)
        raise LMMError(f"{why}, but the crossed factors {names} join all rows, so that there are none")
    return Units(design, labels, [True] * len(design.factors))


def subjects(design: Design) -> Callable[[int], Rows]:
    """Designs of so many independent groups: see `planning.curves`."""
    names = " or ".join(f"along={factor.grouping.name!r}" for factor in design.factors)
    try:
        units = independent_units(design, "along='subjects' needs independent groups")
    except LMMError as error:
        raise LMMError(f"{error}; use {names}") from None
    cycle = units.cycle(design, np.arange(len(units)))
    return lambda count: units.copies(cycle[np.arange(count) % len(cycle)])


def levels_of(design: Design, name: str) -> Callable[[int], Rows]:
    """Designs of so many levels of one factor, within each level of the factors in which it is nested."""
    at = [factor.grouping.name for factor in design.factors].index(name)
    index = [factor.grouping.index for factor in design.factors]
    counts = [len(factor.grouping.labels) for factor in design.factors]

    def parents(fine: int, coarse: int) -> Index | None:
        """The level of `coarse` in which each level of `fine` lies, if it is nested."""
        up = np.empty(counts[fine], dtype=np.intp)
        up[index[fine]] = index[coarse]
        return up if fine != coarse and (up[index[fine]] == index[coarse]).all() else None

    fresh = [f == at or parents(f, at) is not None for f in range(len(index))]
    units = Units(design, index[at], fresh)
    above = [up for f in range(len(index)) if not fresh[f] and (up := parents(at, f)) is not None]
    place = np.zeros(counts[at], dtype=np.intp)
    if above:
        place = np.unique(np.column_stack(above), axis=0, return_inverse=True)[1].reshape(-1)
    cycles = [units.cycle(design, np.flatnonzero(place == p)) for p in range(int(place.max()) + 1)]
    return lambda count: units.copies(np.concatenate([cycle[np.arange(count) % len(cycle)] for cycle in cycles]))


def observations(design: Design) -> Callable[[int], Rows]:
    """Designs with the first so many rows of each level of the factor that has most."""
    index = design.grouping.index
    sizes = np.bincount(index)
    order = np.argsort(index, kind="stable")
    groups = index[order]
    place = np.arange(len(order)) - (np.cumsum(sizes) - sizes)[groups]

    def rows(count: int) -> Rows:
        short = np.flatnonzero(sizes < count)
        if len(short):
            grouping, first = design.grouping, short[0]
            raise LMMError(
                f"values: {count} observations are more than the {sizes[first]} of {grouping.name} "
                f"{grouping.labels.tolist()[first]!r}; "
                "give a design with as many rows per group as the largest value"
            )
        chosen = order[place < count]
        return chosen, tuple(np.unique(f.grouping.index[chosen], return_inverse=True)[1] for f in design.factors)

    return rows
