"""Orders in which levels of several factors are eliminated, as the kernels read them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..support.types import Array, Index

__all__ = ["Families", "Layout", "Sparse", "Stage", "Tail"]


class Families(NamedTuple):
    """Places of the levels of a chain of factors, finest first.

    Attributes
    ----------
    order : tuple of (n_places,) arrays
        Level in each place, -1 for none.
    starts : tuple of (n_blocks + 1,) arrays
        First vector of each block.
    parents : tuple of (n_blocks, lanes) arrays
        For all factors but the last, the place of the parent of each lane; -1 for none.
    """

    order: tuple[Index, ...]
    starts: tuple[Index, ...]
    parents: tuple[Index, ...]


class Tail(NamedTuple):
    """A factor of the tail: place of its levels, their products among themselves and with later factors."""

    m: int
    q: int
    column: int
    slot: Index
    comp: Index
    own: Array
    start: Index
    slots: NDArray[np.int32]
    panel: Array


class Sparse(NamedTuple):
    """Levels of the tail that are eliminated one by one, in this order, before the cores.

    Attributes
    ----------
    tail, comp, slot : (nodes,) arrays
        Factor (place in `tails`), component and first slot within it.
    start : (nodes + 1,) array
    slots : int32 array
        Slots, within the component, of what is eliminated later and joined by this elimination, ascending.
    own_at, panel_at : (nodes + 1,) arrays
        First place of each node's products with itself (q, q) and with its neighbours (q, width).
    own, panel : arrays
    """

    tail: Index
    comp: Index
    slot: Index
    start: Index
    slots: NDArray[np.int32]
    own_at: Index
    panel_at: Index
    own: Array
    panel: Array


class Stage(NamedTuple):
    """A factor of the chain: its levels and their products with coarser ones and with the tail.

    Attributes
    ----------
    m, q, column : int
        Levels, random effects, first column of the factor in Lambda.
    parent : (m,) array or None
        Level of the next stage.
    own, chain : (m, q, q), (m, q, columns of the coarser stages) arrays
    comp : (m,) array or None
        Component of the tail.
    start, slots, panel, up : arrays or None
        Neighbours in the tail: see `hierarchies.panel_products` and `hierarchies.places_above`.
    """

    m: int
    q: int
    column: int
    parent: Index | None
    own: Array
    chain: Array
    comp: Index | None
    start: Index | None
    slots: NDArray[np.int32] | None
    panel: Array | None
    up: NDArray[np.int32] | None


class Layout(NamedTuple):
    """Order of elimination and cross-products.

    Attributes
    ----------
    stages, tails : tuples
    comp_slot : (components + 1,) array
        First slot of each component of the tail.
    places : tuple of (m, q) arrays
        For each factor, as the caller numbers its levels, the row in arrays over all levels.
    core_slot : (components,) array
        First slot of the core of each component.
    sparse : Sparse or None
    """

    stages: tuple[Stage, ...]
    tails: tuple[Tail, ...]
    comp_slot: Index
    places: tuple[Index, ...]
    core_slot: Index = np.zeros(0, dtype=np.intp)
    sparse: Sparse | None = None

    @property
    def core_sizes(self) -> Index:
        """Columns of the core of each component."""
        return self.comp_slot[1:] - self.core_slot

    def factor_slots(self) -> tuple[list[Index], list[int]]:
        """Slots of each factor as (m, q) arrays, and its first column in Lambda.

        Returns
        -------
        slots : list of (m, q) intp arrays
        columns : list of int
        """
        slots: list[Index] = []
        columns: list[int] = []
        at = 0
        for stage in self.stages:
            slots.append(at + np.arange(stage.m * stage.q).reshape(stage.m, stage.q))
            columns.append(stage.column)
            at += stage.m * stage.q
        comp_slot = np.asarray(self.comp_slot)
        for tail in self.tails:
            slots.append((at + comp_slot[tail.comp] + tail.slot)[:, None] + np.arange(tail.q))
            columns.append(tail.column)
        return slots, columns
