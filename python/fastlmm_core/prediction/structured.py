"""Rows where the residuals have a structure: what the rows observed tell of them.

A row (x, z) has the mean x'beta + z'b, and its residual e has the covariance c with those of the rows observed in its
cluster, R.  With h = R^-1 c, k = z - Z'h and M = (G^-1 + Z'R^-1 Z)^-1, the covariance of b given them,

    K     = h' + k'M Z'R^-1             (the covariance of the row with those observed, times V^-1)
    mean  = x'beta + K (y - X beta)     (Henderson 1975, Biometrics 31, 423-447)
    error of it about x'beta + z'b + E(e | the residuals observed): k'M k + d'Phi d,  d = x - K X,

and about a new observation var(e) - h'c more.  The rows of the fit have their own residual: for them c is 0.

The variance v of an error is a function of the variance parameters, whose degrees of freedom follow by the delta method
as in `predict`.  With a = (1, -K) over the row and those observed, and w = V^-1 X Phi d, its derivative along dV is

    dv = d'dPhi d + a'dV a - 2 a'dV (0, w),

since K and the coefficients minimise it.  V is taken whitened: R = W^-1/2 L L' W^-1/2 by subjects,
B = L^-1 W^1/2 Z Lambda and M = Lambda (I + B'B)^-1 Lambda' have no differences in them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..covariance.parameters import vech_positions
from ..design.grouping import Codes
from ..design.residual import ResidualPart, Stratum
from ..engines.residual.criterion import structured_engine
from ..engines.residual.problem import residual_problem
from ..errors import LMMError
from ..support.memory import require
from ..support.types import Array, Index

if TYPE_CHECKING:
    from ..estimation.fit import Fit

__all__ = ["Observed", "Targets", "Told", "grouped", "told"]


TOGETHER = 1 << 17
"""Products of new rows and rows observed up to which clusters without random effects are taken together."""

HELD = 1 << 21
"""Products of new rows and rows observed that are held at a time."""

LARGE = 1_000
"""Rows of a subject from which the memory for their covariances is asked for."""


class Targets(NamedTuple):
    """Rows that are predicted.

    Attributes
    ----------
    x : (n, r) array
        In conditioned coordinates.
    Z : (n, q) array
        In the caller's.
    levels : list of (n,) int arrays
        Level of each factor among those observed, -1 where its effect is not a part of the mean.
    subject : (n,) int array
        Among those observed, -1 where the residual is not told by others.
    part : ResidualPart or None
        Of these rows; None where their residuals do not count.
    root : (n,) array
        Square roots of their weights.
    """

    x: Array
    Z: Array
    levels: list[Index]
    subject: Index
    part: ResidualPart | None
    root: Array


@dataclass(frozen=True)
class Observed:
    """Rows of which the response is known.

    Attributes
    ----------
    x : (n, r) array
        In conditioned coordinates.
    rest : (n,) array
        y - X beta.
    Z : (n, q) array
        In the caller's coordinates.
    levels : list of (n,) int arrays
    part : ResidualPart
    root : (n,) array
    """

    x: Array
    rest: Array
    Z: Array
    levels: list[Index]
    part: ResidualPart
    root: Array

    def joined(self, other: Observed) -> Observed:
        """These rows and others, whose levels and subjects have the same numbers."""
        codes = np.concatenate([self.part.subject.codes, other.part.subject.codes])
        part = replace(
            self.part,
            subject=Codes(self.part.subject.name, codes, 0, int(codes.max(initial=-1)) + 1),
            stratum=np.concatenate([self.part.stratum, other.part.stratum]),
            where=np.concatenate([self.part.where, other.part.where]),
        )
        return Observed(
            np.concatenate([self.x, other.x]),
            np.concatenate([self.rest, other.rest]),
            np.concatenate([self.Z, other.Z]),
            [np.concatenate(both) for both in zip(self.levels, other.levels, strict=True)],
            part,
            np.concatenate([self.root, other.root]),
        )

    def clusters(self, with_effects: bool) -> tuple[Index, Index, list[Index]]:
        """Cluster of each row, of each subject and of each level of each factor."""
        subject = np.asarray(self.part.subject.codes, dtype=np.intp)
        if not with_effects:
            every = np.arange(int(subject.max(initial=-1)) + 1)
            return subject, every, []
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        counts = [int(codes.max(initial=-1)) + 1 for codes in (subject, *self.levels)]
        base = np.cumsum([0, *counts])
        nodes = [codes + start for codes, start in zip(self.levels, base[1:], strict=False)]
        first = np.tile(subject, len(nodes))
        graph = coo_array(
            (np.ones(len(first), dtype=bool), (first, np.concatenate(nodes))), shape=(int(base[-1]), int(base[-1]))
        )
        component = connected_components(graph, directed=False)[1].astype(np.intp)
        parts = [component[start:stop] for start, stop in pairwise(base.tolist())]
        return parts[0][subject], parts[0], parts[1:]


class Told(NamedTuple):
    """What observed rows tell of others.

    Attributes
    ----------
    add : (n,) array
        To the mean x'beta.
    d : (n, r) array
        In conditioned coordinates.
    variance : (n,) array
        Of the error but for that of the coefficients, relative to sigma^2.
    slopes : (directions, n) array or None
        Derivatives of the variance along G and phi, but for d'dPhi d.
    """

    add: Array
    d: Array
    variance: Array
    slopes: Array | None


def told(result: Fit, observed: Observed, targets: Targets, interval: str | None, slopes: bool) -> Told:
    """What observed rows tell of the means of others, and how these vary about them.

    Parameters
    ----------
    result : Fit
    observed : Observed
    targets : Targets
    interval : {"confidence", "prediction"} or None
    slopes : bool
        Whether derivatives are wanted.
    """
    return _Teller(result, observed, targets, interval, slopes).told()


class _Cluster(NamedTuple):
    """Rows observed of a cluster, whitened.

    `strata`: subjects alike, as `ResidualPart.alike` has them, with the Cholesky factor of each kind.
    """

    rows: Index
    strata: list[tuple[Stratum, NDArray[Any], Index, Array]]
    columns: Array
    half: Array
    inner: Array
    places: list[Index]

    def back(self, values: Array) -> Array:
        """L^-T values by rows, for values (a, n)."""
        out = np.empty_like(values)
        for _, _, members, lower in self.strata:
            out[:, members] = np.linalg.solve(lower.T, values[:, members][..., None])[..., 0]
        return out


class _Teller:
    """One call of `told`."""

    def __init__(self, result: Fit, observed: Observed, targets: Targets, interval: str | None, slopes: bool) -> None:
        self.result, self.observed, self.targets = result, observed, targets
        self.interval = interval
        self.model = result.model
        self.q = self.model.structure.q
        problem = residual_problem(self.model.problem)
        self.z_map = problem.z_map
        self.r = problem.rank
        self.factor = result.relative_factor
        n = len(targets.x)
        self.add, self.d, self.variance = np.zeros(n), targets.x.copy(), np.zeros(n)
        self.slopes: Array | None = None
        if slopes:
            lower, upper = vech_positions(self.q)
            units = structured_engine(result.engine).unit_places
            self.lower, self.upper = lower[units], upper[units]
            self.both = np.where(self.lower == self.upper, 0.5, 1.0)[:, None]
            self.slopes = np.zeros((len(units) + len(result.phi), n))

    def told(self) -> Told:
        for new, rows in self._sets():
            self._of_cluster(new, rows)
        if self.interval == "prediction":
            self._of_fresh_effects()
            self._of_fresh_residuals()
        return Told(self.add, self.d, self.variance, self.slopes)

    # ---- which rows belong together --------------------------------------------------------------

    def _sets(self) -> Iterator[tuple[Index, Index]]:
        """New rows with the rows observed of their clusters; rows of which nothing is observed are left out."""
        targets = self.targets
        of_rows, of_subject, of_levels = self.observed.clusters(self.q > 0)
        keys = [targets.subject, *targets.levels] if self.q else [targets.subject]
        found = np.full((len(targets.x), len(keys)), -1, dtype=np.intp)
        for column, codes, clusters in zip(found.T, keys, [of_subject, *of_levels], strict=True):
            column[codes >= 0] = clusters[codes[codes >= 0]]
        found.sort(axis=1)
        known = np.flatnonzero(found[:, -1] >= 0)
        if not len(known):
            return
        distinct, group = np.unique(found[known], axis=0, return_inverse=True)
        order, starts = grouped(group.ravel(), len(distinct))
        rows_of, row_starts = grouped(of_rows, int(of_rows.max()) + 1)
        new: list[Index] = []
        rows: list[Index] = []
        count = 0
        for i, clusters in enumerate(distinct.tolist()):
            mine = known[order[starts[i] : starts[i + 1]]]
            theirs = [rows_of[row_starts[c] : row_starts[c + 1]] for c in sorted(set(clusters) - {-1})]
            size = sum(map(len, theirs))
            if new and (self.q or (count + size) * (sum(map(len, new)) + len(mine)) > TOGETHER):
                yield np.concatenate(new), np.concatenate(rows)
                new, rows, count = [], [], 0
            new.append(mine)
            rows += theirs
            count += size
        yield np.concatenate(new), np.concatenate(rows)

    # ---- one cluster -------------------------------------------------------------------------------

    def _cluster(self, rows: Index) -> _Cluster:
        observed, phi = self.observed, self.result.phi
        places, effects = self._expanded(observed.Z[rows] @ self.factor, [level[rows] for level in observed.levels])
        columns = np.column_stack([observed.x[rows], observed.rest[rows], effects]) * observed.root[rows, None]
        strata = []
        for own, where, members in observed.part.rows(rows).alike():
            if len(where) > LARGE:
                require(24 * len(where) ** 2, f"the covariance of {len(where):,} rows of a subject")
            try:
                lower: Array = np.asarray(np.linalg.cholesky(own.matrix(phi, where)), dtype=np.float64)
            except np.linalg.LinAlgError:
                raise LMMError(
                    f"predict: the covariance of the residuals of {self.observed.part.term} is singular to rounding, "
                    "so that the rows observed of a subject reproduce each other; use effects='population'"
                ) from None
            columns[members] = np.linalg.solve(lower, columns[members])
            strata.append((own, where, members, lower))
        half = columns[:, self.r + 1 :]
        inner = np.eye(half.shape[1]) + half.T @ half
        return _Cluster(rows, strata, columns[:, : self.r + 1], half, inner, places)

    def _expanded(self, Z: Array, levels: list[Index], places: list[Index] | None = None) -> tuple[list[Index], Array]:
        """The levels that occur (or those given), and a column for each effect of each of them."""
        if not self.q:
            return [], np.zeros((len(Z), 0))
        found, out = [], []
        for i, (f, level) in enumerate(zip(self.model.factors, levels, strict=True)):
            own = np.unique(level) if places is None else places[i]
            place = np.searchsorted(own, level)
            wide = np.zeros((len(Z), len(own), f.stop - f.start))
            mine = np.flatnonzero(level >= 0)
            wide[mine, place[mine]] = Z[mine, f.columns]
            found.append(own)
            out.append(wide.reshape(len(Z), -1))
        return found, np.concatenate(out, axis=1)

    def _of_cluster(self, new: Index, rows: Index) -> None:
        """All of some new rows of one cluster, or of clusters without random effects."""
        cluster = self._cluster(rows)
        step = max(1, HELD // len(rows))
        for begin in range(0, len(new), step):
            self._of_rows(cluster, new[begin : begin + step])

    def _of_rows(self, cluster: _Cluster, new: Index) -> None:
        targets, r = self.targets, self.r
        told = self._told_residuals(cluster, new)
        levels = [level[new] for level in targets.levels]
        _, own = self._expanded(targets.Z[new] @ self.factor, levels, cluster.places)
        left = own - told @ cluster.half
        turned = np.linalg.solve(cluster.inner, left.T).T
        K = told + turned @ cluster.half.T
        self.add[new] = K @ cluster.columns[:, r]
        self.d[new] = targets.x[new] - K @ cluster.columns[:, :r]
        self.variance[new] = np.einsum("ij,ij->i", turned, left)
        if self.slopes is not None:
            self._slopes_of(cluster, new, K, told)

    def _told_residuals(self, cluster: _Cluster, new: Index) -> Array:
        """h in whitened coordinates (a, n); the variance of the residuals that is left goes to observations."""
        targets, phi = self.targets, self.result.phi
        out = np.zeros((len(new), len(cluster.rows)))
        for own, where, members, lower, mine, place in self._told_by(cluster, new):
            joint = own.matrix(phi, np.concatenate([place, where]))
            count = len(mine)
            told = np.linalg.solve(lower, joint[count:, :count]).T / targets.root[new[mine], None]
            out[mine[:, None], members] = told
        return out

    def _told_by(
        self, cluster: _Cluster, new: Index
    ) -> Iterator[tuple[Stratum, NDArray[Any], Index, Array, Index, NDArray[Any]]]:
        """By subject: its stratum, places, rows and Cholesky factor; its new rows (of those given) and their places."""
        targets = self.targets
        if targets.part is None:
            return
        subject = targets.subject[new]
        codes = np.asarray(self.observed.part.subject.codes)[cluster.rows]
        first, starts = grouped(np.where(subject < 0, 0, subject + 1), int(subject.max(initial=-1)) + 2)
        for own, where, members, lower in cluster.strata:
            for places in members:
                at = int(codes[places[0]]) + 1
                if at + 1 >= len(starts) or starts[at] == starts[at + 1]:
                    continue
                mine = first[starts[at] : starts[at + 1]]
                if (targets.part.stratum[new[mine]] != self.observed.part.stratum[cluster.rows[places[0]]]).any():
                    raise LMMError(
                        f"data: row {int(new[mine[0]])} has another level of {targets.part.by} than the rows observed "
                        "of its subject"
                    )
                yield own, where, places, lower, mine, targets.part.where[new[mine]]

    # ---- derivatives -------------------------------------------------------------------------------

    def _slopes_of(self, cluster: _Cluster, new: Index, K: Array, told: Array) -> None:
        """a'dV a - 2 a'dV (0, w), less what is left of the residuals given those observed."""
        assert self.slopes is not None
        targets, phi, r, units = self.targets, self.result.phi, self.r, len(self.lower)
        h = np.linalg.solve(self.result.solution.chol, self.d[new].T)
        w = cluster.columns[:, :r] @ np.linalg.solve(self.result.solution.chol.T, h)
        w = (w - cluster.half @ np.linalg.solve(cluster.inner, cluster.half.T @ w)).T
        if self.result.stated is not None:
            w = np.zeros_like(w)
        K, w = cluster.back(K), cluster.back(w)
        if units:
            scaled = self.observed.Z[cluster.rows] @ self.z_map * self.observed.root[cluster.rows, None]
            levels = [level[cluster.rows] for level in self.observed.levels]
            _, Z = self._expanded(scaled, levels, cluster.places)
            _, own = self._expanded(
                targets.Z[new] @ self.z_map, [level[new] for level in targets.levels], cluster.places
            )
            self.slopes[:units, new] += self._along_g(own - K @ Z, w @ Z, cluster.places)
        for own_stratum, where, members, _ in cluster.strata:
            at = slice(units + own_stratum.start, units + own_stratum.stop)
            jacobian = own_stratum.jacobian(phi, where)
            one, other = K[:, members], K[:, members] + 2.0 * w[:, members]
            self.slopes[at, new] += np.einsum("acs,kst,act->ka", one, jacobian, other, optimize=True)
        back = cluster.back(told)
        for own_stratum, where, places, _, mine, place in self._told_by(cluster, new):
            at = slice(units + own_stratum.start, units + own_stratum.stop)
            count = len(mine)
            joint = own_stratum.jacobian(phi, np.concatenate([place, where]))
            cross = joint[:, :count, count:] / targets.root[new[mine], None]
            given = back[mine[:, None], places]
            both = K[mine[:, None], places] + w[mine[:, None], places]
            # what is left of the residual is added again to observations
            self.slopes[at, new[mine]] += 2.0 * np.einsum("kas,as->ka", cross, given - both)
            self.slopes[at, new[mine]] -= np.einsum("as,kst,at->ka", given, joint[:, count:, count:], given)

    def _along_g(self, own: Array, carried: Array, places: list[Index]) -> Array:
        """own'D (own - 2 carried) for the directions D of G, summed over levels (units, a)."""
        out = np.zeros((len(self.lower), len(own)))
        begin = 0
        for f, levels in zip(self.model.factors, places, strict=True):
            shape = (len(own), len(levels), f.stop - f.start)
            stop = begin + shape[1] * shape[2]
            one = own[:, begin:stop].reshape(shape)
            products = np.einsum("ali,alj->ija", one, one - 2.0 * carried[:, begin:stop].reshape(shape))
            mine = np.flatnonzero((self.lower >= f.start) & (self.lower < f.stop))
            i, j = self.lower[mine] - f.start, self.upper[mine] - f.start
            out[mine] = self.both[mine] * (products[i, j] + products[j, i])
            begin = stop
        return out

    # ---- what an observation varies by itself --------------------------------------------------------

    def _of_fresh_effects(self) -> None:
        """The effects of levels that are not a part of the mean."""
        targets = self.targets
        fresh = np.zeros_like(targets.Z)
        for f, level in zip(self.model.factors, targets.levels, strict=False):
            fresh[:, f.columns] = np.where(level[:, None] < 0, targets.Z[:, f.columns], 0.0)
        turned = fresh @ self.factor
        self.variance += np.einsum("ij,ij->i", turned, turned)
        if self.slopes is not None and len(self.lower):
            inner = (fresh @ self.z_map).T
            self.slopes[: len(self.lower)] += self.both * 2.0 * inner[self.lower] * inner[self.upper]

    def _of_fresh_residuals(self) -> None:
        """The residuals, given those observed of their subjects."""
        targets, part = self.targets, self.targets.part
        assert part is not None
        codes = np.asarray(self.observed.part.subject.codes)
        order, starts = grouped(codes, int(codes.max(initial=-1)) + 1)
        kinds: dict[tuple[int, bytes], list[int]] = {}
        for i in np.flatnonzero(targets.subject < 0).tolist():
            kinds.setdefault((int(part.stratum[i]), part.where[i : i + 1].tobytes()), []).append(i)
        for alike in kinds.values():
            self._left(np.array(alike), part.where[alike[:1]], order[:0])
        known = np.flatnonzero(targets.subject >= 0)
        place, begin = grouped(targets.subject[known], int(targets.subject.max(initial=-1)) + 1)
        for s in np.unique(targets.subject[known]).tolist():
            mine = known[place[begin[s] : begin[s + 1]]]
            self._left(mine, part.where[mine], order[starts[s] : starts[s + 1]])

    def _left(self, new: Index, places: NDArray[Any], rows: Index) -> None:
        """Variances at places given the residuals of some rows observed; of new rows there, or all at one place."""
        targets, phi, part = self.targets, self.result.phi, self.targets.part
        assert part is not None
        own, count = part.strata[int(part.stratum[new[0]])], len(places)
        where = np.concatenate([places, self.observed.part.where[rows]]) if len(rows) else places
        joint = own.matrix(phi, where)
        told = np.linalg.solve(joint[count:, count:], joint[count:, :count])
        left = joint[:count, :count].diagonal() - np.einsum("ij,ij->j", joint[count:, :count], told)
        squares = targets.root[new] ** 2
        self.variance[new] += np.maximum(left, 0.0) / squares
        if self.slopes is not None:
            a = np.concatenate([np.eye(count), -told])
            slopes = np.einsum("sa,kst,ta->ka", a, own.jacobian(phi, where), a, optimize=True)
            at = slice(len(self.lower) + own.start, len(self.lower) + own.stop)
            self.slopes[at, new] += slopes / squares


def grouped(codes: Index, count: int) -> tuple[Index, Index]:
    """Positions sorted by code, and where each code begins among them (count + 1,)."""
    order = np.argsort(codes, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(codes, minlength=count))])
    return order, starts
