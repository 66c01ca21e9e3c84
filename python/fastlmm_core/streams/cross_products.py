"""Sums over rows that add up: what a model needs of them, by the groups that they are about."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import LMMError
from ..support.archives import read_archive, write_archive
from ..support.arguments import checked
from .recipe import Seen

__all__ = ["CrossProducts", "Lines", "merge"]

Array = NDArray[Any]


class Lines(NamedTuple):
    """Lines of sums of some groups or cells.

    Attributes
    ----------
    levels, cells, raw
        See `CrossProducts`.
    """

    levels: tuple[Array, ...]
    cells: NDArray[np.int64]
    raw: NDArray[np.float64]

    def added(self, other: Lines) -> Lines:
        """These lines and those of other rows, cell by cell."""
        levels: list[Array] = []
        mine, others = self.cells.copy(), other.cells.copy()
        for f, (own, theirs) in enumerate(zip(self.levels, other.levels, strict=True)):
            labels, places = _union(own, theirs)
            levels.append(labels)
            mine[:, f], others[:, f] = places[0][mine[:, f]], places[1][others[:, f]]
        cells, at = _union_of_cells(mine, others)
        raw = np.zeros((len(cells), self.raw.shape[1]))
        raw[at[0]] = self.raw
        raw[at[1]] += other.raw
        return Lines(tuple(levels), cells, raw)


@dataclass(frozen=True, eq=False, repr=False)
class CrossProducts:
    """Cross-products of the groups in some rows, made by `Plan.reduce`; those of disjoint rows add up.

    The model needs nothing else: its size is that of the groups, whatever the number of rows.  Several grouping factors
    have a line for each cell, a combination of their levels that occurs.

    Attributes
    ----------
    fingerprint : str
        Of the plan by which they were made: only sums of one plan can be merged.
    keys : tuple
        Names of the fragments whose rows are summed.
    levels : tuple of (m_f,) arrays
        Labels of each grouping factor, sorted; the factors in the order of the formula.
    cells : (m, factors) int array
        Levels of each line, in order.
    raw : (m, K) array
        Cross-products of each group or cell, shifted and scaled by the plan.
    packed : ((p+1)(p+2)/2,) array
        Those of [X y] over all rows.
    gram : (q(q+1)/2,) array
        Those of Z over all rows.
    constant, varies, log_weights, first_y
        See `PassSums`.
    seen : Seen
        Rows, missing values, ranges.
    """

    fingerprint: str
    keys: tuple[Any, ...]
    levels: tuple[Array, ...]
    cells: NDArray[np.int64]
    raw: NDArray[np.float64]
    packed: NDArray[np.float64]
    gram: NDArray[np.float64]
    constant: bool
    varies: bool
    log_weights: float
    first_y: float
    seen: Seen = field(default_factory=Seen.nothing)

    @property
    def lines(self) -> Lines:
        """What is about single groups or cells."""
        return Lines(self.levels, self.cells, self.raw)

    @property
    def nobs(self) -> int:
        """Rows summed."""
        return self.seen.n

    @property
    def n_dropped(self) -> int:
        """Rows left out for missing values."""
        return self.seen.dropped

    @property
    def missing(self) -> dict[str, int]:
        """Missing values of each column that has any."""
        return dict(self.seen.gaps)

    @property
    def n_groups(self) -> int:
        """Number of groups, of several factors that of cells."""
        return len(self.cells)

    def merge(self, *others: CrossProducts) -> CrossProducts:
        """The sums of these rows and of others; see `merge`."""
        return merge([self, *others])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the sums to a file; `CrossProducts.load` reads it.

        Raises
        ------
        LMMError
            Where the file cannot be written, or a label or key is neither a number nor text.
        """
        for key in self.keys:
            if not isinstance(key, str | int):
                raise LMMError(f"the key {key!r} cannot be saved; use text or whole numbers")
        document = {
            "what": "cross-products", "version": 3, "fingerprint": self.fingerprint, "keys": list(self.keys),
            "text": [labels.dtype.kind == "O" for labels in self.levels],
            "constant": self.constant, "varies": self.varies, "log_weights": self.log_weights.hex(),
            "first_y": self.first_y.hex(), "seen": _plain(self.seen),
        }  # fmt: skip
        levels = {f"levels {f}": _stored(labels) for f, labels in enumerate(self.levels)}
        arrays = {"cells": self.cells, "raw": self.raw, "packed": self.packed, "gram": self.gram}
        write_archive(path, document, {**levels, **arrays})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CrossProducts:
        """The sums that `save` has written to a file.

        Raises
        ------
        LMMError
            For a file that is not there, or is no such file.
        """
        document, arrays = read_archive(path)
        if document.get("what") != "cross-products" or document.get("version") != 3:
            raise LMMError(f"path: {os.fspath(path)!r} holds no cross-products that this version reads")
        levels = tuple(_restored(arrays[f"levels {f}"], text) for f, text in enumerate(document["text"]))
        seen = document["seen"]
        seen["levels"] = {name: dict.fromkeys(levels) for name, levels in seen["levels"].items()}
        seen["numbers"] = {name: tuple(float.fromhex(v) for v in values) for name, values in seen["numbers"].items()}
        return cls(
            document["fingerprint"],
            tuple(document["keys"]),
            levels,
            arrays["cells"],
            arrays["raw"],
            arrays["packed"],
            arrays["gram"],
            document["constant"],
            document["varies"],
            float.fromhex(document["log_weights"]),
            float.fromhex(document["first_y"]),
            Seen(**seen),
        )

    def __repr__(self) -> str:
        lines = "groups" if len(self.levels) == 1 else "cells"
        return f"<CrossProducts: {self.nobs} rows, {self.n_groups} {lines}, {len(self.keys)} fragments>"


def _stored(labels: Array) -> Array:
    """Labels as an array that a file takes."""
    if labels.dtype.kind != "O":
        return labels
    plain = (label if isinstance(label, tuple) else (label,) for label in labels.tolist())
    if not all(isinstance(part, str | int) for label in plain for part in label):
        raise LMMError("labels that are neither numbers nor text cannot be saved; convert the column to text")
    return np.frombuffer(json.dumps(labels.tolist()).encode(), dtype=np.uint8)


def _restored(stored: Array, text: bool) -> Array:
    if not text:
        return stored
    listed = json.loads(io.BytesIO(stored.tobytes()).read())
    labels = np.empty(len(listed), dtype=object)
    labels[:] = [tuple(label) if isinstance(label, list) else label for label in listed]
    return labels


def _plain(seen: Seen) -> dict[str, Any]:
    out = asdict(seen)
    out["levels"] = {name: list(levels) for name, levels in seen.levels.items()}
    out["numbers"] = {name: [float(v).hex() for v in values] for name, values in seen.numbers.items()}
    return out


def _in_order(parts: Sequence[CrossProducts]) -> list[CrossProducts]:
    """The parts by their first keys."""

    def place(part: CrossProducts) -> tuple[str, Any]:
        key = min(part.keys, key=lambda k: (type(k).__name__, k))
        return type(key).__name__, key

    return sorted(parts, key=place)


@checked
def merge(parts: Iterable[CrossProducts]) -> CrossProducts:
    """Add up the cross-products of disjoint rows.

    Parameters
    ----------
    parts : iterable of CrossProducts
        In any order: they are added by a tree over their sorted keys, so that the same parts give the same bits.

    Returns
    -------
    CrossProducts

    Raises
    ------
    LMMError
        For parts of different plans, parts that share a fragment (a task that was done twice must not count twice), or
        labels of different types.

    Examples
    --------
    >>> import fastlmm_core as flc
    >>> data = flc.datasets.load("sleepstudy")
    >>> plan = flc.plan("Reaction ~ Days + (Days | Subject)", data)
    >>> parts = [plan.reduce(data[:90], key=0), plan.reduce(data[90:], key=1)]
    >>> flc.lmm(plan, flc.merge(parts)).fit()
    <LMMResult: REML criterion 1743.628272, certified>
    """
    found = list(parts)
    if not found:
        raise LMMError("parts is empty: there is nothing to merge")
    for i, part in enumerate(found):
        if not isinstance(part, CrossProducts):
            raise LMMError(f"parts[{i}] is of type {type(part).__name__!r}; give what Plan.reduce returns")
        if part.fingerprint != found[0].fingerprint:
            raise LMMError(
                f"parts[{i}] was made by another plan than parts[0] (fingerprints {part.fingerprint[:8]} and "
                f"{found[0].fingerprint[:8]}); use one plan for all fragments"
            )
    owner: dict[Any, int] = {}
    for i, part in enumerate(found):
        for key in part.keys:
            if key in owner:
                raise LMMError(
                    f"parts[{owner[key]}] and parts[{i}] both hold the fragment {key!r}, whose rows would count twice; "
                    "give each fragment once, under a key of its own"
                )
            owner[key] = i
    # what has no rows has no place in the tree: it changes no bit
    level = _in_order([part for part in found if part.nobs]) or found[:1]
    while len(level) > 1:
        pairs = [level[i : i + 2] for i in range(0, len(level), 2)]
        level = [_added(*pair) if len(pair) == 2 else pair[0] for pair in pairs]
    empty = [part for part in _in_order(found) if part is not level[0] and not part.nobs]
    if not empty:
        return level[0]
    seen = Seen.nothing()
    for part in (level[0], *empty):
        seen.add(part.seen)
    keys = level[0].keys + tuple(key for part in empty for key in part.keys)
    return replace(level[0], keys=keys, seen=seen)


def _added(one: CrossProducts, other: CrossProducts) -> CrossProducts:
    for own, theirs in zip(one.levels, other.levels, strict=True):
        if (own.dtype.kind == "O") != (theirs.dtype.kind == "O"):
            raise LMMError(
                f"the group labels of the fragment {one.keys[0]!r} and {other.keys[0]!r} are of different types, "
                "numbers and text; write them in one type in all fragments"
            )
    lines = one.lines.added(other.lines)
    seen = Seen.nothing()
    seen.add(one.seen)
    seen.add(other.seen)
    return CrossProducts(
        one.fingerprint,
        one.keys + other.keys,
        *lines,
        one.packed + other.packed,
        one.gram + other.gram,
        one.constant and other.constant,
        one.varies or other.varies or one.first_y != other.first_y,
        one.log_weights + other.log_weights,
        one.first_y,
        seen,
    )


def _union_of_cells(one: Array, other: Array) -> tuple[Array, tuple[Array, Array]]:
    """Sorted cells of both, and where those of each are."""
    if one.shape == other.shape and bool(np.all(one == other)):
        at = np.arange(len(one))
        return one, (at, at)
    if one.shape[1] == 1 and len(one) and len(other):  # every level is one of them
        return np.arange(1 + max(int(one[-1, 0]), int(other[-1, 0])))[:, None], (one[:, 0], other[:, 0])
    both = np.concatenate([one, other])
    order = np.lexsort(both.T[::-1])
    fresh = np.ones(len(both), dtype=bool)
    fresh[1:] = (np.diff(both[order], axis=0) != 0).any(axis=1)
    back = np.empty(len(both), dtype=np.intp)
    back[order] = np.cumsum(fresh) - 1
    return both[order[fresh]], (back[: len(one)], back[len(one) :])


def _union(one: Array, other: Array) -> tuple[Array, tuple[Array, Array]]:
    """Sorted labels of both, and where those of each are."""
    if len(one) == len(other) and bool(np.all(one == other)):
        at = np.arange(len(one))
        return one, (at, at)
    labels, back = np.unique(np.concatenate([one, other]), return_inverse=True)
    return labels, (back[: len(one)], back[len(one) :])
