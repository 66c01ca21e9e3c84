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
covariance matrices is not a boundary; each chart below keeps one quantity as its first coordinate.
"""

from __future__ import annotations

from math import cos, exp, isfinite, log, sin, sqrt
from typing import NamedTuple, Protocol

import numpy as np

from ...covariance.parameters import Block
from ...engines.protocol import Problem, linear_engine, linear_problem
from ...estimation.known_variance import KnownVariance
from ...estimation.moments import projected_traces, reduced_traces
from ...kernels import whitened_slopes
from ...support.types import Array

__all__ = ["Chart", "CorrelationChart", "Deviance", "Expansion", "Local", "SdChart", "SigmaChart", "State", "ZeroChart"]


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


def _elements(axes: Array, block: Block, q: int, first_column: int = 0) -> list[Array]:
    """Unit changes of M: row i of axes' M may use the columns up to first_column + i of the block."""
    out = []
    for i in range(axes.shape[1]):
        columns = [i] if not block.correlated else range(min(first_column + i + 1, block.stop - block.start))
        for j in columns:
            change = np.zeros((q, q))
            change[block.start : block.stop, block.start + j] = axes[:, i]
            out.append(change)
    return out


def _principal(covariance: Array, within: Array) -> Array:
    """Orthonormal basis of the span of `within` along the axes of the covariance, the largest first."""
    if within.shape[1] == 0:
        return within
    _, vectors = np.linalg.eigh(within.T @ covariance @ within)
    return np.asarray(within @ vectors[:, ::-1])


def _across(unit: Array) -> Array:
    """Orthonormal basis (columns) of what is orthogonal to a unit vector, by a Householder reflection."""
    w = unit.copy()
    w[0] += 1.0 if unit[0] >= 0.0 else -1.0
    return np.asarray((np.eye(len(w)) - w[:, None] * (w * (2.0 / (w @ w))))[:, 1:])


def _complement(vectors: Array) -> Array:
    """Orthonormal basis of what is orthogonal to the columns."""
    return np.asarray(np.linalg.qr(vectors, mode="complete")[0][:, vectors.shape[1] :])


class _Axes:
    """The blocks that the quantity of interest does not belong to: triangular in the principal axes of M M'."""

    def __init__(self, problem: Problem, M: Array, own: int | None) -> None:
        structure = problem.structure
        self.q = structure.q
        self.turn = np.eye(self.q)
        self.changes: list[Array] = []
        for place, block in enumerate(structure.blocks):
            if place == own:
                continue
            part = slice(block.start, block.stop)
            axes = np.eye(block.stop - block.start)
            if block.correlated:
                axes = _principal(M[part, part] @ M[part, part].T, axes)
            self.turn[part, part] = axes
            self.changes += _elements(axes, block, self.q)
        self.structure = structure

    def settle(self, M: Array) -> Array:
        """M in the form in which the coordinates reach it."""
        return self.turn @ self.structure.canonical(self.turn.T @ M)


def _combined(weights: Array, changes: Array) -> Array:
    q = changes.shape[1]
    return np.asarray((weights @ changes.reshape(-1, q * q)).reshape(q, q))


def _stack(first: list[Array], q: int) -> Array:
    return np.array(first) if first else np.empty((0, q, q))


class SigmaChart:
    """Coordinates: s; elements of M."""

    scale_free = 1
    place_of_s = 0

    def __init__(self, problem: Problem, M: Array) -> None:
        self.axes = _Axes(problem, M, None)
        q = self.axes.q
        self.first = _stack([np.zeros((q, q)), *self.axes.changes], q)

    def start(self, M: Array, s: float) -> State:
        """See `Chart`."""
        return State(self.axes.settle(M), s)

    def tangent(self, state: State) -> Array:
        """See `Chart`."""
        return self.first

    def bend(self, state: State, pull: Array, hessian: Array) -> None:
        """See `Chart`."""

    def move(self, state: State, step: Array) -> State:
        """See `Chart`."""
        return State(state.M + _combined(step, self.first), state.s + float(step[0]))


class SdChart:
    """Coordinates: log |z'M|, for the standard deviation of the effect z'b_o; s; the direction of z'M; elements of M.

    The row z'M is a length times a unit vector, which turns on its sphere.

    Parameters
    ----------
    problem : Problem
    M : (q, q) array
        Where the coordinates are used.
    index : int
        The random effect.
    """

    scale_free = 2
    place_of_s = 1

    def __init__(self, problem: Problem, M: Array, index: int) -> None:
        place, block = _block_of(problem, index)
        self.block = block
        part = slice(block.start, block.stop)
        z = problem.z_map[index, part]
        self.length = float(np.linalg.norm(z))
        self.own = index - block.start if not block.correlated else None
        self.axes = _Axes(problem, M, place)
        size, q = block.stop - block.start, self.axes.q
        if self.own is not None:
            v = np.eye(size)[:, [self.own]]
            others = [change for i, change in enumerate(_elements(np.eye(size), block, q)) if i != self.own]
            turn = np.eye(size)
        else:
            v = z[:, None] / self.length
            rest = _principal(M[part, part] @ M[part, part].T, _complement(v))
            others = _elements(rest, block, q)
            turn = np.column_stack([rest, v])
        self.v = v[:, 0]
        self.axes.turn[part, part] = turn
        self.linear = _stack(self.axes.changes + others, q)
        self.n_turns = 0 if self.own is not None else size - 1
        self.template = np.concatenate([np.zeros((2 + self.n_turns, q, q)), self.linear])

    def start(self, M: Array, s: float) -> State:
        """See `Chart`."""
        return State(self.axes.settle(M), s)

    def _row(self, M: Array) -> Array:
        return np.asarray(self.v @ M[self.block.start : self.block.stop, self.block.start : self.block.stop])

    def with_row(self, M: Array, row: Array) -> Array:
        """M with another z'M / |z|."""
        part = slice(self.block.start, self.block.stop)
        out = M.copy()
        out[part, part] += self.v[:, None] * (row - self.v @ M[part, part])
        return out

    def with_length(self, state: State, length: float, row: Array | None = None) -> State:
        """The same with another |z'M| (and another direction of the row)."""
        row = self._row(state.M) if row is None else row
        return state._replace(M=self.with_row(state.M, row * (length / self.length / np.linalg.norm(row))))

    def _polar(self, M: Array) -> tuple[Array, float, Array]:
        """The row, its length, and an orthonormal basis (columns) across it."""
        row = self._row(M)
        length = sqrt(row @ row)
        return row, length, _across(row / length) if self.n_turns else np.empty((len(row), 0))

    def tangent(self, state: State) -> Array:
        """See `Chart`."""
        row, length, across = self._polar(state.M)
        out = self.template.copy()
        part = slice(self.block.start, self.block.stop)
        out[0, part, part] = self.v[:, None] * row
        out[2 : 2 + self.n_turns, part, part] = self.v[:, None] * (length * across.T)[:, None, :]
        return out

    def bend(self, state: State, pull: Array, hessian: Array) -> None:
        """See `Chart`."""
        row, length, across = self._polar(state.M)
        own = self._row(pull)
        along = float(own @ row)
        hessian[0, 0] += along
        if self.n_turns:
            end = 2 + self.n_turns
            turning = length * (own @ across)
            hessian[0, 2:end] += turning
            hessian[2:end, 0] += turning
            for i in range(2, end):
                hessian[i, i] -= along

    def move(self, state: State, step: Array) -> State:
        """See `Chart`."""
        row, length, across = self._polar(state.M)
        turned = row / length + across @ step[2 : 2 + self.n_turns]
        M = state.M + _combined(step[2 + self.n_turns :], self.linear)
        M = self.with_row(M, turned * (length * exp(step[0]) / sqrt(turned @ turned)))
        return State(M, state.s + float(step[1]))


class ZeroChart:
    """Coordinates where z'M = 0: one that does nothing; elements of M, relative to sigma^2.

    Parameters
    ----------
    whole : SdChart
        Coordinates of the same effect where it varies.
    """

    scale_free = 0
    place_of_s = None

    def __init__(self, whole: SdChart) -> None:
        self.whole = whole
        self.first = np.concatenate([np.zeros_like(whole.linear[:1]), whole.linear])
        if not len(whole.linear):
            self.first = np.zeros((1, whole.axes.q, whole.axes.q))

    def start(self, M: Array, s: float) -> State:
        """See `Chart`."""
        whole = self.whole
        return State(whole.with_row(whole.axes.settle(M * np.exp(-0.5 * s)), np.zeros(len(whole.v))), 0.0)

    def tangent(self, state: State) -> Array:
        """See `Chart`."""
        return self.first

    def bend(self, state: State, pull: Array, hessian: Array) -> None:
        """See `Chart`."""

    def move(self, state: State, step: Array) -> State:
        """See `Chart`."""
        return State(state.M + _combined(step, self.first), 0.0)


class CorrelationChart:
    """Coordinates: the angle whose sine is the correlation; s; logarithms of both standard deviations; elements of M.

    Parameters
    ----------
    problem : Problem
    M : (q, q) array
        Where the coordinates are used; both standard deviations must be positive.
    first, second : int
        The random effects, of one block.
    """

    scale_free = 4
    place_of_s = 1

    def __init__(self, problem: Problem, M: Array, first: int, second: int) -> None:
        place, block = _block_of(problem, first)
        self.part = part = slice(block.start, block.stop)
        z = problem.z_map[[first, second], part].T
        basis, triangle = np.linalg.qr(z)
        sign = np.where(np.diag(triangle) < 0.0, -1.0, 1.0)
        basis, triangle = basis * sign, sign[:, None] * triangle
        self.unit, self.alpha, self.beta = float(triangle[0, 0]), float(triangle[0, 1]), float(triangle[1, 1])
        self.basis = basis
        self.axes = _Axes(problem, M, place)
        self.rest = _principal(M[part, part] @ M[part, part].T, _complement(z))
        q = self.axes.q
        self.axes.turn[part, part] = np.column_stack([basis, self.rest])
        others = _elements(self.rest, block, q, 2)
        self.linear = _stack(self.axes.changes + others, q)
        self.template = np.concatenate([np.zeros((4, q, q)), self.linear])

    def start(self, M: Array, s: float) -> State:
        """See `Chart`."""
        out = self.axes.settle(M)
        rows = self.basis.T @ out[self.part, self.part]
        own = self.alpha * rows[0, 0] + self.beta * rows[1, 0]
        across = self.beta * rows[1, 1]
        return State(out, s, (float(np.arctan2(own, across)), float(rows[0, 0]), float(np.hypot(own, across))))

    def _rows(self, state: State) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
        """Derivatives of the three elements in the two first rows: by the angle and by both logarithms."""
        angle, a, c = state.inner
        x, y = c * sin(angle) / self.beta, c * cos(angle) / self.beta
        return (0.0, y, -x), (a, -self.alpha * a / self.beta, 0.0), (0.0, x, y)

    def tangent(self, state: State) -> Array:
        """See `Chart`."""
        out = self.template.copy()
        for i, (row_1, *row_2) in zip((0, 2, 3), self._rows(state), strict=True):
            out[i, self.part, self.part.start] = self.basis[:, 0] * row_1 + self.basis[:, 1] * row_2[0]
            out[i, self.part, self.part.start + 1] = self.basis[:, 1] * row_2[1]
        return out

    def bend(self, state: State, pull: Array, hessian: Array) -> None:
        """See `Chart`."""
        turned = self.basis.T @ pull[self.part, self.part.start : self.part.start + 2]
        by_angle, by_a, by_c = (
            turned[0, 0] * row[0] + turned[1, 0] * row[1] + turned[1, 1] * row[2] for row in self._rows(state)
        )
        hessian[0, 0] -= by_c
        hessian[0, 3] += by_angle
        hessian[3, 0] += by_angle
        hessian[2, 2] += by_a
        hessian[3, 3] += by_c

    def move(self, state: State, step: Array) -> State:
        """See `Chart`."""
        angle, a, c = state.inner
        angle, a, c = angle + float(step[0]), a * exp(step[2]), c * exp(step[3])
        M = state.M + _combined(step[4:], self.linear)
        M[self.part, self.part] -= self.basis @ (self.basis.T @ M[self.part, self.part])
        M[self.part, self.part.start] += self.basis @ [a, (c * sin(angle) - self.alpha * a) / self.beta]
        M[self.part, self.part.start + 1] += self.basis[:, 1] * (c * cos(angle) / self.beta)
        return State(M, state.s + float(step[1]), (angle, a, c))


def _block_of(problem: Problem, index: int) -> tuple[int, Block]:
    return next((i, b) for i, b in enumerate(problem.structure.blocks) if b.start <= index < b.stop)
