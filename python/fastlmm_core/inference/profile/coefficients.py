"""Points of profiles of fixed effects, along which the compiled Newton minimises over everything else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal, NamedTuple

import numpy as np

from ...engines.protocol import Problem
from ...estimation.fit import Fit
from ...estimation.optimum import CERTIFIED
from ...kernels import minimize_newton
from ...support.types import Array
from .coordinates import State

__all__ = ["CoefficientProfiler", "Parameter", "Point", "ProfileError"]

Kind = Literal["sd", "cor", "sigma", "beta", "structure"]


class Parameter(NamedTuple):
    """What can be profiled.

    Attributes
    ----------
    name : str
        ``sd_x|g``, ``cor_x.y|g``, ``sigma``, or the name of the coefficient.
    kind : {"sd", "cor", "sigma", "beta", "structure"}
    columns : tuple of int
        Random effects, or the column of X, or the place among the parameters of structures.
    """

    name: str
    kind: Kind
    columns: tuple[int, ...]


class Point(NamedTuple):
    """One point of a profile.

    Attributes
    ----------
    value : float
        Of the parameter.
    rise : float
        Of the deviance above its minimum.
    state : State
        Variance parameters there.
    beta : (rank,) array or None
        Conditioned coefficients, where they are not what follows from the state.
    """

    value: float
    rise: float
    state: State
    beta: Array | None = None


class ProfileError(Exception):
    """A point of a profile could not be found; the message says why."""


class CoefficientProfiler(ABC):
    """Finds points of the profiles of one fit: of fixed effects here, of variance parameters in what derives from it.

    Attributes
    ----------
    fit : LMMResult
    problem : Problem
    minimum, noise : float
        Of the deviance: its value at the fit, and its rounding error.
    optimum : State
        That of the fit.
    """

    fit: Fit
    problem: Problem
    minimum: float
    noise: float
    optimum: State

    _order: int
    """Of evaluations after which a criterion knows the coefficients."""

    @abstractmethod
    def parameters(self) -> list[Parameter]:
        """All parameters of the fit."""

    @abstractmethod
    def estimate(self, parameter: Parameter) -> float:
        """The estimate; NaN for a dropped coefficient and for the correlation of an effect that does not vary."""

    @abstractmethod
    def reach(self, parameter: Parameter, outward: int, level: float, guide: Point | None = None) -> Point:
        """Where the profile has risen by `level` on one side, or its end if it does not rise so far.

        Parameters
        ----------
        parameter : Parameter
        outward : {-1, 1}
        level : float
            Positive.
        guide : Point, optional
            A point of the same side to start from.

        Returns
        -------
        Point
            A rise below `level` means that the parameter has reached 0 (standard deviations) or +-1 (correlations).

        Raises
        ------
        ProfileError
            If no such point was found.
        """

    def everything(self, parameter: Parameter, point: Point) -> dict[str, float]:
        """All parameters at a point of the profile of one."""
        problem = self.problem
        beta = self._coefficients(point.state) if point.beta is None else point.beta
        coefficients = problem.beta_base + problem.scale * (problem.x_map @ beta)
        coefficients[np.setdiff1d(np.arange(len(coefficients)), problem.kept)] = np.nan
        out = {
            p.name: float(coefficients[p.columns[0]]) if p.kind == "beta" else self._natural(p, point.state)
            for p in self.parameters()
        }
        out[parameter.name] = point.value
        return out

    # ---- what derives from it knows --------------------------------------------------------------

    @abstractmethod
    def _natural(self, parameter: Parameter, state: State) -> float:
        """A variance parameter at a state."""

    @abstractmethod
    def _coefficients(self, state: State) -> Array:
        """Conditioned coefficients (rank,) that follow from a state."""

    @property
    @abstractmethod
    def _own(self) -> Any:
        """The criterion of all columns."""

    @abstractmethod
    def _objective(self, columns: Array) -> Any:
        """The ML criterion of [X y] columns for [X y]."""

    @abstractmethod
    def _solution(self, criterion: Any) -> tuple[Any, ...]:
        """Coefficients, r2 and Cholesky's factor at the last point."""

    @abstractmethod
    def _theta(self, state: State) -> Array:
        """What such criteria are functions of, at a state."""

    @abstractmethod
    def _state(self, theta: Array, s: float) -> State:
        """The state there."""

    @abstractmethod
    def _elsewhere(self) -> list[Array]:
        """Other starts."""

    # ---- the search ------------------------------------------------------------------------------

    def _variance(self, r2: float, nu: int) -> float:
        """The conditioned residual variance where the others leave r2: its estimate, or what is known."""
        sigma = self.fit.model.sigma
        return r2 / nu if sigma is None else float((sigma / self.problem.scale) ** 2)

    def _not_below(self, value: float) -> None:
        if value < self.minimum - 1e-6 - 10.0 * self.noise:
            raise ProfileError(
                f"a point {self.minimum - value:.2g} below the minimum was found: the fit is not the global one"
            )

    def _coefficient(self, column: int, outward: int, level: float, guide: Point | None) -> Point:
        """The profile of beta_j = beta_base_j + scale l'beta_o.

        With Q orthogonal and l / |l| its last column, beta_o = Q gamma and gamma_r is what is fixed.  The derivative of
        the profile is that of n log(r2 + (gamma_r - gamma_r^)^2 / q'H_xx^-1 q) at fixed theta.
        """
        problem, n = self.problem, self.problem.n
        if column not in problem.kept:
            return Point(float("nan"), level, self.optimum)
        row = problem.x_map[column]
        size = float(np.linalg.norm(row))
        q = row / size
        rest = np.linalg.qr(q[:, None], mode="complete")[0][:, 1:]
        theta = self._theta(self.optimum)
        centre, spread, r2 = self._at(theta, q)
        known = self.fit.model.sigma is not None
        unit = spread * float(np.sqrt(self._variance(r2, n)))
        goal = float(np.sqrt(level))
        # as if theta did not depend on the coefficient
        t = goal if known else float(np.sqrt(n * np.expm1(level / n)))
        if guide is not None and guide.beta is not None:
            theta = self._theta(guide.state)
            t = abs(float(q @ guide.beta) - centre) / unit * goal / np.sqrt(guide.rise)
        inside, outside = 0.0, np.inf
        for _ in range(60):
            gamma = centre + outward * t * unit
            columns = np.zeros((problem.rank + 1, problem.rank))
            columns[:-1, :-1] = rest
            columns[:-1, -1] = -gamma * q
            columns[-1, -1] = 1.0
            criterion = self._objective(columns)
            theta, value = self._minimise(criterion, theta)
            self._not_below(value)
            rise = max(value - self.minimum, 0.0)
            inner, r2 = self._solution(criterion)[:2]
            own, spread, _ = self._at(theta, q)
            slope = 2.0 / self._variance(r2, n) * abs(gamma - own) / spread**2 * unit
            zeta = float(np.sqrt(rise))
            change = (goal - zeta) * 2.0 * zeta / slope if slope > 0.0 and zeta > 0.0 else t
            if abs(change) <= 5e-4 * t:
                # the error left is of the order of the square of this change
                t += change
                gamma = centre + outward * t * unit
                s = float(np.log(self._variance(r2, n)))
                beta = rest @ inner + gamma * q
                value = float(self.fit.beta[column]) + outward * t * unit * size * problem.scale
                return Point(value, level, self._state(theta, s), beta)
            inside, outside = (t, outside) if zeta < goal else (inside, t)
            t = min(t + change, 4.0 * t)
            if not inside < t < outside:
                t = 0.5 * (inside + outside)
        raise ProfileError("the end point was not found within 60 steps")

    def _at(self, theta: Array, q: Array) -> tuple[float, float, float]:
        """q'beta_o, the square root of q'H_xx^-1 q, and r2 at theta."""
        criterion = self._own
        criterion.evaluate(theta, self._order)
        beta, r2, chol = self._solution(criterion)[:3]
        return float(q @ beta), float(np.linalg.norm(np.linalg.solve(chol, q))), r2

    def _minimise(self, criterion: Any, theta: Array) -> tuple[Array, float]:
        """The constrained minimum found from a neighbour, or else the lowest from anywhere."""

        def attempt(start: Array) -> tuple[Array, float] | None:
            try:
                x, _, _, value, decrement, lowest, *_ = minimize_newton(criterion, start, tolerance=1e-5)
            except FloatingPointError:
                return None
            return (x, value) if decrement <= CERTIFIED and lowest > -1e-6 else None

        best = attempt(theta)
        if best is None:
            found = [attempt(start) for start in self._elsewhere()]
            best = min((one for one in found if one is not None), key=lambda one: one[1], default=None)
        if best is None:
            raise ProfileError("the deviance could not be minimised over the other parameters")
        criterion.evaluate(best[0], self._order)
        return best
