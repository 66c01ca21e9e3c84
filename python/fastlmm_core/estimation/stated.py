"""Fits at stated parameters: from what a caller states to the record that everything else reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ..covariance.parameters import vech_positions
from ..engines.protocol import Solution
from ..errors import LMMError
from ..support.types import Array
from .fit import Fit
from .likelihood import STATED, Stated, conditioned_coefficients, least_squares
from .optimum import Optimum
from .statements import coefficients, covariance_factor, refuse_other_scale, residual_phi, residual_variance

if TYPE_CHECKING:
    from ..covariance.parameters import CovarianceStructure
    from .model import Model

__all__ = ["moved", "needs_estimates", "stated_fit"]

F = TypeVar("F", bound=Fit)

FLAT = 1e-10
"""Pivot of Lambda, relative to its row, that counts as none."""

MEMBER, STEPS = 1e-6, 100
"""Difference from the correlations of a member up to which a matrix has a restricted structure; steps towards one."""


def stated_fit(
    kind: type[F],
    model: Model,
    params: Array,
    factor: Array,
    sigma2: float,
    reml: bool = True,
    phi: Array | None = None,
) -> F:
    """The record of a model at stated parameters.

    Parameters
    ----------
    kind : type
        Of the record wanted: `Fit` or what derives from it.
    model : Model
        With a response or without one.
    params : (p,) array
    factor : (q, q) array
        Lambda in natural units, lower triangular: the random effects have covariance sigma2 Lambda Lambda'.
    sigma2 : float
    reml : bool
        By which criterion refits are made.
    phi : array, optional
        Parameters of structured residuals.
    """
    problem, structure = model.problem, model.structure
    inner = np.zeros((0, 0))
    if structure.q:
        inner = structure.canonical(np.asarray(np.linalg.solve(problem.z_map, factor), dtype=np.float64))
    theta = structure.theta(inner)
    if phi is not None:
        theta = np.concatenate([theta, phi])
    engine = problem.criterion()
    engine.reml = False
    value = engine.evaluate(theta, 0 if phi is None else 1)[0]
    _, r2, chol, _ = engine.solution()
    row = np.linalg.norm(factor, axis=1)
    k = len(theta)
    restricted = _restricted(structure, factor) if structure.restricted else None
    optimum = Optimum(
        theta=theta,
        factor=inner,
        value=value,
        gradient=np.full(k, np.nan),
        hessian=np.full((k, k), np.nan),
        gradient_norm=float("nan"),
        converged=True,
        singular=bool((np.abs(factor.diagonal()) <= FLAT * np.where(row > 0.0, row, 1.0)).any()),
        n_evaluations=0,
        method=STATED,
        message="the parameters are stated",
        null_space=np.zeros((structure.q, 0)),
        trace=(),
        restricted=restricted,
    )
    solution = Solution(conditioned_coefficients(model, params), r2, np.ascontiguousarray(chol))
    return kind(model, optimum, reml, solution, Stated(params, factor, sigma2))


def _restricted(structure: CovarianceStructure, factor: Array) -> Array:
    """The parameters of restricted covariances, by least squares from the nearest member; another G is refused."""
    from ..covariance.effects.catalogue import blocks_of

    blocks = blocks_of(structure)
    relative = factor @ factor.T
    sd = np.sqrt(np.where(relative.diagonal() > 0.0, relative.diagonal(), 1.0))
    lower, upper = vech_positions(structure.q)
    size = (sd[:, None] * sd)[lower, upper]

    def off(x: Array) -> Array:
        half = blocks.factor(x)
        return np.asarray((relative - half @ half.T)[lower, upper] / size)

    x = blocks.nearest(relative)
    rest = off(x)
    for _ in range(STEPS):
        step = np.linalg.lstsq(blocks.directions(x, np.eye(structure.q)).T / size[:, None], rest, rcond=None)[0]
        while not (better := rest @ rest > (other := off(x + step)) @ other) and np.abs(step).max() > FLAT:
            step = 0.5 * step
        if not better:
            break
        x, rest = x + step, other
    if not np.abs(rest).max() <= MEMBER:
        names = ", ".join(repr(block.structure) for block in structure.blocks)
        raise LMMError(f"G is none of the structure {names}; state one that is")
    return x


def moved(fit: F, params: Any, G: Any, sigma2: Any, model: Model | None = None, R: Any = None) -> F:
    """A fit at other parameters; those not named stay.

    Parameters
    ----------
    fit : Fit
    params : mapping, (p,) array, "gls" or None
    G : mapping, (q, q) array or None
    sigma2 : float or None
    model : Model, optional
        Other rows.
    R : mapping, array or None
        Parameters of structured residuals, see `residual_phi`.
    """
    model = fit.model if model is None else model
    part = model.design.residual
    phi = None if part is None else fit.phi
    if part is not None and R is not None:
        phi, variance = residual_phi(part, R, (fit.phi, fit.sigma2))
    else:
        refuse_other_scale(part, sigma2, R)
        variance = fit.sigma2 if sigma2 is None else residual_variance(sigma2)
    if G is None:
        factor = fit.relative_factor * np.sqrt(fit.sigma2 / variance)
    else:
        factor = covariance_factor(G, model.structure, model.term_names, fit.G) / np.sqrt(variance)
    gls = isinstance(params, str)
    if gls and params != "gls":
        raise LMMError(f"params={params!r} is unknown: give values, or 'gls' for generalised least squares")
    stays = params is None or gls
    values = fit.beta if stays else coefficients(params, model.exog_names, fit.beta)
    found = stated_fit(type(fit), model, values, factor, variance, fit.reml, phi)
    return stated_fit(type(fit), model, least_squares(found), factor, variance, fit.reml, phi) if gls else found


def needs_estimates(remedies: Mapping[str, str]) -> Callable[[type[F]], type[F]]:
    """Refuse members of a class of fits at stated parameters, each with what to do instead.

    Parameters
    ----------
    remedies : mapping of str to str
        By member: a method or property.
    """

    def guarded(name: str, function: Callable[..., Any], remedy: str) -> Callable[..., Any]:
        @wraps(function)
        def call(self: Fit, *arguments: Any, **keywords: Any) -> Any:
            if self.stated is not None:
                self.require_estimates(name, remedy)
            return function(self, *arguments, **keywords)

        return call

    def decorate(target: type[F]) -> type[F]:
        for name, remedy in remedies.items():
            member = getattr(target, name)
            if isinstance(member, property):
                assert member.fget is not None
                setattr(target, name, property(guarded(name, member.fget, remedy), doc=member.__doc__))
            else:
                setattr(target, name, guarded(name, member, remedy))
        return target

    return decorate
