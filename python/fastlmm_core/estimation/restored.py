"""Fits at estimates that were found before, without a search."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import numpy as np

from ..engines.protocol import Solution
from ..engines.scaling import criterion_offset
from ..errors import LMMError
from ..support.types import Array
from .fit import Fit
from .optimum import LocalMinimum, MonteCarlo, Optimum
from .refinement import loses_digits, refined

if TYPE_CHECKING:
    from ..covariance.parameters import CovarianceStructure
    from ..engines.crossed.problem import CrossedProblem
    from .model import Model

__all__ = ["Estimates", "Probes", "restored"]

F = TypeVar("F", bound=Fit)

AGREES = 1e-7
"""Difference of the criterion, relative to its size and the rows, from which estimates are not of these data."""


class Probes(NamedTuple):
    """By which a fit by iterations was found.

    Attributes
    ----------
    n, seed : int
    parameters : float
        See `MonteCarlo`.
    """

    n: int
    seed: int
    parameters: float


class Estimates(NamedTuple):
    """What a search has found, in natural units.

    Attributes
    ----------
    factor : (q, q) array
        Lambda.
    criterion : float
    converged, singular : bool
    gradient_norm : float
    n_evaluations : int
    method, message : str
    others : tuple of (criterion, theta)
        Other minima.
    restricted : (k,) array or None
        The parameters of restricted covariances; see `Optimum`.
    phi : (k,) array or None
        Those of structured residuals.
    probes : Probes or None
        Of ``method="iterative"``.
    """

    factor: Array
    criterion: float
    converged: bool
    singular: bool
    gradient_norm: float
    n_evaluations: int
    method: str
    message: str
    others: tuple[tuple[float, Array], ...]
    restricted: Array | None = None
    phi: Array | None = None
    probes: Probes | None = None


def restored(kind: type[F], model: Model, reml: bool, found: Estimates) -> F:
    """The record of a fit from its estimates.

    Parameters
    ----------
    kind : type
        Of the record wanted: `Fit` or what derives from it.
    model : Model
    reml : bool
    found : Estimates

    Raises
    ------
    LMMError
        Where the criterion of the model at these estimates is another.
    """
    problem, structure = model.problem, model.structure
    factor = _conditioned(model, found.factor)
    theta = structure.theta(factor)
    if found.phi is not None:
        theta = np.concatenate([theta, found.phi])
    engine: Any = model.criterion() if found.probes is None else _iterative(model, found.probes)
    engine.reml = reml
    value, gradient, hessian = engine.evaluate(theta, 2)
    if found.restricted is not None:
        from .restricted import restricted_criterion

        x = found.restricted if found.phi is None else np.concatenate([found.restricted, found.phi])
        value, gradient, hessian = restricted_criterion(engine, model).evaluate(x, 2)
    assert gradient is not None
    assert hessian is not None
    offset = criterion_offset(problem, reml)
    special = found.restricted is not None or found.phi is not None
    others = tuple(
        LocalMinimum(other - offset, structure.theta(_conditioned(model, structure.factor(natural))))
        for other, natural in found.others
    )
    optimum = Optimum(
        theta, factor, value, gradient, hessian, found.gradient_norm, found.converged, found.singular,
        found.n_evaluations, found.method, found.message,
        np.zeros((structure.q, 0)) if not found.singular or special else _null_space(structure, factor),
        (), others, found.restricted,
    )  # fmt: skip
    solution = Solution(*engine.solution()[:3])
    drawn, spared = found.probes, AGREES * (abs(found.criterion) + problem.n)
    if drawn is not None:
        told = engine.probed
        monte_carlo = MonteCarlo(
            drawn.n, drawn.seed, told.log_det_error, drawn.parameters, told.log_det_deviations
        )  # fmt: skip
        optimum, spared = optimum._replace(monte_carlo=monte_carlo), spared + monte_carlo.criterion
    elif loses_digits(engine, problem, factor):
        optimum, solution = refined(engine, model, optimum, solution)
        optimum = optimum._replace(converged=found.converged, message=found.message)
    if abs(optimum.value + offset - found.criterion) > spared:
        raise LMMError(
            f"the criterion at the estimates is {optimum.value + offset:.6f} and was {found.criterion:.6f}: these "
            "estimates are not of these data"
        )
    return kind(model, optimum, reml, solution)


def _iterative(model: Model, probes: Probes) -> Any:
    """The engine of a fit by iterations."""
    from ..engines.crossed.iterative import IterativeProblem

    return IterativeProblem.of(cast("CrossedProblem", model.problem), probes.n, probes.seed).criterion()


def _conditioned(model: Model, natural: Array) -> Array:
    """Lambda of the conditioned problem."""
    if not model.structure.q:
        return np.zeros((0, 0))
    inner: Array = np.asarray(np.linalg.solve(model.problem.z_map, natural), dtype=np.float64)
    return model.structure.canonical(inner)


def _null_space(structure: CovarianceStructure, factor: Array) -> Array:
    """Directions without variance (q, r), those of each block by themselves."""
    found = []
    for block in structure.blocks:
        part = slice(block.start, block.stop)
        left, sizes, _ = np.linalg.svd(factor[part, part])
        own = left[:, sizes <= 1e-10 * max(float(sizes[0]), 1e-300)]
        if not block.correlated:
            own = np.eye(len(left))[:, np.linalg.norm(factor[part, part], axis=1) == 0.0]
        whole = np.zeros((structure.q, own.shape[1]))
        whole[part] = own
        found.append(whole)
    return np.column_stack(found)
