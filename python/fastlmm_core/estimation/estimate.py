"""From a model to the record of its fit: by which method, from which start, and where no residual variance is left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from ..engines.protocol import UNASKED, Engine, Solution, linear_problem
from ..engines.starts import shrunk_start
from ..support.blas_threads import one_blas_thread
from ..support.types import Array
from .known_variance import KnownVariance
from .model import Model
from .optimize import NothingLeft, optimize
from .optimum import Optimum
from .refinement import loses_digits, refined
from .residual_limit import SMALL, refuse_unbounded, with_residual_variance, without_maximum

__all__ = ["estimate"]

F = TypeVar("F")

Record = Callable[[Model, Optimum, bool, Solution], F]

LARGE = 30.0
"""Standard deviation of a start, relative to what a group tells of it, from which smaller ones are tried."""


class _Asked(NamedTuple):
    """What is asked of a fit: an estimable model, the criterion, how it is minimised; see `LinearMixedModel.fit`."""

    model: Model
    reml: bool
    method: str | Callable[..., Any]
    start: ArrayLike | None
    options: dict[str, Any] | None


class _Found(NamedTuple):
    """What a fit is made of; the engine, where it stands at the optimum."""

    optimum: Optimum
    solution: Solution
    engine: Engine | None = None


def estimate(
    kind: Record[F],
    model: Model,
    reml: bool,
    method: str | Callable[..., Any] = "newton",
    start: ArrayLike | None = None,
    options: dict[str, Any] | None = None,
) -> F:
    """Fit a model.

    Parameters
    ----------
    kind : callable
        Makes the record of a model, its optimum, whether by REML, and a solution: `Fit`, or what derives from it.
    model : Model
    reml : bool
    method, start, options
        See `LinearMixedModel.fit`.

    Raises
    ------
    LMMError
        For an unknown method, a start of the wrong length, or a likelihood that has its supremum where the residual
        variance is zero.
    """
    model = model.estimable()
    if method == "iterative" or model.one_by_one:
        return _otherwise(kind, _Asked(model, bool(reml), method, start, options))
    problem, structure = linear_problem(model.problem), model.structure
    engine, levels = problem.criterion(), problem.levels
    engine.reml = reml
    if not reml:
        refuse_unbounded(problem.outside)
    with one_blas_thread(engine.serial):
        try:
            optimum = optimize(
                engine,
                structure,
                levels,
                problem.n,
                problem.start(engine) if start is None else _given_start(engine, model, start, method),
                method,
                options,
                pilot=problem.pilot() if start is None else None,
                elsewhere=problem.elsewhere() if start is None else UNASKED,
            )
        except NothingLeft as error:
            if problem.saturated:
                # on its way to the limit a search may lose all digits of r^2
                raise without_maximum(bool(reml)) from error
            raise
        solution = Solution(*engine.solution()[:3])
        if problem.saturated or solution.r2 < SMALL * problem.n:
            optimum = with_residual_variance(engine, structure, levels, problem.n, optimum, problem.saturated)
            solution = Solution(*engine.solution()[:3])
        if loses_digits(engine, problem, optimum.factor):
            optimum, solution = refined(engine, model, optimum, solution)
    return kind(model, optimum, bool(reml), solution)


def _given_start(engine: Engine, model: Model, start: ArrayLike, method: str | Callable[..., Any]) -> Array:
    """Conditioned theta of a start, shrunk where it is very large and smaller ones are better.

    A method of the caller's own is given the start as it is.
    """
    theta = model.conditioned_theta(start, "start")
    if callable(method):
        return theta
    unit = float(np.sqrt(model.problem.levels.max() / model.problem.n))
    return theta if np.abs(theta).max() <= LARGE * unit else shrunk_start(engine, theta)


def _otherwise(kind: Record[F], asked: _Asked) -> F:
    """`estimate` of anything but free covariances of random effects and independent residuals of unknown variance."""
    if asked.method == "iterative":
        way = _by_iterations
    elif asked.model.sigma is not None:
        way = _with_known_variance
    else:
        way = _with_restricted_covariances if asked.model.structure.restricted else _with_structured_residuals
    optimum, solution, engine = way(asked)
    found = kind(asked.model, optimum, asked.reml, solution)
    if engine is not None:
        found.__dict__["engine"] = engine
    return found


def _by_iterations(asked: _Asked) -> _Found:
    """The optimum of crossed factors by conjugate gradients."""
    from .iterative import iterated

    optimum, engine = iterated(asked.model, asked.reml, asked.start, asked.options)
    return _Found(optimum, Solution(*engine.solution()[:3]), engine)


def _with_known_variance(asked: _Asked) -> _Found:
    """The optimum where the residual variance is known: from several starts, as few groups may leave several minima."""
    model, reml, method, start, options = asked
    problem, engine = linear_problem(model.problem), model.criterion()
    assert isinstance(engine, KnownVariance)
    engine.reml = reml
    with one_blas_thread():
        engine.refuse_unidentified(model.term_names)
        starts = [model.conditioned_theta(start, "start")] if start is not None else engine.starts(problem)
        optimum = engine.lowest(problem, starts, method, options)
        engine.evaluate(optimum.theta, 1)
    return _Found(optimum, Solution(*engine.solution()[:3]))


def _with_restricted_covariances(asked: _Asked) -> _Found:
    """The optimum where random effects have a restricted covariance."""
    from .restricted import restricted_optimum

    engine = asked.model.problem.criterion()
    engine.reml = asked.reml
    with one_blas_thread(engine.serial):
        optimum = restricted_optimum(engine, asked.model, asked.method, asked.start, asked.options)
    return _Found(optimum, Solution(*engine.solution()[:3]))


def _with_structured_residuals(asked: _Asked) -> _Found:
    """The optimum of structured residuals."""
    from ..engines.residual.problem import residual_problem
    from .structured import minimise_residual

    model, reml, method, start, options = asked
    engine, problem = model.problem.criterion(), residual_problem(model.problem)
    engine.reml = reml
    with one_blas_thread():
        first = problem.start(engine) if start is None else model.structured_theta(start, "start")
        optimum = minimise_residual(engine, problem, first, method, options, start is not None)
    return _Found(optimum, Solution(*engine.solution()[:3]), engine)
