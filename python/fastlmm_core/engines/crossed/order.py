"""Order of elimination of several grouping factors, and their cross-products in that order.

Factors that are nested, each in the next, form a chain that is eliminated level by level, finest first; the levels of
the others make up the tail.  The chain is chosen so that the tail is small.  Which levels of the tail are eliminated
one by one too is found in cores.py, when an elimination is asked for.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ...kernels import hierarchies
from ...kernels.layouts import Layout, Stage, Tail
from ...support.types import Array, Index
from .cores import tail_levels

__all__ = ["chain_of", "lay_out", "lay_out_chain"]


def chain_of(codes: list[Index], sizes: list[int], widths: list[int]) -> tuple[list[int], list[Index]]:
    """Factors to be eliminated level by level, finest first, and the parents of their levels.

    An eliminated factor couples what its levels touch: the next one can be eliminated level by level only if every
    level of the one before lies in one of its own.
    """
    count = len(codes)
    parents: dict[tuple[int, int], Index | None] = {}

    def parent(fine: int, coarse: int) -> Index | None:
        if (fine, coarse) not in parents:
            smaller = sizes[coarse] <= sizes[fine]
            kernel = hierarchies.nested_in
            parents[fine, coarse] = kernel(codes[fine], codes[coarse], sizes[fine]) if smaller else None
        return parents[fine, coarse]

    by_size = sorted(range(count), key=lambda f: -sizes[f])
    best: list[int] = []
    least = -1
    for first in by_size:
        chain = [first]
        for other in by_size:
            if other not in chain and parent(chain[-1], other) is not None:
                chain.append(other)
        rest = sum(sizes[f] * widths[f] for f in range(count) if f not in chain)
        if least < 0 or rest < least:
            best, least = chain, rest
    found = [parent(a, b) for a, b in pairwise(best)]
    return best, [p for p in found if p is not None]


def lay_out(
    Z: list[Array], codes: list[Index], sizes: list[int], columns: list[int], xy: Array
) -> tuple[Layout, Array]:
    """Symbolic analysis and cross-products of conditioned rows.

    Parameters
    ----------
    Z : list of (n, q_f) arrays
    codes : list of (n,) arrays
    sizes, columns : lists of int
        Levels of each factor, and its first column in Lambda.
    xy : (n, k) array

    Returns
    -------
    layout : Layout
    cross : (n_slots, k) array
        Z'[X y].

    """
    widths = [part.shape[1] for part in Z]
    chain, parents = chain_of(codes, sizes, widths)
    last = [f for f in range(len(Z)) if f not in chain]
    # levels of the chain anew, children of one parent side by side
    number = {chain[-1]: np.arange(sizes[chain[-1]])}
    above: dict[int, Index] = {}
    for s in range(len(chain) - 2, -1, -1):
        f = chain[s]
        up = number[chain[s + 1]][parents[s]]
        order = hierarchies.sort_rows(up, sizes[chain[s + 1]])[1]
        number[f] = np.empty(sizes[f], dtype=np.intp)
        number[f][order] = np.arange(sizes[f])
        above[f] = up[order]
    coded = {f: number[f][codes[f]] for f in chain}

    tail_of: list[Tail] = []
    comp_slot = np.zeros(1, dtype=np.intp)
    table = np.zeros((0, 5), dtype=np.intp)
    rows = np.zeros(0, dtype=np.intp)
    others = np.zeros((len(xy), 0))
    comp_of_top = None
    if last:
        top = chain[-1]
        found = tail_levels(last, codes, sizes, widths, Z, coded[top], sizes[top])
        table, rows, others, comp, comp_slot = found.table, found.rows, found.others, found.comp, found.comp_slot
        for i, f in enumerate(last):
            mine = np.flatnonzero(table[:, 5] == i)
            level = table[mine, 6]
            slot = np.empty(sizes[f], dtype=np.intp)
            slot[level] = table[mine, 4]
            where = np.empty(sizes[f], dtype=np.intp)
            where[level] = comp[mine]
            later = np.ascontiguousarray(table[table[:, 5] > i][:, :5])
            start, slots, panel = hierarchies.panel_products(codes[f], sizes[f], Z[f], later, rows, others)
            own, _ = hierarchies.own_products(codes[f], Z[f], xy[:, :0], sizes[f])
            tail_of.append(Tail(sizes[f], widths[f], columns[f], slot, where, own, start, slots, panel))
            if i == 0:
                comp_of_top = np.empty(sizes[top], dtype=np.intp)
                comp_of_top[coded[top]] = where[codes[f]]
        table = np.ascontiguousarray(table[:, :5])

    stages: list[Stage] = []
    crosses: list[Array] = []
    lists: list[tuple[Index, NDArray[np.int32]]] = []
    comps: list[Index | None] = [comp_of_top]
    for f in reversed(chain[:-1]):
        before = comps[-1]
        comps.append(None if before is None else before[above[f]])
    comps.reverse()
    for s, f in enumerate(chain):
        own, cross = hierarchies.own_products(coded[f], Z[f], xy, sizes[f])
        crosses.append(cross)
        coarser = chain[s + 1 :]
        products = np.zeros((sizes[f], widths[f], sum(widths[g] for g in coarser)))
        column = 0
        for g in coarser:
            hierarchies.chain_products(coded[f], Z[f], Z[g], products, column)
            column += widths[g]
        stage = Stage(
            sizes[f], widths[f], columns[f], above.get(f), own, products, comps[s], None, None, None, None
        )  # fmt: skip
        if last:
            begin, near, touched = hierarchies.panel_products(coded[f], sizes[f], Z[f], table, rows, others)
            stage = stage._replace(start=begin, slots=near, panel=touched)
            lists.append((begin, near))
        stages.append(stage)
    if last:
        for s, f in enumerate(chain[:-1]):
            upward = hierarchies.places_above(*lists[s], above[f], *lists[s + 1])
            stages[s] = stages[s]._replace(up=upward)

    places: list[Index] = [np.zeros((0, 0), dtype=np.intp)] * len(Z)
    at = 0
    for f in chain:
        places[f] = at + number[f][:, None] * widths[f] + np.arange(widths[f])
        at += sizes[f] * widths[f]
    total = at + int(comp_slot[-1])
    cross = np.zeros((total, xy.shape[1]))
    if crosses:
        cross[:at] = np.concatenate(crosses)
    for f, tail in zip(last, tail_of, strict=True):
        places[f] = (at + comp_slot[tail.comp] + tail.slot)[:, None] + np.arange(widths[f])
        cross[places[f].ravel()] = hierarchies.own_products(codes[f], Z[f], xy, sizes[f])[1]
    return Layout(tuple(stages), tuple(tail_of), comp_slot, tuple(places), comp_slot[:-1]), cross


def lay_out_chain(
    raw: Array, turn: Array, xy: Array, chain: list[int], parents: list[Index], sizes: list[int], columns: list[int],
    widths: list[int],
) -> tuple[Layout, Array]:  # fmt: skip
    """`lay_out` for nested factors, from the cross-products of the finest levels."""
    number = np.arange(sizes[chain[-1]])
    numbers = [number]
    above: list[Index | None] = [None]
    order = number
    for s in range(len(chain) - 2, -1, -1):
        up = number[parents[s]]
        order = hierarchies.sort_rows(up, sizes[chain[s + 1]])[1]
        number = np.empty(sizes[chain[s]], dtype=np.intp)
        number[order] = np.arange(len(number))
        numbers.append(number)
        above.append(up[order])
    numbers.reverse()
    above.reverse()
    A, C = hierarchies.rotated_products(raw, order, turn, xy)
    stages: list[Stage] = []
    crosses: list[Array] = []
    places: list[Index] = [order] * len(chain)
    at = 0
    for s, f in enumerate(chain):
        part = slice(columns[f], columns[f] + widths[f])
        later = [columns[g] + i for g in chain[s + 1 :] for i in range(widths[g])]
        own = np.ascontiguousarray(A[:, part, part])
        products = np.ascontiguousarray(A[:, part][:, :, later])
        stages.append(Stage(sizes[f], widths[f], columns[f], above[s], own, products, None, None, None, None, None))
        crosses.append(C[:, part].reshape(-1, C.shape[2]))
        places[f] = at + numbers[s][:, None] * widths[f] + np.arange(widths[f])
        at += sizes[f] * widths[f]
        up_next = above[s]
        if up_next is not None:
            first = np.searchsorted(up_next, np.arange(sizes[chain[s + 1]]))
            A, C = np.add.reduceat(A, first, axis=0), np.add.reduceat(C, first, axis=0)
    return Layout(tuple(stages), (), np.zeros(1, dtype=np.intp), tuple(places)), np.concatenate(crosses)
