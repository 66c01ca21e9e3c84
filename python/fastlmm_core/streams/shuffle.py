"""Lines of sums to buckets by a hash of a label: a shuffle of statistics, not of rows.

Of nested factors it is the label of the outermost one, so that all levels below it are in its bucket.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..support.types import Index
from .cross_products import CrossProducts, Lines

__all__ = ["bucket_of", "distinct", "gathered", "hashes_of", "split"]


def _hashed(labels: NDArray[Any]) -> NDArray[np.uint64]:
    """A hash of each label: the same in all processes, and for a label whatever the others are."""
    from pandas.util import hash_array

    if labels.dtype.kind == "O" and len(labels) and isinstance(labels[0], tuple):
        text = np.empty(len(labels), dtype=object)
        text[:] = ["\x1f".join(map(str, label)) for label in labels.tolist()]
        labels = text
    found: NDArray[np.uint64] = hash_array(labels, categorize=False)
    return found


def bucket_of(labels: NDArray[Any], count: int) -> Index:
    """The bucket of each label."""
    return (_hashed(labels) % np.uint64(count)).astype(np.intp)


def split(whole: CrossProducts, outermost: int, count: int) -> tuple[Any, ...]:
    """The sums over the rows of a partition without its lines, then the lines of each bucket.

    Parameters
    ----------
    whole : CrossProducts
    outermost : int
        The factor whose labels are hashed.
    count : int
        Buckets.
    """
    bucket = bucket_of(whole.levels[outermost], count)[whole.cells[:, outermost]]
    nothing = tuple(labels[:0] for labels in whole.levels)
    rest = replace(whole, levels=nothing, cells=whole.cells[:0], raw=whole.raw[:0])
    return rest, *(_some(whole, bucket == b) for b in range(count))


def _some(whole: CrossProducts, which: NDArray[np.bool_]) -> Lines:
    """Some of the lines."""
    levels, cells = [], whole.cells[which]
    for f, labels in enumerate(whole.levels):
        used, cells[:, f] = np.unique(cells[:, f], return_inverse=True)
        levels.append(labels[used])
    return Lines(tuple(levels), cells, whole.raw[which])


def gathered(parts: Sequence[Lines]) -> Lines:
    """Lines of one bucket, added by a tree over the partitions."""
    level = list(parts)
    while len(level) > 1:
        pairs = [level[i : i + 2] for i in range(0, len(level), 2)]
        level = [pair[0].added(pair[1]) if len(pair) == 2 else pair[0] for pair in pairs]
    return level[0]


def hashes_of(whole: CrossProducts, count: int) -> tuple[list[NDArray[np.uint64]], ...]:
    """Hashes of the labels of each factor, by buckets of their own."""
    found = [_hashed(labels) for labels in whole.levels]
    return tuple([own[own % np.uint64(count) == b] for own in found] for b in range(count))


def distinct(parts: Sequence[list[NDArray[np.uint64]]]) -> Index:
    """How many labels of each factor there are in a bucket of `hashes_of` of all partitions."""
    return np.array([len(np.unique(np.concatenate(own))) for own in zip(*parts, strict=True)])
