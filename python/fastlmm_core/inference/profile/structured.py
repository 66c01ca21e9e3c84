"""Profiles where residuals have a structure, or covariances of random effects are restricted.

The parameters that are reported, psi, are functions of coordinates z = (x, s) without constraints: x those of the
structures, s = log sigma^2.  A point of the profile of h = t(psi_i), t a logarithm or Fisher's z where psi_i is
bounded, is the minimum of the deviance d(z) where h(z) = c, by Newton's method on the Lagrangian d - lambda h: a step
to the constraint, and one along it, which minimises the quadratic model with the Hessian of the Lagrangian.  There
lambda is the derivative of the profile in c, so that the value at which it has risen by a level is found by Newton's
method for the root of the rise.
"""

from __future__ import annotations

from math import isfinite, log
from typing import Any, NamedTuple

import numpy as np

from ...covariance.effects.catalogue import blocks_of
from ...covariance.effects.reduced_rank import ReducedRank
from ...covariance.effects.relative import Relative
from ...covariance.effects.structure import EffectsStructure
from ...engines.restricted import RestrictedCriterion
from ...estimation.fit import Fit
from ...estimation.restricted import restricted_criterion
from ...support.types import Array
from .coefficients import CoefficientProfiler, Parameter, Point, ProfileError
from .coordinates import Deviance, State
from .points import EXACT
from .reported import Value, reported

__all__ = ["StructuredProfiler", "structured_parameters"]


LONGEST = 1.0
"""Longest step in an element of z, relative to its size where that is above 1."""

FARTHEST_LOG, FARTHEST_FISHER = 30.0, 13.0
"""Distance of a logarithm from the estimate, and size of Fisher's z, at which the bound is reached."""

START_INSIDE = 3.0
"""Fisher's z from which a profile starts inwards from a correlation of 1."""

TINY = 1e-20
"""Variance of an independent effect that does not vary, relative to the largest."""

WIDE = 0.05
"""Share of what a level tells of an effect, that is added to variances of zero for a start."""

FLAT, FAR_ENOUGH = 1e-4, 4.0
"""Slope in c, relative to the level, and distance from the estimate from which a profile rises no more to its bound."""

STEPS, SETTLING, HALVINGS = 60, 100, 40
"""Steps along a profile, to a minimum on the constraint, and halvings of one."""


class _Expansion(NamedTuple):
    """Value, gradient and Hessian in z."""

    value: float
    gradient: Array
    hessian: Array


class _Surface:
    """The deviance in z = (x, s), with its derivatives."""

    def __init__(self, fit: Fit) -> None:
        self.fit, model = fit, fit.model
        self.blocks, self.problem = blocks_of(model.structure), model.problem
        self.reml = fit.reml
        self.plain = Deviance(self.problem, fit.reml) if model.residual is None else None
        self.criterion = self.restricted(None)

    def restricted(self, columns: Array | None) -> RestrictedCriterion:
        """The criterion in x, of [X y] columns if given."""
        model, problem = self.fit.model, self.problem
        inner = problem.criterion(columns) if columns is not None or self.plain is None else self.plain.criterion
        inner.reml = self.reml and columns is None
        return restricted_criterion(inner, model)

    def expand(self, z: Array) -> _Expansion | None:
        """Value, gradient and Hessian; None outside the domain."""
        x, s = z[:-1], float(z[-1])
        with np.errstate(over="ignore", invalid="ignore"):
            native = self.criterion.native(x)
            if not np.isfinite(native).all():
                return None
            found = self._plain(x, s) if self.plain is not None else self._structured(x, native, s)
        if found is None or not (isfinite(found.value) and np.isfinite(found.hessian).all()):
            return None
        return found

    def _structured(self, x: Array, native: Array, s: float) -> _Expansion | None:
        criterion: Any = self.criterion
        found = criterion.inner.unprofiled(native, s)
        if found is None:
            return None
        turn, k = criterion.turn(x), self.blocks.n_parameters
        slope = criterion.basis.T @ criterion.inner.slope_in_g() @ criterion.basis
        n = len(x)
        hessian = np.empty((n + 1, n + 1))
        hessian[:n, :n] = turn @ found.second @ turn.T
        hessian[:k, :k] += self.blocks.second(x[:k], slope)
        hessian[:n, n] = hessian[n, :n] = turn @ found.mixed
        hessian[n, n] = found.in_ss
        return _Expansion(found.value, np.append(turn @ found.first, found.in_s), hessian)

    def _plain(self, x: Array, s: float) -> _Expansion | None:
        deviance, criterion = self.plain, self.criterion
        assert deviance is not None
        local = deviance.local(criterion.factor(x), 0.0)
        if local is None:
            return None
        nu, r2, dr2 = deviance.nu, local.r2, local.dr2
        e = float(np.exp(-s))
        rho = e * r2 / nu
        d_a = local.slope + (nu / r2 * (rho - 1.0)) * dr2
        d_aa = rho * local.curvature + (rho - 1.0) * local.traces + (rho * nu / r2**2) * np.outer(dr2, dr2)
        directions = self.blocks.directions(x, criterion.basis)
        slope = criterion.basis.T @ (d_a / deviance.once)[deviance.place] @ criterion.basis
        n = len(x)
        hessian = np.empty((n + 1, n + 1))
        hessian[:n, :n] = directions @ d_aa @ directions.T + self.blocks.second(x, slope)
        hessian[:n, n] = hessian[n, :n] = -e * (directions @ dr2)
        hessian[n, n] = nu * rho
        gradient = np.append(directions @ d_a, nu * (1.0 - rho))
        return _Expansion(local.value + nu * (rho - 1.0 - log(rho)), gradient, hessian)


class _Settled(NamedTuple):
    """A minimum along a constraint: z, the deviance there, and its slope in c."""

    z: Array
    value: float
    slope: float


class StructuredProfiler(CoefficientProfiler):
    """Finds points of the profiles of one fit, where variance parameters have a structure.

    Parameters
    ----------
    result : LMMResult
        Refitted where it is not of the criterion wanted.
    reml : bool
    """

    _order = 1

    def __init__(self, result: Fit, reml: bool = False) -> None:
        self.fit = fit = result if result.reml == reml else result.again(result.model, reml=reml)
        self.problem = fit.model.problem
        self.minimum = fit.optimum.value
        self.noise = 1e-13 * (abs(self.minimum) + self.problem.n)
        self.surface = _Surface(fit)
        self.values = reported(fit)
        s = float(np.log(fit.sigma2 / self.problem.scale**2))
        self.optimum = State(self._x_of_fit(), s)
        self._best = np.append(self.optimum.M, s)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "surface": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, surface=_Surface(state["fit"]))

    def _x_of_fit(self) -> Array:
        """The coordinates of the estimates."""
        fit, blocks = self.fit, self.surface.blocks
        if fit.optimum.restricted is not None:
            return np.concatenate([fit.optimum.restricted, fit.phi])
        found = [
            _coordinates(part, fit.relative_factor[effects, effects])
            for part, (effects, _) in zip(blocks.parts, blocks.spans, strict=True)
        ]
        return np.concatenate([*found, fit.phi])

    def _value(self, parameter: Parameter) -> Value:
        return self.values[parameter.columns[0]]

    def estimate(self, parameter: Parameter) -> float:
        """The estimate; NaN for a dropped coefficient and for the correlation of an effect that does not vary."""
        if parameter.kind == "beta":
            return float(self.fit.beta[parameter.columns[0]])
        return self._value(parameter).estimate(self.fit)

    def parameters(self) -> list[Parameter]:
        """All parameters of the fit."""
        return structured_parameters(self.fit)

    def _natural(self, parameter: Parameter, state: State) -> float:
        """A variance parameter at a state."""
        return self._value(parameter).natural(np.append(state.M, state.s))

    def _coefficients(self, state: State) -> Array:
        """Conditioned coefficients (rank,) that follow from a state."""
        self.surface.criterion.evaluate(state.M, self._order)
        found: Array = self._solution(self.surface.criterion)[0]
        return found

    # ---- variance parameters -------------------------------------------------------------------

    def reach(self, parameter: Parameter, outward: int, level: float, guide: Point | None = None) -> Point:
        """Where the profile has risen by `level` on one side, or its end; see `CoefficientProfiler.reach`."""
        if parameter.kind == "beta":
            return self._coefficient(parameter.columns[0], outward, level, guide)
        value = self._value(parameter)
        if not isfinite(value.estimate(self.fit)):
            return Point(float(outward), 0.0, self.optimum)
        z, c0 = self._best, value.at(self._best).c
        side = value.side(c0, self.problem.scale**2)
        if side == outward:
            return Point(value.limit(outward), 0.0, self.optimum)
        low = 0.0
        if side:
            z, c0 = self._inwards(value, side)
            low = -FARTHEST_LOG
        unit = t = self._first_step(value, z, level) if not side else 1.0
        if side:
            t = 0.0
        if guide is not None and guide.rise > 0.0:
            z = np.append(guide.state.M, guide.state.s)
            t = outward * (value.at(z).c - c0)
            t *= float(np.sqrt(level / guide.rise)) if t > 0.0 else 1.0
        return self._rise(value, outward, level, z, c0, (low, t, unit))

    def _rise(
        self, value: Value, outward: int, level: float, z: Array, c0: float, steps: tuple[float, float, float]
    ) -> Point:
        """The point where the rise is `level`, going outward from c0; `steps`: the least, the first, their unit."""
        goal, high, end = float(np.sqrt(level)), np.inf, np.inf
        low, t, unit = steps
        if isfinite(value.limit(outward)):
            end = FARTHEST_LOG if value.kind == "log" else FARTHEST_FISHER - outward * c0
        last: tuple[float, Array] | None = None
        for _ in range(STEPS):
            t = min(t, end)
            c = c0 + outward * t
            try:
                found = self._along(value, z, c)
            except ProfileError:
                high = t
                if high - low < 1e-4 * unit:
                    break
                t = 0.5 * (low + high)
                continue
            self._not_below(found.value)
            zeta = float(np.sqrt(max(found.value - self.minimum, 0.0)))
            slope = outward * found.slope
            change = (goal - zeta) * 2.0 * zeta / slope if slope > 0.0 and zeta > 0.0 else 2.0 * unit
            if abs(change) <= 1e-3 * unit and zeta > 0.5 * goal:
                # the error left is of the order of the square of this change
                return Point(value.back(c + outward * change), level, State(found.z[:-1], float(found.z[-1])))
            if zeta < goal:
                low, z, last = t, found.z, (zeta**2, found.z)
                left = slope * (1.0 if value.kind == "log" else 0.5)  # what exponentials of c leave to the bound
                flat = 0.0 <= left < FLAT * level and zeta**2 + left < level
                if isfinite(end) and t >= min(FAR_ENOUGH, end) and (flat or t >= end):
                    low = end
                    break
            else:
                high = min(high, t)
            ahead = t + min(max(change, -8.0 * unit), 8.0 * unit)
            t = ahead if low < ahead < high else 0.5 * (low + high) if isfinite(high) else t + 2.0 * unit
        if last is not None and last[0] < level and low > end - 1.0:
            return Point(value.limit(outward), last[0], State(last[1][:-1], float(last[1][-1])))
        if last is not None and high - low <= 1e-3 * unit:
            # what is bounded by the structure, as a correlation that is not negative
            return Point(value.natural(last[1]), last[0], State(last[1][:-1], float(last[1][-1])))
        raise ProfileError(f"the end point was not found within {STEPS} steps")

    def _first_step(self, value: Value, z: Array, level: float) -> float:
        """The step in c at which the quadratic model at the optimum has risen by the level."""
        found = self.surface.expand(z)
        if found is None:
            raise ProfileError("the deviance is not defined at the optimum")
        a = value.at(z).gradient
        values, vectors = np.linalg.eigh(found.hessian)
        live = values > 1e-10 * values[-1]
        spread = float(np.sum((vectors.T @ a)[live] ** 2 / values[live]))
        step = float(np.sqrt(2.0 * level * spread))
        if value.kind == "plain":
            return step
        return min(max(step, 1e-6), 4.0)

    def _inwards(self, value: Value, side: int) -> tuple[Array, float]:
        """A point inside where the estimate lies at its limit."""
        z = self._best.copy()
        if value.kind == "fisher":
            found = self._along(value, z, side * START_INSIDE)
            return found.z, side * START_INSIDE
        problem, blocks = self.problem, self.surface.blocks
        wide = problem.z_map * np.sqrt(WIDE * problem.levels / problem.n)
        z[: blocks.n_parameters] = blocks.nearest(self.fit.relative_covariance + wide @ wide.T)
        return z, value.at(z).c

    def _along(self, value: Value, z: Array, c: float) -> _Settled:
        """The minimum of the deviance where the parameter is c.

        Raises
        ------
        ProfileError
        """
        found = self.surface.expand(z)
        if found is None:
            raise ProfileError("the deviance is not defined at a point of the profile")
        tolerance = EXACT * 1e-2 + self.noise
        for _ in range(SETTLING):
            here = value.at(z)
            a, size2 = here.gradient, float(here.gradient @ here.gradient)
            if not (isfinite(here.c) and size2 > 0.0):
                break
            slope = float(a @ found.gradient) / size2
            step = a * ((c - here.c) / size2)
            along = np.linalg.qr(a[:, None], mode="complete")[0][:, 1:]
            curved = along.T @ (found.hessian - slope * here.hessian)
            pull = along.T @ (found.gradient + (found.hessian - slope * here.hessian) @ step)
            values, vectors = np.linalg.eigh(curved @ along)
            largest = float(np.abs(values).max(initial=0.0))
            live = np.abs(values) > 1e-11 * largest
            inverse = np.where(live, 1.0 / np.where(live, np.abs(values), 1.0), 0.0)
            turned = vectors.T @ pull
            decrement2 = float(turned**2 @ inverse)
            off = abs(c - here.c)
            falling = bool(len(values) and values[0] < -1e-8 * largest)
            if off <= 1e-9 * max(1.0, abs(c)) and decrement2 <= tolerance and not falling:
                return _Settled(z, found.value - 0.5 * decrement2, slope)
            step = step - along @ (vectors @ (inverse * turned))
            if falling and decrement2 <= tolerance:
                step = step + 0.3 * (along @ vectors[:, 0])
            longest = float((np.abs(step) / np.maximum(1.0, np.abs(z))).max())
            if longest > LONGEST:
                step *= LONGEST / longest
            # the multiplier after the step, too: next to the optimum it rises from zero to what the distance asks for
            ahead = float(a @ (found.gradient + (found.hessian - slope * here.hessian) @ step)) / size2
            moved = self._shortened(value, found, z, step, c, 2.0 * max(abs(slope), abs(ahead)) + 1e-3)
            if moved is None:
                if off <= 1e-9 * max(1.0, abs(c)) and decrement2 <= max(tolerance, 1e4 * self.noise):
                    return _Settled(z, found.value - 0.5 * decrement2, slope)
                break
            z, found = moved
        raise ProfileError("the deviance could not be minimised over the other parameters")

    def _shortened(
        self, value: Value, found: _Expansion, z: Array, step: Array, c: float, price: float
    ) -> tuple[Array, _Expansion] | None:
        """The first halving of a step that lowers the deviance and `price` times the distance from the constraint."""
        merit = found.value + price * abs(c - value.at(z).c)
        for _ in range(HALVINGS):
            trial = z + step
            here = value.at(trial).c
            ahead = self.surface.expand(trial) if isfinite(here) else None
            if ahead is not None and ahead.value + price * abs(c - here) < merit:
                return trial, ahead
            step = 0.5 * step
        return None

    # ---- fixed effects -------------------------------------------------------------------------

    @property
    def _own(self) -> Any:
        """The criterion of all columns."""
        return self.surface.criterion

    def _objective(self, columns: Array) -> Any:
        """The ML criterion of [X y] columns for [X y]."""
        return self.surface.restricted(columns)

    def _solution(self, criterion: Any) -> tuple[Any, ...]:
        """Coefficients, r2 and Cholesky's factor at the last point."""
        found: tuple[Any, ...] = criterion.inner.solution()
        return found

    def _theta(self, state: State) -> Array:
        """X at a state."""
        return state.M

    def _state(self, theta: Array, s: float) -> State:
        """The state there."""
        return State(theta, s)

    def _elsewhere(self) -> list[Array]:
        """No other starts: that of the fit is a neighbour."""
        return [self.optimum.M]


def _coordinates(part: EffectsStructure, factor: Array) -> Array:
    """Theta of free covariances with a factor L (q, q) of G / sigma^2."""
    if isinstance(part, ReducedRank):
        return np.asarray(part.coordinates(factor))
    assert isinstance(part, Relative)
    variances = np.diag(factor) ** 2
    floor = TINY * (float(variances.max(initial=0.0)) or 1.0)
    phi, scale = part.structure.from_natural(np.maximum(variances, floor))
    return np.append(0.5 * log(scale), phi)


def structured_parameters(result: Fit) -> list[Parameter]:
    """Fixed effects, then variance parameters as tables have them."""
    fixed = [Parameter(name, "beta", (j,)) for j, name in enumerate(result.model.exog_names)]
    return [*fixed, *(Parameter(one.name, "structure", (j,)) for j, one in enumerate(reported(result)))]
