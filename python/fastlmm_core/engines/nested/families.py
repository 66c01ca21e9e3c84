"""Levels in families: where the children of parents stand side by side in the lanes of vectors."""

from __future__ import annotations

import numpy as np

from ...kernels import hierarchies
from ...kernels.layouts import Families
from ...support.types import Index

__all__ = ["families"]


RUN = 32
"""Children of one parent that stand below one another at most; larger families are divided."""


def families(parents: list[Index], sizes: list[int], lanes: int) -> Families:
    """Put the children of as many parents as there are lanes side by side, families of one size together.

    Parameters
    ----------
    parents : list of intp arrays
        Parent of each level, for all factors but the last; finest first.
    sizes : list of int
        Levels of each factor.
    lanes : int
    """
    vectors = -(-sizes[-1] // lanes)
    top = np.full(vectors * lanes, -1, dtype=np.intp)
    top[: sizes[-1]] = np.arange(sizes[-1])
    orders, starts, above = [top], [np.array([0, vectors], dtype=np.intp)], []
    place = np.arange(sizes[-1])
    for s in range(len(sizes) - 2, -1, -1):
        begin, member = hierarchies.sort_rows(parents[s], sizes[s + 1])
        count = np.diff(begin)
        first, parent = begin[:-1], np.arange(len(count))
        if int(count.max()) > RUN:
            runs = -(-count // RUN)
            parent = np.repeat(parent, runs)
            i = np.arange(len(parent)) - np.repeat(np.cumsum(runs) - runs, runs)
            least, more = np.divmod(count, runs)
            first = first[parent] + i * least[parent] + np.minimum(i, more[parent])
            count = least[parent] + (i < more[parent])
        if int(count.min()) < int(count.max()):
            by_size = np.argsort(-count, kind="stable")
            first, parent, count = first[by_size], parent[by_size], count[by_size]
        n_blocks = -(-len(count) // lanes)
        start = np.zeros(n_blocks + 1, dtype=np.intp)
        np.cumsum(count[::lanes], out=start[1:])
        run = np.arange(len(count))
        within = np.arange(sizes[s]) - np.repeat(np.cumsum(count) - count, count)
        places = np.repeat(start[run // lanes] * lanes + run % lanes, count) + within * lanes
        member = member[np.repeat(first, count) + within]
        order = np.full(start[-1] * lanes, -1, dtype=np.intp)
        order[places] = member
        up = np.full(n_blocks * lanes, -1, dtype=np.intp)
        up[: len(count)] = place[parent]
        place = np.empty(sizes[s], dtype=np.intp)
        place[member] = places
        orders.append(order)
        starts.append(start)
        above.append(up.reshape(n_blocks, lanes))
    return Families(tuple(reversed(orders)), tuple(reversed(starts)), tuple(reversed(above)))
