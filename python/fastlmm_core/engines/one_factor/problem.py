"""A conditioned problem: cross-products of orthonormal columns, and the way back.

The kernels work on X_o = X x_map with X_o'X_o = I, on Z_o = Z z_map with Z_o'Z_o = n I (full
blocks; diagonal ones are scaled only) and on the residual of y, scaled to unit variance, so that
neither units nor origins matter.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ... import kernels
from ...covariance.parameters import CovarianceStructure, one_block
from ...kernels.records.rows import RowColumns, Rows
from ...support.blas_threads import quiet_product
from ...support.threads import threads_in_use
from ...support.types import Array
from ..protocol import CAREFUL, EASY, HARD, ORDINARY, Elsewhere, Engine, Problem, Relaxed
from ..starts import ENOUGH, few_groups, moment_start

if TYPE_CHECKING:
    from .wide import WideCriterion

__all__ = ["OneFactorProblem", "one_factor"]


PILOT_GROUPS = 2048
"""Groups on which a start is found when there are many more of them, all different."""

SCOUT_GROUPS = 256
"""Groups of which the criterion is screened for other minima when there are many more of them, all different."""

SPARSE = 4
"""Independent effects from which a screen of their standard deviations is sparse."""

NOTHING = Elsewhere("nothing")
"""Balanced data have one minimum only."""

HALF = 0.5
"""Least information in a group, of any effect, relative to the largest, of nearly balanced data.  Where the residual
variance and the coefficients are known, log(g + b) + s / (g + b), b the reciprocal of the information, is convex in
log(g + c), c the least b, for any s where b <= 2 c: the criterion then has one minimum."""

MANY_EFFECTS, MANY_EVEN = 5, 0.2
"""Effects of which no few points tell all directions, and the share of the mean that each group is to tell of them."""

SIX = 6
"""Groups for each random effect from which nearly balanced data hardly have several minima; of fewer, these lie close
together even where every group tells much."""


DOMINATED = 0.28
"""Share of the groups, or of as many as are enough, that the variation is worth below which few of them make up most of
it: a half for normal errors alone, a third for normal effects.  The criterion may then have several minima although the
groups are alike."""

TELLING = 0.5
"""Share of the groups that their information on the effects is worth where they tell alike, see lanes/regular.pxi."""

UNALIKE = 0.6
"""That share of fewer than six groups for each effect below which a minimum may be found in its rank only."""

FOREMOST, ANOTHER = 4, 0.75
"""Directions of which single groups tell most, and the square of the cosine of two of them at most."""


class OneFactorProblem(NamedTuple):
    """A conditioned problem and the way back to the caller's units.

    What is not named here is as in `ConditionedProblem`, of which this would be one if it were no tuple.

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
    alone : float
        Part of y_o'y_o that is not the data's: n where X reproduces a response whose residual variance is known, so
        that r^2 is positive; otherwise 0.
    balanced : bool, optional
        Whether the criterion is known to have one minimum only; None where nobody has asked.
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
    alone: float = 0.0
    balanced: bool | None = None

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
        return quiet_product((Z - self.z_scale[0]) * self.z_scale[1], self.z_rows)

    @property
    def dropped(self) -> NDArray[np.intp]:
        """Columns of X left out, being combinations of those before them."""
        return np.setdiff1d(np.arange(len(self.x_map)), self.kept)

    def conditioned_x(self, X: Array) -> Array:
        """Rows of X_o (n, r)."""
        return quiet_product((X[:, self.kept] - self.x_scale[0]) * self.x_scale[1], self.x_rows)

    def conditioned_rows(self, X: Array, y: Array, Z: Array) -> tuple[Array, Array, Array]:
        """X_o, y_o and Z_o of rows; y without the offset."""
        # in shifted and scaled columns the constant takes nearly all of a large offset of y, without rounding
        scaled = (X[:, self.kept] - self.x_scale[0]) * self.x_scale[1]
        slopes = self.x_rows @ np.linalg.solve(self.x_map[self.kept], self.beta_base[self.kept])
        for j in np.argsort(-np.abs(slopes) * np.abs(scaled).max(axis=0)):
            y = y - slopes[j] * scaled[:, j]
        return (
            np.ascontiguousarray(quiet_product(scaled, self.x_rows)),
            y / self.scale,
            np.ascontiguousarray(self.conditioned_z(Z)),
        )

    def add_within(self, rows: Rows, place: NDArray[np.int64], packed: Array, within: Array) -> None:
        """Add the part of [X_o y_o]'[X_o y_o] within each group to `within`.

        Parameters
        ----------
        rows : Rows
            Of `conditioned_rows`.
        place : (n_slots,) int64 array
            Group of each slot.
        packed : (blocks, K, lanes) array
            The factored groups one by one, in order.
        within : (places, (r+1)(r+2)/2) array
            A line for each place of `packed`.
        """
        r, q = rows.X.shape[1], rows.Z.shape[1]
        # rows are conditioned already: no shift, scale or rotation is left to do
        columns = RowColumns(
            np.repeat([[0.0], [1.0]], r, axis=1), np.repeat([[0.0], [1.0]], q, axis=1), np.zeros(r),
            x_transform=np.eye(r + 1), z_transform=np.eye(q),
        )  # fmt: skip
        kernels.within_rows(rows, columns, place, packed, True, within)
        within[:, self.within == 0.0] = 0.0

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
        structure = self.structure
        if k >= kernels.MANY:
            from .wide import WideCriterion

            return WideCriterion(packed, within, n, structure.q, k, *structure.positions, uniform)
        made = kernels.ClusterCriterion(packed, within, n, structure.q, k, *structure.positions, uniform)
        made.jobs = threads_in_use()
        return made

    def pilot(self, n_groups: int = PILOT_GROUPS, worth: int = 4) -> kernels.ClusterCriterion | WideCriterion | None:
        """The criterion of about `n_groups` groups spread over the data, None below `worth` times as many."""
        blocks = len(self.packed) - 1
        step = blocks * self.packed.shape[2] // n_groups
        if step < worth or not self.uniform:
            return None
        chosen = np.ascontiguousarray(self.packed[:blocks:step])
        share = len(chosen) * self.packed.shape[2] / self.m
        return self._engine(chosen, self.within * share, round(self.n * share), self.rank + 1, True)

    @property
    def nearly_balanced(self) -> bool:
        """Whether enough groups tell so much the same of all effects that most responses have one minimum."""
        q = self.structure.q
        enough = self.structure.one_full and self.n - self.rank >= 2 * self.m * q and self.m >= SIX * q
        even = HALF if q < MANY_EFFECTS else MANY_EVEN
        return enough and not self.within_differs and self.evenness >= even

    @property
    def within_differs(self) -> bool:
        """Whether a column of X varies within groups beside Z: coefficients may differ there from those between groups.

        There may be two minima then: with what is between groups as coefficients, and as effects.
        """
        diagonal = np.arange(1, self.rank + 1)
        return bool(self.within[diagonal * (diagonal + 1) // 2 - 1].any())

    @property
    def evenness(self) -> float:
        """Least eigenvalue of A_i = Z_i'Z_i of a group, over the largest one of any; of up to two effects exactly.

        Of more it is a bound: eigenvalues lie within their mean by sqrt((q - 1) / q) of what they spread.  Of many, the
        least harmonic mean of the eigenvalues of a group, over their mean.
        """
        q = self.structure.q
        A = self._information(max(1, len(self.packed) // SCOUT_GROUPS))[0].reshape(-1, q, q)
        if q >= MANY_EFFECTS:
            values = np.linalg.eigvalsh(A[A.any(axis=(1, 2))])
            least = values[:, 0].min()
            return 0.0 if not least > 0.0 else float(q / (1.0 / values).sum(axis=1).max() * self.m / self.n)
        mean = np.trace(A, axis1=1, axis2=2) / q
        off = np.sqrt(np.maximum((A * A).sum(axis=(1, 2)) - q * mean**2, 0.0) * (1.0 - 1.0 / q))
        # groups that tell nothing at all do no harm
        some = mean > 0.0
        return float((mean - off)[some].min() / (mean + off)[some].max())

    @property
    def worth(self) -> float:
        """Number of groups that the variation is worth, (sum s)^2 / sum s^2 of their sums of squares s.

        Of c groups with the same Z_i'Z_i the criterion reads the sum of c_i c_i' alone, c_i = (c_x, c_y), which is that
        of c groups with equal sums of squares too (Schur and Horn): where they have been joined, that is what counts.
        """
        q, k = self.structure.q, self.rank + 1
        n_a = q * (q + 1) // 2
        squares = (self.packed[:, n_a - 1 + k * np.arange(1, q + 1)] ** 2).sum(axis=1)
        if self.uniform:
            return float(squares.sum() ** 2 / ((squares**2).sum() + 1e-300))
        lines = self.packed.transpose(0, 2, 1).reshape(-1, self.packed.shape[1])
        first = np.flatnonzero(np.append(True, (lines[1:, :n_a] != lines[:-1, :n_a]).any(axis=1)))
        sums, count = np.add.reduceat(squares.ravel(), first), np.add.reduceat(lines[:, -1], first)
        return float(sums.sum() ** 2 / ((sums**2 / np.maximum(count, 1.0)).sum() + 1e-300))

    @property
    def telling(self) -> float:
        """Number of groups that the information on the effects is worth, (sum tr A)^2 / (q sum |A|^2) of A_i = Z_i'Z_i.

        As many as there are where all tell the same of every effect.
        """
        A, count = self._information()
        traces, squares = np.trace(A, axis1=2, axis2=3), (A * A).sum(axis=(2, 3))
        return float((count * traces).sum() ** 2 / (self.structure.q * (count * squares).sum()))

    def _information(self, step: int = 1) -> tuple[Array, Array]:
        """A_i = Z_i'Z_i (blocks, lanes, q, q) of each block or some, and how many groups have each."""
        q, packed = self.structure.q, self.packed[::step]
        R = np.zeros((len(packed), packed.shape[2], q, q))
        R[:, :, *np.triu_indices(q)] = packed[:, : q * (q + 1) // 2].transpose(0, 2, 1)
        return R.swapaxes(2, 3) @ R, packed[:, -1]

    @property
    def not_many(self) -> bool:
        """Whether groups are not so many that the criterion is nearly convex about the truth."""
        return few_groups(self.levels / 4.0)

    @property
    def few(self) -> bool:
        """Whether so few groups, or no more that tell alike, bear the effects that minima may lie close together."""
        return self.not_many and (few_groups(self.levels) or self.telling < ENOUGH * self.structure.q)

    @property
    def unalike(self) -> bool:
        """Whether single groups tell so much of some of three or more effects that every rank is searched by itself."""
        q = self.structure.q
        alike = UNALIKE if self.m < SIX * q else TELLING
        return self.structure.one_full and q > 2 and self.telling < alike * self.m

    @property
    def foremost(self) -> Array:
        """Directions of three or more effects (count, q) of which single groups tell most; none where they tell alike.

        Minima lie where effects do not vary along some of them: the rows that tell most then have no part in log|V|.
        """
        q = self.structure.q
        found: list[Array] = []
        if not self.unalike:
            return np.zeros((0, q))
        sizes, axes = np.linalg.eigh(self._information()[0].reshape(-1, q, q))
        for i in np.argsort(-sizes[:, -1], kind="stable"):
            axis = axes[i, :, -1]
            if sizes[i, -1] > 0.0 and all(float(axis @ other) ** 2 < ANOTHER for other in found):
                found.append(axis)
            if len(found) == FOREMOST:
                break
        return np.array(found).reshape(-1, q)

    def elsewhere(self) -> Elsewhere:
        """What is known of other minima of the criterion, and how to look for them."""
        structure, q = self.structure, self.structure.q
        balanced = self.balanced
        if balanced is None:
            balanced = kernels.balanced(self.packed, self.within, q, self.rank + 1, structure.free)
        if balanced:
            return NOTHING
        # a screen is evaluated so often that half of the groups save as much as they cost to choose
        scout = self.pilot(SCOUT_GROUPS, 2)
        if not structure.one_full:
            relaxed = None if q < SPARSE else partial(self._relaxed_criterion, scout is None)
            few = few_groups(self.levels)
            return Elsewhere("search", CAREFUL if few else ORDINARY, scout, relaxed=relaxed)
        worth = self.worth
        if worth >= DOMINATED * min(self.m, ENOUGH * q) and self.nearly_balanced:
            return Elsewhere("search", EASY, scout, beside=self.m < ENOUGH * q)
        if worth < DOMINATED * self.m or self.few:
            return Elsewhere("search", HARD, scout, foremost=self.foremost)
        # with coefficients within groups that are not those between, many groups have two minima, too
        return Elsewhere("search", CAREFUL if self.not_many or self.within_differs else EASY, scout)

    def _relaxed_criterion(self, of_all: bool) -> Relaxed:
        """The criterion where all effects are correlated, of all groups or as many as a scout has."""
        whole = self._replace(structure=one_block(self.structure.q, "full"))
        return Relaxed((None if of_all else whole.pilot(SCOUT_GROUPS, 2)) or whole.criterion(), whole.structure)

    @property
    def levels(self) -> Array:
        """Number of groups of each random effect (q,)."""
        return _levels(self.structure.q, self.m)

    def start(self, criterion: Engine) -> Array:
        """Theta from the moments of the data."""
        pilot = self.pilot()
        if pilot is None:
            return moment_start(criterion, self.structure, self.n, self.m, float(self.within[-1]))
        # those of so many groups are as good a start
        share = pilot.n_rows / self.n
        return moment_start(pilot, self.structure, pilot.n_rows, round(self.m * share), float(self.within[-1]) * share)

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


@lru_cache(maxsize=64)
def _levels(q: int, m: int) -> Array:
    """m for each of q effects."""
    out = np.full(q, float(m))
    out.setflags(write=False)
    return out


def one_factor(problem: Problem) -> OneFactorProblem:
    """The problem, which must be one of a single grouping factor: for what is done with its groups one by one."""
    if hasattr(problem, "refuse_groups"):  # they are elsewhere
        problem.refuse_groups()
    if not isinstance(problem, OneFactorProblem):
        raise TypeError(f"a problem of one grouping factor is needed, not {type(problem).__name__}")
    return problem
