"""What every engine offers: one question, one form of answer.

Problem   a design with a response, conditioned: it makes engines and starts
Engine    evaluates the profiled criterion, and solves with V at the last point evaluated
Solution  what profiling out the coefficients leaves

Where the residuals have no structure, V is linear in the elements of G: a LinearProblem makes a LinearEngine, which
knows derivatives along them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from ..support.types import Array

if TYPE_CHECKING:
    from ..covariance.parameters import CovarianceStructure
    from ..kernels.records.rows import ConditionedRows

__all__ = [
    "CAREFUL", "EASY", "HARD", "ORDINARY", "UNASKED", "Elsewhere", "Engine", "LinearEngine", "LinearProblem", "Problem",
    "Relaxed", "Solution", "linear_engine", "linear_problem",
]  # fmt: skip


EASY, ORDINARY, CAREFUL, HARD = range(4)
"""Efforts of a search for other minima: data that are nearly balanced; one factor with many groups; not so many, or
several factors with few levels; few groups, some of which tell hardly anything of some effects, so that minima may lie
close together."""


class Solution(NamedTuple):
    """What profiling out the coefficients leaves at one point, in conditioned units.

    Attributes
    ----------
    beta : (r,) array
        Coefficients of X_o.
    r2 : float
        Generalised residual sum of squares.
    chol : (r, r) array
        Lower triangular factor of X_o'V^-1X_o, relative to sigma^2.
    """

    beta: Array
    r2: float
    chol: Array


class Engine(Protocol):
    """The profiled criterion of a conditioned problem.

    The compiled Newton method needs an `Objective` of the kernels besides.  An engine has one work space: it serves one
    thread, and what follows the first three methods speaks of the last point evaluated.
    """

    reml: bool
    n_evaluations: int

    @property
    def serial(self) -> bool:
        """Whether its matrices are of a size that one BLAS thread serves best."""

    @property
    def averaged(self) -> bool:
        """Whether its Hessian is an approximation, as exact second derivatives of so many effects take too long."""

    @property
    def costly(self) -> bool:
        """Whether the search for other minima than a certified one takes too long."""

    @property
    def remainder(self) -> float:
        """r^2 relative to y'y, where it may be lost in rounding errors; 1 elsewhere."""

    def evaluate(self, theta: Array, order: int = 0) -> tuple[float, Array | None, Array | None]:
        """Value, gradient and Hessian in theta."""

    def solution(self) -> tuple[Array, float, Array, Array]:
        """The fields of `Solution`, and the derivative in the relative covariance (after an order of 1 or more)."""

    def solve(self, v: Array, rows: ConditionedRows) -> Array:
        """V^-1 v by rows, V relative to sigma^2; (n,) or (n, k) array."""


class LinearEngine(Engine, Protocol):
    """An engine of V = I + Z G Z', with derivatives along the unit directions of G at the last point evaluated."""

    def rotate(self, turn: Array | None = None) -> None:
        """Take theta in other coordinates of G."""

    def curvature(self) -> Array:
        """Second derivatives along the unit directions of G (n_a, n_a), after an evaluation of order 2."""

    def precision(self) -> Array:
        """Sum over the levels of Z_i'V_i^-1Z_i (q, q), within factors."""

    def cross(self) -> Array:
        """Derivatives of [X y]'V^-1[X y] along the unit directions of G, up to their sign (n_a, r + 1, r + 1)."""

    def traces(self, weight: Array | None = None) -> Array:
        """tr(V^-1 dV V^-1 dV) for pairs of unit directions (n_a, n_a); within the columns [X y] `weight`, if given."""

    def sandwich(self, weight: Array) -> Array:
        """Sum over pairs of directions of w_kl X'V^-1 dV_k V^-1 dV_l V^-1 X."""


class Relaxed(NamedTuple):
    """A criterion in which all effects of a grouping factor are correlated.

    It is invariant under a change of the columns of a factor, so that it has few minima as a rule, while that of
    independent effects far from the origin of their variable has several, of which the lowest is near those.

    Attributes
    ----------
    engine : Engine
    structure : CovarianceStructure
        One block for each factor.
    """

    engine: LinearEngine
    structure: CovarianceStructure


class Elsewhere(NamedTuple):
    """What is known of minima other than that which a start leads to.

    Attributes
    ----------
    kind : {"search", "nothing", "unasked"}
        Search for other minima; there are none, by theory; the caller asks for the one that the start leads to.
    effort : int
        EASY, ORDINARY, CAREFUL or HARD.
    scout : LinearEngine, optional
        The criterion of a part of the groups, to be searched instead of that of all.
    always : bool
        Search although evaluations take long: other minima are common.
    relaxed : callable, optional
        Makes the relaxed criterion, None where it takes too long; where a screen is sparse, and independent effects
        share a factor.
    beside : bool
        Search from points beside a minimum that lies on the boundary or near it, too.
    foremost : (count, q) array, optional
        Directions along some of which the effects may not vary at a minimum.
    """

    kind: Literal["search", "nothing", "unasked"] = "search"
    effort: int = ORDINARY
    scout: LinearEngine | None = None
    always: bool = False
    relaxed: Callable[[], Relaxed | None] | None = None
    beside: bool = False
    foremost: Array | None = None

    @property
    def unalike(self) -> bool:
        """Whether single groups tell so much of some directions that every rank is searched by itself."""
        return self.foremost is not None and len(self.foremost) > 0

    def unbalanced(self) -> Elsewhere:
        """The same for a criterion that is no more that of the design as it is, so that balance tells nothing of it."""
        return Elsewhere(effort=EASY) if self.kind == "nothing" else self


UNASKED = Elsewhere("unasked")


class Problem(Protocol):
    """A design with a response, conditioned, and the way back to the caller's units."""

    @property
    def n(self) -> int:
        """Observations."""

    @property
    def m(self) -> int:
        """Levels of the factor that has most."""

    @property
    def rank(self) -> int:
        """Columns of X kept."""

    @property
    def kept(self) -> NDArray[np.intp]:
        """Which columns of X those are."""

    @property
    def dropped(self) -> NDArray[np.intp]:
        """Which were left out."""

    @property
    def structure(self) -> CovarianceStructure:
        """Covariance of the random effects."""

    @property
    def levels(self) -> Array:
        """Number of levels for each random effect (q,)."""

    @property
    def scale(self) -> float:
        """Standard deviation of the residual of y, by which it was divided."""

    @property
    def x_map(self) -> Array:
        """X_o = X x_map (p, r)."""

    @property
    def z_map(self) -> Array:
        """Z_o = Z z_map (q, q)."""

    @property
    def beta_base(self) -> Array:
        """Coefficients taken out of y (p,)."""

    @property
    def x_constant(self) -> bool:
        """Whether X has a constant column."""

    @property
    def log_jacobian(self) -> float:
        """2 log|det| of x_map on the kept columns."""

    @property
    def log_constant(self) -> float:
        """- sum of the logarithms of the weights."""

    def criterion(self, columns: Array | None = None) -> Engine:
        """An engine; `columns` (r + 1, k): take [X y] columns for [X y]."""

    def conditioned_z(self, Z: Array) -> Array:
        """Rows of Z_o (n, q), the columns of all factors side by side."""

    def start(self, criterion: Engine) -> Array:
        """Theta from moments of the data."""

    @property
    def saturated(self) -> bool:
        """Whether no row tells the residual variance by itself: fixed and random effects span all rows."""

    @property
    def outside(self) -> int:
        """Dimensions that the random effects do not reach."""

    def conditioned_x(self, X: Array) -> Array:
        """Rows of X_o (n, r)."""


class LinearProblem(Problem, Protocol):
    """A problem whose engines are linear in G: random effects, and residuals of sigma^2 over weights."""

    def criterion(self, columns: Array | None = None) -> LinearEngine:
        """An engine; `columns` (r + 1, k): take [X y] columns for [X y]."""

    @property
    def alone(self) -> float:
        """Part of y_o'y_o that is not the data's."""

    def pilot(self) -> LinearEngine | None:
        """The engine of a part of the data, where that is a good start for all."""

    def elsewhere(self) -> Elsewhere:
        """What is known of other minima of the criterion, and how to look for them."""

    def effects(self, factor: Array, beta: Array) -> tuple[Array, ...]:
        """BLUPs of the conditioned random effects, one (m, q) array per grouping factor."""

    def effects_covariance(self, factor: Array) -> tuple[Array, ...]:
        """Conditional covariances of the conditioned effects, relative to sigma^2: (m, q, q) per factor."""


def linear_problem(problem: Problem) -> LinearProblem:
    """The problem, which must be one of residuals without structure."""
    if not hasattr(problem, "elsewhere"):
        raise TypeError(f"residuals have a structure: {type(problem).__name__} is not linear in its parameters")
    return cast("LinearProblem", problem)


def linear_engine(engine: Engine) -> LinearEngine:
    """The engine, which must be one of residuals without structure."""
    if not hasattr(engine, "curvature"):
        raise TypeError(f"residuals have a structure: {type(engine).__name__} is not linear in its parameters")
    return cast("LinearEngine", engine)
