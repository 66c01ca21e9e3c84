"""Dense reference for models with structured residuals: every V_i in full, no shortcut, finite differences."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

Array = NDArray[np.float64]


@lru_cache(maxsize=4)
def _alike(model) -> list[tuple]:
    """Of each stratum, subjects whose rows stand at the same places, in the same order.

    (stratum, places of one subject of each kind after the other, [(which of these places, rows of the subjects)]).
    """
    part = model.design.residual
    codes = np.asarray(part.subject.codes)
    found: dict[int, dict[bytes, list[Array]]] = {}
    for subject in np.unique(codes):
        rows = np.flatnonzero(codes == subject)
        found.setdefault(part.stratum[rows[0]], {}).setdefault(part.where[rows].tobytes(), []).append(rows)
    out = []
    for of, kinds in found.items():
        ends = np.cumsum([len(rows[0]) for rows in kinds.values()])
        slices = [slice(end - len(rows[0]), end) for end, rows in zip(ends, kinds.values(), strict=True)]
        places = part.where[np.concatenate([rows[0] for rows in kinds.values()])]
        out.append((part.strata[of], places, list(zip(slices, map(np.array, kinds.values()), strict=True))))
    return out


def covariance(model, phi: Array, G: Array | None = None) -> Array:
    """V / sigma^2 of all rows (n, n): random effects with relative covariance G, structured residuals, weights."""
    n = model.nobs
    V = np.zeros((n, n))
    for own, places, kinds in _alike(model):
        inner = phi[own.start : own.stop]
        scale = 1.0
        if own.scaled:
            scale, inner = np.exp(inner[0]), inner[1:]
        R = scale * own.structure.matrix(inner, places)
        for at, rows in kinds:
            V[rows[:, :, None], rows[:, None, :]] = R[at, at]
    if model.weights is not None:
        root = np.sqrt(model.weights)
        V /= np.outer(root, root)
    if G is not None:
        for f in model.factors:
            Z, index = model.exog_re[:, f.columns], f.grouping.index
            V += (Z @ G[f.columns, f.columns] @ Z.T) * np.equal.outer(index, index)
    return V


def criterion(model, phi: Array, reml: bool, G: Array | None = None) -> float:
    """-2 times the profiled (restricted) log-likelihood."""
    y = model.endog if model.offset is None else model.endog - model.offset
    X = model.exog[:, model.problem.kept]
    L = np.linalg.cholesky(covariance(model, phi, G))
    white = solve_triangular(L, np.column_stack([X, y]), lower=True, check_finite=False)
    X, y = white[:, :-1], white[:, -1]
    H = X.T @ X
    rest = y - X @ np.linalg.solve(H, X.T @ y)
    r2 = float(rest @ rest)
    nu = len(y) - X.shape[1] if reml else len(y)
    value = 2.0 * np.log(np.diag(L)).sum() + nu * (1.0 + np.log(2.0 * np.pi * r2 / nu))
    return value + np.linalg.slogdet(H)[1] if reml else value


def deviance(V: Array, X: Array, y: Array) -> float:
    """-2 times the restricted log-likelihood, less a constant, of y with covariance V and mean X beta at its best."""
    L = np.linalg.cholesky(V)
    white = solve_triangular(L, np.column_stack([X, y]), lower=True, check_finite=False)
    X, y = white[:, :-1], white[:, -1]
    H = X.T @ X
    rest = y - X @ np.linalg.solve(H, X.T @ y)
    return float(2.0 * np.log(np.diag(L)).sum() + rest @ rest + np.linalg.slogdet(H)[1])


def _along(function: Callable, step: float):
    """Derivative at zero of a function of one number, by central differences of fourth order."""
    near, far = function(step) - function(-step), function(2.0 * step) - function(-2.0 * step)
    return (8.0 * near - far) / (12.0 * step)


def gradient(function: Callable, x: Array, step: float = 1e-4) -> Array:
    """Derivatives of a number or an array along each element of x."""
    return np.array([_along(lambda s, unit=unit: function(x + s * unit), step) for unit in np.eye(len(x))])


def inference(model, phi: Array, sigma2: float) -> Callable[[str], tuple[Array, Array]]:
    """Standard errors and degrees of freedom of the coefficients by kind, by formula with N x N matrices, for REML.

    Kinds: "satterthwaite", or "kenward-roger" in the natural parameters of the structure (one stratum, no random
    effects), with the observed information in them; "kenward-roger-linear" without second derivatives.
    """
    own = model.design.residual.strata[0]
    k = len(phi)
    psi = own.structure.natural(phi, sigma2)

    def V_of(psi: Array) -> Array:
        inner, variance = own.structure.from_natural(psi)
        return variance * covariance(model, inner)

    X = model.exog[:, model.problem.kept]

    def at(psi: Array) -> float:
        return deviance(V_of(psi), X, model.endog)

    size = 1e-3 * np.maximum(np.abs(psi), 0.1 * np.abs(psi).max() if own.structure.name in ("us", "cs") else 0.1)
    units = np.diag(size)
    n_par = k + 1
    hessian = np.array([gradient(lambda t, i=i: (at(psi + t @ units + units[i]) - at(psi + t @ units - units[i])) / 2.0,
                                 np.zeros(n_par), 1.0)
                        for i in range(n_par)])  # fmt: skip
    spread = 2.0 * np.linalg.inv(hessian)
    V = V_of(psi)
    W = np.linalg.inv(V)
    Phi = np.linalg.inv(X.T @ W @ X)
    dV = np.array([(8.0 * (V_of(psi + u) - V_of(psi - u)) - V_of(psi + 2 * u) + V_of(psi - 2 * u)) / 12.0
                   for u in units])  # fmt: skip
    P = [-X.T @ W @ D @ W @ X for D in dV]

    def of(kind: str) -> tuple[Array, Array]:
        if kind == "satterthwaite":
            adjusted = Phi
        else:
            inner = np.zeros_like(Phi)
            for i in range(n_par):
                for j in range(n_par):
                    Q = X.T @ W @ dV[i] @ W @ dV[j] @ W @ X
                    term = Q - P[i] @ Phi @ P[j]
                    if kind == "kenward-roger":
                        u, v = units[i], units[j]
                        bend = (V_of(psi + u + v) - V_of(psi + u - v) - V_of(psi - u + v) + V_of(psi - u - v)) / 4.0
                        term = term - 0.25 * X.T @ W @ bend @ W @ X
                    inner += spread[i, j] * term
            adjusted = Phi + 2.0 * Phi @ inner @ Phi
        slopes = np.array([np.diag(-Phi @ p @ Phi) for p in P])
        variance = np.diag(Phi)
        df = 2.0 * variance**2 / np.einsum("ia,ij,ja->a", slopes, spread, slopes)
        return np.sqrt(np.diag(adjusted)), df

    return of


def prediction(
    joint, old: Array, new: Array, fit_rows: Array, y: Array, point: tuple[Array, Array, float], target: str
) -> tuple[Array, Array]:
    """Means and variances of the errors of new rows given old ones, by conditional normal distributions in full.

    Parameters
    ----------
    joint : Model
        Of all rows: fitted, observed later, and new.
    old, new, fit_rows : int arrays
        Rows of `joint`: of which y is known, those that are predicted, and those of the fit.
    y : array
        Of all rows of `joint`; that of new ones is not looked at.
    point : (G relative to sigma^2, phi, sigma^2)
    target : {"effects", "given", "observation"}
        x'beta + z'b; the same with what is expected of the residual given those of the rows observed; an observation.
    """
    G, phi, sigma2 = point
    R = sigma2 * covariance(joint, phi)
    V = sigma2 * covariance(joint, phi, G)
    H = V - R
    X = joint.exog
    inverse = np.linalg.inv(V[np.ix_(fit_rows, fit_rows)])
    Phi = np.linalg.inv(X[fit_rows].T @ inverse @ X[fit_rows])
    beta = Phi @ X[fit_rows].T @ inverse @ y[fit_rows]
    C = (H if target == "effects" else V)[np.ix_(new, old)]
    K = C @ np.linalg.inv(V[np.ix_(old, old)])
    own = H if target == "effects" else V
    variance = np.diag(own)[new] - np.einsum("ij,ij->i", K, C)
    if target == "given":
        cross = R[np.ix_(new, old)]
        told = np.einsum("ij,ij->i", cross @ np.linalg.inv(R[np.ix_(old, old)]), cross)
        variance = variance - (np.diag(R)[new] - told)
    d = X[new] - K @ X[old]
    return X[new] @ beta + K @ (y[old] - X[old] @ beta), variance + np.einsum("ij,jk,ik->i", d, Phi, d)


def parameter_covariance(deviance: Callable[[Array], float], at: Array, inner: float, outer: float) -> Array:
    """Twice the inverse Hessian of a deviance, by differences of differences, of each pair of elements once."""
    units = np.eye(len(at))
    hessian = np.empty_like(units)
    for i, u in enumerate(units):
        for j, v in enumerate(units[: i + 1]):
            hessian[i, j] = hessian[j, i] = _along(
                lambda s, u=u, v=v: _along(lambda r: deviance(at + s * u + r * v), inner), outer
            )
    return 2.0 * np.linalg.inv(hessian)


def degrees_of_freedom(spread: Array, variance: Callable[[Array], Array], at: Array, step: float) -> Array:
    """2 v^2 / g'A g with the gradient g of v, by differences, and the covariance A of parameters."""
    slopes = gradient(variance, at, step)
    return 2.0 * variance(at) ** 2 / np.einsum("ia,ij,ja->a", slopes, spread, slopes)


class LinearKenwardRoger:
    """Kenward and Roger (1997) for a V that is linear in its parameters, V = sum psi_k E_k, by N x N matrices.

    With the observed information, from P = V^-1 - V^-1 X Phi X'V^-1 and nothing else; for the second coefficient.
    """

    def __init__(self, X: Array, y: Array, E: Array, clusters: Array) -> None:
        self.X, self.y, self.E, self.clusters = X, y, E, clusters

    def at(self, psi: Array) -> tuple[float, Array, Array, Array]:
        """Deviance, its gradient and Hessian; estimate, standard error, df and the diagonal of CR0."""
        X, y, E = self.X, self.y, self.E
        W = np.linalg.inv(np.tensordot(psi, E, 1))
        H = X.T @ W @ X
        Phi = np.linalg.inv(H)
        P = W - W @ X @ Phi @ X.T @ W
        moved, v = E @ (P @ y), P @ y
        PE = P @ E
        gradient = np.trace(PE, axis1=1, axis2=2) - moved @ v
        hessian = 2.0 * moved @ P @ moved.T - np.einsum("aij,bji->ab", PE, PE, optimize=True)
        spread = 2.0 * np.linalg.inv(hessian)
        A = W @ X
        EA = E @ A
        first = -np.swapaxes(EA, 1, 2) @ A
        Q = np.einsum("aip,ij,bjq->abpq", EA, W, EA, optimize=True)
        inner = np.einsum("ab,abpq->pq", spread, Q - np.einsum("apr,rs,bsq->abpq", first, Phi, first, optimize=True))
        adjusted = Phi + 2.0 * Phi @ inner @ Phi
        slopes = -(Phi @ first @ Phi)[:, 1, 1]
        df = 2.0 * Phi[1, 1] ** 2 / (slopes @ spread @ slopes)
        beta = Phi @ X.T @ W @ y
        rows = A * (y - X @ beta)[:, None]
        scores = np.array([rows[self.clusters == c].sum(axis=0) for c in np.unique(self.clusters)])
        robust = np.diag(Phi @ scores.T @ scores @ Phi)
        deviance = np.linalg.slogdet(H)[1] - np.linalg.slogdet(W)[1] + y @ v
        return deviance, gradient, hessian, np.array([beta[1], np.sqrt(adjusted[1, 1]), df, *robust])
