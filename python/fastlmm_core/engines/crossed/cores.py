"""Order of the tail: the levels of crossed factors that do not lie in the chain.

At first the most frequent levels come first, which is all that a product of the rows needs.  For elimination levels
with few neighbours in a large connected component come before the others, as long as that leaves these sparse; the
rest of each component, its core, is dense.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ...kernels import hierarchies
from ...kernels.layouts import Layout, Sparse, Stage, Tail
from ...support.types import Array, Index

__all__ = ["TailLevels", "sparse_first", "tail_levels"]

S = TypeVar("S", Stage, Tail)


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
    comp_slot : (components + 1,) array
    """

    table: Index
    rows: Index
    others: Array
    comp: Index
    comp_slot: Index


def tail_levels(
    last: list[int], codes: list[Index], sizes: list[int], widths: list[int], Z: list[Array], top: Index, n_top: int
) -> TailLevels:
    """Component by component, the most frequent ones first."""
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
    comp = label[order]
    ends = np.cumsum(widths_of[order])
    slot = ends - widths_of[order] - comp_slot[comp]
    table = np.column_stack(
        [*(np.concatenate(part)[order] for part in (starts, stops, column)), widths_of[order], slot]
        + [np.concatenate(part)[order] for part in (of, level)]
    ).astype(np.intp)
    return TailLevels(
        np.ascontiguousarray(table),
        np.concatenate(rows),
        np.ascontiguousarray(np.concatenate([Z[f] for f in last], axis=1)),
        comp,
        comp_slot,
    )


class _Levels(NamedTuple):
    """The levels of the tail in the order of their slots.

    Attributes
    ----------
    tail, level, width, comp : (levels,) arrays
        Factor (place in `tails`), level of it, columns, component.
    first : (levels,) array
        First slot, counted over all components.
    """

    tail: Index
    level: Index
    width: Index
    comp: Index
    first: Index


class _Chosen(NamedTuple):
    """Levels that are eliminated one by one, by their places in `_Levels`.

    Attributes
    ----------
    order : (levels,) array
        All levels, with these at the front of their components.
    levels : (nodes,) array
    lengths, later : (nodes,), (sum of lengths,) arrays
        How many levels each of them joins, and which.
    """

    order: Index
    levels: Index
    lengths: Index
    later: Index


def sparse_first(layout: Layout, cross: Array) -> tuple[Layout, Array]:
    """Layout and Z'[X y] with the levels that are eliminated one by one in front of the others.

    The same objects where there are none.
    """
    sizes = np.diff(layout.comp_slot)
    if not layout.tails or sizes.max() < SPARSE_FROM:
        return layout, cross
    levels = _levels_of(layout)
    chosen = _chosen(levels, layout.comp_slot, *_elements(layout, levels))
    if chosen is None:
        return layout, cross
    order = chosen.order
    moved = np.empty(len(order), dtype=np.intp)
    moved[order] = np.cumsum(levels.width[order]) - levels.width[order]
    moves = np.empty(int(layout.comp_slot[-1]), dtype=np.intp)
    for i in range(int(levels.width.max())):
        wide = levels.width > i
        moves[levels.first[wide] + i] = moved[wide] + i
    rank = np.empty(len(order), dtype=np.intp)
    rank[order] = np.arange(len(order))
    comp_slot, inverse = layout.comp_slot, np.argsort(moves)
    tails = [
        _panels_moved(tail, comp_slot, moves)._replace(
            slot=moves[comp_slot[tail.comp] + tail.slot] - comp_slot[tail.comp]
        )
        for tail in layout.tails
    ]
    stages = [_panels_moved(stage, comp_slot, moves) for stage in layout.stages]
    for s, (stage, above) in enumerate(pairwise(stages)):
        lists: Any = stage.start, stage.slots, stage.parent, above.start, above.slots
        stages[s] = stage._replace(up=hierarchies.places_above(*lists))
    at = len(cross) - len(moves)
    places = tuple(at + moves[where - at] if where.flat[0] >= at else where for where in layout.places)
    columns = np.bincount(levels.comp[chosen.levels], weights=levels.width[chosen.levels], minlength=len(sizes))
    found = layout._replace(
        stages=tuple(stages), tails=tuple(tails), places=places, core_slot=comp_slot[:-1] + columns.astype(np.intp)
    )
    tail, level, width, comp, _ = (part[order] for part in levels)
    levels = _Levels(tail, level, width, comp, moved[order])
    sparse = _sparse_levels(found, levels, chosen._replace(levels=rank[chosen.levels], later=rank[chosen.later]))
    return found._replace(sparse=sparse), np.concatenate([cross[:at], cross[at:][inverse]])


def _levels_of(layout: Layout) -> _Levels:
    tails, comp_slot = layout.tails, layout.comp_slot
    first = np.concatenate([comp_slot[tail.comp] + tail.slot for tail in tails])
    order = np.argsort(first)
    return _Levels(
        np.repeat(np.arange(len(tails)), [tail.m for tail in tails])[order],
        np.concatenate([np.arange(tail.m) for tail in tails])[order],
        np.repeat([tail.q for tail in tails], [tail.m for tail in tails])[order],
        np.concatenate([tail.comp for tail in tails])[order],
        first[order],
    )


def _panels_moved(item: S, comp_slot: Index, moves: Index) -> S:
    """A factor with the slots of its neighbours where they have gone, ascending again."""
    start, q = item.start, item.q
    assert start is not None and item.slots is not None and item.panel is not None and item.comp is not None
    width = np.diff(start)
    level = np.repeat(np.arange(item.m), width)
    before = comp_slot[item.comp][level]
    slots = moves[item.slots + before] - before
    # nearly sorted: most levels stay in their order, which a merge of runs finds at once
    order = np.argsort(level * len(moves) + slots, kind="stable")
    panel = np.empty_like(item.panel)
    for i in range(q):
        # a level has its products with all neighbours for its first effect, then for the second
        offset = (q - 1) * start[level] + i * width[level]
        panel[offset + np.arange(len(level))] = item.panel[offset + order]
    return item._replace(slots=slots[order].astype(np.int32), panel=panel)


def _chosen(
    levels: _Levels, comp_slot: Index, start: Index, near: NDArray[np.int32], useful: NDArray[np.bool_]
) -> _Chosen | None:
    """Levels to be eliminated one by one, None where that does not pay; see `_elements`."""
    sizes, m = np.diff(comp_slot), len(levels.first)
    label, widths, order = levels.comp, levels.width, np.arange(m)
    counts = np.diff(start)
    comp_of = np.full(len(useful), -1, dtype=np.intp)
    comp_of[counts > 0] = label[near[start[:-1][counts > 0]]]

    orders, chosen, lengths, later = [], [], [], []
    position = np.empty(m, dtype=np.intp)
    for c in np.flatnonzero(sizes >= SPARSE_FROM):
        mine = np.flatnonzero(label == c)
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
        return None
    for c, levels_of_it in orders:
        order[label == c] = levels_of_it
    return _Chosen(order, np.concatenate(chosen), np.concatenate(lengths), np.concatenate(later))


Elements = tuple[Index, NDArray[np.int32], NDArray[np.bool_]]


def _elements(layout: Layout, levels: _Levels) -> Elements:
    """Levels of the tail that each level of the chain's last factor touches.

    Returns
    -------
    start : (levels of that factor + 1,) array
        First place of each set in `near`.
    near : int32 array
    useful : bool array
        Which sets to keep: not those of one level, and each pair, of which there may be many, once.
    """
    top, m = layout.stages[-1], len(levels.first)
    assert top.start is not None and top.slots is not None and top.comp is not None
    of_slot = np.full(int(layout.comp_slot[-1]), -1, dtype=np.int32)
    of_slot[levels.first] = np.arange(m)
    near = of_slot[top.slots + np.repeat(layout.comp_slot[top.comp], np.diff(top.start))]
    # a level counts once, whatever its columns
    first = near >= 0
    start = np.concatenate([[0], np.cumsum(first)])[top.start].astype(np.intp)
    near = np.ascontiguousarray(near[first])
    counts = np.diff(start)
    useful = counts > 2
    pairs = np.flatnonzero(counts == 2)
    kind = near[start[pairs]].astype(np.int64) * m + near[start[pairs] + 1]
    useful[pairs[np.unique(kind, return_index=True)[1]]] = True
    return start, near, useful


def _sparse_levels(layout: Layout, levels: _Levels, chosen: _Chosen) -> Sparse:
    """Patterns and products of the levels that are eliminated one by one."""
    comp, comp_slot, tails = levels.comp, layout.comp_slot, layout.tails
    node = chosen.levels
    q, slot = levels.width[node], levels.first[node] - comp_slot[comp[node]]
    # slots of the neighbours, ascending: the order of the table
    owner = np.repeat(np.arange(len(node)), chosen.lengths)
    later = chosen.later[np.argsort(owner * len(comp) + chosen.later)]
    width = levels.width[later]
    total = int(width.sum())
    firsts = np.repeat(
        levels.first[later] - comp_slot[comp[later]] - np.concatenate([[0], np.cumsum(width)[:-1]]), width
    )
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
        mine = np.flatnonzero(levels.tail[node] == i)
        at = own_at[mine][:, None] + np.arange(tail.q * tail.q)
        own[at] = tail.own[levels.level[node[mine]]].reshape(at.shape)
        hierarchies.spread_products(tail, comp_slot, node_at, slot, start, slots, panel_at, panel)
    return Sparse(levels.tail[node], comp[node], slot, start, slots, own_at, panel_at, own, panel)
