"""The criterion of structured residuals in general: with random effects, at coordinates, with variance functions.

Each cluster has its covariance matrix in full (see `kernels.residuals.ClusterSums`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...covariance.parameters import CovarianceStructure
from ...covariance.residual.varied import Varied
from ...design.residual import ResidualPart, Stratum
from ...kernels.records.residuals import ClusterRows
from ...kernels.records.rows import ConditionedRows
from ...kernels.residuals import ClusterSums
from ...support.memory import require
from ...support.types import Array, Index
from .effects import EffectsCriterion

__all__ = ["ClusterCriterion", "Clusters", "clusters_of"]


COSTLY = 2_000
"""Rows from which one certified optimum is enough: other starts would take long, and lead to it as a rule."""

FEW_PLACES = 512
"""Positions up to which one table holds all of them; otherwise each pattern of places has its own."""


class Clusters(NamedTuple):
    """Rows by cluster and subject, and the tables that subjects have their residuals from.

    Attributes
    ----------
    order : (n,) array
        The rows as they are taken.
    start : (n_clusters + 1,) array
    levels : (n_factors, n) array
        Level of each row so taken.
    block, table : (n_subjects + 1,), (n_subjects,) arrays
        First row, and table, of each subject.
    place : (n,) array
    strata : list of int
        Stratum of each table.
    places : list of arrays
        Positions or coordinates of each table.
    together : list of slice
        Tables of one stratum with as many rows each, which are made at once.
    """

    order: Index
    start: Index
    levels: Index
    block: Index
    table: Index
    place: Index
    strata: list[int]
    places: list[NDArray[np.generic]]
    together: list[slice]


def clusters_of(part: ResidualPart, labels: Index, levels: list[Index]) -> Clusters:
    """Sort the rows of a design by cluster and subject.

    Parameters
    ----------
    part : ResidualPart
    labels : (n,) array
        Independent cluster of each row; a subject lies within one.
    levels : list of (n,) arrays
        Level of each row in each grouping factor.
    """
    order = part.sorted_rows
    order = order[np.argsort(labels[order], kind="stable")]
    subjects = np.asarray(part.subject.codes)[order]
    block = np.append(np.flatnonzero(np.append(True, np.diff(subjects) != 0)), len(order))
    start = np.append(np.flatnonzero(np.append(True, np.diff(labels[order]) != 0)), len(order))
    where, stratum = part.where[order], part.stratum[order]
    strata: list[int] = []
    places: list[NDArray[np.generic]] = []
    table = np.empty(len(block) - 1, dtype=np.intp)
    place = np.empty(len(order), dtype=np.intp)
    known: dict[tuple[int, bytes], int] = {}
    shared: dict[int, int] = {}
    for g in range(len(part.strata)):
        mine = stratum == g
        found = np.unique(where[mine]) if part.at_visits else np.empty(0)
        if part.at_visits and len(found) <= FEW_PLACES:
            shared[g] = len(strata)
            strata.append(g)
            places.append(found)
            place[mine] = np.searchsorted(found, where[mine])
    for s, (begin, end) in enumerate(zip(block[:-1].tolist(), block[1:].tolist(), strict=True)):
        g = int(stratum[begin])
        if g in shared:
            table[s] = shared[g]
            continue
        key = g, where[begin:end].tobytes()
        if key not in known:
            known[key] = len(strata)
            strata.append(g)
            places.append(where[begin:end])
        table[s] = known[key]
        place[begin:end] = np.arange(end - begin)
    strata, places, together = _sorted_tables(part, strata, places, table)
    held = np.array([code[order] for code in levels], dtype=np.intp).reshape(len(levels), len(order))
    return Clusters(order, start.astype(np.intp), held, block.astype(np.intp), table, place, strata, places, together)


def _sorted_tables(
    part: ResidualPart, strata: list[int], places: list[NDArray[np.generic]], table: Index
) -> tuple[list[int], list[NDArray[np.generic]], list[slice]]:
    """Tables of one stratum with as many rows side by side, where coordinates tell them; `table` is changed."""

    def kind(t: int) -> tuple[int, int, int]:
        structure = part.strata[strata[t]].structure
        positions = structure.inner.positions if isinstance(structure, Varied) else None
        alone = part.at_visits or (positions or 0) > FEW_PLACES
        return (strata[t], 0, t) if alone else (strata[t], len(places[t]), 0)

    kinds = [kind(t) for t in range(len(strata))]
    order = sorted(range(len(strata)), key=kinds.__getitem__)
    rank = np.empty(len(order), dtype=np.intp)
    rank[order] = np.arange(len(order))
    table[:] = rank[table]
    begins = [i for i, t in enumerate(order) if i == 0 or kinds[t] != kinds[order[i - 1]]]
    ends = [*begins[1:], len(order)]
    together = [slice(begin, end) for begin, end in zip(begins, ends, strict=True)]
    return [strata[t] for t in order], [places[t] for t in order], together


class ClusterCriterion(EffectsCriterion):
    """The profiled criterion in (theta, phi).

    Parameters
    ----------
    clusters : Clusters
    xy : (n, c) array
        [X y], weighted.
    Z : (n, q) array
        Weighted columns of all factors, conditioned.
    structure : CovarianceStructure
    spans : list of slice
        Columns of each factor.
    part : ResidualPart
    """

    def __init__(
        self, clusters: Clusters, xy: Array, Z: Array, structure: CovarianceStructure, spans: list[slice],
        part: ResidualPart,
    ) -> None:  # fmt: skip
        super().__init__(xy.shape[1], len(xy), structure, spans, part)
        self.clusters, units = clusters, self.units
        self.costly = len(xy) > COSTLY
        sizes = np.diff(clusters.start)
        largest = int(sizes.max())
        n_d = len(units) + part.n_parameters
        require(8 * (2 * n_d * largest**2 + int(np.sum(sizes**2))), "covariance matrices of clusters in full")
        own = [part.strata[g] for g in clusters.strata]
        # several subjects of as many rows each have an axis of their own
        self._together: list[tuple[Stratum, Array]] = []
        for one in clusters.together:
            where: Any = clusters.places[one]
            self._together.append((own[one.start], np.stack(where) if len(where) > 1 else where[0]))
        self.sums = ClusterSums(
            ClusterRows(
                rows=np.ascontiguousarray(xy[clusters.order]),
                Z=np.ascontiguousarray(Z[clusters.order]),
                start=clusters.start,
                levels=clusters.levels,
                unit=self.units,
                block=clusters.block,
                table=clusters.table,
                place=clusters.place,
                size=np.array([len(places) for places in clusters.places], dtype=np.intp),
                first=np.array([s.start for s in own], dtype=np.intp),
                counts=np.array([s.stop - s.start for s in own], dtype=np.intp),
                n_phi=part.n_parameters,
            )
        )

    @property
    def places(self) -> list[tuple[int, NDArray[np.intp] | Array]]:
        """Stratum and places of the tables."""
        return list(zip(self.clusters.strata, self.clusters.places, strict=True))  # type: ignore[arg-type]

    def reduce(self, x: Array) -> tuple[float, Array | None]:
        """log|V| and H."""
        factor, phi = self.split(x)
        tables = np.concatenate([own.matrix(phi, w).ravel() for own, w in self._together])
        if not (np.isfinite(tables).all() and np.isfinite(factor).all()):
            return np.inf, None
        return self.sums.reduce(factor @ factor.T, tables)

    def whitened(self) -> Array:
        """L^-1 [X y]."""
        return self.sums.whitened()

    def weigh(self, turn: Array) -> None:
        """Bring the rows to [A e]."""
        self.sums.weigh(turn)

    def first(self, x: Array, ratio: float, bracket: float) -> Array:
        """Along the unit directions of G and along phi."""
        _, phi = self.split(x)
        self._slope_g, tables = self.sums.slopes(1.0, -ratio, -bracket)
        changes = [own.jacobian(phi, w) for own, w in self._together]
        # table after table, of each all parameters
        held = [(J.swapaxes(0, 1) if J.ndim == 4 else J).ravel() for J in changes]
        self.jacobians = np.concatenate(held) if self.part.n_parameters else np.zeros(1)
        self.slopes: list[Array] = []
        along = np.zeros(self.part.n_parameters)
        at = 0
        for (own, _), J in zip(self._together, changes, strict=True):
            shape = J.shape[1:]
            slope = tables[at : at + int(np.prod(shape))].reshape(shape)
            at += slope.size
            self.slopes.append(slope)
            along[own.start : own.stop] += J.reshape(len(J), slope.size) @ slope.ravel()
        return np.concatenate([self._slope_g, along])

    def along(self, c_n: float, c_e: float, c_x: float) -> Array:
        """Pairs of directions."""
        return self.sums.curves(self.jacobians, c_n, c_e, c_x)

    def bend(self, x: Array) -> Array:
        """Second derivatives of the tables."""
        _, phi = self.split(x)
        out = np.zeros((self.part.n_parameters, self.part.n_parameters))
        for (own, w), slope in zip(self._together, self.slopes, strict=True):
            out[own.start : own.stop, own.start : own.stop] += own.second(phi, w, slope)
        return out

    def _crossed(self) -> Array:
        """[A e]'D[A e] for all directions."""
        return self.sums.cross(self.jacobians)

    def sandwich_along(self, weight: Array) -> Array:
        """Sum over pairs of directions (r, r)."""
        return self.sums.sandwich(self.jacobians, np.ascontiguousarray(weight))[:-1, :-1]

    def within(self, tables: list[Array]) -> Array:
        """A'TA for matrices T over the places of the tables (r, r)."""
        return self.sums.within(np.concatenate([T.ravel() for T in tables]))[:-1, :-1]

    def solve(self, v: Array, rows: ConditionedRows) -> Array:
        """V^-1 v by the rows of the problem."""
        columns = v.reshape(len(v), -1)
        root = np.ones(len(v)) if rows.weights is None else np.sqrt(rows.weights)
        out = np.empty(columns.shape)
        order = self.clusters.order
        out[order] = self.sums.solve(np.ascontiguousarray((root[:, None] * columns)[order]))
        return np.asarray(root[:, None] * out).reshape(v.shape)
