"""Fits whose random effects have a restricted covariance: `cs`, `ar1`, `fa0` and others.

The criterion is that of any engine as a function of the fewer parameters; what the optimum tells of G is as for others.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..covariance.effects.catalogue import blocks_of
from ..engines.protocol import Engine, linear_engine
from ..engines.residual.criterion import structured_engine
from ..engines.restricted import RestrictedCriterion, RestrictedLinear, RestrictedStructured
from ..support.types import Array
from .certificate import decrement_of
from .methods import run_once
from .model import Model
from .moments import inverse_information
from .optimum import CERTIFIED, Optimum, close_enough
from .structured import LARGER, SMALLER, verdict

__all__ = [
    "bend", "limits", "restricted_criterion", "restricted_face", "restricted_inverse", "restricted_optimum",
    "structured_turn",
]  # fmt: skip


def limits(model: Model, x: Array) -> tuple[str, ...]:
    """What has run into its limit, by the parameters of the random effects and of structured residuals."""
    blocks, part = blocks_of(model.structure), model.residual
    k = blocks.n_parameters
    found = blocks.boundaries(x[:k], model.exog_re_names, model.term_names)
    return found if part is None else (*found, *part.boundaries(x[k:]))


def restricted_criterion(engine: Engine, model: Model) -> RestrictedCriterion:
    """The criterion in the parameters of the random effects, and of structured residuals."""
    if model.residual is not None:
        return _structured_criterion(engine, model)
    problem = model.problem
    return RestrictedLinear(
        linear_engine(engine), model.structure, blocks_of(model.structure), problem.z_map, problem.n
    )


def _structured_criterion(engine: Engine, model: Model) -> RestrictedStructured:
    problem, part = model.problem, model.residual
    assert part is not None
    return RestrictedStructured(
        structured_engine(engine), model.structure, blocks_of(model.structure), problem.z_map, problem.n,
        part.n_parameters,
    )  # fmt: skip


def _starts(criterion: RestrictedCriterion, model: Model, native: Array, given: bool) -> list[Array]:
    """Members near to the starts of an engine of Lambda; with structured residuals several, where none is given."""
    problem, structure = model.problem, model.structure
    k = structure.n_parameters
    factor = problem.z_map @ structure.factor(native[:k])
    G = factor @ factor.T
    sizes = (1.0, SMALLER, LARGER) if model.residual is not None and not given else (1.0,)
    return [np.concatenate((criterion.blocks.nearest(size**2 * G), native[k:])) for size in sizes]


def restricted_optimum(
    engine: Engine,
    model: Model,
    method: str | Callable[..., Any],
    start: ArrayLike | None,
    options: dict[str, Any] | None,
) -> Optimum:
    """Minimise the criterion and certify what was found.

    Parameters
    ----------
    engine : Engine
        Of the elements of Lambda.
    model : Model
    method, start, options
        See `LinearMixedModel.fit`; a start is one of the elements of Lambda, for which the nearest G is taken.

    Raises
    ------
    LMMError
        For parameters that are not identified, an unknown method, or a start at which the criterion is not defined.
    """
    problem = model.problem
    criterion = restricted_criterion(engine, model)
    if start is None:
        native = problem.start(engine)
    else:
        take = model.conditioned_theta if model.residual is None else model.structured_theta
        native = take(start, "start")
    starts = _starts(criterion, model, native, start is not None)
    criterion.refuse_unidentified(starts[0], " + ".join(f"of {name}" for name in model.term_names))
    criterion.n_evaluations = 0
    options = dict(options or {})
    if method == "newton":
        options.setdefault("tolerance", close_enough(problem.m))
    found = [_certified(criterion, model, first, method, options) for first in starts]
    best = max(found, key=lambda one: (one.converged, -one.value))
    # leave the engine at the optimum, with the slope in G
    engine.evaluate(best.theta, 1)
    return best._replace(n_evaluations=criterion.n_evaluations)


def _certified(
    criterion: RestrictedCriterion,
    model: Model,
    start: Array,
    method: str | Callable[..., Any],
    options: dict[str, Any],
) -> Optimum:
    """One minimisation, certified."""
    ended = run_once(criterion, start, method, options)
    x = np.asarray(ended.theta, dtype=float)
    value, gradient, hessian = criterion.evaluate(x, 2)
    assert gradient is not None and hessian is not None
    decrement, lowest = decrement_of(gradient, hessian)
    converged = bool(decrement <= CERTIFIED and lowest >= -1e-6 and isfinite(value))
    boundary = bool(limits(model, x))
    k = criterion.blocks.n_parameters
    return Optimum(
        theta=criterion.native(x),
        factor=criterion.factor(x[:k]),
        value=float(value),
        gradient=gradient,
        hessian=hessian,
        gradient_norm=decrement,
        converged=converged,
        singular=boundary,
        n_evaluations=criterion.n_evaluations,
        method=method if isinstance(method, str) else getattr(method, "__name__", "callable"),
        message=verdict(converged, boundary, ended, decrement),
        null_space=np.zeros((model.structure.q, 0)),
        trace=ended.trace,
        restricted=x[:k],
    )


def restricted_inverse(model: Model, optimum: Optimum, information: Array | None) -> Array:
    """Inverse information among the unit directions of G^, along the restricted matrices (n_a, n_a).

    Parameters
    ----------
    model : Model
    optimum : Optimum
    information : (n_a, n_a) array or None
        Expected, along the unit directions of G^; None for the Hessian of the criterion.
    """
    directions = _directions(model, optimum)
    hessian = optimum.hessian if information is None else directions @ information @ directions.T
    return np.asarray(directions.T @ inverse_information(hessian) @ directions)


def structured_turn(model: Model, optimum: Optimum, engine: Engine) -> Array:
    """Derivatives of the parameters along the directions of an engine of structured residuals (k, n_d)."""
    assert optimum.restricted is not None
    x = np.concatenate((optimum.restricted, optimum.theta[model.structure.n_parameters :]))
    return _structured_criterion(engine, model).turn(x)


def _basis(model: Model) -> Array:
    return np.asarray(np.linalg.inv(model.problem.z_map), dtype=np.float64)


def _directions(model: Model, optimum: Optimum) -> Array:
    assert optimum.restricted is not None
    return blocks_of(model.structure).directions(optimum.restricted, _basis(model))


def restricted_face(model: Model, optimum: Optimum, slope: Array) -> tuple[Array, Array]:
    """Changes of G^ along the parameters of its structure, and what its bend adds to second derivatives along them.

    Parameters
    ----------
    model : Model
    optimum : Optimum
    slope : (q, q) array
        Derivative of the criterion in G^ as a symmetric matrix.

    Returns
    -------
    changes : (k, n_a) array
        Along the unit directions of G^.
    bend : (k, k) array
    """
    assert optimum.restricted is not None
    blocks, basis = blocks_of(model.structure), _basis(model)
    return _directions(model, optimum), blocks.second(optimum.restricted, basis.T @ slope @ basis)


def bend(model: Model, optimum: Optimum, joint: Array) -> Array:
    """Sum over natural parameters of W_ab d2G^ / dpsi_a dpsi_b, along the unit directions of G^ (n_a,).

    Parameters
    ----------
    model : Model
    optimum : Optimum
    joint : (n_a + 1, n_a + 1) array
        Covariance of G^ along the unit directions, and of log sigma^2.
    """
    directions = _directions(model, optimum)
    assert optimum.restricted is not None
    back = np.zeros((len(directions) + 1, len(joint)))
    back[:-1, :-1], back[-1, -1] = np.linalg.pinv(directions.T), 1.0
    basis = _basis(model)
    total = basis @ blocks_of(model.structure).bend(optimum.restricted, back @ joint @ back.T) @ basis.T
    return np.asarray(total[np.tril_indices(len(total))])
