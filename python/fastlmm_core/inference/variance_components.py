"""Standard errors of the variance parameters, from the exact Hessian in all of them together.

In the conditioned problem the (restricted) deviance d(a, s) of a = G / sigma^2 and s = log sigma^2, with sigma^2 not
profiled out, has at its minimum the second derivatives

    d_aa = d_p,aa + (nu / r2^2) r2_a r2_a',    d_as = -(nu / r2) r2_a,    d_ss = nu,

where d_p is the profiled criterion, r2 the residual sum of squares and nu = n (ML) or n - p (REML): the profiled
Hessian is the Schur complement, so that leaving sigma^2 out would understate the errors.  The asymptotic covariance is
2 d''^-1 (observed information); natural parameters follow by the delta method.

At the boundary the derivatives are taken along the set of covariance matrices of the rank found.  With U a basis of
the range of a and N of its null space, these are D = U A U' + U B N' + N B'U', and the set's own curvature adds
2 tr(N'd_a N B'(U'aU)^-1 B) to the second derivative.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..covariance.elements import Element, Scale, sd_and_cor
from ..covariance.parameters import Block
from ..support.checks import check_level
from ..support.distributions import quantile

if TYPE_CHECKING:
    from ..estimation.fit import Fit

__all__ = ["variance_components"]

Array = NDArray[np.float64]

AT_ONE = 1e-8
"""Distance from 1 below which a correlation is at the boundary."""


class _Parameter(NamedTuple):
    """One row of the table; `slope` is its derivative in the free directions, None at the boundary."""

    group: str
    term: str
    kind: str
    estimate: float
    slope: Array | None

    @classmethod
    def of(cls, element: Element, scale: Scale, estimate: float, slope: Array | None) -> _Parameter:
        return cls(element.term, element.name(scale), element.kind(scale), estimate, slope)


def _face(block: Block, relative: Array, slope: Array, null: Array, q: int) -> tuple[list[Array], Array]:
    """Directions of G / sigma^2 in one block along the matrices of its rank, and the curvature of this set.

    Returns
    -------
    directions : list of (q, q) arrays
    curvature : array
        To add to the second derivatives along them.
    """
    part = slice(block.start, block.stop)
    size = block.stop - block.start
    out: list[Array] = []

    def add(change: Array) -> None:
        wide = np.zeros((q, q))
        wide[part, part] = change + change.T
        out.append(wide)

    if not block.correlated:
        zero = np.abs(null).max(axis=1, initial=0.0) > 0.5
        for i in np.flatnonzero(~zero).tolist():
            add(0.5 * np.outer(np.eye(size)[i], np.eye(size)[i]))
        return out, np.zeros((len(out), len(out)))
    identity = np.eye(size)
    rank = size - null.shape[1]
    u = identity if rank == size else np.linalg.svd(identity - null @ null.T)[0][:, :rank]
    for i in range(rank):
        for j in range(i + 1):
            add((0.5 if i == j else 1.0) * np.outer(u[:, i], u[:, j]))
    inner = len(out)
    for i in range(rank):
        for w in null.T:
            add(np.outer(u[:, i], w))
    curvature = np.zeros((len(out), len(out)))
    if rank and null.shape[1]:
        spread = np.linalg.inv(u.T @ relative @ u)
        curvature[inner:, inner:] = 2.0 * np.kron(spread, null.T @ slope @ null)
    return out, curvature


def _covariance(result: Fit) -> tuple[Array, Array, Array]:
    """Directions of G and sigma^2 in natural units, and the covariance of the coordinates along them.

    Returns
    -------
    of_g : (k, q, q) array
    of_sigma2 : (k,) array
    covariance : (k, k) array
    """
    problem, optimum = result.model.problem, result.optimum
    structure, q = problem.structure, problem.structure.q
    criterion = problem.criterion()
    criterion.reml = result.reml
    criterion.evaluate(optimum.theta, 2)
    beta, r2, _, slope = criterion.solution()
    nu = problem.n - problem.rank if result.reml else problem.n
    contrast = np.append(-beta, 1.0)
    dr2 = -(criterion.cross() @ contrast) @ contrast
    relative = optimum.factor @ optimum.factor.T

    changes: list[Array] = []
    bends: list[Array] = []
    for block in structure.blocks:
        part = slice(block.start, block.stop)
        null = optimum.null_space[part]
        null = null[:, np.abs(null).max(axis=0, initial=0.0) > 0.0]
        found, bend = _face(block, relative[part, part], slope[part, part], null, q)
        changes += found
        bends.append(bend)
    k = len(changes) + 1
    directions = np.array(changes).reshape(-1, q, q)
    lower = np.tril_indices(q)
    vech = directions[:, lower[0], lower[1]]
    along = vech @ dr2
    hessian = np.empty((k, k))
    hessian[:-1, :-1] = vech @ criterion.curvature() @ vech.T + (nu / r2**2) * np.outer(along, along)
    start = 0
    for bend in bends:
        part = slice(start, start + len(bend))
        hessian[part, part] += bend
        start += len(bend)
    hessian[-1, :-1] = hessian[:-1, -1] = -(nu / r2) * along
    hessian[-1, -1] = nu
    # units of the parameters may differ by many orders of magnitude
    size = np.sqrt(np.abs(np.diag(hessian)))
    size[size == 0.0] = 1.0
    scaled = hessian / np.outer(size, size)
    values = np.linalg.eigvalsh(scaled)
    if values[0] <= 1e-12 * values[-1]:
        covariance = np.full((k, k), np.nan)
    else:
        covariance = 2.0 * np.linalg.inv(scaled) / np.outer(size, size)
    of_g = np.empty((k, q, q))
    of_g[:-1] = result.sigma2 * (problem.z_map @ directions @ problem.z_map.T)
    of_g[-1] = result.covariance
    of_sigma2 = np.zeros(k)
    of_sigma2[-1] = result.sigma2
    return of_g, of_sigma2, covariance


def _factor_slopes(factor: Array, relative: Array, changes: Array) -> Array | None:
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
    scales["sd"].append(_Parameter("Residual", "sigma", "sd", result.sigma, of_sigma2 / (2.0 * result.sigma)))
    scales["var"].append(_Parameter("Residual", "sigma2", "var", float(result.sigma2), of_sigma2))
    return [*scales["sd"], *scales["var"], *scales["theta"]]


def _theta_slopes(result: Fit, of_g: Array, of_sigma2: Array) -> Array:
    """Changes of Lambda (k, q, q) with G and sigma^2; NaN where it is not smooth."""
    out = np.full(of_g.shape, np.nan)
    moved = of_g / result.sigma2 - result.relative_covariance * (of_sigma2 / result.sigma2)[:, None, None]
    for block in result.model.structure.blocks:
        part = slice(block.start, block.stop)
        found = _factor_slopes(
            result.relative_factor[part, part], result.relative_covariance[part, part], moved[:, part, part]
        )
        if found is not None:
            out[:, part, part] = found
    return out


def variance_components(result: Fit, level: float = 0.95) -> Any:
    """Variance parameters with standard errors and intervals.

    Standard errors are by the delta method from the observed information of all variance parameters together.
    Intervals are symmetric on the scale of the logarithm for standard deviations and variances and of Fisher's z for
    correlations (Pinheiro and Bates 2000, sec. 2.4.3, as nlme::intervals), on the natural scale for covariances and
    theta.  What lies on the boundary has no standard error (NaN); that of the others is for the rank found.

    Parameters
    ----------
    result : LMMResult
    level : float
        Of the intervals.

    Returns
    -------
    frame or dict of arrays
        Columns group, term, kind, estimate, std_error, conf_low, conf_high: first standard deviations and correlations
        (``sd_x|g``, ``cor_x.y|g``, ``sigma``), then variances and covariances (``var_x|g``, ``cov_x.y|g``, ``sigma2``),
        then theta (``theta_x|g``, ``theta_x.y|g``).  The kind is "sd", "cor", "var", "cov" or "theta".

    Raises
    ------
    LMMError
        For a level outside (0, 1).
    """
    result.model.needs_independent_residuals("variance_components()")
    check_level(level)
    z = float(quantile(0.5 + 0.5 * level, None))
    model = result.model
    of_g, of_sigma2, covariance = _covariance(result)
    columns: dict[str, list[Any]] = {
        name: [] for name in ("group", "term", "kind", "estimate", "std_error", "conf_low", "conf_high")
    }
    for one in _found(result, of_g, of_sigma2):
        error = low = high = float("nan")
        if one.slope is not None:
            error = float(np.sqrt(one.slope @ covariance @ one.slope))
            low, high = _limits(one.kind, one.estimate, z * error)
        for name, value in zip(columns, (one.group, one.term, one.kind, one.estimate, error, low, high), strict=True):
            columns[name].append(value)
    return model.table(columns)


def _limits(kind: str, estimate: float, half: float) -> tuple[float, float]:
    if kind in ("sd", "var"):
        with np.errstate(over="ignore"):  # no upper limit
            factor = float(np.exp(half / estimate))
        return estimate / factor, estimate * factor
    if kind == "cor":
        centre, reach = float(np.arctanh(estimate)), half / (1.0 - estimate**2)
        return float(np.tanh(centre - reach)), float(np.tanh(centre + reach))
    return estimate - half, estimate + half
