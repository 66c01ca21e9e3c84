"""Exact refits of a model of one grouping factor after deletions, from cross-products.

Every deletion takes the contribution of a group, or of one row, from the sums that the criterion is made of.  Where
there are many deletions the sums over all groups are replaced by polynomials that agree with them to rounding error in
a small ball around the optimum (see one_factor/deletion.pyx), and Newton's method for one deletion costs a few
microseconds whatever the number of groups.  Deletions that lead out of the ball, to the boundary, or that cost X its
rank are optimised one by one, also without a look at the rows.
"""

from __future__ import annotations

from functools import cached_property
from math import log
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ... import kernels
from ...engines.one_factor.problem import one_factor
from ...engines.protocol import HARD, UNASKED, Elsewhere
from ...engines.starts import moment_start
from ...errors import LMMError
from ...kernels.deletions import refit_deletions
from ...kernels.records.deletions import DeletedLines, DeletionSums
from ...support.threads import map_in_threads, processors
from ...support.types import Array
from ..optimize import optimize
from ..optimum import SINGULAR, Optimum
from .contributions import Pieces, all_but_one, group_pieces, pieces_of_groups
from .polynomials import DEGREES, Sums, n_nodes, n_terms, symmetric_sum

if TYPE_CHECKING:
    from ..fit import Fit

__all__ = ["Deletions", "delete", "delete_by_sums"]


EXPANSION_ERROR = 3e-10
"""Relative truncation error of the derivatives of a polynomial that serves in place of the sums: radius^degree."""

SMALLEST_RADIUS = 1e-3
"""Differences of sums over a smaller ball are mostly rounding error."""

SINGLY = 6
"""Cost of one optimisation over all groups, in nodes at which polynomials are fitted."""

PER_THREAD = 2000
"""Deletions that are worth a thread."""

RANK_LOSS = 1e-6
"""Part of a column of X outside the others (squared) below which its rank is determined anew."""

THOROUGH = 200
"""Deletions up to which each that ends on the boundary is optimised from other starts too."""

FOUND, DEFICIENT = 0, 2
"""Status of a deletion (see `refit_deletions`): at its optimum, without the rank of X."""

CERTIFICATE = 1e-6
"""Decrement, evaluated over all groups, that the deletions farthest from the optimum must reach."""


class Deletions(NamedTuple):
    """Refits, one line per deletion; NaN where there is none.

    Attributes
    ----------
    params : (d, p) array
    half : (d, p, p) array
        Upper or lower square root of the covariance of the fixed effects: cov = sigma2 half' half.
    sigma2, criterion, gradient_norm : (d,) arrays
    factor : (d, q, q) array
        Lambda in natural units.
    converged, singular : (d,) bool arrays
    n : (d,) array
        Observations left.
    notes : dict of int to str
        What is unusual about a deletion.
    residual : (d, k) array or None
        Parameters of structured residuals in the units that are reported.
    """

    params: Array
    half: Array
    sigma2: Array
    criterion: Array
    gradient_norm: Array
    factor: Array
    converged: NDArray[np.bool_]
    singular: NDArray[np.bool_]
    n: NDArray[np.int64]
    notes: dict[int, str]
    residual: Array | None = None


def _degrees(n_par: int, size: Array) -> list[tuple[int, float]]:
    """The degree that serves deletions of these sizes at the least cost, and higher ones; with their reach.

    Empty where it costs less to optimise the deletions one by one.
    """
    found = [(degree, EXPANSION_ERROR ** (1.0 / degree)) for degree in range(3, DEGREES[n_par] + 1)]
    cost = [n_nodes(n_par, degree) + SINGLY * np.count_nonzero(size >= reach) for degree, reach in found]
    best = int(np.argmin(cost))
    return found[best:] if cost[best] < SINGLY * len(size) else []


class _Refits:
    """All deletions of one kind."""

    def __init__(self, result: Fit, pieces: Pieces) -> None:
        model = result.model
        problem: Any = model.problem
        self.result, self.model, self.problem = result, model, problem
        self.structure = model.structure
        self.q, self.k = model.structure.q, problem.rank + 1
        self.pieces = pieces
        d, p, q, r = len(pieces.owner), len(model.exog_names), self.q, problem.rank
        self.n = problem.n - self.pieces.removed
        self.m = problem.m - self.pieces.vanishes
        self.beta, self.inverse = np.full((d, r), np.nan), np.full((d, r, r), np.nan)
        self.r2, self.value, self.decrement = np.full(d, np.nan), np.full(d, np.nan), np.full(d, np.nan)
        self.factor = np.full((d, q, q), np.nan)
        self.converged, self.singular = np.zeros(d, dtype=bool), np.zeros(d, dtype=bool)
        self.notes: dict[int, str] = {}
        # what deletions with a smaller X have in place of beta and inverse
        self.special: dict[int, tuple[Array, Array, float]] = {}
        self.lines = problem.unpatterned().copy()
        self.p = p

    def run(self) -> Deletions:
        d = len(self.n)
        refused = self._refused()
        open_ = ~refused
        guess = np.zeros((d, self.structure.n_parameters))
        deficient = np.zeros(d, dtype=bool)
        if not self.result.singular and self.result.converged:
            open_, guess, deficient = self._by_polynomials(open_, guess)
        for i in np.flatnonzero(open_):
            try:
                self._exact(int(i), guess[i], bool(deficient[i]))
            except LMMError as error:
                self.notes[int(i)] = str(error)
        return self._finished()

    def _refused(self) -> NDArray[np.bool_]:
        """Deletions that leave nothing to fit, with notes."""
        name = self.model.grouping.name
        few = self.n <= np.maximum(self.m * self.q, self.p)
        one = self.m < 2
        pieces = self.pieces
        R = pieces.less[:, : self.q**2].reshape(-1, self.q, self.q)
        A = R.transpose(0, 2, 1) @ R
        size = A.sum(axis=0)
        share = np.einsum("iaa->ia", A) / np.where(np.diag(size) > 0.0, np.diag(size), 1.0)
        flat = np.zeros(len(self.n), dtype=bool)
        # only a group with most of the variation of Z can take its rank away
        suspects = np.flatnonzero((share.sum(axis=1) > 0.5)[pieces.owner])
        if len(suspects):
            rest = all_but_one(A.reshape(len(A), -1)).reshape(-1, self.q, self.q)
            for i in suspects:
                left = rest[pieces.owner[i]]
                if pieces.more is not None:
                    R_i = pieces.more[i, : self.q**2].reshape(self.q, self.q)
                    left = left + R_i.T @ R_i
                flat[i] = self._collinear(left, np.diag(size))
        for i in np.flatnonzero(few | one | flat):
            if one[i]:
                self.notes[int(i)] = f"one level of {name} is left: its variance cannot be estimated"
            elif few[i]:
                self.notes[int(i)] = "too few observations are left for the fixed and random effects"
            else:
                self.notes[int(i)] = "a column of Z becomes zero or a combination of others"
        return np.asarray(few | one | flat)

    def _collinear(self, gram: Array, size: Array) -> bool:
        for block in self.structure.blocks:
            part = slice(block.start, block.stop)
            inner, scale = gram[part, part], np.sqrt(np.diag(gram)[part])
            if (scale**2 <= 1e-14 * size[part]).any():
                return True
            if block.correlated and np.linalg.eigvalsh(inner / np.outer(scale, scale))[0] < 1e-13:
                return True
        return False

    def _by_polynomials(
        self, wanted: NDArray[np.bool_], guess: Array
    ) -> tuple[NDArray[np.bool_], Array, NDArray[np.bool_]]:
        """Settle what can be settled by polynomials; what is left open, starts for it, and where X may lose rank."""
        structure, problem = self.structure, self.problem
        n_par = structure.n_parameters
        d = len(wanted)
        if n_par not in DEGREES or self._several_minima:
            return wanted, guess, np.zeros(d, dtype=bool)
        sums = Sums(self.result, problem)
        chosen = np.flatnonzero(wanted)
        # two steps with cubic polynomials tell how far the deletions lead, and nearly lead there
        S, status, _ = self._newton(sums, chosen, guess[chosen], 3, 0.02, 0.3, 0.0, 2)
        guess[chosen] = S
        deficient, size = np.zeros(d, dtype=bool), np.full(d, np.inf)
        deficient[chosen] = status == DEFICIENT
        # with a margin: the last steps are still to come
        size[chosen] = np.where(status == DEFICIENT, np.inf, 1.05 * np.sqrt(np.sum(S * S, axis=1)))
        for degree, reach in _degrees(n_par, size[chosen]):
            group = np.flatnonzero(size < reach)
            radius = max(SMALLEST_RADIUS, min(1.05 * float(size[group].max()), reach))
            tolerance = 3e-10 * np.sqrt(problem.m)
            S, status, found = self._newton(sums, group, guess[group], degree, radius, radius, tolerance, 25)
            good = status == FOUND
            farthest = np.argsort(np.where(good, -np.sum(S * S, axis=1), 0.0))[: min(2, int(good.sum()))]
            if not all(self._certified(sums, int(group[i]), S[i]) for i in farthest):
                continue
            at = group[good]
            self.value[at], self.r2[at], self.decrement[at], self.beta[at], self.inverse[at] = (
                part[good] for part in found
            )
            self.factor[at], self.converged[at] = sums.factors(S[good]), True
            wanted = wanted.copy()
            wanted[at] = False
            break
        return wanted, guess, deficient

    def _newton(
        self, sums: Sums, chosen: NDArray[np.intp], start: Array, degree: int, radius: float, reach: float,
        tolerance: float, max_iterations: int,
    ) -> tuple[Array, NDArray[np.int64], tuple[Array, ...]]:  # fmt: skip
        """S, status and what else is known of the deletions chosen, by polynomials fitted in |S| <= radius."""
        basis, table, second = sums.polynomials(degree, radius, reach)
        pieces = self.pieces
        shared = DeletionSums(
            table, basis.parent, basis.variable, n_terms(sums.n_par, degree - 1), second, sums.rows, sums.columns,
            sums.factor, self.k, sums.reml, radius=reach, rank_tolerance=RANK_LOSS,
        )  # fmt: skip

        def refit(part: NDArray[np.intp], start: Array) -> tuple[Any, ...]:
            more = None if pieces.more is None else pieces.more[part]
            lines = DeletedLines(pieces.less, pieces.owner[part], more, pieces.removed[part])
            return refit_deletions(shared, lines, start, self.problem.n, tolerance, max_iterations)

        jobs = min(processors(), len(chosen) // PER_THREAD)
        if jobs < 2:
            found = refit(chosen, start)
        else:
            tasks = zip(np.array_split(chosen, jobs), np.array_split(start, jobs), strict=True)
            shares = map_in_threads(refit, tasks, jobs)
            found = tuple(np.concatenate(parts) for parts in zip(*shares, strict=True))
        return found[0], found[-1], found[1:-1]

    def _certified(self, sums: Sums, i: int, S: Array) -> bool:
        """Whether the gradient over all groups, without polynomials, vanishes where they say."""
        with _Without(self, i) as criterion:
            theta = self.structure.theta(sums.factors(S))
            _, gradient, hessian = criterion.evaluate(theta, 2)
        assert gradient is not None and hessian is not None
        values, vectors = np.linalg.eigh(hessian)
        if values[0] <= 0.0:
            return False
        return bool(np.sqrt(np.sum((vectors.T @ gradient) ** 2 / values)) <= CERTIFICATE)

    @cached_property
    def _several_minima(self) -> bool:
        """Whether a deletion may make another minimum the lowest one: of a group, not of a single row."""
        return self.pieces.more is None and self.elsewhere.effort == HARD

    @cached_property
    def elsewhere(self) -> Elsewhere:
        """How to look for other minima without a group, or a row."""
        return Elsewhere(effort=self.problem.elsewhere().unbalanced().effort)

    def _exact(self, i: int, guess: Array, deficient: bool) -> None:
        """Optimise the criterion of deletion i over all groups."""
        columns: Array | None = None
        kept = np.arange(self.k - 1)
        if deficient or self._x_left(i) < RANK_LOSS:
            columns, kept, shift, triangle = self._smaller_x(i)
        with _Without(self, i, columns) as criterion:
            optimum = self._optimum(criterion, i, guess)
            beta, r2, chol, _ = criterion.solution()
        self.value[i], self.r2[i], self.decrement[i] = optimum.value, r2, optimum.gradient_norm
        self.converged[i], self.singular[i] = optimum.converged, optimum.singular
        self.factor[i] = optimum.factor
        if not optimum.converged:
            self.notes[i] = optimum.message
        if columns is None:
            self.beta[i], self.inverse[i] = beta, np.linalg.inv(chol)
            return
        problem = self.problem
        params, half = np.full(self.p, np.nan), np.full((self.p, self.p), np.nan)
        at = problem.kept[kept]
        params[at] = problem.scale * np.linalg.solve(triangle, beta) + shift
        half[: len(at), at] = np.linalg.solve(chol, np.linalg.inv(triangle).T)
        half[len(at) :, at] = 0.0
        self.special[i] = (params, half, 2.0 * float(np.sum(np.log(np.abs(np.diag(triangle))))))
        names = [self.model.exog_names[j] for j in np.setdiff1d(problem.kept, at)]
        self.notes[i] = f"X loses rank: no estimate of {', '.join(names)}"

    def _optimum(self, criterion: kernels.ClusterCriterion, i: int, guess: Array) -> Optimum:
        structure, n, m = self.structure, int(self.n[i]), int(self.m[i])
        levels = np.full(self.q, float(m))
        found: Optimum | None = None
        full = self.result.optimum
        if not full.singular and full.converged:
            S = symmetric_sum(structure, guess)
            start = full.factor @ np.linalg.cholesky(S) if np.linalg.eigvalsh(S)[0] > 0.1 else full.factor
            found = optimize(criterion, structure, levels, n, structure.theta(start), elsewhere=UNASKED)
            if found.converged and not found.singular and not self._several_minima:
                return found
        pieces = self.pieces
        within = float(pieces.others[pieces.owner[i], -1] + (0.0 if pieces.more is None else pieces.more[i, -1]))
        if not within > 0.0:
            raise LMMError("y is reproduced exactly within every group by the random effects")
        start_theta = moment_start(criterion, structure, n, m, within)
        thorough = len(self.n) <= THOROUGH
        where = self.elsewhere if thorough else UNASKED
        other = optimize(criterion, structure, levels, n, start_theta, elsewhere=where)
        if not (thorough or other.converged):
            other = optimize(criterion, structure, levels, n, start_theta, elsewhere=self.elsewhere)
        if found is None or other.converged > found.converged or other.value <= found.value + 1e-9:
            return other
        criterion.evaluate(found.theta, 0)
        return found

    # ---- rank of X -----------------------------------------------------------------------------------

    def _x_gram(self, lines: Array) -> Array:
        """Sum of X_o'X_o over pieces."""
        q, k, r = self.q, self.k, self.k - 1
        c = lines[:, q * q : q * q + q * k].reshape(-1, k)
        within = kernels.unpack(lines[:, q * q + q * k :].sum(axis=0), k)
        return np.asarray((within + c.T @ c)[:r, :r])

    @cached_property
    def _x_whole(self) -> Array:
        return self._x_gram(self.pieces.less)

    def _x_left(self, i: int) -> float:
        """Smallest eigenvalue of X_o'X_o after deletion i (about 1 where nothing is deleted)."""
        if self.k == 1:
            return 1.0
        pieces, at = self.pieces, int(self.pieces.owner[i])
        left = self._x_whole - self._x_gram(pieces.less[at : at + 1])
        if pieces.more is not None:
            left = left + self._x_gram(pieces.more[i : i + 1])
        scale = np.sqrt(np.diag(self._x_whole))
        return float(np.linalg.eigvalsh(left / np.outer(scale, scale))[0])

    def _smaller_x(self, i: int) -> tuple[Array | None, NDArray[np.intp], Array, Array]:
        """Columns of [X y] whose X part is of full rank on the rows left.

        Returns
        -------
        columns : (k, r' + 1) array or None
            None where X keeps its rank.
        kept : (r',) array
            Positions among the columns kept so far.
        shift, triangle : arrays
            beta of the columns kept = shift + scale triangle^-1 beta_o.
        """
        model, problem = self.model, self.problem
        index = model.grouping.index
        rows = np.arange(len(index)) != i if self.pieces.more is not None else index != i
        X = model.exog[rows][:, problem.kept]
        w = np.ones(len(X)) if model.weights is None else np.sqrt(model.weights[rows])
        scaled = X * w[:, None]
        length = np.linalg.norm(scaled, axis=0)
        kept: list[int] = []
        basis = np.zeros((len(X), 0))
        for j in range(X.shape[1]):
            rest = scaled[:, j] / (length[j] or 1.0)
            for _ in range(2):
                rest = rest - basis @ (basis.T @ rest)
            norm = float(np.linalg.norm(rest))
            if norm > 1e-7:
                kept.append(j)
                basis = np.column_stack([basis, rest / norm])
        at = np.array(kept, dtype=np.intp)
        if len(at) == X.shape[1]:
            return None, at, np.empty(0), np.empty((0, 0))
        triangle = np.triu(basis.T @ scaled[:, at])
        # the basis as combinations of the columns of X_o
        inverse = np.linalg.inv(problem.x_map[problem.kept])
        columns = np.zeros((self.k, len(at) + 1))
        columns[:-1, :-1] = inverse[:, at] @ np.linalg.inv(triangle)
        columns[-1, -1] = 1.0
        # X beta_base on these rows in terms of the columns kept
        target = scaled @ problem.beta_base[problem.kept]
        shift = np.linalg.solve(triangle, basis.T @ target)
        return columns, at, shift, triangle

    # ---- back to the caller's units -------------------------------------------------------------------

    def _finished(self) -> Deletions:
        problem, reml = self.problem, self.result.reml
        d, p = len(self.n), self.p
        rank = np.full(d, problem.rank)
        jacobian = np.full(d, problem.log_jacobian)
        params = problem.beta_base + problem.scale * (self.beta @ problem.x_map.T)
        dropped = np.setdiff1d(np.arange(p), problem.kept)
        params[:, dropped] = np.nan
        half = np.zeros((d, p, p))
        fine = np.isfinite(self.r2)
        fine[list(self.special)] = False
        if problem.rank:
            half[:, : problem.rank] = (self.inverse.reshape(-1, problem.rank) @ problem.x_map.T).reshape(d, -1, p)
        half[~fine] = np.nan
        half[:, :, dropped] = np.nan
        for at, (own, root, log_det) in self.special.items():
            params[at], half[at] = own, root
            rank[at] = int(np.isfinite(own).sum())
            jacobian[at] = -log_det
        nu = self.n - (rank if reml else 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            sigma2 = problem.scale**2 * self.r2 / nu
        constant = problem.log_constant + self.pieces.log_weights
        criterion = self.value + constant + nu * 2.0 * log(problem.scale) - (jacobian if reml else 0.0)
        negligible = SINGULAR * np.sqrt(problem.levels / problem.n)
        factor = np.full_like(self.factor, np.nan)
        known = np.isfinite(self.factor).all(axis=(1, 2))
        for which, floor in ((known & ~self.singular, None), (known & self.singular, negligible)):
            if which.any():
                factor[which] = self.structure.natural(problem.z_map, self.factor[which], floor)
        return Deletions(
            params, half, sigma2, criterion, self.decrement, factor, self.converged, self.singular, self.n, self.notes
        )


class _Without:
    """The criterion of one deletion; the groups are put right again on leaving."""

    def __init__(self, refits: _Refits, i: int, columns: Array | None = None) -> None:
        self.refits, self.i, self.columns = refits, i, columns

    def __enter__(self) -> kernels.ClusterCriterion:
        refits, i = self.refits, self.i
        pieces, q, k = refits.pieces, refits.q, refits.k
        problem = refits.problem
        g = int(pieces.owner[i])
        packed = refits.lines
        self.place = (g // packed.shape[2], slice(None), g % packed.shape[2])
        self.saved = packed[self.place].copy()
        n_a = q * (q + 1) // 2
        within = pieces.others[g].copy()
        if pieces.more is None:
            packed[self.place] = 0.0
        else:
            line = pieces.more[i]
            packed[self.place][:n_a] = line[: q * q].reshape(q, q)[np.triu_indices(q)]
            packed[self.place][n_a : n_a + q * k] = line[q * q : q * q + q * k]
            packed[self.place][-1] = 0.0 if pieces.vanishes[i] else 1.0
            within += line[q * q + q * k :]
        rest = problem._replace(packed=packed, within=within, n=int(refits.n[i]), uniform=True, balanced=None)
        criterion: kernels.ClusterCriterion = rest.criterion(self.columns)
        criterion.reml = refits.result.reml
        return criterion

    def __exit__(self, *_: object) -> None:
        self.refits.lines[self.place] = self.saved


def delete(result: Fit, by: str) -> Deletions:
    """Refit after the deletion of each group, or of each observation.

    Parameters
    ----------
    result : LMMResult
    by : {"group", "observation"}

    Returns
    -------
    Deletions
    """
    return _Refits(result, group_pieces(result.model, one_factor(result.model.problem), by)).run()


def delete_by_sums(result: Fit, within: Array, log_weights: Array) -> Deletions:
    """Refit after the deletion of each group, without a look at the rows.

    Parameters
    ----------
    result : LMMResult
    within, log_weights
        See `contributions.pieces_of_groups`.

    Returns
    -------
    Deletions
    """
    return _Refits(result, pieces_of_groups(one_factor(result.model.problem), within, log_weights)).run()
