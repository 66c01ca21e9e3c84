"""The deviance with the residual variance as a parameter of its own, along curved coordinates of the covariances.

The engines give the deviance d_p(a) with sigma^2 profiled out, a = G / sigma^2.  With s = log sigma^2, r2(a) the
residual sum of squares, nu = n by ML, n less the rank of X by REML, and rho = exp(-s) r2 / nu,

    d(a, s) = d_p(a) + nu (rho - 1 - log rho),
    d_a  = d_p,a + (nu / r2) (rho - 1) r2_a,
    d_aa = rho d_p,aa + (rho - 1) T + rho (nu / r2^2) r2_a r2_a',
    d_s  = nu (1 - rho),    d_as = -exp(-s) r2_a,    d_ss = nu rho

(from r2_aa = (r2 / nu) (d_p,aa + T) + r2_a r2_a' / r2).  -T are the second derivatives of log|V|, by REML of
log|V| + log|X'V^-1X|: T_kl = sum_i tr(N_i D_k N_i D_l), or tr(P D_kV P D_lV).  Here all is in the units of the
conditioned problem.  Coordinates are those of M with G = M M', in which the boundary of the
covariance matrices is not a boundary; each chart keeps one quantity as its first coordinate.
"""

from __future__ import annotations

from math import exp, isfinite, log
from typing import NamedTuple, Protocol

import numpy as np

from ...engines.protocol import Problem, linear_engine, linear_problem
from ...estimation.known_variance import KnownVariance
from ...estimation.moments import projected_traces, reduced_traces
from ...kernels import whitened_slopes
from ...support.types import Array

__all__ = ["LARGEST_STEP", "Chart", "Deviance", "Expansion", "Local", "State"]


LARGEST_STEP = 1.0
"""Longest step in a logarithm or an angle."""


class State(NamedTuple):
    """A point: M (q, q) with G = M M', s = log sigma^2 (both conditioned), and what else the chart wants to know."""

    M: Array
    s: float
    inner: tuple[float, ...] = ()


class Local(NamedTuple):
    """The profiled deviance d_p at one a, with r2_a and T."""

    value: float
    r2: float
    slope: Array
    dr2: Array
    curvature: Array
    traces: Array


class Expansion(NamedTuple):
    """Value, gradient and Hessian in the coordinates of a chart."""

    value: float
    gradient: Array
    hessian: Array


class Chart(Protocol):
    """Coordinates around a state; the first one is that of interest.

    Attributes
    ----------
    scale_free : int
        So many leading coordinates are logarithms or angles, with steps of at most `LARGEST_STEP`.
    place_of_s : int or None
        Which coordinate is s; None where sigma^2 is profiled out and M M' is relative to it (s = 0).
    """

    @property
    def scale_free(self) -> int: ...

    @property
    def place_of_s(self) -> int | None: ...

    def start(self, M: Array, s: float) -> State:
        """The state with the covariance M M'."""

    def tangent(self, state: State) -> Array:
        """First derivatives of M (k, q, q)."""

    def bend(self, state: State, pull: Array, hessian: Array) -> None:
        """Add tr(pull'M_ij), with the second derivatives M_ij of M, to element i, j of a Hessian."""

    def move(self, state: State, step: Array) -> State:
        """The state at these coordinates."""


class Deviance:
    """The deviance of a conditioned problem, by ML or REML.

    Parameters
    ----------
    problem : Problem
    reml : bool
    sigma : float, optional
        The residual standard deviation, where it is known: s then stays where it is.
    """

    def __init__(self, problem: Problem, reml: bool = False, sigma: float | None = None) -> None:
        self.problem = problem
        self.variance = None if sigma is None else (sigma / problem.scale) ** 2
        self.alone, self._known = 0.0, None
        if sigma is not None:
            linear = linear_problem(problem)
            self.alone, self._known = linear.alone, KnownVariance(linear.criterion(), linear, sigma)
            self._known.reml = reml
        self.criterion = linear_engine(problem.criterion())
        self.criterion.reml = reml
        self.reml = reml
        self.nu = problem.n - problem.rank if reml else problem.n
        q = problem.structure.q
        rows, columns = np.tril_indices(q)
        self.lower = rows * q + columns
        self.upper = columns * q + rows
        self.place = np.empty((q, q), dtype=np.intp)
        self.place[rows, columns] = self.place[columns, rows] = np.arange(len(rows))
        self.once = np.where(rows == columns, 1.0, 2.0)

    def evaluate(self, M: Array, s: float) -> float:
        """The profiled deviance at G = M M', after which the criterion's other quantities belong to that point."""
        return self.criterion.evaluate(self._theta(M, s), 2)[0]

    def _theta(self, M: Array, s: float) -> Array:
        structure = self.problem.structure
        return structure.theta(structure.canonical(M * np.exp(-0.5 * s)))

    def local(self, M: Array, s: float) -> Local | None:
        """What derivatives at G = M M' are made of; None where the deviance is not defined."""
        value = self.evaluate(M, s)
        if not isfinite(value):
            return None
        criterion = self.criterion
        beta, r2, chol, slope = criterion.solution()
        d_p = self.once * slope.ravel()[self.lower]
        # the slope is that of the determinants and (nu / r2) r2_a
        of_det = self.once * criterion.precision().ravel()[self.lower]
        if not self.reml:
            traces = criterion.traces()
        else:
            half, slopes, _ = whitened_slopes(np.ascontiguousarray(chol), beta, r2, criterion.cross())
            traces = projected_traces(reduced_traces(criterion, half), slopes)
            of_det = of_det - np.trace(slopes, axis1=1, axis2=2)
        return Local(value, r2, d_p, (d_p - of_det) * (r2 / self.nu), criterion.curvature(), traces)

    def expand(self, chart: Chart, state: State, local: Local | None = None) -> Expansion | None:
        """Value and derivatives at a state; None where the deviance is not defined.

        Parameters
        ----------
        chart : Chart
        state : State
        local : Local, optional
            Known from another chart.
        """
        M, s, _ = state
        nu, lower, at = self.nu, self.lower, chart.place_of_s
        rho = e = 1.0
        if at is None:
            # sigma^2 profiled out: M M' is relative to it
            criterion = self.criterion if self._known is None else self._known
            value = criterion.evaluate(self._theta(M, s), 2)[0]
            if not isfinite(value):
                return None
            d_a = self.once * criterion.solution()[3].ravel()[lower]
            d_aa = criterion.curvature()
            dr2 = d_a
        else:
            if local is None:
                local = self.local(M, s)
            if local is None:
                return None
            r2, dr2 = local.r2, local.dr2
            e = exp(-s)
            rho = e * r2 / nu
            value = local.value + nu * (rho - 1.0 - log(rho)) - e * self.alone
            d_a = local.slope + (nu / r2 * (rho - 1.0)) * dr2
            d_aa = rho * local.curvature + (rho - 1.0) * local.traces + dr2[:, None] * (rho * nu / r2**2 * dr2)

        first = chart.tangent(state)
        k = len(first)
        # a = exp(-s) M M'
        change = (first @ M.T).reshape(k, -1)
        jacobian = e * (change[:, lower] + change[:, self.upper])
        if at is not None:
            jacobian[at] = -e * (M @ M.T).ravel()[lower]
        gradient = jacobian @ d_a
        symmetric = (d_a / self.once)[self.place]
        hessian = jacobian @ d_aa @ jacobian.T
        hessian += (2.0 * e) * ((symmetric @ first).reshape(k, -1) @ first.reshape(k, -1).T)
        chart.bend(state, (2.0 * e) * (symmetric @ M), hessian)
        if at is not None:
            mixed = -e * (jacobian @ dr2) - gradient
            hessian[at] += mixed
            hessian[:, at] += mixed
            hessian[at, at] += nu * rho + gradient[at]
            gradient[at] += nu * (1.0 - rho)
            if self.variance is not None:
                gradient[at] = hessian[at] = hessian[:, at] = 0.0
                hessian[at, at] = 1.0
        return Expansion(value, gradient, hessian)
