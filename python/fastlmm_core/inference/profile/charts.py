"""Coordinates of the covariances of which the first is one quantity: sigma, a standard deviation, a correlation."""

from __future__ import annotations

from math import cos, exp, sin, sqrt

import numpy as np

from ...covariance.parameters import Block
from ...engines.protocol import Problem
from ...support.types import Array
from .coordinates import State

__all__ = ["CorrelationChart", "SdChart", "SigmaChart", "ZeroChart"]


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
