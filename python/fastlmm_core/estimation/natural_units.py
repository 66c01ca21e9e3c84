"""The criterion, and where it is evaluated, in the units of the caller."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ..covariance.effects.loadings import loadings_of
from ..covariance.parameters import CovarianceStructure
from ..design.residual import ResidualPart
from ..engines.protocol import Engine, Problem, linear_engine
from ..engines.scaling import criterion_offset
from ..errors import LMMError
from ..support.checks import float_array
from ..support.types import Array

__all__ = ["Evaluation", "conditioned_theta", "evaluated", "evaluated_structured", "structured_theta"]


@dataclass(frozen=True)
class Evaluation:
    """The criterion at one point.

    Attributes
    ----------
    value : float
    gradient : (k,) array or None
    hessian : (k, k) array or None
    """

    value: float
    gradient: Array | None
    hessian: Array | None


def evaluated(engine: Engine, problem: Problem, theta: ArrayLike, order: int) -> Evaluation:
    """The criterion of a problem, with derivatives up to `order`, at theta in natural units.

    Raises
    ------
    LMMError
        As `conditioned_theta`.
    """
    structure = problem.structure
    natural = _natural_factor(structure, theta, "theta")
    back: Array = np.asarray(np.linalg.inv(problem.z_map), dtype=np.float64)
    factor = structure.canonical(back @ natural)
    value, _, _ = engine.evaluate(structure.theta(factor), order)
    value += criterion_offset(problem, engine.reml)
    if order == 0:
        return Evaluation(value, None, None)
    gradient, hessian = loadings_of(structure).chain(
        structure.theta(natural),
        back,
        engine.solution()[3],
        linear_engine(engine).curvature() if order > 1 else None,
    )
    return Evaluation(value, gradient, hessian)


def evaluated_structured(
    engine: Engine, problem: Problem, part: ResidualPart, theta: ArrayLike, order: int
) -> Evaluation:
    """`evaluated` where residuals have a structure: in (theta, phi) in natural units."""
    from ..engines.residual.criterion import structured_engine

    structure = problem.structure
    k, q = structure.n_parameters, structure.q
    x = structured_theta(problem, part, theta, "theta")
    criterion = structured_engine(engine)
    value, gradient, hessian = criterion.evaluate(x, order)
    value += criterion_offset(problem, engine.reml)
    if not k or gradient is None:
        return Evaluation(value, gradient, hessian)
    natural = _natural_factor(structure, np.asarray(theta, dtype=float)[:k], "theta")
    back: Array = np.asarray(np.linalg.inv(problem.z_map), dtype=np.float64)
    slope, first, second = criterion.slope_in_g(), criterion.first_directions(), criterion.second_directions()
    blocks, own_theta = loadings_of(structure), structure.theta(natural)
    turn = blocks.directions(own_theta, back)[:, criterion.unit_places]
    n_g = turn.shape[1]
    own, _ = blocks.chain(own_theta, back, slope, None)
    if order == 1:
        return Evaluation(value, np.concatenate([own, first[n_g:]]), None)
    full = np.zeros((q * (q + 1) // 2,) * 2)
    full[np.ix_(criterion.unit_places, criterion.unit_places)] = second[:n_g, :n_g]
    _, curved = blocks.chain(own_theta, back, slope, full)
    assert curved is not None
    mixed = turn @ second[:n_g, n_g:]
    whole = np.block([[curved, mixed], [mixed.T, second[n_g:, n_g:]]])
    return Evaluation(value, np.concatenate([own, first[n_g:]]), whole)


def structured_theta(problem: Problem, part: ResidualPart, theta: ArrayLike, name: str) -> Array:
    """(theta, phi) of the conditioned problem from that in natural units; `name` is what a message calls it.

    Raises
    ------
    LMMError
        For another length, or values that are not finite.
    """
    values = float_array(theta, name, 1)
    k = problem.structure.n_parameters
    if len(values) != k + part.n_parameters:
        raise LMMError(
            f"{name} has {len(values)} elements, the model has {k} parameters of the random effects and "
            f"{part.n_parameters} of the residual structure {part.term}"
        )
    phi = part.checked(values[k:], name)
    return np.concatenate([conditioned_theta(problem, values[:k], name), phi]) if k else phi


def conditioned_theta(problem: Problem, theta: ArrayLike, name: str) -> Array:
    """Theta of the conditioned problem from that in natural units; `name` is what a message calls it.

    Raises
    ------
    LMMError
        For another length, or values that are not finite.
    """
    structure = problem.structure
    inner = np.linalg.solve(problem.z_map, _natural_factor(structure, theta, name))
    return structure.theta(structure.canonical(np.asarray(inner, dtype=np.float64)))


def _natural_factor(structure: CovarianceStructure, theta: ArrayLike, name: str) -> Array:
    """Lambda of theta in natural units."""
    values = float_array(theta, name, 1)
    count = structure.n_parameters
    if len(values) != count:
        raise LMMError(f"{name} has {len(values)} elements, the model has {count} covariance parameters")
    if not np.isfinite(values).all():
        raise LMMError(f"{name} has values that are not finite; give {count} finite numbers")
    return structure.factor(values)
