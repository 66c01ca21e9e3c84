"""Many responses on one design with several grouping factors.

The responses share the layout of the elimination and Z'X; only the column of y in Z'[X y] changes, so that each is a
fit by the compiled Newton from one start.  What certifies an optimum and gives its standard errors and degrees of
freedom is taken for many responses at once; the formulas are those of `_crossed`.

No result depends on the responses beside it: sums over rows are products with sparse matrices, which add up each
column by itself, and stacks of small matrices are multiplied one by one.
"""

from __future__ import annotations

import threading
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from ...covariance.directions import free_directions, inverse_hessian, theta_jacobian
from ...covariance.parameters import CovarianceStructure, vech_positions
from ...engines.crossed.problem import CrossedProblem
from ...engines.protocol import EASY, UNASKED, Relaxed
from ...errors import LMMError
from ...kernels import minimize_newton
from ...kernels.records.batches import NOT_FINITE, BatchCriterion, BatchResults
from ...support.blas_threads import one_blas_thread
from ...support.types import Array, Index
from ..estimate import estimate
from ..fit import Fit
from ..model import Model
from ..optimize import ROUND, optimize
from ..optimum import CERTIFIED, SINGULAR, close_enough
from ..refinement import LARGE, LOST, largest
from ..search import search
from .factor_lanes import conditioned_z

if TYPE_CHECKING:
    from ...engines.crossed.engine import CrossedCriterion

__all__ = ["HierarchyDesign"]


CHUNK_BYTES = 2**22
"""Size of the intermediate arrays over responses."""

EXACT_UP_TO = 1500
"""Random effects, over all levels, up to which exact second derivatives come from the matrix N = Z'V^-1 Z."""

CONSTANT = -2


class _State(NamedTuple):
    """What one evaluation of the criterion leaves for inference, per response."""

    theta: Array
    scores: Array  # E = Z'V^-1 [X y]
    b: Array  # (-beta_o, 1)
    r2: Array
    chol: Array  # factor of H_xx
    hess: Array  # in theta


_Minimum: TypeAlias = tuple[_State, Array, float, bool]
"""State at a certified minimum, gradient, value, and whether it lies on the boundary."""


class _Responses(NamedTuple):
    """Conditioned responses: (rows of Y that can be fitted, Z'y, scale, coefficients taken out)."""

    good: Index
    cross: Array
    scale: Array
    base: Array


class _Worker:
    """A criterion of this design whose response can be exchanged."""

    def __init__(self, problem: CrossedProblem) -> None:
        from ...engines.crossed.engine import CrossedCriterion

        self.structure = problem.structure
        # steps of the average information where an exact Hessian takes much longer
        self.average = bool(problem.criterion().average)
        self.exact = problem.n_effects <= EXACT_UP_TO
        self.n = problem.n
        self.criterion = CrossedCriterion(
            problem.layout, problem.cross.copy(), problem.gram.copy(), problem.n, problem.structure, self.average
        )

    def take(self, cross: Array, reml: bool) -> CrossedCriterion:
        """The criterion of the response with this Z'y."""
        criterion = self.criterion
        criterion.respond(cross, float(self.n))
        criterion.reml = reml
        criterion.n_evaluations = 0
        return criterion

    def hessian(self, theta: Array) -> Array:
        """Exact second derivatives at a point where first ones are known."""
        criterion, structure = self.criterion, self.structure
        if self.exact:
            criterion.average = False
            found = criterion.evaluate(theta, 2)[2]
            criterion.average = self.average
            assert found is not None
            return found
        free = free_directions(structure)
        jacobian = theta_jacobian(structure, structure.factor(theta))
        rows, columns = structure.positions
        slope = criterion.solution()[3]
        hess = jacobian @ criterion.curvature()[np.ix_(free, free)] @ jacobian.T
        return np.asarray(hess + 2.0 * slope[np.ix_(rows, rows)] * (columns[:, None] == columns))

    def state(self, theta: Array, hess: Array | None = None) -> _State:
        """What inference needs, at the point of the last evaluation, theta; hess if it is known exactly."""
        beta, r2, chol, _ = self.criterion.solution()
        scores = self.criterion.scores()
        return _State(
            theta, scores, np.append(-beta, 1.0), np.array(r2), chol, self.hessian(theta) if hess is None else hess
        )


class HierarchyDesign:
    """What the responses share; the interface is that of `kernels.BatchDesign`.

    Parameters
    ----------
    model : LinearMixedModel
        With several grouping factors.
    """

    def __init__(self, model: Model) -> None:
        from scipy.sparse import coo_array, csr_array

        problem = cast("CrossedProblem", model.problem)
        self.problem = problem
        self.structure: CovarianceStructure = model.structure
        self.columns = [factor.columns for factor in model.factors]
        root = None if model.weights is None else np.sqrt(model.weights)
        x = problem.conditioned_x(model.exog)
        if root is not None:
            x = x * root[:, None]
        # mypy knows little of products with these
        self.x: Any = csr_array(np.ascontiguousarray(x.T))
        self.x_back: Any = csr_array(x)
        self.x_map: Any = csr_array(problem.x_map)
        self.ones: Any = csr_array(np.ones((1, problem.n)))
        self.root = root
        self.offset = model.offset
        # coefficients of a response that is 1 everywhere
        self.unit = model.coefficients_of_one if problem.x_constant else None
        entries, rows, slots = [], [], []
        for factor, places in zip(model.factors, problem.layout.places, strict=True):
            part = factor.columns
            Z = conditioned_z(model, part)
            for j in range(Z.shape[1]):
                entries.append(Z[:, j])
                rows.append(np.arange(problem.n))
                slots.append(places[factor.grouping.index, j])
        self.z: Any = coo_array(
            (np.concatenate(entries), (np.concatenate(slots), np.concatenate(rows))), (problem.n_effects, problem.n)
        ).tocsr()
        self.model = model
        elsewhere = problem.elsewhere()
        # nearly balanced data are left alone: a look would take longer than the fit
        wanted = elsewhere.kind == "search" and elsewhere.effort > EASY and elsewhere.scout is None
        self.effort = elsewhere.effort if wanted and (elsewhere.always or not problem.criterion().costly) else EASY
        relaxed = None if self.effort == EASY or elsewhere.relaxed is None else elsewhere.relaxed()
        self.relaxed = None if relaxed is None else problem.with_structure(relaxed.structure)
        self.sizes = np.sqrt(problem.levels / problem.n)
        self.pieces = _pieces(self.structure, SINGULAR * np.sqrt(problem.levels / problem.n))
        self.tolerance = close_enough(problem.m)
        self.step = max(1, int(CHUNK_BYTES // (8 * (problem.n + problem.cross.size))))
        self._local = threading.local()

    @property
    def first(self) -> Array:
        """Theta from which each response starts."""
        return self.model.once("start of responses", lambda: _start(self.model))

    def worker(self) -> _Worker:
        """This thread's own."""
        if not hasattr(self._local, "worker"):
            self._local.worker = _Worker(self.problem)
        found: _Worker = self._local.worker
        return found

    def condition(self, Y: Array) -> tuple[_Responses, NDArray[np.intc]]:
        """Residuals of the rows of Y on X, by the steps of `choose.condition_factors`, and their Z'y.

        Returns
        -------
        responses : _Responses
        status : (count,) int array
            0, or why a response cannot be fitted.
        """
        status = np.zeros(len(Y), dtype=np.intc)
        status[(Y[:, :1] == Y).all(axis=1)] = CONSTANT
        status[~np.isfinite(Y).all(axis=1)] = NOT_FINITE
        good = np.flatnonzero(status == 0)
        rest = np.array(Y[good].T, order="C")
        if self.offset is not None:
            rest -= self.offset[:, None]
        before = (self.ones @ rest**2)[0]
        base = np.zeros((self.x_map.shape[0], len(good)))
        if self.unit is not None:
            mean = (self.ones @ rest)[0] / self.problem.n
            rest -= mean
            base += self.unit[:, None] * mean
        if self.root is not None:
            rest *= self.root[:, None]
        for _ in range(2):
            change = self.x @ rest
            rest -= self.x_back @ change
            base += self.x_map @ change
        squares = (self.ones @ rest**2)[0]
        varies = squares > 1e-30 * before
        status[good[~varies]] = CONSTANT
        rest, scale = rest[:, varies], np.sqrt(squares[varies] / self.problem.n)
        cross = np.ascontiguousarray(((self.z @ rest) / scale).T)
        return _Responses(good[varies], cross, scale, np.ascontiguousarray(base[:, varies].T)), status

    # ---- fits ----------------------------------------------------------------------------------

    def fit(self, Y: Array, first: int, criterion: BatchCriterion, start: Array | None, into: BatchResults) -> None:
        """Fit the rows of Y from one start; see `kernels.BatchDesign.fit`."""
        for begin in range(0, len(Y), self.step):
            part = slice(first + begin, first + min(begin + self.step, len(Y)))
            self._fit(Y[begin : begin + self.step], *criterion, start, into.part(part))

    def _fit(self, Y: Array, reml: bool, offset: float, start: Array | None, into: BatchResults) -> None:
        theta, params, bse, sigma2, value, decrement, status, evaluations, df = into
        problem, structure = self.problem, self.structure
        nu = problem.n - problem.rank if reml else problem.n
        responses, status[:] = self.condition(Y)
        evaluations[:] = 0
        worker = self.worker()
        states: list[_State] = []
        gradients: list[Array] = []
        fitted: list[int] = []
        begin = self.first if start is None else start
        for at, (i, cross) in enumerate(zip(responses.good.tolist(), responses.cross, strict=True)):
            criterion = worker.take(cross, reml)
            found = self._minimize(worker, begin)
            evaluations[i] = criterion.n_evaluations
            if found is not None and start is None and self.effort > EASY:
                found = self._lowest(worker, found, cross, reml)
                evaluations[i] = criterion.n_evaluations
            if found is None:
                continue
            state, gradient, value[i], singular = found
            states.append(state)
            gradients.append(gradient)
            fitted.append(at)
            status[i] = 2 if singular else 1
        if not fitted:
            return
        state = _State(*map(np.array, zip(*states, strict=True)))
        rows, scale = responses.good[fitted], responses.scale[fitted]
        half, slopes, shift = self._derivatives(state)
        turned = problem.x_map @ half.transpose(0, 2, 1)
        theta[rows] = state.theta
        sigma2[rows] = scale**2 * state.r2 / nu
        params[rows] = responses.base[fitted] - scale[:, None] * (state.b[:, None, :-1] * problem.x_map).sum(axis=2)
        variance = (turned * turned).sum(axis=2)
        bse[rows] = np.sqrt(sigma2[rows, None] * variance)
        value[rows] += offset + nu * 2.0 * np.log(scale)
        decrement[rows], lowest = _decrements(np.array(gradients), state.hess)
        # where digits are lost, the single fit takes the criterion from the rows
        factors = np.array([structure.factor(one) for one in state.theta])
        left = (state.r2 > LOST * self.problem.n) & (largest(problem, factors) <= LARGE)
        status[rows] *= (decrement[rows] <= CERTIFIED) & (lowest >= -1e-6) & left
        with np.errstate(invalid="ignore", divide="ignore"):
            u = (turned[:, None] @ slopes * turned[:, None]).sum(axis=3) / variance[:, None] - shift[:, :, None]
            inverse = inverse_hessian(structure, state.theta, state.hess)
            df[rows] = 1.0 / (1.0 / nu + ((inverse @ u) * u).sum(axis=1))

    def relaxed_worker(self, cross: Array, reml: bool) -> CrossedCriterion:
        """The criterion of a response where all effects of a factor are correlated; this thread's own."""
        assert self.relaxed is not None
        if not hasattr(self._local, "relaxed"):
            self._local.relaxed = _Worker(self.relaxed)
        worker: _Worker = self._local.relaxed
        return worker.take(cross, reml)

    def _lowest(self, worker: _Worker, found: _Minimum, cross: Array, reml: bool) -> _Minimum:
        """The lowest of all minima that a search finds, as for a single fit."""
        known = (found[2], found[0].theta)
        relaxed = None if self.relaxed is None else Relaxed(self.relaxed_worker(cross, reml), self.relaxed.structure)
        for value, theta in search(worker.criterion, self.structure, self.sizes, known, self.effort, relaxed).minima:
            if value < found[2] - 1e-9:
                other = self._minimize(worker, theta)
                if other is not None and other[2] < found[2] - 1e-9:
                    found = other
        return found

    def _minimize(self, worker: _Worker, start: Array) -> _Minimum | None:
        """The state at a certified minimum, its gradient and value, and whether it lies on the boundary."""
        criterion, structure = worker.criterion, self.structure
        try:
            x, gradient, hess, value, decrement, _, _, _, finished, _ = minimize_newton(
                criterion, start, tolerance=self.tolerance, max_iterations=ROUND
            )
            if finished and decrement <= CERTIFIED and self._inside(x):
                return worker.state(x, None if worker.average else hess), gradient, value, False
            if finished and len(self.pieces) == len(x):
                at_zero = self._at_zero(worker, x, value)
                if at_zero is not None:
                    return at_zero
            # it is settled as a single fit is: zero variances, coordinates in which Newton does better
            before = criterion.n_evaluations
            found = optimize(criterion, structure, self.problem.levels, self.problem.n, x, elsewhere=UNASKED)
            criterion.n_evaluations += before
        except (FloatingPointError, LMMError):
            return None
        if not found.converged:
            return None
        criterion.evaluate(found.theta, 1)
        state = worker.state(found.theta, None if worker.average else found.hessian)
        return state, found.gradient, found.value, found.singular

    def _at_zero(self, worker: _Worker, x: Array, value: float) -> _Minimum | None:
        """The state where independent effects of negligible size have none, if that is a minimum; see `optimize`."""
        criterion, problem = worker.criterion, self.problem
        theta = np.abs(x)
        zero = theta <= [least for _, _, least in self.pieces]
        theta[zero] = 0.0
        value_there, gradient, hess = criterion.evaluate(theta, 2)
        assert gradient is not None
        if not value_there <= value + 1e-11 * (abs(value) + problem.n):
            return None
        slopes = criterion.solution()[3].diagonal() * np.sqrt(problem.levels) / problem.n
        if (slopes[zero] < -CERTIFIED).any():
            return None
        return worker.state(theta, None if worker.average else hess), gradient, value_there, bool(zero.any())

    def _inside(self, theta: Array) -> bool:
        """Whether Lambda is canonical and clearly not singular."""
        values = theta.tolist()
        for diagonal, elements, least in self.pieces:
            pivots = [values[j] for j in diagonal]
            if min(pivots) <= least:
                return False
            # the smallest singular value is at least |det| over the others
            width = len(pivots) - 1
            if width and prod(pivots) <= least * sum(values[j] ** 2 for j in elements) ** (0.5 * width):
                return False
        return True

    def _derivatives(self, state: _State) -> tuple[Array, Array, Array]:
        """L_xx^-1 (c, r, r), its slopes (c, k, r, r) and -(1 / r^2) d r^2 (c, k), in theta."""
        structure = self.structure
        half: Array = np.asarray(np.linalg.inv(state.chol), dtype=np.float64)
        cross = self._cross(state.scores)
        r = half.shape[1]
        slopes = half[:, None] @ cross[:, :, :r, :r] @ half.transpose(0, 2, 1)[:, None]
        shift = (state.b[:, None, None] @ cross @ state.b[:, None, :, None])[..., 0] / state.r2[:, None, None]
        factors = np.zeros((len(half), structure.q, structure.q))
        factors[:, structure.positions[0], structure.positions[1]] = state.theta
        jacobian = theta_jacobian(structure, factors)
        turned = jacobian @ slopes.reshape(*slopes.shape[:2], r * r)
        return half, turned.reshape(*turned.shape[:2], r, r), (jacobian @ shift)[..., 0]

    def _cross(self, scores: Array) -> Array:
        """E'D E (c, d, k, k) for the free directions D of G^."""
        k = scores.shape[2]
        lower, upper = (part[free_directions(self.structure)] for part in vech_positions(self.structure.q))
        out = np.empty((len(scores), len(lower), k, k))
        for column, places in zip(self.problem.columns, self.problem.layout.places, strict=True):
            for at, (i, j) in enumerate(zip(lower.tolist(), upper.tolist(), strict=True)):
                if not column <= j <= i < column + places.shape[1]:
                    continue
                one = np.ascontiguousarray(scores[:, places[:, i - column]])
                other = one if i == j else np.ascontiguousarray(scores[:, places[:, j - column]])
                product = one.transpose(0, 2, 1) @ other
                out[:, at] = product if i == j else product + product.transpose(0, 2, 1)
        return out

    # ---- what is asked for later ---------------------------------------------------------------

    def contrasts(self, Y: Array, reml: bool, theta: Array, rows: Array) -> tuple[Array, Array, Array, Array]:
        """What tests of rows beta_o need at a given theta of each response; see `kernels.BatchDesign.contrasts`."""
        m, k = len(rows), self.structure.n_parameters
        covariance, slope = np.empty((len(Y), m, m)), np.empty((len(Y), k, m, m))
        shift, hess = np.empty((len(Y), k)), np.empty((len(Y), k, k))
        worker = self.worker()
        with one_blas_thread():
            for begin in range(0, len(Y), self.step):
                part = slice(begin, begin + self.step)
                responses, _ = self.condition(Y[part])
                states: list[_State] = []
                for i, cross in zip(responses.good, responses.cross, strict=True):
                    worker.take(cross, reml).evaluate(theta[part][i], 1)
                    states.append(worker.state(theta[part][i]))
                state = _State(*map(np.array, zip(*states, strict=True)))
                half, slopes, shift[part] = self._derivatives(state)
                hess[part] = state.hess
                turned = rows @ half.transpose(0, 2, 1)
                covariance[part] = turned @ turned.transpose(0, 2, 1)
                slope[part] = turned[:, None] @ slopes @ turned.transpose(0, 2, 1)[:, None]
        return covariance, slope, shift, hess

    def effects(self, Y: Array, params: Array, factors: Array) -> list[Array]:
        """BLUPs of the rows of Y in natural units, one (count, m_f, q_f) array per factor; NaN where there are none."""
        problem = self.problem
        out = [np.full((len(Y), *places.shape), np.nan) for places in problem.layout.places]
        responses, _ = self.condition(Y)
        worker = self.worker()
        for i, cross, scale, _ in zip(*responses, strict=True):
            factor = factors[i]
            if not np.isfinite(factor).all():
                continue
            theta = self.structure.theta(factor)
            criterion = worker.take(cross, True)
            criterion.evaluate(theta, 1)
            scores = criterion.scores() @ np.append(-criterion.solution()[0], 1.0)
            for own, part, places in zip(out, self.columns, problem.layout.places, strict=True):
                inner = factor[part, part]
                own[i] = scale * (scores[places] @ (problem.z_map[part, part] @ inner @ inner.T).T)
        return out


def _start(model: Model) -> Array:
    """Theta from which each response starts: the optimum of the model's own, away from the boundary."""
    problem, structure = model.problem, model.structure
    fitted = estimate(Fit, model, True).optimum.factor
    relative = fitted @ fitted.T + 0.25 * np.diag(problem.levels / problem.n)
    return structure.theta(structure.canonical(np.asarray(np.linalg.cholesky(relative), dtype=np.float64)))


def _pieces(structure: CovarianceStructure, least: Array) -> list[tuple[list[int], list[int], float]]:
    """Places in theta of the diagonal and of all elements of each independent part of Lambda, and its least size."""
    rows, columns = structure.positions
    out: list[tuple[list[int], list[int], float]] = []
    for block in structure.blocks:
        width = block.stop - block.start if block.correlated else 1
        for start in range(block.start, block.stop, width):
            inside = (columns >= start) & (columns < start + width)
            diagonal = np.flatnonzero(inside & (rows == columns)).tolist()
            out.append((diagonal, np.flatnonzero(inside).tolist(), float(least[start])))
    return out


def _decrements(gradients: Array, hess: Array) -> tuple[Array, Array]:
    """Decrement and smallest eigenvalue over the largest of many optima; see `optimize`."""
    values, vectors = np.linalg.eigh(hess)
    largest = np.abs(values).max(axis=1, keepdims=True)
    size = np.maximum(np.abs(values), np.where(largest > 0.0, 1e-12 * largest, 1.0))
    turned = (gradients[:, None] @ vectors)[:, 0]
    lowest = values[:, 0] / np.where(largest > 0.0, largest, 1.0)[:, 0]
    return np.sqrt((turned**2 / size).sum(axis=1)), lowest
