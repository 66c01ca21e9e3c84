"""Points of profiles: where the deviance, minimised over everything else, has risen by a given amount.

For the fixed effects see `coefficients`.  For variance parameters each step takes the quadratic model of the deviance
in all parameters to the point where its profile has the level wanted (Venzon and Moolgavkar 1988, Appl. Statist. 37,
87-94), in the coordinates of `charts`; where the model is not to be trusted the nuisance parameters are settled first,
and a bracket keeps the steps from going astray.
"""

from __future__ import annotations

from math import exp, isfinite, log
from typing import Any

import numpy as np

from ...engines.protocol import linear_engine, linear_problem
from ...engines.starts import other_starts
from ...estimation.fit import Fit
from ...estimation.known_variance import KnownVariance
from ...support.types import Array
from .charts import CorrelationChart, SdChart, SigmaChart, ZeroChart
from .coefficients import CoefficientProfiler, Parameter, Point, ProfileError
from .coordinates import LARGEST_STEP, Chart, Deviance, Expansion, Local, State

__all__ = ["Profiler", "parameters_of"]

EXACT = 1e-6
"""Decrement squared, relative to the level, at which a last step of Newton's method is exact: it leaves its cube."""

SETTLED = 0.05
"""The same up to which the quadratic model is trusted for steps along the profile."""

PATIENCE = 12
"""Steps after which the nuisance parameters are settled exactly before each further one."""


def parameters_of(result: Fit) -> list[Parameter]:
    """All parameters: fixed effects, then standard deviations and correlations in the order of theta, and sigma."""
    model = result.model
    return [
        *(Parameter(name, "beta", (j,)) for j, name in enumerate(model.exog_names)),
        *(
            Parameter(one.name("sd"), "sd", (one.i,))
            if one.i == one.j
            else Parameter(one.name("sd"), "cor", (one.i, one.j))
            for one in model.random.elements
        ),
        *([] if model.sigma is not None else [Parameter("sigma", "sigma", ())]),
    ]


class _Model:
    """The quadratic model of the deviance in the nuisance coordinates at one point."""

    def __init__(self, found: Expansion) -> None:
        values, vectors = np.linalg.eigh(found.hessian[1:, 1:])
        largest = float(np.abs(values).max(initial=0.0))
        self.inner = vectors.T @ found.gradient[1:]
        self.mixed = vectors.T @ found.hessian[1:, 0]
        # directions that change nothing, as at the boundary
        live = np.abs(values) > 1e-11 * largest
        self.inverse = np.where(live, 1.0 / np.where(live, np.abs(values), 1.0), 0.0)
        self.vectors = vectors
        self.decrement2 = float(self.inner**2 @ self.inverse)
        self.falling = bool(len(values) and values[0] < -1e-8 * largest)
        # the profile at this value of the parameter, and its derivatives there
        self.value = found.value - 0.5 * self.decrement2
        self.slope = float(found.gradient[0] - self.mixed * self.inverse @ self.inner)
        self.bend = float(found.hessian[0, 0] - self.mixed**2 @ self.inverse)

    def step(self, along: float) -> Array:
        """To the minimum for a step of that length in the parameter of interest."""
        out = np.empty(len(self.inner) + 1)
        out[0] = along
        out[1:] = self.vectors @ (self.inverse * (self.inner + along * self.mixed))
        out[1:] *= -1.0
        return out


def _shortened(chart: Chart, step: Array) -> Array:
    longest = float(np.abs(step[: chart.scale_free]).max(initial=0.0))
    return step if longest <= LARGEST_STEP else step * (LARGEST_STEP / longest)


class Profiler(CoefficientProfiler):
    """Finds points of the profiles of one fit.

    Parameters
    ----------
    result : LMMResult
        Refitted where it is not of the criterion wanted.
    reml : bool
        Profile the REML criterion, which does not depend on the fixed effects, instead of the ML deviance.
    """

    _order = 0

    def __init__(self, result: Fit, reml: bool = False) -> None:
        self.fit = fit = result if result.reml == reml else result.again(result.model, reml=reml)
        self.problem = problem = fit.model.problem
        self.deviance = Deviance(problem, reml, fit.model.sigma)
        self.minimum = fit.optimum.value
        s = float(np.log(fit.sigma2 / problem.scale**2))
        self.optimum = State(fit.optimum.factor * np.exp(0.5 * s), s)
        self.unit = float(np.sqrt(problem.levels.max() / problem.n))
        self.noise = 1e-13 * (abs(self.minimum) + problem.n)
        self._zero: dict[int, tuple[float, State]] = {}
        self._local: Local | None = None
        self._openings: dict[str, tuple[Chart, State, Expansion]] = {}

    def __getstate__(self) -> dict[str, Any]:
        # the criterion is a work space in memory, and what was opened with it is found again
        return {**self.__dict__, "deviance": None, "_local": None, "_openings": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, deviance=Deviance(state["problem"], state["fit"].reml, state["fit"].model.sigma))

    def estimate(self, parameter: Parameter) -> float:
        """The estimate; NaN for a dropped coefficient and for the correlation of an effect that does not vary."""
        index = list(parameter.columns)
        if parameter.kind == "beta":
            return float(self.fit.beta[index[0]])
        # what the fit declares zero has rounding errors in the conditioned problem
        still = parameter.kind != "sigma" and not self.fit.relative_factor[index].any(axis=1).all()
        if still:
            return 0.0 if parameter.kind == "sd" else float("nan")
        return self._natural(parameter, self.optimum)

    def _natural(self, parameter: Parameter, state: State) -> float:
        scale = self.problem.scale
        if parameter.kind == "sigma":
            return float(scale * np.exp(0.5 * state.s))
        rows = self.problem.z_map[list(parameter.columns)] @ state.M
        size = np.linalg.norm(rows, axis=1)
        if parameter.kind == "sd":
            return float(scale * size[0])
        return float(np.clip(rows[0] @ rows[1] / (size[0] * size[1]), -1.0, 1.0)) if size.all() else float("nan")

    def parameters(self) -> list[Parameter]:
        """All parameters of the fit."""
        return parameters_of(self.fit)

    def _coefficients(self, state: State) -> Array:
        """Conditioned coefficients (rank,) that follow from a state."""
        self.deviance.evaluate(state.M, state.s)
        return self.deviance.criterion.solution()[0]

    def reach(self, parameter: Parameter, outward: int, level: float, guide: Point | None = None) -> Point:
        """Where the profile has risen by `level` on one side, or its end; see `CoefficientProfiler.reach`."""
        start = self.optimum if guide is None else guide.state
        if parameter.kind == "beta":
            return self._coefficient(parameter.columns[0], outward, level, guide)
        if parameter.kind == "sd":
            return self._deviation(parameter, outward, level, start)
        if parameter.kind == "cor":
            return self._correlation(parameter, outward, level, start)
        state, rise = self._cross(*self._opening(parameter, start, level), outward, level)
        return Point(self._natural(parameter, state), rise, state)

    # ---- standard deviations and correlations --------------------------------------------------

    def _without(self, index: int) -> tuple[float, State]:
        """Rise of the deviance where the standard deviation of a random effect is zero, and the state."""
        if index not in self._zero:
            chart = ZeroChart(SdChart(self.problem, self.optimum.M, index))
            start = chart.start(self.optimum.M, self.optimum.s)
            state, model = self._settle(chart, start, self._expand(chart, start), EXACT + self.noise)
            s = log(self._variance(self.deviance.criterion.solution()[1], self.deviance.nu))
            self._zero[index] = (max(model.value - self.minimum, 0.0), State(state.M * exp(0.5 * s), s))
        return self._zero[index]

    def _deviation(self, parameter: Parameter, outward: int, level: float, start: State) -> Point:
        index = parameter.columns[0]
        if outward < 0:
            if self.estimate(parameter) == 0.0:
                return Point(0.0, 0.0, self.optimum)
            rise, state = self._without(index)
            if rise <= level:
                return Point(0.0, rise, state)
        state, rise = self._cross(*self._opening(parameter, start, level), outward, level)
        return Point(self._natural(parameter, state), rise, state)

    def _first_length(self, chart: SdChart, level: float) -> tuple[float, Array]:
        """A standard deviation to start with where the estimate is zero, and a direction for its row of M."""
        start = self.optimum
        self.deviance.evaluate(start.M, start.s)
        block = chart.block
        part = slice(block.start, block.stop)
        slope = float(chart.v @ self.deviance.criterion.solution()[3][part, part] @ chart.v) * np.exp(-start.s)
        row = np.eye(block.stop - block.start)[-1 if chart.own is None else chart.own]
        largest = np.exp(0.5 * start.s) * self.unit
        length = float(np.sqrt(level / slope)) if slope > 0.0 else largest
        return min(length, largest) * chart.length, row

    def _correlation(self, parameter: Parameter, outward: int, level: float, start: State) -> Point:
        first, second = parameter.columns
        # where one of the effects does not vary any correlation is as likely
        defined = np.isfinite(self.estimate(parameter))
        ends = [self._without(first), self._without(second)] if defined else []
        rise, state = min(ends, key=lambda end: end[0], default=(0.0, self.optimum))
        if rise <= level:
            return Point(float(outward), rise, state)
        chart, state, found = self._opening(parameter, start, level)
        farthest = max(0.5 * np.pi - outward * state.inner[0], 0.0)
        state, rise = self._cross(chart, state, found, outward, level, farthest)
        return Point(float(outward) if rise < level else float(np.sin(state.inner[0])), rise, state)

    def _opening(self, parameter: Parameter, start: State, level: float) -> tuple[Chart, State, Expansion]:
        """A chart, the state to start from and its expansion, which serve both sides at the optimum."""
        at_optimum = start is self.optimum
        if at_optimum and parameter.name in self._openings:
            return self._openings[parameter.name]
        chart: Chart
        if parameter.kind == "sigma":
            chart = SigmaChart(self.problem, start.M)
        elif parameter.kind == "cor":
            chart = CorrelationChart(self.problem, start.M, *parameter.columns)
        else:
            chart = of_sd = SdChart(self.problem, start.M, *parameter.columns)
            if at_optimum and self.estimate(parameter) == 0.0:
                state = of_sd.with_length(of_sd.start(start.M, start.s), *self._first_length(of_sd, level))
                return chart, state, self._expand(chart, state)
        state = chart.start(start.M, start.s)
        if not at_optimum:
            return chart, state, self._expand(chart, state)
        # the same derivatives in G serve all charts
        if self._local is None:
            self._local = self.deviance.local(state.M, state.s)
        opening = chart, state, self._expand(chart, state, self._local)
        self._openings[parameter.name] = opening
        return opening

    def _settle(self, chart: Chart, state: State, found: Expansion, tolerance: float) -> tuple[State, _Model]:
        """Minimise over the nuisance coordinates by damped Newton steps until the decrement squared is small."""
        for _ in range(100):
            model = _Model(found)
            if model.decrement2 <= tolerance and not model.falling:
                return state, model
            step = model.step(0.0)
            if model.falling and model.decrement2 <= tolerance:
                # a saddle point: leave it along the lowest direction
                size = 0.3 * max(float(np.linalg.norm(state.M)), np.exp(0.5 * state.s) * self.unit)
                step = np.append(0.0, size * model.vectors[:, 0])
            step = _shortened(chart, step)
            for _ in range(40):
                trial = chart.move(state, step)
                ahead = self.deviance.expand(chart, trial)
                if ahead is not None and ahead.value < found.value:
                    break
                step = 0.5 * step
            else:
                if model.decrement2 <= max(tolerance, 1e3 * self.noise):
                    return state, model
                break
            state, found = trial, ahead
        raise ProfileError("the deviance could not be minimised over the other parameters")

    def _expand(self, chart: Chart, state: State, local: Local | None = None) -> Expansion:
        found = self.deviance.expand(chart, state, local)
        if found is None:
            raise ProfileError("the deviance is not defined at a point of the profile")
        return found

    def _cross(
        self, chart: Chart, state: State, found: Expansion, outward: int, level: float, farthest: float = np.inf
    ) -> tuple[State, float]:
        """The state at which the profile has risen by `level`, going outward in the first coordinate.

        Returns
        -------
        state : State
        rise : float
            `level`, or less where the profile has not risen so far at the farthest point.
        """
        goal = self.minimum + level
        exact = EXACT * level + self.noise
        position, inside, outside = 0.0, -np.inf, np.inf
        settled = SETTLED * level + self.noise
        below: tuple[State, _Model, float] | None = None
        for iteration in range(60):
            model = _Model(found)
            if iteration == PATIENCE:
                # the model is poor here: know the profile itself before every step
                settled, inside, outside = exact, -np.inf, np.inf
            if model.falling or model.decrement2 > settled:
                state, model = self._settle(chart, state, found, settled)
            if position >= farthest and model.value < goal:
                state, model = self._settle(chart, state, self._expand(chart, state), exact)
            self._not_below(model.value)
            gap = goal - model.value
            if position >= farthest and gap > 0.0:
                return chart.move(state, model.step(0.0)), model.value - self.minimum
            slope = outward * model.slope
            root = slope**2 + 2.0 * model.bend * gap
            length = LARGEST_STEP if gap > 0.0 else -np.inf
            if root >= 0.0 and slope + np.sqrt(root) > 0.0:
                length = 2.0 * gap / (slope + np.sqrt(root))
            if model.decrement2 <= exact and abs(gap) <= 0.02 * level and abs(length) <= 3e-3:
                return chart.move(state, model.step(outward * length)), level
            if abs(gap) > max(1e-3 * level, 4.0 * model.decrement2) or iteration >= PATIENCE:
                inside, outside = (max(inside, position), outside) if gap > 0.0 else (inside, min(outside, position))
            if gap > 0.0:
                below = state, model, position
                if position >= outside:  # which was found in another valley
                    outside = np.inf
            target = min(position + min(max(length, -LARGEST_STEP), LARGEST_STEP), farthest)
            if not inside <= target <= outside or length == -np.inf:
                target = 0.5 * (inside + outside) if isfinite(inside + outside) else position + np.sign(gap)
            if gap < 0.0 and below is not None and target - below[2] <= 1.001 * (position - target):
                # a step too far may end in another valley, as where a standard deviation has vanished
                outside, target = min(outside, position), 0.5 * (below[2] + position)
                state, model, position = below
            step = _shortened(chart, model.step(outward * (target - position)))
            for _ in range(40):
                trial = chart.move(state, step)
                ahead = self.deviance.expand(chart, trial)
                if ahead is not None:
                    break
                step = 0.5 * step
            else:
                break
            state, found, position = trial, ahead, position + outward * float(step[0])
        raise ProfileError("the end point was not found within 60 steps")

    # ---- fixed effects -------------------------------------------------------------------------

    @property
    def _own(self) -> Any:
        """The criterion of all columns."""
        return self.deviance.criterion

    def _objective(self, columns: Array) -> Any:
        """The ML criterion of [X y] columns for [X y]."""
        criterion = self.problem.criterion(columns)
        criterion.reml = False
        sigma = self.fit.model.sigma
        if sigma is None:
            return criterion
        return KnownVariance(linear_engine(criterion), linear_problem(self.problem), sigma)

    def _solution(self, criterion: Any) -> tuple[Any, ...]:
        """Coefficients, r2 and Cholesky's factor at the last point."""
        found: tuple[Any, ...] = criterion.solution()
        return found

    def _theta(self, state: State) -> Array:
        """What such criteria are functions of, at a state."""
        if state is self.optimum:
            return self.fit.optimum.theta
        structure = self.problem.structure
        return structure.theta(structure.canonical(state.M * np.exp(-0.5 * state.s)))

    def _state(self, theta: Array, s: float) -> State:
        """The state there."""
        return State(self.problem.structure.factor(theta) * np.exp(0.5 * s), s)

    def _elsewhere(self) -> list[Array]:
        """Other starts."""
        problem = self.problem
        return list(other_starts(problem.structure, problem.levels, problem.n))
