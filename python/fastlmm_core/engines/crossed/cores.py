"""Order of the tail: the levels of crossed factors that do not lie in the chain.

In a large connected component levels with few neighbours are eliminated one by one, as long as that leaves the others
sparse; the rest of each component, its core, is dense.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...kernels import hierarchies
from ...kernels.layouts import Sparse, Tail
from ...support.types import Array, Index

__all__ = ["TailLevels", "sparse_levels", "tail_levels"]


SPARSE_FROM = 500
"""Columns of a component of the tail from which sparse levels are looked for."""

DENSE_SHARE = 0.25
"""A core in which each level has more than this share of the rest as neighbours is dense."""

SPARSE_COST, SPARSE_GAIN = 6.0, 0.5
"""An operation on sparse levels takes as long as so many of LAPACK's; share of the dense cost that is worth it."""


class TailLevels(NamedTuple):
    """Levels of the tail in the order of their slots.

    Attributes
    ----------
    table : (levels, 7) array
        First and last + 1 place in `rows`, first column in `others`, columns, slot within the component, factor
        among the last ones, level.
    rows : array
        Rows by level, factor by factor.
    others : (n, columns) array
        Z of the last factors, side by side.
    comp : (levels,) array
    comp_slot, core_slot : (components + 1,), (components,) arrays
    begin, later : arrays
        The neighbours of the i-th of all sparse levels are the levels (rows of `table`) later[begin[i] : begin[i + 1]].
    """

    table: Index
    rows: Index
    others: Array
    comp: Index
    comp_slot: Index
    core_slot: Index
    begin: Index
    later: Index


def tail_levels(
    last: list[int], codes: list[Index], sizes: list[int], widths: list[int], Z: list[Array], top: Index, n_top: int
) -> TailLevels:
    """Component by component: sparse levels in the order of their elimination, then the most frequent ones first."""
    offsets = np.concatenate([[0], np.cumsum([sizes[f] for f in last])]).astype(np.intp)
    numbered = np.stack([codes[f] + offset for f, offset in zip(last, offsets[:-1], strict=True)])
    label = hierarchies.components(top, n_top, numbered, int(offsets[-1]))
    starts, stops, rows, counts, of, level, width, column = [], [], [], [], [], [], [], []
    n = len(top)
    first = 0
    for i, f in enumerate(last):
        begin, order = hierarchies.sort_rows(codes[f], sizes[f])
        starts.append(begin[:-1] + i * n)
        stops.append(begin[1:] + i * n)
        rows.append(order)
        counts.append(np.diff(begin))
        of.append(np.full(sizes[f], i))
        level.append(np.arange(sizes[f]))
        width.append(np.full(sizes[f], widths[f]))
        column.append(np.full(sizes[f], first))
        first += widths[f]
    widths_of = np.concatenate(width)
    order = np.lexsort((-np.concatenate(counts), label))
    n_comps = int(label.max()) + 1
    comp_slot = np.zeros(n_comps + 1, dtype=np.intp)
    np.cumsum(np.bincount(label, weights=widths_of, minlength=n_comps).astype(np.intp), out=comp_slot[1:])
    first_row, last_row, by_level = np.concatenate(starts), np.concatenate(stops), np.concatenate(rows)
    elements = partial(_elements, first_row, last_row, by_level, top, n_top)
    order, chosen, lengths, later = _sparse_first(order, label, comp_slot, elements, widths_of)
    comp = label[order]
    ends = np.cumsum(widths_of[order])
    slot = ends - widths_of[order] - comp_slot[comp]
    table = np.column_stack(
        [first_row[order], last_row[order], np.concatenate(column)[order], widths_of[order], slot]
        + [np.concatenate(part)[order] for part in (of, level)]
    ).astype(np.intp)
    sparse_columns = np.bincount(label[chosen], weights=widths_of[chosen], minlength=n_comps).astype(np.intp)
    rank = np.empty(len(order), dtype=np.intp)
    rank[order] = np.arange(len(order))
    return TailLevels(
        np.ascontiguousarray(table),
        by_level,
        np.ascontiguousarray(np.concatenate([Z[f] for f in last], axis=1)),
        comp,
        comp_slot,
        comp_slot[:-1] + sparse_columns,
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.intp),
        rank[later],
    )


def _sparse_first(
    order: Index, label: Index, comp_slot: Index, elements: Callable[[], Elements], widths: Index
) -> tuple[Index, Index, Index, Index]:
    """Levels that are eliminated one by one moved to the front of their components.

    `elements` makes what `_elements` returns, where a component is large enough to ask for it.

    Returns
    -------
    order : (levels,) array
    chosen : (nodes,) array
        The levels moved, in their new order.
    lengths, later : (nodes,), (sum of lengths,) arrays
        How many levels each of them joins, and which.
    """
    nothing = np.zeros(0, dtype=np.intp)
    sizes = np.diff(comp_slot)
    if sizes.max() < SPARSE_FROM:
        return order, nothing, nothing, nothing
    m = len(label)
    start, near, useful = elements()
    n_top = len(useful)
    counts = np.diff(start)
    comp_of = np.full(n_top, -1, dtype=np.intp)
    comp_of[counts > 0] = label[near[start[:-1][counts > 0]]]

    orders, chosen, lengths, later = [], [], [], []
    position = np.empty(m, dtype=np.intp)
    for c in np.flatnonzero(sizes >= SPARSE_FROM):
        mine = order[label[order] == c]
        position[mine] = np.arange(len(mine))
        which = np.flatnonzero(useful & (comp_of == c))
        length = counts[which]
        at = np.repeat(start[which] - np.concatenate([[0], np.cumsum(length)[:-1]]), length) + np.arange(length.sum())
        member = position[near[at]].astype(np.int32)
        first = np.concatenate([[0], np.cumsum(length)]).astype(np.intp)
        width = np.ascontiguousarray(widths[mine])
        found, ends, neighbours = hierarchies.minimum_degree(first, member, width, DENSE_SHARE)
        owner = np.repeat(np.arange(len(found)), np.diff(ends))
        degree = np.bincount(owner, weights=width[neighbours], minlength=len(found))
        total = float(sizes[c])
        left = total - float(width[found].sum())
        cost = SPARSE_COST * float(width[found] @ (degree + width[found]) ** 2) + left**3 / 6.0
        if not len(found) or cost > SPARSE_GAIN * total**3 / 6.0:
            continue
        rest = np.ones(len(mine), dtype=bool)
        rest[found] = False
        orders.append((c, np.concatenate([mine[found], mine[rest]])))
        chosen.append(mine[found])
        lengths.append(np.diff(ends))
        later.append(mine[neighbours])
    if not chosen:
        return order, nothing, nothing, nothing
    order = order.copy()
    for c, levels_of_it in orders:
        order[label[order] == c] = levels_of_it
    return order, np.concatenate(chosen), np.concatenate(lengths), np.concatenate(later)


Elements = tuple[Index, NDArray[np.int32], NDArray[np.bool_]]


def _elements(first_row: Index, last_row: Index, by_level: Index, top: Index, n_top: int) -> Elements:
    """Levels of the tail that each level of the chain's last factor touches.

    Returns
    -------
    start : (n_top + 1,) array
        First place of each set in `near`.
    near : int32 array
    useful : (n_top,) bool array
        Which sets to keep: not those of one level, and each pair, of which there may be many, once.
    """
    n, m = len(top), len(first_row)
    table = np.zeros((m, 5), dtype=np.intp)
    table[:, 0], table[:, 1], table[:, 3], table[:, 4] = first_row, last_row, 1, np.arange(m)
    start, near, _ = hierarchies.panel_products(top, n_top, np.zeros((n, 0)), table, by_level, np.zeros((n, 1)))
    counts = np.diff(start)
    useful = counts > 2
    pairs = np.flatnonzero(counts == 2)
    kind = near[start[pairs]].astype(np.int64) * m + near[start[pairs] + 1]
    useful[pairs[np.unique(kind, return_index=True)[1]]] = True
    return start, near, useful


def sparse_levels(found: TailLevels, tails: list[Tail]) -> Sparse | None:
    """Patterns and products of the levels that are eliminated one by one."""
    table, comp, comp_slot = found.table, found.comp, found.comp_slot
    node = np.flatnonzero(table[:, 4] + comp_slot[comp] < found.core_slot[comp])
    if not len(node):
        return None
    q, slot = table[node, 3], table[node, 4]
    # slots of the neighbours, ascending: the order of the table
    owner = np.repeat(np.arange(len(node)), np.diff(found.begin))
    later = found.later[np.lexsort((found.later, owner))]
    width = table[later, 3]
    total = int(width.sum())
    firsts = np.repeat(table[later, 4] - np.concatenate([[0], np.cumsum(width)[:-1]]), width)
    slots = (firsts + np.arange(total)).astype(np.int32)
    columns = np.bincount(owner, weights=width, minlength=len(node)).astype(np.intp)
    start = np.concatenate([[0], np.cumsum(columns)]).astype(np.intp)
    own_at = np.concatenate([[0], np.cumsum(q * q)]).astype(np.intp)
    panel_at = np.concatenate([[0], np.cumsum(q * columns)]).astype(np.intp)
    own = np.zeros(own_at[-1])
    panel = np.zeros(panel_at[-1])
    node_at = np.full(int(comp_slot[-1]), -1, dtype=np.intp)
    for i in range(int(q.max())):
        wide = q > i
        node_at[comp_slot[comp[node[wide]]] + slot[wide] + i] = np.flatnonzero(wide)
    for i, tail in enumerate(tails):
        mine = np.flatnonzero(table[node, 5] == i)
        at = own_at[mine][:, None] + np.arange(tail.q * tail.q)
        own[at] = tail.own[table[node[mine], 6]].reshape(at.shape)
        hierarchies.spread_products(tail, comp_slot, node_at, slot, start, slots, panel_at, panel)
    return Sparse(table[node, 5], comp[node], slot, start, slots, own_at, panel_at, own, panel)
