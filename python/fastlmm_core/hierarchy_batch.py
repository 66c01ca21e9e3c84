"""Many responses on one design with several grouping factors.

The responses share the layout of the elimination and Z'X; only the column of y in Z'[X y] changes, so that each is a
fit by the compiled Newton from one start.  The second derivatives that certify an optimum and give its degrees of
freedom are taken for many responses at once where there are few random effects; the formulas are those of `_blocked`.

No result depends on the responses beside it: sums over rows are products with sparse matrices, which add up each
column by itself, and stacks of small matrices are multiplied one by one.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from . import hierarchy
from .batch_design import constant_column
from .batch_inference import inverse_hessian
from .errors import LMMError
from .hierarchy import HierarchyProblem
from .information import free_directions
from .optimize import CERTIFIED, optimize
from .parameters import CovarianceStructure, vech_positions

if TYPE_CHECKING:
    from .blocked import BlockedCriterion
    from .model import LinearMixedModel

__all__ = ["HierarchyDesign", "HierarchyPatterns"]

Array = NDArray[np.float64]
Index = NDArray[np.intp]

CHUNK_BYTES = 2**22
"""Size of the intermediate arrays over responses."""

DENSE_UP_TO = 150
"""Random effects, over all levels, up to which second derivatives come from all of N = Z'V^-1 Z."""

NOT_FINITE, CONSTANT = -1, -2


class _State(NamedTuple):
    """What one evaluation of the criterion leaves for inference, per response."""

    factor: Array
    cross: Array
    half: Array
    b: Array
    r2: Any
    slope: Array


class _Responses(NamedTuple):
    """Conditioned responses: (rows of Y that can be fitted, Z'y, scale, coefficients taken out)."""

    good: Index
    cross: Array
    scale: Array
    base: Array


class _Worker:
    """A criterion whose response can be exchanged: it reads Z'[X y] where `cross` is."""

    def __init__(self, problem: HierarchyProblem, average: bool) -> None:
        from .blocked import BlockedCriterion

        self.cross = np.array(problem.cross, order="C")
        self.gram = np.array(problem.gram, order="C")
        self.gram[-1, :-1] = self.gram[:-1, -1] = 0.0
        self.gram[-1, -1] = problem.n
        rows, columns = problem.structure.positions
        self.criterion = BlockedCriterion(
            problem.layout, self.cross, self.gram, problem.n, problem.structure.q, rows, columns, average
        )

    def take(self, cross: Array, reml: bool) -> BlockedCriterion:
        """The criterion of the response with this Z'y."""
        self.cross[:, -1] = cross
        self.criterion.reml = reml
        # what it knows belongs to another response
        self.criterion.rotate(None)
        return self.criterion


class HierarchyDesign:
    """What the responses share; the interface is that of `kernels.BatchDesign`.

    Parameters
    ----------
    model : LinearMixedModel
        With several grouping factors.
    """

    def __init__(self, model: LinearMixedModel) -> None:
        from scipy.sparse import coo_array, csr_array

        problem = cast("HierarchyProblem", model.problem)
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
        self.unit: Array | None = None
        if problem.x_constant:
            column = constant_column(model)
            self.unit = np.zeros(model.exog.shape[1])
            self.unit[column] = 1.0 / model.exog[0, column]
        entries, rows, slots = [], [], []
        for factor, places in zip(model.factors, problem.layout.places, strict=True):
            part = factor.columns
            Z = _conditioned_z(model, part, root)
            for j in range(Z.shape[1]):
                entries.append(Z[:, j])
                rows.append(np.arange(problem.n))
                slots.append(places[factor.grouping.index, j])
        self.z: Any = coo_array(
            (np.concatenate(entries), (np.concatenate(slots), np.concatenate(rows))), (problem.n_effects, problem.n)
        ).tocsr()
        self.dense = _Dense(problem, self.z) if problem.n_effects <= DENSE_UP_TO else None
        self.first = _start(model)
        self.step = max(1, int(CHUNK_BYTES // (8 * (problem.n if self.dense is None else self.dense.size + problem.n))))
        self._local = threading.local()

    def worker(self) -> _Worker:
        """This thread's own."""
        if not hasattr(self._local, "worker"):
            self._local.worker = _Worker(self.problem, average=True)
        found: _Worker = self._local.worker
        return found

    def condition(self, Y: Array) -> tuple[_Responses, NDArray[np.intc]]:
        """Residuals of the rows of Y on X, by the steps of `hierarchy.condition_factors`, and their Z'y.

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

    def fit(
        self, Y: Array, first: int, reml: bool, criterion_offset: float, start: Array | None, theta: Array,
        params: Array, bse: Array, sigma2: Array, value: Array, decrement: Array, status: NDArray[np.intc],
        evaluations: NDArray[np.intc], df: Array,
    ) -> None:  # fmt: skip
        """Fit the rows of Y from one start; see `kernels.BatchDesign.fit`."""
        out: tuple[NDArray[Any], ...] = (theta, params, bse, sigma2, value, decrement, status, evaluations, df)
        for begin in range(0, len(Y), self.step):
            part = slice(first + begin, first + min(begin + self.step, len(Y)))
            self._fit(Y[begin : begin + self.step], reml, criterion_offset, start, *(array[part] for array in out))

    def _fit(
        self, Y: Array, reml: bool, offset: float, start: Array | None, theta: Array, params: Array, bse: Array,
        sigma2: Array, value: Array, decrement: Array, status: NDArray[np.intc], evaluations: NDArray[np.intc],
        df: Array,
    ) -> None:  # fmt: skip
        problem, structure = self.problem, self.structure
        nu = problem.n - problem.rank if reml else problem.n
        responses, status[:] = self.condition(Y)
        evaluations[:] = 0
        worker = self.worker()
        states: list[_State] = []
        seconds: list[tuple[Array, Array]] = []
        gradients: list[Array] = []
        fitted: list[int] = []
        for i, cross, scale, base in zip(*responses, strict=True):
            criterion = worker.take(cross, reml)
            try:
                found = optimize(
                    criterion, structure, problem.levels, problem.n, self.first if start is None else start,
                    alternatives=False,
                )  # fmt: skip
            except LMMError:
                continue
            evaluations[i] = found.n_evaluations
            if not found.converged:
                continue
            state = self._state(worker, found.theta)
            states.append(state)
            gradients.append(found.gradient)
            fitted.append(i)
            if self.dense is None:
                seconds.append(self._second(criterion))
            theta[i] = found.theta
            sigma2[i] = scale**2 * state.r2 / nu
            params[i] = base - scale * (problem.x_map @ state.b[:-1])
            bse[i] = np.sqrt(sigma2[i] * np.sum((problem.x_map @ state.half.T) ** 2, axis=1))
            value[i] = found.value + offset + nu * 2.0 * np.log(scale)
            decrement[i] = found.gradient_norm
            status[i] = 2 if found.singular else 1
        if not fitted:
            return
        stacked = _State(*map(np.array, zip(*states, strict=True)))
        slopes, shift, hess = self._derivatives(stacked, seconds, reml)
        if self.dense is not None:
            decrement[fitted], lowest = _decrements(np.array(gradients), hess)
            status[fitted] *= (decrement[fitted] <= CERTIFIED) & (lowest >= -1e-6)
        rows = problem.x_map @ stacked.half.transpose(0, 2, 1)
        variance = (rows * rows).sum(axis=2)
        with np.errstate(invalid="ignore", divide="ignore"):
            u = (rows[:, None] @ slopes * rows[:, None]).sum(axis=3) / variance[:, None] - shift[:, :, None]
            inverse = inverse_hessian(structure, theta[fitted], hess)
            df[fitted] = 1.0 / (1.0 / nu + ((inverse @ u) * u).sum(axis=1))

    def _state(self, worker: _Worker, theta: Array) -> _State:
        criterion = worker.criterion
        criterion.evaluate(theta, 1)
        beta, r2, chol, slope = criterion.solution()
        half = np.asarray(np.linalg.inv(chol), dtype=np.float64)
        return _State(self.structure.factor(theta), worker.cross[:, -1].copy(), half, np.append(-beta, 1.0), r2, slope)

    def _second(self, criterion: BlockedCriterion) -> tuple[Array, Array]:
        """Second derivatives and E'DE for the free directions of G^, from the criterion."""
        free = free_directions(self.structure)
        return criterion.curvature()[np.ix_(free, free)], criterion.cross()[free]

    def _derivatives(self, state: _State, seconds: list[tuple[Array, Array]], reml: bool) -> tuple[Array, Array, Array]:
        """Slopes of L_xx^-1 (c, k, r, r), -(1 / r^2) d r^2 (c, k) and second derivatives (c, k, k), in theta."""
        if self.dense is None:
            curvature, cross = (np.array(part) for part in zip(*seconds, strict=True))
        else:
            curvature, cross = self.dense.second(state, reml)
        structure = self.structure
        jacobian = _jacobian(structure, state.factor)
        r = state.half.shape[1]
        slopes = state.half[:, None] @ cross[:, :, :r, :r] @ state.half.transpose(0, 2, 1)[:, None]
        shift = (state.b[:, None, None] @ cross @ state.b[:, None, :, None])[..., 0] / state.r2[:, None, None]
        turned = jacobian @ slopes.reshape(*slopes.shape[:2], r * r)
        hess = jacobian @ curvature @ jacobian.transpose(0, 2, 1)
        rows, columns = structure.positions
        hess += 2.0 * state.slope[:, rows[:, None], rows] * (columns[:, None] == columns)
        return turned.reshape(*turned.shape[:2], r, r), (jacobian @ shift)[..., 0], hess

    # ---- what is asked for later ---------------------------------------------------------------

    def _states(self, Y: Array, reml: bool, theta: Array) -> tuple[_State, list[tuple[Array, Array]]]:
        responses, _ = self.condition(Y)
        worker = self.worker()
        states: list[_State] = []
        seconds: list[tuple[Array, Array]] = []
        for i, cross in zip(responses.good, responses.cross, strict=True):
            worker.take(cross, reml)
            states.append(self._state(worker, theta[i]))
            if self.dense is None:
                seconds.append(self._second(worker.criterion))
        return _State(*map(np.array, zip(*states, strict=True))), seconds

    def contrasts(self, Y: Array, reml: bool, theta: Array, rows: Array) -> tuple[Array, Array, Array, Array]:
        """What tests of rows beta_o need at a given theta of each response; see `kernels.BatchDesign.contrasts`."""
        m, k = len(rows), self.structure.n_parameters
        covariance, slope = np.empty((len(Y), m, m)), np.empty((len(Y), k, m, m))
        shift, hess = np.empty((len(Y), k)), np.empty((len(Y), k, k))
        for begin in range(0, len(Y), self.step):
            part = slice(begin, begin + self.step)
            state, seconds = self._states(Y[part], reml, theta[part])
            slopes, shift[part], hess[part] = self._derivatives(state, seconds, reml)
            turned = rows @ state.half.transpose(0, 2, 1)
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
            criterion = worker.take(cross, True)
            criterion.evaluate(self.structure.theta(factor), 1)
            scores = criterion.scores() @ np.append(-criterion.solution()[0], 1.0)
            for own, part, places in zip(out, self.columns, problem.layout.places, strict=True):
                inner = factor[part, part]
                own[i] = scale * (scores[places] @ (problem.z_map[part, part] @ inner @ inner.T).T)
        return out


class HierarchyPatterns:
    """What depends on theta only, for many thetas: the interface of `batch_inference`'s patterns of groups.

    Parameters
    ----------
    design : HierarchyDesign
    """

    def __init__(self, design: HierarchyDesign) -> None:
        self.worker = _Worker(design.problem, average=True)
        self.structure = design.structure
        self.nu = float(design.problem.n - design.problem.rank)

    def chunk(self) -> int:
        """Responses at a time."""
        return 256

    def _at(self, factor: Array) -> Array:
        """L_xx^-1 at one factor."""
        criterion = self.worker.criterion
        criterion.reml = True
        criterion.evaluate(self.structure.theta(factor), 1)
        return np.asarray(np.linalg.inv(criterion.solution()[2]))

    def half(self, factors: Array) -> Array:
        """L_xx^-1 (n, r, r)."""
        return np.array([self._at(factor) for factor in factors])

    def kenward_roger(self, factors: Array) -> tuple[Array, Array, Array, Array, Array]:
        """L_xx^-1, U (n, a, r, r), shift (n, a), inverse information (n, a, a), adjustment (n, r, r)."""
        criterion, free = self.worker.criterion, free_directions(self.structure)
        lower, upper = vech_positions(self.structure.q)
        found: list[tuple[Any, ...]] = []
        for factor in factors:
            half = self._at(factor)
            r = len(half)
            slopes = half @ criterion.cross()[:, :r, :r] @ half.T
            shift = criterion.precision()[lower, upper] * (2.0 - (lower == upper))
            shift = (shift - np.trace(slopes, axis1=1, axis2=2)) / self.nu
            weight = np.zeros((r + 1, r + 1))
            weight[:r, :r] = half.T
            information = criterion.traces() - 2.0 * criterion.traces(weight)
            information += np.einsum("kij,lji->kl", slopes, slopes) - self.nu * np.outer(shift, shift)
            inverse = np.linalg.inv(information[np.ix_(free, free)])
            twice = np.zeros_like(information)
            twice[np.ix_(free, free)] = 2.0 * inverse
            middle = half @ criterion.sandwich(twice)[:r, :r] @ half.T
            middle -= np.einsum("kl,kij,ljm->im", twice, slopes, slopes, optimize=True)
            found.append((half, slopes[free], shift[free], inverse, middle + middle.T))
        half, slopes, shift, inverse, adjustment = (
            np.array(part, dtype=np.float64) for part in zip(*found, strict=True)
        )
        return half, slopes, shift, inverse, adjustment


class _Dense:
    """Second derivatives for many responses at once, from the matrix Z'Z of all random effects.

    The rows of its matrices are sorted by random effect, the levels of its factor side by side.
    """

    def __init__(self, problem: HierarchyProblem, z: Any) -> None:
        structure, places = problem.structure, problem.layout.places
        self.n_obs = problem.n
        self.order: Index = np.concatenate([slots.T.ravel() for slots in places])
        self.K = np.ascontiguousarray((z @ z.T).toarray()[np.ix_(self.order, self.order)])
        self.cross = problem.cross[self.order, :-1]
        ends = np.cumsum(problem.levels).astype(int).tolist()
        self.effects = [slice(end - int(m), end) for end, m in zip(ends, problem.levels.tolist(), strict=True)]
        # (first effect, number of effects, levels) of each factor
        self.factors = [
            (column, slots.shape[1], len(slots)) for column, slots in zip(problem.columns, places, strict=True)
        ]
        free = free_directions(structure)
        lower, upper = (part[free] for part in vech_positions(structure.q))
        self.directions: list[tuple[int, int]] = list(zip(lower.tolist(), upper.tolist(), strict=True))
        self.size = len(self.K) ** 2 * 6

    def _turned(self, M: Array) -> Array:
        """D M (c, d, s, columns) for the free directions D of G^."""
        out = np.zeros((len(M), len(self.directions), *M.shape[1:]))
        for at, (i, j) in enumerate(self.directions):
            out[:, at, self.effects[i]] = M[:, self.effects[j]]
            out[:, at, self.effects[j]] = M[:, self.effects[i]]
        return out

    def _traces(self, N: Array) -> Array:
        """tr(D N F N) (c, d, d): inner products of the blocks of N between two effects."""
        out = np.zeros((len(N), len(self.directions), len(self.directions)))
        for first, q_f, m_f in self.factors:
            rows = slice(self.effects[first].start, self.effects[first + q_f - 1].stop)
            own = [(at, i - first, j - first) for at, (i, j) in enumerate(self.directions) if first <= i < first + q_f]
            for second, q_g, m_g in self.factors:
                if second < first:
                    continue
                columns = slice(self.effects[second].start, self.effects[second + q_g - 1].stop)
                blocks = N[:, rows, columns].reshape(-1, q_f, m_f, q_g, m_g).transpose(0, 1, 3, 2, 4)
                flat = blocks.reshape(len(N), q_f * q_g, m_f * m_g)
                gram = (flat @ flat.transpose(0, 2, 1)).reshape(-1, q_f, q_g, q_f, q_g)
                for at, i, j in own:
                    for to, (k, h) in enumerate(self.directions):
                        if not second <= k < second + q_g:
                            continue
                        total = np.zeros(len(N))
                        for p, q in {(i, j), (j, i)}:
                            for r, t in {(k - second, h - second), (h - second, k - second)}:
                                total += gram[:, q, r, p, t]
                        out[:, at, to] = out[:, to, at] = total
        return out

    def second(self, state: _State, reml: bool) -> tuple[Array, Array]:
        """Second derivatives (c, d, d) and E'DE (c, d, k, k) for the free directions of G^."""
        K, d = self.K, len(self.directions)
        c, s = state.cross.shape
        r = state.half.shape[1]
        G = state.factor @ state.factor.transpose(0, 2, 1)
        inner = np.zeros((c, s, s))
        inner[:, np.arange(s), np.arange(s)] = 1.0
        for column, q_f, _ in self.factors:
            for i in range(column, column + q_f):
                for j in range(column, column + q_f):
                    inner[:, :, self.effects[i]] += K[:, self.effects[j]] * G[:, j, i, None, None]
        right = np.empty((c, s, s + r + 1))
        right[:, :, :s] = K
        right[:, :, s:-1] = self.cross
        right[:, :, -1] = state.cross[:, self.order]
        solved = np.linalg.solve(inner, right)
        N, E = np.ascontiguousarray(solved[:, :, :s]), np.ascontiguousarray(solved[:, :, s:])
        b, nu = state.b[:, :, None], float(self.n_obs - r if reml else self.n_obs)
        turned = self._turned(E)
        cross = E.transpose(0, 2, 1)[:, None] @ turned
        e = (turned @ b[:, None])[..., 0]
        u = (cross @ b[:, None])[..., 0]
        square = u @ b
        whitened = u[:, :, :r] @ state.half.transpose(0, 2, 1)
        scale = (nu / state.r2)[:, None, None]
        out = 2.0 * scale * (e @ N @ e.transpose(0, 2, 1) - whitened @ whitened.transpose(0, 2, 1))
        out -= scale / state.r2[:, None, None] * (square @ square.transpose(0, 2, 1)) + self._traces(N)
        if reml and r:
            F = turned[..., :r] @ state.half.transpose(0, 2, 1)[:, None]
            out += 2.0 * F.reshape(c, d, -1) @ (N[:, None] @ F).reshape(c, d, -1).transpose(0, 2, 1)
            slopes = state.half[:, None] @ cross[:, :, :r, :r] @ state.half.transpose(0, 2, 1)[:, None]
            flat = slopes.reshape(c, d, -1)
            out -= flat @ flat.transpose(0, 2, 1)
        return out, cross


def _conditioned_z(model: LinearMixedModel, part: slice, root: Array | None) -> Array:
    """Z_o of one factor, weighted."""
    local = hierarchy._local(model.structure, part.start, part.stop - part.start)
    Z, own = hierarchy._condition_z(model.exog_re[:, part], model.weights, root, local)
    z_map = model.problem.z_map[part, part]
    # the problem may have been conditioned by one pass over the rows
    return Z if np.array_equal(own, z_map) else np.asarray(Z @ np.linalg.solve(own, z_map))


def _start(model: LinearMixedModel) -> Array:
    """Theta from which each response starts: the optimum of the model's own, away from the boundary."""
    problem, structure = model.problem, model.structure
    fitted = model.fit().optimum.factor
    relative = fitted @ fitted.T + 0.25 * np.diag(problem.levels / problem.n)
    return structure.theta(structure.canonical(np.asarray(np.linalg.cholesky(relative), dtype=np.float64)))


def _jacobian(structure: CovarianceStructure, factors: Array) -> Array:
    """Derivatives of the free elements of G^ in theta (c, k, d)."""
    rows, columns = structure.positions
    lower, upper = (part[free_directions(structure)] for part in vech_positions(structure.q))
    first = factors[:, upper[None, :], columns[:, None]] * (rows[:, None] == lower)
    return np.asarray(first + factors[:, lower[None, :], columns[:, None]] * (rows[:, None] == upper))


def _decrements(gradients: Array, hess: Array) -> tuple[Array, Array]:
    """Decrement and smallest eigenvalue over the largest of many optima; see `optimize`."""
    values, vectors = np.linalg.eigh(hess)
    largest = np.abs(values).max(axis=1, keepdims=True)
    size = np.maximum(np.abs(values), np.where(largest > 0.0, 1e-12 * largest, 1.0))
    turned = (gradients[:, None] @ vectors)[:, 0]
    lowest = values[:, 0] / np.where(largest > 0.0, largest, 1.0)[:, 0]
    return np.sqrt((turned**2 / size).sum(axis=1)), lowest
