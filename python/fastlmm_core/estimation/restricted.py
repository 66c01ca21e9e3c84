"""Fits whose random effects have a restricted covariance: `cs`, `ar1`, `fa0` and others.

The criterion is that of any engine as a function of the fewer parameters; what the optimum tells of G is as for others.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite, sqrt
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..covariance.effects.catalogue import blocks_of
from ..engines.protocol import Engine
from ..engines.restricted import RestrictedCriterion
from .model import Model
from .moments import inverse_information
from .optimize import CERTIFIED, Optimum, decrement_of, run_once
from .structured import verdict

__all__ = ["bend", "limits", "restricted_face", "restricted_inverse", "restricted_optimum"]

Array = NDArray[np.float64]


def limits(model: Model, theta: Array) -> tuple[str, ...]:
    """What has run into its limit."""
    return blocks_of(model.structure).boundaries(theta, model.exog_re_names, model.term_names)


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
    problem, structure = model.problem, model.structure
    blocks = blocks_of(structure)
    criterion = RestrictedCriterion(engine, structure, blocks, problem.z_map, problem.n)
    theta = problem.start(engine) if start is None else model.conditioned_theta(start, "start")
    factor = problem.z_map @ structure.factor(theta)
    first = blocks.nearest(factor @ factor.T)
    criterion.refuse_unidentified(first, " + ".join(f"of {name}" for name in model.term_names))
    criterion.n_evaluations = 0
    options = dict(options or {})
    if method == "newton":
        options.setdefault("tolerance", min(1e-9 * sqrt(problem.m), 1e-6))
    ended = run_once(cast(Engine, criterion), first, method, options)
    x = np.asarray(ended.theta, dtype=float)
    value, gradient, hessian = criterion.evaluate(x, 2)
    assert gradient is not None and hessian is not None
    decrement, lowest = decrement_of(gradient, hessian)
    converged = bool(decrement <= CERTIFIED and lowest >= -1e-6 and isfinite(value))
    boundary = bool(limits(model, x))
    found = criterion.factor(x)
    native = structure.theta(found)
    # leave the engine at the optimum, with the slope in G
    engine.evaluate(native, 1)
    return Optimum(
        theta=native,
        factor=found,
        value=float(value),
        gradient=gradient,
        hessian=hessian,
        gradient_norm=decrement,
        converged=converged,
        singular=boundary,
        n_evaluations=criterion.n_evaluations,
        method=method if isinstance(method, str) else getattr(method, "__name__", "callable"),
        message=verdict(converged, boundary, ended, decrement),
        null_space=np.zeros((structure.q, 0)),
        trace=ended.trace,
        restricted=x,
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


def bend(model: Model, optimum: Optimum, twice: Array, shift: Array, nu: float) -> Array:
    """Sum over natural parameters of W_ab d2G^ / dpsi_a dpsi_b, along the unit directions of G^ (n_a,).

    Parameters
    ----------
    model : Model
    optimum : Optimum
    twice : (n_a, n_a) array
        Covariance of G^ along the unit directions.
    shift : (n_a,) array
        That of `Moments`.
    nu : float
    """
    directions = _directions(model, optimum)
    assert optimum.restricted is not None
    back = np.linalg.pinv(directions.T)
    own = back @ twice @ back.T
    crossed = -own @ (directions @ shift)
    joint = np.block([[own, crossed[:, None]], [crossed, np.array([2.0 / nu - (directions @ shift) @ crossed])]])
    basis = _basis(model)
    total = basis @ blocks_of(model.structure).bend(optimum.restricted, joint) @ basis.T
    return np.asarray(total[np.tril_indices(len(total))])
