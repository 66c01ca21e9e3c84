"""Variance parameters with standard errors, from the exact Hessian in all of them together, and intervals.

In the conditioned problem the (restricted) deviance d(a, s) of a = G / sigma^2 and s = log sigma^2, with sigma^2 not
profiled out, has at its minimum the second derivatives

    d_aa = d_p,aa + (nu / r2^2) r2_a r2_a',    d_as = -(nu / r2) r2_a,    d_ss = nu,

where d_p is the profiled criterion, r2 the residual sum of squares and nu = n (ML) or n - p (REML): the profiled
Hessian is the Schur complement, so that leaving sigma^2 out would understate the errors.  The asymptotic covariance is
2 d''^-1 (observed information); natural parameters follow by the delta method.

At the boundary the derivatives are taken along the set of covariance matrices of the rank found (see
`covariance.directions`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..covariance.directions import face_bend, face_projector, unit_lengths
from ..covariance.elements import Element, Scale, sd_and_cor
from ..engines.protocol import linear_engine
from ..errors import LMMError
from ..estimation.information import moments
from ..estimation.statements import residual_names
from ..estimation.structured_moments import joint_covariance
from ..kernels import unit_directions
from ..support.checks import check_level
from ..support.distributions import quantile
from ..support.types import Array
from .profile.profile import confidence_limits
from .residual_parameters import kind_of, residual_parameters

if TYPE_CHECKING:
    from ..estimation.fit import Fit

__all__ = ["variance_components"]


AT_ONE = 1e-8
"""Distance from 1 below which a correlation is at the boundary."""


class _Parameter(NamedTuple):
    """One row of the table; `slope` is its derivative along the directions, None at the boundary."""

    group: str
    term: str
    kind: str
    estimate: float
    slope: Array | None
    diagonal: bool = False

    @classmethod
    def of(cls, element: Element, scale: Scale, estimate: float, slope: Array | None) -> _Parameter:
        return cls(element.term, element.name(scale), element.kind(scale), estimate, slope, element.i == element.j)


def _covariance(result: Fit) -> tuple[Array, Array, Array]:
    """Directions of G and sigma^2 in natural units, and the covariance of the coordinates along them.

    Returns
    -------
    of_g : (k, q, q) array
        For the unit directions of G / sigma^2 and log sigma^2.
    of_sigma2 : (k,) array
    covariance : (k, k) array
        Along the matrices of the rank found; NaN where the estimate is no minimum.
    """
    if result.model.residual is not None:
        return _structured_covariance(result)
    problem, optimum = result.model.problem, result.optimum
    structure, criterion = problem.structure, linear_engine(result.engine)
    beta, r2, _, slope = criterion.solution()
    nu = float(result.nu)
    contrast = np.append(-beta, 1.0)
    dr2 = -(criterion.cross() @ contrast) @ contrast
    null = optimum.null_space @ optimum.null_space.T
    n_a = len(dr2)
    k = n_a + 1
    hessian = np.empty((k, k))
    hessian[:-1, :-1] = criterion.curvature() + (nu / r2**2) * np.outer(dr2, dr2)
    if optimum.singular and optimum.restricted is None:
        hessian[:-1, :-1] += face_bend(null, optimum.factor @ optimum.factor.T, slope)
    hessian[-1, :-1] = hessian[:-1, -1] = -(nu / r2) * dr2
    hessian[-1, -1] = nu
    known = result.model.sigma is not None
    if known:
        hessian[:-1, :-1] -= (nu / r2**2) * np.outer(dr2, dr2)
        hessian[-1, :-1] = hessian[:-1, -1] = 0.0
    of_g = np.empty((k, structure.q, structure.q))
    of_g[:-1] = result.sigma2 * (problem.z_map @ unit_directions(structure.q) @ problem.z_map.T)
    of_g[-1] = result.covariance
    of_sigma2 = np.zeros(k)
    of_sigma2[-1] = result.sigma2
    if optimum.restricted is not None:
        return of_g, of_sigma2, _along_structure(result, hessian, slope)
    length = np.append(unit_lengths(structure.q), 1.0)
    along = np.eye(k)
    along[:-1, :-1] = face_projector(structure, null)
    inner = along @ (hessian / np.outer(length, length)) @ along
    inner += np.abs(np.diag(hessian)).sum() * (np.eye(k) - along)
    covariance = along @ _twice_inverse(inner) @ along / np.outer(length, length)
    if known:
        covariance[-1] = covariance[:, -1] = 0.0
    return of_g, of_sigma2, covariance


def _structured_covariance(result: Fit) -> tuple[Array, Array, Array]:
    """As `_covariance` with structured residuals, along directions of G, phi and log sigma^2."""
    from ..engines.residual.criterion import structured_engine

    covariance = joint_covariance(moments(result, "satterthwaite"))
    problem, q = result.model.problem, result.model.structure.q
    of_g, of_sigma2 = np.zeros((len(covariance), q, q)), np.zeros(len(covariance))
    if q:
        units = unit_directions(q)[structured_engine(result.engine).unit_places]
        of_g[: len(units)] = result.sigma2 * (problem.z_map @ units @ problem.z_map.T)
    of_g[-1], of_sigma2[-1] = result.covariance, result.sigma2
    return of_g, of_sigma2, covariance


def _of_residuals(result: Fit, count: int) -> list[_Parameter]:
    """Parameters of structured residuals, with slopes along the last of `count` directions: phi and log sigma^2."""
    part = result.model.residual
    assert part is not None
    k = part.n_parameters
    slopes = []
    for own in part.strata:
        scale, inner = own.own(result.phi)
        variance = scale * result.sigma2
        slopes.append(own.structure.natural_jacobian(inner, variance) @ own.to_own(k, variance))
    out = []
    estimates = part.natural(result.phi, result.sigma2).tolist()
    told = np.isfinite(residual_parameters(result).std_error).tolist()
    for name, estimate, slope, known in zip(residual_names(part), estimates, np.concatenate(slopes), told, strict=True):
        full = None
        if known:
            full = np.zeros(count)
            full[-k - 1 :] = slope
        out.append(_Parameter("Residual", name, kind_of(name), estimate, full))
    return out


def _along_structure(result: Fit, hessian: Array, slope: Array) -> Array:
    """Covariance of the coordinates along the unit directions and log sigma^2, for restricted covariances."""
    from ..estimation.restricted import restricted_face

    directions, bend = restricted_face(result.model, result.optimum, slope)
    along = np.zeros((len(directions) + 1, len(hessian)))
    along[:-1, :-1], along[-1, -1] = directions, 1.0
    inner = along @ hessian @ along.T
    inner[:-1, :-1] += bend
    return np.asarray(along.T @ _twice_inverse(inner) @ along)


def _twice_inverse(hessian: Array) -> Array:
    """2 H^-1; NaN where the estimate is no minimum."""
    # units of the parameters may differ by many orders of magnitude
    size = np.sqrt(np.abs(np.diag(hessian)))
    size[size == 0.0] = 1.0
    scaled = hessian / np.outer(size, size)
    values = np.linalg.eigvalsh(scaled)
    if values[0] <= 1e-12 * values[-1]:
        return np.full_like(hessian, np.nan)
    return np.asarray(2.0 * np.linalg.inv(scaled) / np.outer(size, size))


def _factor_slopes(factor: Array, changes: Array) -> Array | None:
    """Derivatives of the lower triangular factor along changes of the relative covariance matrix.

    The columns without a pivot stay zero (their derivatives are NaN); None where the pivots do not reveal the rank.
    """
    pivots = np.flatnonzero(np.diag(factor) > 0.0)
    loose = np.setdiff1d(np.arange(len(factor)), pivots)
    if np.abs(factor[:, loose]).max(initial=0.0) > 0.0:
        return None
    own = factor[np.ix_(pivots, pivots)]
    inverse = np.linalg.inv(own)
    out = np.full(changes.shape, np.nan)
    inner = inverse @ changes[:, pivots[:, None], pivots] @ inverse.T
    half = np.tril(inner) - 0.5 * inner * np.eye(len(pivots))
    turned = own @ half
    out[:, pivots[:, None], pivots] = turned
    if len(loose):
        # L_loose = G_loose,pivots L^-T
        across = changes[:, loose[:, None], pivots] - factor[np.ix_(loose, pivots)] @ turned.transpose(0, 2, 1)
        out[:, loose[:, None], pivots] = across @ inverse.T
    return out


def _found(result: Fit, of_g: Array, of_sigma2: Array) -> list[_Parameter]:
    """All parameters: standard deviations and correlations, variances and covariances, elements of theta."""
    elements = result.model.random.elements
    G = result.covariance
    variance = np.diag(G)
    sd, live = np.sqrt(variance), variance > 0.0
    scales: dict[Scale, list[_Parameter]] = {"sd": [], "var": [], "theta": []}
    estimates = sd_and_cor(elements, G[None])[0].tolist()
    theta = _theta_slopes(result, of_g, of_sigma2)
    for element, estimate in zip(elements, estimates, strict=True):
        i, j = element.i, element.j
        slope = None
        if i == j and live[i]:
            slope = of_g[:, i, i] / (2.0 * sd[i])
        elif live[i] and live[j] and 1.0 - abs(estimate) > AT_ONE:
            slope = of_g[:, i, j] / (sd[i] * sd[j]) - 0.5 * estimate * (
                of_g[:, i, i] / variance[i] + of_g[:, j, j] / variance[j]
            )
        scales["sd"].append(_Parameter.of(element, "sd", estimate, slope))
        scales["var"].append(
            _Parameter.of(element, "var", float(G[i, j]), of_g[:, i, j] if live[i] and live[j] else None)
        )
        change = theta[:, j, i]
        scales["theta"].append(
            _Parameter.of(
                element, "theta", float(result.relative_factor[j, i]), None if np.isnan(change).any() else change
            )
        )
    if result.model.residual is not None:
        return [*scales["sd"], *scales["var"], *scales["theta"], *_of_residuals(result, len(of_sigma2))]
    if result.model.sigma is not None:
        return [*scales["sd"], *scales["var"], *scales["theta"]]
    scales["sd"].append(_Parameter("Residual", "sigma", "sd", result.sigma, of_sigma2 / (2.0 * result.sigma)))
    scales["var"].append(_Parameter("Residual", "sigma2", "var", float(result.sigma2), of_sigma2))
    return [*scales["sd"], *scales["var"], *scales["theta"]]


def _theta_slopes(result: Fit, of_g: Array, of_sigma2: Array) -> Array:
    """Changes of Lambda (k, q, q) with G and sigma^2; NaN where it is not smooth."""
    out = np.full(of_g.shape, np.nan)
    moved = of_g / result.sigma2 - result.relative_covariance * (of_sigma2 / result.sigma2)[:, None, None]
    for block in result.model.structure.blocks:
        part = slice(block.start, block.stop)
        found = _factor_slopes(result.relative_factor[part, part], moved[:, part, part])
        if found is not None:
            out[:, part, part] = found
    return out


def variance_components(result: Fit, level: float = 0.95, method: str = "profile") -> Any:
    """Variance parameters with standard errors and intervals; see `LMMResult.variance_components`.

    Raises
    ------
    LMMError
        For a level outside (0, 1) or an unknown method.
    """
    check_level(level)
    if method not in ("profile", "wald"):
        raise LMMError(f"method={method!r} is unknown: use 'profile' or 'wald'")
    z = float(quantile(0.5 + 0.5 * level, None))
    model = result.model
    of_g, of_sigma2, covariance = _covariance(result)
    columns: dict[str, list[Any]] = {
        name: [] for name in ("group", "term", "kind", "estimate", "std_error", "conf_low", "conf_high")
    }
    found = _found(result, of_g, of_sigma2)
    free = model.residual is None and not model.structure.restricted
    profiled = _profiled(result, level, found) if method == "profile" and free else {}
    for one in found:
        error = low = high = float("nan")
        if one.slope is not None:
            error = float(np.sqrt(one.slope @ covariance @ one.slope))
            # a factor's diagonal by its logarithm, as standard deviations: the log-Cholesky scale
            low, high = _limits("sd" if one.diagonal and one.kind == "theta" else one.kind, one.estimate, z * error)
        low, high = profiled.get(one.term, (low, high))
        for name, value in zip(columns, (one.group, one.term, one.kind, one.estimate, error, low, high), strict=True):
            columns[name].append(value)
    return model.table(columns)


def _profiled(result: Fit, level: float, found: list[_Parameter]) -> dict[str, tuple[float, float]]:
    """Profile limits of standard deviations, correlations and variances."""
    limits = confidence_limits(result, level, "random")
    sds = [one.term for one in found if one.kind == "sd"]
    variances = [one.term for one in found if one.kind == "var"]
    squares = {var: (limits[sd][0] ** 2, limits[sd][1] ** 2) for sd, var in zip(sds, variances, strict=True)}
    return limits | squares


def _limits(kind: str, estimate: float, half: float) -> tuple[float, float]:
    if kind in ("sd", "var", "range"):
        with np.errstate(over="ignore"):  # no upper limit
            factor = float(np.exp(half / estimate))
        return estimate / factor, estimate * factor
    if kind == "cor" and abs(estimate) < 1.0:
        centre, reach = float(np.arctanh(estimate)), half / (1.0 - estimate**2)
        return float(np.tanh(centre - reach)), float(np.tanh(centre + reach))
    return estimate - half, estimate + half
