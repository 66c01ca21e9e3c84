"""Arrays to a conditioned problem: cross-products, orthonormal columns, rank.

The kernels work on X_o = X x_map with X_o'X_o = I, on Z_o = Z z_map with Z_o'Z_o = n I (full
blocks; diagonal ones are scaled only) and on the residual of y, scaled to unit variance, so that
neither units nor origins matter.  One pass over the rows is enough where offsets and scales
taken from a sample of the rows leave the columns well conditioned; otherwise a QR decomposition
supplies a better transformation and a second pass is made with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import sqrt
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ... import kernels
from ...covariance.parameters import CovarianceStructure, one_block
from ...design.grouping import Codes, Grouping
from ...errors import LMMError
from ...kernels.records import RowColumns, Rows
from ...problem.aliasing import default_names, refuse_aliased, suspects
from ...problem.columns import (
    WELL_CONDITIONED,
    independent_columns,
    rotation,
    spread,
    z_preconditioner,
)
from ...problem.identification import GroupedColumns, Shared, parts_identify, refuse_unidentified
from ..protocol import CAREFUL, EASY, HARD, ORDINARY, Elsewhere, Engine, Problem, Relaxed
from ..starts import few_groups, moment_start
from .reading import ArrayRows, RowReader, first_columns, first_mean, unshifted

if TYPE_CHECKING:
    from .wide import WideCriterion

__all__ = ["OneFactorProblem", "condition", "condition_rows", "one_factor"]

Array = NDArray[np.float64]

COMPRESS_FROM = 64
"""Groups below which an evaluation is cheaper than the search for equal ones."""

PILOT_GROUPS = 2048
"""Groups on which a start is found when there are many more of them, all different."""

SCOUT_GROUPS = 256
"""Groups of which the criterion is screened for other minima when there are many more of them, all different."""

SPARSE = 4
"""Independent effects from which a screen of their standard deviations is sparse."""

REGULAR = 0.2
"""Least information in a group (harmonic mean over its effects), relative to the mean, of nearly balanced data."""

MOSTLY_BETWEEN = 1e-6
"""Share of the variation of y within groups below which it is summed from the rows again."""

SPANNED = 1e-10
"""Share of a combination of columns of X within groups below which the columns of Z explain it."""

EXACT_WITHIN = 1e-12
"""A column of [X y] whose part within groups is relatively smaller lies in the span of Z_i."""


class OneFactorProblem(NamedTuple):
    """A conditioned problem and the way back to the caller's units.

    Attributes
    ----------
    raw : (m, K) array
        Cross-products per group (see `kernels.accumulate`).
    packed : (blocks, K, 8) array
        Factored groups, as the criterion reads them; compressed if `uniform` is False.
    within : array
        [X y]'[X y] less the part between groups, packed.
    z_transform, xy_transform : arrays
        From the scaled columns in `raw` to the conditioned ones.
    z_scale, x_scale : (2, q), (2, p) arrays
        Shifts and scales of the columns, as applied row by row (X: of the columns kept).
    z_rows, x_rows : (q, q), (r, r) arrays
        From shifted and scaled rows to conditioned ones.
    x_constant : bool
        Whether X has a constant column.
    z_map : (q, q) array
        Z_o = Z z_map, b = z_map b_o.
    x_map : (p, r) array
        X_o = X x_map for the r columns kept (zero rows elsewhere).
    beta_base : (p,) array
        Coefficients already removed from y: beta = beta_base + scale * x_map @ beta_o.
    scale : float
        Standard deviation of the residual of y, by which it was divided.
    kept : (r,) array
        Columns of X kept.
    log_constant : float
        -sum(log(weights)).
    log_jacobian : float
        2 log|det| of x_map on the kept columns.
    saturated : bool
        Whether the columns of X and those of Z, a set for each group, span all rows: no row tells the residual
        variance by itself.
    outside : int
        Dimensions that Z leaves to X where that is so.
    """

    n: int
    m: int
    structure: CovarianceStructure
    raw: Array
    packed: Array
    uniform: bool
    within: Array
    z_transform: Array
    xy_transform: Array
    z_scale: Array
    x_scale: Array
    z_rows: Array
    x_rows: Array
    x_constant: bool
    z_map: Array
    x_map: Array
    beta_base: Array
    scale: float
    kept: NDArray[np.intp]
    log_constant: float
    log_jacobian: float
    saturated: bool
    outside: int

    @property
    def rank(self) -> int:
        """Number of fixed-effect columns kept."""
        return len(self.kept)

    @property
    def crowded(self) -> bool:
        """Whether without some group, or some row, there are as many random effects as rows."""
        q = self.structure.q
        return bool(self.n - self.m * q <= max(float(self.raw[:, -1].max()) - q, 1.0))

    def conditioned_z(self, Z: Array) -> Array:
        """Rows of Z_o (n, q)."""
        return np.asarray((Z - self.z_scale[0]) * self.z_scale[1] @ self.z_rows)

    @property
    def dropped(self) -> NDArray[np.intp]:
        """Columns of X left out, being combinations of those before them."""
        return np.setdiff1d(np.arange(len(self.x_map)), self.kept)

    def conditioned_x(self, X: Array) -> Array:
        """Rows of X_o (n, r)."""
        return np.asarray((X[:, self.kept] - self.x_scale[0]) * self.x_scale[1] @ self.x_rows)

    def criterion(self, columns: Array | None = None) -> kernels.ClusterCriterion | WideCriterion:
        """The criterion of the conditioned problem.

        Parameters
        ----------
        columns : (rank + 1, k) array, optional
            Take [X y] columns for [X y]: for coefficients that are fixed or constrained.
        """
        q, packed, within = self.structure.q, self.packed, self.within
        if columns is None:
            return self._engine(packed, within, self.n, self.rank + 1, self.uniform)
        k = columns.shape[1]
        blocks, depth, lanes = packed.shape
        n_a = q * (q + 1) // 2
        crossed = packed[:, n_a : depth - 1].reshape(blocks, q, -1, lanes)
        turned = np.einsum("bqil,ij->bqjl", crossed, columns).reshape(blocks, q * k, lanes)
        packed = np.concatenate([packed[:, :n_a], turned, packed[:, depth - 1 :]], axis=1)
        inner = columns.T @ kernels.unpack(within, self.rank + 1) @ columns
        return self._engine(packed, inner[np.tril_indices(k)], self.n, k, self.uniform)

    def _engine(
        self, packed: Array, within: Array, n: int, k: int, uniform: bool
    ) -> kernels.ClusterCriterion | WideCriterion:
        """The criterion of k columns, by what does best with so many."""
        rows, columns = self.structure.positions
        kind: type[kernels.ClusterCriterion | WideCriterion] = kernels.ClusterCriterion
        if k >= kernels.MANY:
            from .wide import WideCriterion as kind
        return kind(packed, within, n, self.structure.q, k, rows, columns, uniform)

    def pilot(self, n_groups: int = PILOT_GROUPS, worth: int = 4) -> kernels.ClusterCriterion | WideCriterion | None:
        """The criterion of about `n_groups` groups spread over the data, None below `worth` times as many."""
        blocks = len(self.packed) - 1
        step = blocks * self.packed.shape[2] // n_groups
        if step < worth or not self.uniform:
            return None
        chosen = np.ascontiguousarray(self.packed[:blocks:step])
        share = len(chosen) * self.packed.shape[2] / self.m
        return self._engine(chosen, self.within * share, round(self.n * share), self.rank + 1, True)

    def elsewhere(self) -> Elsewhere:
        """What is known of other minima of the criterion, and how to look for them."""
        structure, q = self.structure, self.structure.q
        if kernels.balanced(self.packed, self.within, q, self.rank + 1, structure.free):
            return Elsewhere("nothing")
        # a screen is evaluated so often that half of the groups save as much as they cost to choose
        scout = self.pilot(SCOUT_GROUPS, 2)
        if not structure.one_full:
            relaxed = None if q < SPARSE else partial(self._relaxed_criterion, scout is None)
            return Elsewhere("search", ORDINARY, scout, relaxed=relaxed)
        packed = np.ascontiguousarray(self.packed[:: max(1, len(self.packed) // SCOUT_GROUPS)])
        ample = self.n - self.rank >= 2 * self.m * q
        if ample and kernels.least_information(packed, q) >= REGULAR * self.n / self.m:
            return Elsewhere("search", EASY, scout)
        few, not_many = few_groups(structure, self.levels), few_groups(structure, self.levels / 4.0)
        return Elsewhere("search", HARD if few else CAREFUL if not_many else ORDINARY, scout)

    def _relaxed_criterion(self, of_all: bool) -> Relaxed:
        """The criterion where all effects are correlated, of all groups or as many as a scout has."""
        whole = self._replace(structure=one_block(self.structure.q, "full"))
        return Relaxed((None if of_all else whole.pilot(SCOUT_GROUPS, 2)) or whole.criterion(), whole.structure)

    @property
    def levels(self) -> Array:
        """Number of groups of each random effect (q,)."""
        return np.full(self.structure.q, float(self.m))

    def start(self, criterion: Engine) -> Array:
        """Theta from the moments of the data."""
        return moment_start(criterion, self.structure, self.n, self.m, float(self.within[-1]))

    def unpatterned(self) -> Array:
        """The factored groups one by one, in order."""
        if self.uniform:
            return self.packed
        return kernels.factor_groups(self.raw, self.z_transform, self.xy_transform)[0]

    def effects(self, factor: Array, beta: Array) -> tuple[Array, ...]:
        """BLUPs of the conditioned random effects, one (m, q) array per grouping factor."""
        e, _ = kernels.group_effects(self.unpatterned(), self.m, factor, np.append(-beta, 1.0))
        return (e @ (factor @ factor.T),)

    def effects_covariance(self, factor: Array) -> tuple[Array, ...]:
        """Conditional covariances of the conditioned random effects, relative to sigma^2: (m, q, q) per factor."""
        contrast = np.zeros(self.rank + 1)
        _, conditional = kernels.group_effects(self.unpatterned(), self.m, factor, contrast, conditional=True)
        assert conditional is not None
        return (conditional,)


def one_factor(problem: Problem) -> OneFactorProblem:
    """The problem, which must be one of a single grouping factor: for what is done with its groups one by one."""
    if not isinstance(problem, OneFactorProblem):
        raise TypeError(f"a problem of one grouping factor is needed, not {type(problem).__name__}")
    return problem


def condition(
    y: Array,
    X: Array,
    Z: Array,
    groups: Codes,
    weights: Array | None,
    offset: Array | None,
    structure: CovarianceStructure,
    z_names: Sequence[str] | None = None,
    given: bool = False,
) -> tuple[OneFactorProblem, Grouping]:
    """Cross-products of a model, conditioned.

    Parameters
    ----------
    y, X, Z : (n,), (n, p), (n, q) arrays
    groups : Codes
    weights, offset : (n,) arrays or None
    structure : CovarianceStructure
    z_names : (q,) sequence of str, optional
        Names of the columns of Z, for messages.
    given : bool
        Whether the parameters are: then only values that are not finite are refused, and y may be 0 throughout, for a
        design without a response.  So that r^2 is positive whatever y is, n is added to y_o'y_o.

    Returns
    -------
    OneFactorProblem
    Grouping
        The grouping factor with the levels that occur.

    Raises
    ------
    LMMError
        For values that are not finite, a constant response, collinear columns of Z, random effects that the fixed
        effects explain, covariance parameters that are not identified, or a response without residual variation.
    """
    reader = ArrayRows(Rows(X, y, Z, groups.codes, groups.base, groups.n_slots, weights, offset))
    problem, present = condition_rows(reader, structure, groups.name, z_names, given)
    return problem, Grouping(groups, present)


def condition_rows(
    reader: RowReader,
    structure: CovarianceStructure,
    name: str,
    z_names: Sequence[str] | None = None,
    given: bool = False,
    columns: RowColumns | None = None,
) -> tuple[OneFactorProblem, NDArray[np.intp] | None]:
    """`condition` for rows from anywhere.

    Parameters
    ----------
    reader : RowReader
    structure : CovarianceStructure
    name : str
        Of the grouping factor.
    z_names, given
        See `condition`.
    columns : RowColumns, optional
        Shifts and scales to begin with; by default those that the first rows tell.

    Returns
    -------
    OneFactorProblem
    (m,) array or None
        The slots that have rows, None for all.
    """
    if columns is None:
        columns = first_columns(reader, structure.one_full)
    p = len(columns.beta0)
    kept = np.arange(p)
    for attempt in range(4):
        raw, packed_s, gram, constant, varies, finite = reader.sums(columns, kept)
        n = reader.n
        if not finite:
            reader.refuse_non_finite()
        if attempt == 0:
            m = int(np.count_nonzero(raw[:, -1]))
        if not varies and not given:
            raise LMMError("y is constant: there is nothing to model; check that the right column is the response")
        if not constant:
            # a column that looked constant in the sample is not: do without shifts
            columns = unshifted(reader)
            continue
        to_x, x_margin, xy, beta, rest, total, scale = kernels.least_squares(packed_s, columns.beta0, n)
        to_z, z_margin = _z_rotation(gram, n, structure) if not given else (np.eye(structure.q), 1.0)
        poor_x = x_margin < WELL_CONDITIONED and columns.x_transform is None
        poor_z = z_margin < WELL_CONDITIONED and columns.z_transform is None
        if poor_x:
            kept, x_scale, x_constant, turn = independent_columns(
                lambda scales: reader.triangle(scales, False),
                columns.x_scale,
                columns.x_constant,
                lambda: unshifted(reader).x_scale,
            )
            turn = turn * sqrt(n)
            start: Array = np.zeros(len(kept))
            if x_constant >= 0:
                # sums of squares about the mean of y, in the coordinates of the turned columns
                start[x_constant] = first_mean(reader)
                start = np.asarray(np.linalg.solve(turn, start))
            columns = columns._replace(x_scale=x_scale, x_constant=x_constant, x_transform=turn, beta0=start)
        if poor_z:
            triangle = reader.triangle(columns.z_scale, True)
            columns = columns._replace(z_transform=z_preconditioner(triangle, n, structure))
        if poor_x or poor_z:
            continue
        if rest <= 1e-7 * packed_s[-1] and attempt < 3:
            # the fixed effects explain nearly all of y: take its residual again from the rows
            columns = columns._replace(beta0=beta)
            continue
        break
    # beta0 is not zero only where it has been taken from y before the sums
    if not rest > 1e-30 * total:
        if not given:
            raise LMMError("y is reproduced exactly by the fixed effects: there is no variation left to model")
        scale = sqrt(total / n) if total > 0.0 else 1.0
        xy[:-1, -1], xy[-1, -1] = (columns.beta0 - beta) / scale, 1.0 / scale
    sums = Sums(m, raw, packed_s, to_x, to_z, xy, beta, scale)
    problem, present, free, exact = _finish(reader, columns, sums, structure, kept, p)
    if given:
        problem.within[-1] += n
        return problem, present
    if structure.restricted:
        # it may identify parameters that free covariances do not: told when they are estimated
        return problem, present
    if not free:
        _refuse_what_is_not_identified(problem, reader, name, z_names)
    if exact and not problem.saturated:
        raise LMMError(
            "y is reproduced exactly within every group by the random effects: the residual variance is zero; "
            "use fewer random effects"
        )
    return problem, present


def _refuse_what_is_not_identified(
    problem: OneFactorProblem, reader: RowReader, name: str, z_names: Sequence[str] | None
) -> None:
    """Refuse random effects that X explains in every group, and parameters that nothing tells apart."""
    structure, r, n = problem.structure, problem.rank, problem.n
    q, m = structure.q, len(problem.raw)
    n_a = q * (q + 1) // 2
    scaled = problem.raw[:, n_a:-1].reshape(m, q, -1)
    crossed = np.einsum("aij,ik,jl->akl", scaled, problem.z_transform, problem.xy_transform[:, :r], optimize=True)

    def rows() -> tuple[list[GroupedColumns], Array, Array]:
        read = reader.whole()
        root = 1.0 if read.weights is None else np.sqrt(read.weights)[:, None]
        place = np.zeros(read.n_slots, dtype=np.intp)
        place[np.unique(read.codes) - read.base] = np.arange(m)
        names = default_names(read.Z) if z_names is None else tuple(z_names)
        columns = GroupedColumns(problem.conditioned_z(read.Z) * root, place[read.codes - read.base], m, name, names)
        return [columns], problem.conditioned_x(read.X) * root, read.Z

    found = suspects(crossed, n, structure)
    if found:
        (own,), x_o, Z = rows()
        refuse_aliased(found, own.Z, x_o, own.codes, problem.z_map, Z, name, own.columns)
    lower = np.zeros((q, q), dtype=np.intp)
    lower[np.tril_indices(q)] = np.arange(n_a)
    packed = problem.raw[:, np.maximum(lower, lower.T)]
    products = problem.z_transform.T @ packed @ problem.z_transform
    if parts_identify(products, problem.raw[:, -1], structure, r):
        return
    levels = np.arange(m)
    shared = [Shared(0, 0, levels, levels, products)]
    refuse_unidentified(shared, [crossed], structure, n, problem.z_map, lambda: rows()[:2])


def _z_rotation(packed: Array, n: int, structure: CovarianceStructure) -> tuple[Array, float]:
    """`rotation` from packed sums of products."""
    if structure.one_full:
        return kernels.rotation(packed, structure.q, n)
    return rotation(kernels.unpack(packed, structure.q), n, structure)


def spanned_rows(packed: Array, q: int, order: NDArray[np.intp], counts: Array, within: Array) -> tuple[int, bool]:
    """How many dimensions of the rows Z leaves, and whether X takes them all.

    Parameters
    ----------
    packed : (blocks, K, lanes) array
        Factored groups.
    q : int
        Columns of Z.
    order : (places,) array
        Group in each place, -1 for none.
    counts : (m,) array
        Rows of each group.
    within : (k, k) array
        [X y]'[X y] less the part between groups.
    """
    r = len(within) - 1
    taken = (packed[:, np.cumsum([0, *range(q, 1, -1)])] > 0.0).sum(axis=1).ravel()[: len(order)]
    # pivots that rounding has left are more than a group has rows
    rank = np.minimum(taken, np.where(order >= 0, counts[order], 0.0)).sum()
    outside = round(float(counts.sum() - rank))
    return outside, outside == np.count_nonzero(np.linalg.eigvalsh(within[:r, :r]) > SPANNED)


def _padded(transform: Array) -> Array:
    out = np.eye(len(transform) + 1)
    out[:-1, :-1] = transform
    return out


class Sums(NamedTuple):
    """Sums over the rows, and the columns to which they are turned.

    Attributes
    ----------
    m : int
        Groups with rows.
    raw, packed_s : arrays
        As `kernels.accumulate` gives them.
    to_x, to_z, xy : arrays
        From the columns of the sums to orthonormal ones.
    beta : (r,) array
        Least-squares coefficients, with those taken from y before the sums.
    scale : float
        Standard deviation of the residual.
    """

    m: int
    raw: Array
    packed_s: Array
    to_x: Array
    to_z: Array
    xy: Array
    beta: Array
    scale: float


def _finish(
    reader: RowReader, columns: RowColumns, sums: Sums, structure: CovarianceStructure, kept: NDArray[np.intp], p: int
) -> tuple[OneFactorProblem, NDArray[np.intp] | None, bool, bool]:
    """The problem; the slots with rows; whether parameters are clearly identified; whether y is exact within groups."""
    m, raw, packed_s, to_x, to_z, xy, beta, scale = sums
    n, q, r = reader.n, structure.q, len(kept)
    x_transform, z_transform = columns.x_transform, columns.z_transform
    present: NDArray[np.intp] | None = None
    if m < reader.n_slots:
        present = np.flatnonzero(raw[:, -1])
        raw = raw[present]
    packed, between = kernels.factor_groups(raw, to_z, xy)
    free = kernels.vary_freely(packed, raw, q, 2 * r + 1, 1e-4 * sqrt(n) / m)
    within = kernels.within_part(packed_s, xy, between)
    x_rows = to_x if x_transform is None else x_transform @ to_x
    z_rows = to_z if z_transform is None else z_transform @ to_z
    tolerance, saturated, outside = EXACT_WITHIN, False, 0
    slope, unexplained = kernels.within_regression(within, r + 1, EXACT_WITHIN)
    if unexplained < MOSTLY_BETWEEN * n:
        # sums of squares have lost digits: take out what X explains within groups and sum over the rows again
        xy[:r, r] -= to_x @ slope
        beta = columns.beta0 - xy[:r, r] * scale
        packed, between = kernels.factor_groups(raw, to_z, xy)
        position = np.zeros(reader.n_slots, dtype=np.int64)
        position[slice(None) if present is None else present] = np.arange(m)
        conditioned = columns._replace(
            x_transform=xy if x_transform is None else _padded(x_transform) @ xy,
            z_transform=z_rows,
            beta0=columns.beta0 if x_transform is None else x_transform @ columns.beta0,
        )
        within = reader.within(conditioned, kept, position, packed)
        tolerance = EXACT_WITHIN**2
        outside, saturated = spanned_rows(packed, q, np.arange(m), raw[:, -1], kernels.unpack(within, r + 1))
        if saturated:
            within[-r - 1 :] = 0.0
    exact = kernels.clear_exact(within, r + 1, float(n), tolerance)
    smaller = kernels.compress(packed, m, q, r + 1) if m >= COMPRESS_FROM else None
    x_map, beta_base, log_det = kernels.natural_map(
        columns.x_scale, columns.x_constant, to_x if x_transform is None else x_transform, beta
    )
    if x_transform is not None:
        beta_base = x_map @ beta
        x_map = x_map @ to_x
        log_det += kernels.log_diagonal(to_x)
    if r < p:
        x_map, beta_base = spread(x_map, kept, p), spread(beta_base, kept, p)
    z_map = kernels.natural_map(
        columns.z_scale, columns.z_constant, to_z if z_transform is None else z_transform, None
    )[0]
    if z_transform is not None:
        z_map = z_map @ to_z
    problem = OneFactorProblem(
        n=n,
        m=m,
        structure=structure,
        raw=raw,
        packed=packed if smaller is None else smaller,
        uniform=smaller is None,
        within=within,
        z_transform=to_z,
        xy_transform=xy,
        z_scale=columns.z_scale,
        x_scale=columns.x_scale,
        z_rows=z_rows,
        x_rows=x_rows,
        x_constant=columns.x_constant >= 0,
        z_map=z_map,
        x_map=x_map,
        beta_base=beta_base,
        scale=scale,
        kept=kept,
        log_constant=-reader.log_weights,
        log_jacobian=2.0 * log_det,
        saturated=saturated,
        outside=outside if saturated else 0,
    )
    return problem, present, free, exact
