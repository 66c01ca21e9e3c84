"""The criterion where the residual variance is known, as in a meta-analysis: any engine, with sigma^2 held at s^2.

The engines profile sigma^2 out.  With r^2 the generalised residual sum of squares relative to sigma^2, nu = n by ML and
n less the rank of X by REML, and rho = r^2 / (nu s^2), minus twice the log-likelihood at sigma^2 = s^2 is

    d(G^) = d_p(G^) + nu (rho - 1 - log rho),

with d_p the profiled criterion, of which d_p is the minimum over s^2.  Along the unit directions of G^ = G / s^2, with
c_k = -(d r^2 / d G^_k) / r^2 and -T the second derivatives of log|V|, by REML of log|V| + log|X'V^-1X|,

    d_k  = d_p,k - nu (rho - 1) c_k,
    d_kl = rho d_p,kl + (rho - 1) T_kl + rho nu c_k c_l

(from d_p,kl = -T_kl + (nu / r^2) r2_kl - nu c_k c_l).  All is in the units of the conditioned problem.

Where X reproduces y, r^2 is zero whatever G^ is, and d is a sum of log-determinants that grow with G^: the optimum is
G^ = 0.  Engines need r^2 > 0; the problem has added a constant to it (`alone`), which adds `alone` / s^2 to d.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite, log
from typing import Any

import numpy as np

from .. import kernels
from ..covariance.effects.loadings import loadings_of
from ..covariance.parameters import vech_positions
from ..engines.protocol import UNASKED, LinearEngine, LinearProblem
from ..engines.starts import other_starts
from ..errors import LMMError
from ..kernels.records.rows import ConditionedRows
from ..kernels.residuals import ScriptedObjective
from ..support.types import Array
from .moments import projected_traces, reduced_traces
from .optimize import optimize
from .optimum import Optimum

__all__ = ["KnownVariance"]


EPS = float(np.finfo(float).eps)

UNIDENTIFIED = 1e-9
"""Smallest eigenvalue of products of changes of V, scaled to length 1, below which one is a combination of others."""


class KnownVariance(ScriptedObjective):
    """An engine of the criterion at a known residual variance; see `LinearEngine`.

    Parameters
    ----------
    inner : LinearEngine
        Of the profiled criterion.
    problem : LinearProblem
    sigma : float
        Residual standard deviation (of an observation of weight 1), in the caller's units.
    """

    serial = True
    # the screen for other minima is compiled for engines that profile the variance out
    costly = True
    # nothing is divided by r^2, so that none of its digits count
    remainder = 1.0

    def __init__(self, inner: LinearEngine, problem: LinearProblem, sigma: float) -> None:
        self.inner, self.structure = inner, problem.structure
        self.variance = (sigma / problem.scale) ** 2
        self.alone = problem.alone
        self._sizes = problem.n, problem.n - problem.rank
        self._turn: Array | None = None
        self.n_evaluations = 0
        rows, columns = vech_positions(self.structure.q)
        self._places = rows, columns
        self._slope: Array | None = None
        self._curvature: Array | None = None
        self.prepare(self.structure.n_parameters)

    @property
    def reml(self) -> bool:
        """By which criterion."""
        return self.inner.reml

    @reml.setter
    def reml(self, value: bool) -> None:
        self.inner.reml = value

    @property
    def nu(self) -> int:
        """n, by REML less the rank of X."""
        return self._sizes[bool(self.inner.reml)]

    def at(self, x: Array, order: int) -> tuple[float, float, Array | None, Array | None]:
        """Value, its rounding error, gradient and Hessian in theta; an infinite value outside the domain."""
        self.n_evaluations += 1
        if not np.isfinite(x).all():
            return np.inf, 0.0, None, None
        profiled, _, _ = self.inner.evaluate(x, 2 if order else 0)
        beta, r2, chol, slope = self.inner.solution()
        nu = self.nu
        rho = r2 / (nu * self.variance)
        value = profiled + nu * (rho - 1.0 - log(rho)) if isfinite(profiled) and rho > 0.0 else np.inf
        value -= self.alone / self.variance
        noise = 4.0 * EPS * (self._sizes[0] * (1.0 + rho) + abs(value))
        if not order or not isfinite(value):
            return value, noise, None, None
        half, slopes, c = kernels.whitened_slopes(np.ascontiguousarray(chol), beta, r2, self.inner.cross())
        traces = self.inner.traces()
        if self.inner.reml:
            traces = projected_traces(reduced_traces(self.inner, half), slopes)
        rows, columns = self._places
        change = np.zeros_like(slope)
        change[rows, columns] = change[columns, rows] = -nu * (rho - 1.0) * c / np.where(rows == columns, 1.0, 2.0)
        self._slope = slope + change
        self._curvature = rho * self.inner.curvature() + (rho - 1.0) * traces + (rho * nu) * np.outer(c, c)
        basis = np.eye(self.structure.q) if self._turn is None else self._turn.T
        gradient, hessian = loadings_of(self.structure).chain(
            x, basis, self._slope, self._curvature if order == 2 else None
        )
        return value, noise, gradient, hessian

    def solution(self) -> tuple[Array, float, Array, Array]:
        """Coefficients, r^2 and the factor of X'V^-1X as without a known variance, and the derivative in G^."""
        beta, r2, chol, slope = self.inner.solution()
        return beta, r2, chol, slope if self._slope is None else self._slope

    def curvature(self) -> Array:
        """Second derivatives along the unit directions of G^."""
        assert self._curvature is not None
        return self._curvature

    def rotate(self, turn: Array | None = None) -> None:
        """Take theta in other coordinates of G."""
        self._turn = turn
        self.inner.rotate(turn)

    def precision(self) -> Array:
        """See `LinearEngine`."""
        return self.inner.precision()

    def cross(self) -> Array:
        """See `LinearEngine`."""
        return self.inner.cross()

    def traces(self, weight: Array | None = None) -> Array:
        """See `LinearEngine`."""
        return self.inner.traces() if weight is None else self.inner.traces(weight)

    def sandwich(self, weight: Array) -> Array:
        """See `LinearEngine`."""
        return self.inner.sandwich(weight)

    def solve(self, v: Array, rows: ConditionedRows) -> Array:
        """See `Engine`."""
        return self.inner.solve(v, rows)

    def starts(self, problem: LinearProblem, constrained: bool = False) -> list[Array]:
        """Theta from moments of the data, and from smaller and larger variances; zero where that is the optimum.

        `constrained`: the engine's coefficients are, so that it may be elsewhere although X reproduces y.
        """
        if self.alone and not constrained:
            return [np.zeros(self.structure.n_parameters)]
        starts = [problem.start(self.inner), *other_starts(self.structure, problem.levels, problem.n)]
        return [start for start in starts if isfinite(self.evaluate(start, 0)[0])]

    def lowest(
        self, problem: LinearProblem, starts: Sequence[Array], method: str | Callable[..., Any] = "newton",
        options: dict[str, Any] | None = None,
    ) -> Optimum:  # fmt: skip
        """The lowest optimum from several starts, as few groups may leave several minima."""
        found = [
            optimize(self, self.structure, problem.levels, problem.n, start, method, options, elsewhere=UNASKED)
            for start in starts
        ]
        best = max(found, key=lambda one: (one.converged, -one.value))
        return best._replace(n_evaluations=sum(one.n_evaluations for one in found))

    def refuse_unidentified(self, names: tuple[str, ...]) -> None:
        """Refuse variances and covariances that change V, as the residuals see it, as others do.

        Parameters
        ----------
        names : tuple of str
            Of the terms.

        Raises
        ------
        LMMError
        """
        self.inner.evaluate(np.zeros(self.structure.n_parameters), 2)
        beta, r2, chol, _ = self.inner.solution()
        half, slopes, _ = kernels.whitened_slopes(np.ascontiguousarray(chol), beta, r2, self.inner.cross())
        gram = projected_traces(reduced_traces(self.inner, half), slopes)
        rows, columns = self._places
        free = self.structure.free[rows, columns] != 0
        gram = gram[np.ix_(free, free)]
        size = np.sqrt(np.maximum(np.diag(gram), 0.0))
        largest = float(size.max())
        if (size <= 1e-8 * largest).any() or np.linalg.eigvalsh(gram / size / size[:, None])[0] < UNIDENTIFIED:
            raise LMMError(
                f"the random effects of {' + '.join(names)}: their variances and covariances cannot be told apart, or "
                "the fixed effects explain them in every group; leave a term out, or use (... || ...)"
            )
