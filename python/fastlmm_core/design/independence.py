"""Which rows are independent of which."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..support.types import Index
from .design import Design

__all__ = ["cluster_labels", "of_equal_size"]


HELD = 1 << 22
"""Numbers in the covariance matrices of clusters that are formed at a time."""


def cluster_labels(design: Design) -> Index:
    """Cluster of each row: rows of different clusters share no level of any factor, and no subject of the residuals.

    Such rows are independent.
    """
    nodes_of = [(f.grouping.index, f.grouping.m) for f in design.factors]
    if design.residual is not None and design.structure.q:
        subject = design.residual.subject
        nodes_of.append((np.asarray(subject.codes, dtype=np.intp), subject.n_slots))
    if all(_contained(index, m, *nodes_of[0]) for index, m in nodes_of[1:]):
        return nodes_of[0][0]
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    base = 0
    nodes = []
    for index, m in nodes_of:
        nodes.append(index + base)
        base += m
    first = np.concatenate([nodes[0]] * (len(nodes) - 1))
    graph = coo_array((np.ones(len(first), dtype=bool), (first, np.concatenate(nodes[1:]))), shape=(base, base))
    _, component = connected_components(graph, directed=False)
    _, labels = np.unique(component[nodes[0]], return_inverse=True)
    return np.asarray(labels, dtype=np.intp)


def _contained(inner: Index, m: int, outer: Index, n_outer: int) -> bool:
    """Whether each of m levels lies within one of n_outer levels."""
    if m < n_outer:
        return False
    level = np.empty(m, dtype=np.intp)
    level[inner] = outer
    return np.array_equal(level[inner], outer)


def of_equal_size(labels: Index, held: int = HELD) -> Iterator[Index]:
    """Rows of the clusters (c, s), in stretches of c clusters of s rows with about `held` squares of rows in each.

    Rows of a cluster stay in their order.
    """
    order = np.argsort(labels, kind="stable")
    sizes = np.bincount(labels)
    starts = np.cumsum(sizes) - sizes
    for size in np.unique(sizes[sizes > 0]).tolist():
        members = np.flatnonzero(sizes == size)
        step = max(1, held // size**2)
        for begin in range(0, len(members), step):
            yield order[starts[members[begin : begin + step], None] + np.arange(size)]
