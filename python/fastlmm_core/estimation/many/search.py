"""Where the criteria of many responses on one design may have other minima: the screen of `estimation.search`.

V of every point of the screen is the same for all responses, so that a value takes two products with the part of the
response that the random effects reach.  Sums are products with sparse matrices, which treat each response by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ... import kernels
from ...engines.one_factor.problem import one_factor
from ...engines.protocol import CAREFUL, EASY, ORDINARY, linear_engine, linear_problem
from ..search import DESCENTS, LOWEST_POINTS, VANISHING, Points, screen_of

if TYPE_CHECKING:
    from ..model import Model

__all__ = ["ResponseSearch"]

Array = NDArray[np.float64]
Index = NDArray[np.intp]

GROUPS = 256
"""Groups of which the criterion is screened where there are more."""

CHUNK = 2**15
"""Numbers of responses that are screened at a time."""

CORRELATION = 5.0
"""Weight of a correlation beside logarithms of variances, in the distance of covariance matrices."""

RIDGE = 1e-8
"""Share of X'X that keeps the coefficients defined where the groups screened leave them open."""


class ResponseSearch:
    """The screen of one design with one grouping factor.

    Parameters
    ----------
    model : Model
    """

    def __init__(self, model: Model) -> None:
        problem, structure = model.problem, model.structure
        elsewhere = linear_problem(problem).elsewhere()
        # the greatest effort would take dozens of times as long as the fits
        self.effort, self.structure = min(elsewhere.effort, CAREFUL), structure
        # nearly balanced data are left alone: a look would take longer than the fit
        self.needed = elsewhere.kind == "search" and elsewhere.effort > EASY
        if not self.needed:
            return
        self.unit = np.sqrt(problem.levels / problem.n)
        self.points: Points = screen_of(linear_engine(problem.criterion()), structure, self.effort)
        self.thetas = self.points.thetas * self.unit[structure.positions[0]]
        self.features = self._features(self.thetas)
        self._prepare(model)

    def _prepare(self, model: Model) -> None:
        """What V of each point does to [X y] of the groups that are screened."""
        from scipy.sparse import coo_array, csr_array

        problem, q, r = one_factor(model.problem), self.structure.q, model.problem.rank
        packed, _ = kernels.factor_groups(problem.raw, problem.z_transform, problem.xy_transform)
        lines = packed.transpose(0, 2, 1).reshape(-1, packed.shape[1])[: problem.m]
        chosen = np.arange(0, problem.m, -(-problem.m // GROUPS))
        number = np.full(problem.m, -1)
        number[chosen] = np.arange(len(chosen))
        group = number[model.grouping.index]
        self.rows: Index = np.flatnonzero(group >= 0)
        group = group[self.rows]
        upper = np.zeros((len(chosen), q, q))
        upper[:, *np.triu_indices(q)] = lines[chosen, : q * (q + 1) // 2]
        weights = np.ones(len(group)) if model.weights is None else model.weights[self.rows]
        basis = group_basis(problem.conditioned_z(model.exog_re[self.rows]), upper[group])
        x = problem.conditioned_x(model.exog[self.rows])
        crossed = np.zeros((len(chosen), q, r))
        np.add.at(crossed, group, (basis * weights[:, None])[:, :, None] * x[:, None, :])
        gram = (x * weights[:, None]).T @ x
        columns = np.arange(len(group))
        # mypy knows little of products with these
        self.project: Any = coo_array(
            (
                (basis * weights[:, None]).T.ravel(),
                ((group * q + np.arange(q)[:, None]).ravel(), np.tile(columns, q)),
            ),
            (len(chosen) * q, len(group)),
        ).tocsr()
        self.x: Any = csr_array(model.exog[self.rows])
        self.x_weighted: Any = csr_array((x * weights[:, None]).T)
        self.weights, self.offset = weights, None if model.offset is None else model.offset[self.rows]
        self.n, self.r = len(group), r
        # V^-1 = I - Q (I - Omega) Q', Q an orthonormal basis of the columns of Z_i
        factors = np.array([self.structure.factor(theta) for theta in self.thetas])
        spread = upper @ factors[:, None]
        inner = np.eye(q) + spread @ spread.transpose(0, 1, 3, 2)
        lost = np.eye(q) - np.linalg.inv(inner)
        self.constant = np.linalg.slogdet(inner)[1].sum(axis=1)
        reached = lost @ crossed
        H = gram + RIDGE * np.trace(gram) / max(r, 1) * np.eye(r)
        H = H - np.einsum("gai,sgaj->sij", crossed, reached)
        self.log_h = np.linalg.slogdet(H)[1]
        half = np.linalg.inv(np.linalg.cholesky(H))
        count = len(self.thetas)
        self.half: Any = csr_array(half.reshape(count * r, r))
        turned = half @ reached.transpose(0, 3, 1, 2).reshape(count, r, len(chosen) * q)
        self.turned: Any = csr_array(turned.reshape(count * r, len(chosen) * q))
        a, b = np.tril_indices(q)
        self.pairs = a, b
        self.lost: Any = csr_array((lost[:, :, a, b] * np.where(a == b, 1.0, 2.0)).reshape(count, -1))

    def values(self, Y: Array, params: Array, reml: bool) -> Array:
        """The criterion of each response at each point (points, responses), but for a constant of each response."""
        # pieces that stay in the processor's cache
        step = max(1, CHUNK // self.n)
        pieces = [self._values(Y[at : at + step], params[at : at + step], reml) for at in range(0, len(Y), step)]
        return np.concatenate(pieces, axis=1)

    def _values(self, Y: Array, params: Array, reml: bool) -> Array:
        rest = np.array((Y if self.n == Y.shape[1] else Y[:, self.rows]).T, order="C")
        rest -= self.x @ np.nan_to_num(params).T
        if self.offset is not None:
            rest -= self.offset[:, None]
        count, q = len(self.thetas), self.structure.q
        cross = self.project @ rest
        parts = cross.reshape(-1, q, cross.shape[1])
        a, b = self.pairs
        products = (parts[:, a] * parts[:, b]).reshape(-1, len(Y))
        r2 = np.einsum("i,ij,ij->j", self.weights, rest, rest) - self.lost @ products
        explained = self.half @ (self.x_weighted @ rest) - self.turned @ cross
        r2 -= (explained.reshape(count, self.r, len(Y)) ** 2).sum(axis=1)
        nu = self.n - self.r if reml else self.n
        constant = self.constant + self.log_h if reml else self.constant
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(constant[:, None] + nu * np.log(r2))

    def starts(self, Y: Array, params: Array, theta: Array, reml: bool) -> Iterator[tuple[Array, Index]]:
        """Points from which other minima are to be looked for, and the responses for which they are.

        Parameters
        ----------
        Y : (count, n) array
        params : (count, p) array
            Estimates at a minimum of each.
        theta : (count, n_par) array
            Where it lies.
        reml : bool
        """
        values = self.values(Y, params, reml)
        values[~np.isfinite(values)] = np.inf
        responses = np.arange(len(Y))
        valley = np.isfinite(values)
        for near in self.points.neighbours.T:
            valley &= values <= values[near]
        own = self._own(values, theta)
        if self.effort > ORDINARY:
            lowest = np.argsort(values, axis=0, kind="stable")[: LOWEST_POINTS[self.effort]]
            valley[lowest, responses] = True
        else:
            valley[own, responses] = False
        some = np.flatnonzero(valley.sum(axis=0) > DESCENTS[self.effort])
        if len(some):
            order = np.argsort(np.where(valley[:, some], values[:, some], np.inf), axis=0, kind="stable")
            valley[order[DESCENTS[self.effort] :], some] = False
        for point in np.flatnonzero(valley.any(axis=1)):
            yield self.thetas[point], np.flatnonzero(valley[point])

    def _own(self, values: Array, theta: Array) -> Index:
        """The valley that the minimum of each response lies in: downhill from the nearest point of the screen."""
        distance = ((self._features(theta)[None] - self.features[:, None]) ** 2).sum(axis=2)
        at = np.argmin(distance, axis=0)
        responses = np.arange(len(theta))
        around = np.column_stack([np.arange(len(values)), self.points.neighbours])
        for _ in range(len(values)):
            candidates = around[at]
            best = candidates[responses, np.argmin(values[candidates, responses[:, None]], axis=1)]
            if (best == at).all():
                break
            at = best
        return np.asarray(at, dtype=np.intp)

    def _features(self, theta: Array) -> Array:
        """Logarithms of variances, and correlations, which vary as much, for thetas (count, n_par)."""
        q = self.structure.q
        factors = np.zeros((len(theta), q, q))
        rows, columns = self.structure.positions
        factors[:, rows, columns] = np.nan_to_num(theta)
        factors /= self.unit[:, None]
        G = (factors[:, :, None] * factors[:, None]).sum(axis=3) + VANISHING**2 * np.eye(q)
        variances = np.diagonal(G, axis1=1, axis2=2)
        a, b = np.tril_indices(q, -1)
        correlations = G[:, a, b] / np.sqrt(variances[:, a] * variances[:, b])
        return np.column_stack([np.log(variances), CORRELATION * correlations])


def group_basis(z: Array, upper: Array) -> Array:
    """Rows of Z_i R_i^-1 from rows of Z and R_i of their groups; a column that Z_i lacks is zero.

    Parameters
    ----------
    z : (n, q) array
    upper : (n, q, q) array
        Upper triangular.
    """
    out = np.zeros_like(z)
    for a in range(z.shape[1]):
        rest = z[:, a] - (out[:, :a] * upper[:, :a, a]).sum(axis=1)
        pivot = upper[:, a, a]
        out[:, a] = np.divide(rest, pivot, out=np.zeros(len(z)), where=pivot > 0.0)
    return out
