"""Dense linear mixed model, written to be read rather than to be fast.

The model is y = offset + X beta + sum_i Z_i b_i + e with b_i ~ N(0, sigma2 * Ghat) for each level i of one
grouping factor and e ~ N(0, sigma2 * diag(1 / weights)). Every quantity below is taken from the n x n matrix

    V = diag(1 / weights) + Z_big (I_m (x) Ghat) Z_big'          (relative to sigma2)

by textbook formulas: no per-subject sums, no Woodbury identity, no sharing of code with the package. That is
what makes it fit to judge the package.

Conventions are lme4's. The criterion is -2 log-likelihood (or restricted log-likelihood) with sigma2 profiled
out; the restricted one contains log|X'V^-1 X| and no log|X'X|. ``theta`` is the lower triangle, column by
column, of the Cholesky factor of Ghat; for ``structure="diagonal"`` it is the diagonal.

Groups are labels of any kind; levels are in the order of ``numpy.unique``.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg
import scipy.optimize

REFERENCE = Path(__file__).parent / "reference"


# ------------------------------------------------------------------------------------------------------------
# pieces of the model


def values(x: Any) -> np.ndarray:
    """Numbers of a mapping, a Series, a list or an array, as a float array in their own order."""
    if isinstance(x, Mapping):
        return np.array(list(x.values()), dtype=float)
    if hasattr(x, "to_numpy"):
        return np.asarray(x.to_numpy(), dtype=float)
    return np.asarray(x, dtype=float)


def names(x: Any) -> list[str]:
    """Names that go with `values(x)`, for a mapping or a Series."""
    return [str(k) for k in x.keys()]  # noqa: SIM118  (iterating over a Series would give its values)


def random_effects(result: Any) -> tuple[list[str], np.ndarray]:
    """Labels and (m, q) array of the BLUPs, whatever the container in which the result holds them."""
    b = result.random_effects
    if isinstance(b, np.ndarray):
        return [str(g) for g in result.group_labels], b
    if isinstance(b, Mapping):
        columns = [np.asarray(v) for v in b.values()]
    else:  # pandas, polars, pyarrow: all give a column by name; the group column is the first
        column_names = list(b.column_names) if hasattr(b, "column_names") else list(b.columns)
        columns = [np.asarray(b[name]) for name in column_names]
    return [str(g) for g in columns[0]], np.column_stack([np.asarray(c, dtype=float) for c in columns[1:]])


def covariance_blocks(result: Any) -> np.ndarray:
    """One matrix with the covariances of all terms of the only grouping factor on its diagonal."""
    return scipy.linalg.block_diag(*[np.asarray(G, dtype=float) for G in result.G.values()])


def lambda_from_theta(theta: np.ndarray, q: int, structure: str = "full") -> np.ndarray:
    """Lower triangular factor with theta filled in column by column."""
    theta = np.asarray(theta)
    if structure == "diagonal":
        return np.diag(theta)
    Lam = np.zeros((q, q), dtype=theta.dtype)
    k = 0
    for j in range(q):
        for i in range(j, q):
            Lam[i, j] = theta[k]
            k += 1
    assert k == len(theta)
    return Lam


def theta_from_lambda(Lam: np.ndarray, structure: str = "full") -> np.ndarray:
    if structure == "diagonal":
        return np.diag(Lam).copy()
    q = Lam.shape[0]
    return np.array([Lam[i, j] for j in range(q) for i in range(j, q)])


def semidefinite_cholesky(G: np.ndarray) -> np.ndarray:
    """Lower triangular factor with non-negative diagonal of a matrix that may be singular."""
    G = np.asarray(G, dtype=float)
    d = np.sqrt(np.diag(G))
    d = np.where(d > 0, d, 1.0)
    w, U = np.linalg.eigh(G / np.outer(d, d))
    R = np.linalg.qr((U * np.sqrt(np.clip(w, 0.0, None))).T, mode="r")  # R'R = G / dd'
    L = R.T * np.where(np.diag(R) < 0, -1.0, 1.0)
    return d[:, None] * L


def random_design(Z: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Levels, and the n x (m q) matrix with the columns of level i in positions i q .. (i + 1) q - 1."""
    Z = np.asarray(Z)
    levels, index = np.unique(np.asarray(groups), return_inverse=True)
    n, q = Z.shape
    Z_big = np.zeros((n, len(levels), q))
    Z_big[np.arange(n), index] = Z
    return levels, Z_big.reshape(n, -1)


def together(groups: np.ndarray) -> np.ndarray:
    """Whether two rows are of one level, n x n: Z_big (I (x) M) Z_big' is Z M Z' there and zero elsewhere."""
    index = np.unique(np.asarray(groups), return_inverse=True)[1]
    return np.equal.outer(index, index)


def relative_v(Z: np.ndarray, groups: np.ndarray, Ghat: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """V / sigma2, n x n."""
    Z = np.asarray(Z)
    R = np.eye(len(Z)) if weights is None else np.diag(1.0 / np.asarray(weights, dtype=float))
    return R + (Z @ np.asarray(Ghat) @ Z.T) * together(groups)


def cholesky(A: np.ndarray) -> np.ndarray:
    """L with L L' = A and a plain transpose, so that it is analytic in complex A (for the complex step)."""
    if not np.iscomplexobj(A):
        return np.linalg.cholesky(A)
    n = A.shape[0]
    L = np.zeros_like(A)
    for j in range(n):
        column = A[j:, j] - L[j:, :j] @ L[j, :j]
        L[j, j] = np.sqrt(column[0])
        L[j + 1 :, j] = column[1:] / L[j, j]
    return L


def _log_det(A: np.ndarray) -> Any:
    return 2.0 * np.sum(np.log(np.diag(cholesky(A))))


def _white(L: np.ndarray, B: np.ndarray) -> np.ndarray:
    """L^-1 B."""
    return scipy.linalg.solve_triangular(L, B, lower=True, check_finite=False)


def _solve(A: np.ndarray, B: np.ndarray) -> np.ndarray:
    L = cholesky(A)
    return scipy.linalg.solve_triangular(L, _white(L, B), lower=True, trans="T", check_finite=False)


def _response(y: np.ndarray, offset: np.ndarray | None) -> np.ndarray:
    return np.asarray(y, dtype=float) - (0.0 if offset is None else np.asarray(offset, dtype=float))


def _degrees(n: int, p: int, reml: bool) -> int:
    return n - p if reml else n


# ------------------------------------------------------------------------------------------------------------
# criterion and its derivative


def criterion(y, X, Z, groups, Ghat, reml, weights=None, offset=None):
    """-2 log-likelihood with beta and sigma2 at their best values for this Ghat. Ghat may be complex."""
    y = _response(y, offset)
    X = np.asarray(X, dtype=float)
    n, p = X.shape
    V = relative_v(Z, groups, Ghat, weights)
    L = cholesky(V)
    white = _white(L, np.column_stack([X, y]))
    Xw, yw = white[:, :-1], white[:, -1]
    H = cholesky(Xw.T @ Xw)
    of_y = _white(H, Xw.T @ yw)
    rw = yw - Xw @ scipy.linalg.solve_triangular(H, of_y, lower=True, trans="T", check_finite=False)
    r2 = rw @ rw
    nu = _degrees(n, p, reml)
    value = 2.0 * np.sum(np.log(np.diag(L))) + nu * (1.0 + np.log(2.0 * np.pi * r2 / nu))
    return value + 2.0 * np.sum(np.log(np.diag(H))) if reml else value


def criterion_theta(theta, y, X, Z, groups, reml, weights=None, offset=None, structure="full"):
    """`criterion` as a function of theta. Complex theta gives the analytic continuation."""
    Lam = lambda_from_theta(theta, np.asarray(Z).shape[1], structure)
    return criterion(y, X, Z, groups, Lam @ Lam.T, reml, weights, offset)


def complex_step_gradient(theta, y, X, Z, groups, reml, weights=None, offset=None, structure="full"):
    """Derivative of the criterion by theta, exact to rounding: no difference is taken."""
    theta = np.asarray(theta, dtype=float)
    h = 1e-30
    g = np.empty(len(theta))
    for k in range(len(theta)):
        t = theta.astype(complex)
        t[k] += 1j * h
        g[k] = criterion_theta(t, y, X, Z, groups, reml, weights, offset, structure).imag / h
    return g


def gradient_ghat(y, X, Z, groups, Ghat, reml, weights=None, offset=None):
    """Symmetric matrix D with d(criterion) = trace(D dGhat).

    d(criterion) = trace(W dV) with W = V^-1 - (nu / r2) V^-1 r r' V^-1 [- V^-1 X (X'V^-1 X)^-1 X' V^-1 for REML].
    """
    y = _response(y, offset)
    X = np.asarray(X, dtype=float)
    n, p = X.shape
    V = relative_v(Z, groups, Ghat, weights)
    white = _white(cholesky(V), np.eye(n))
    Vi = white.T @ white
    ViX = Vi @ X
    b = _solve(X.T @ ViX, ViX.T @ y)
    u = Vi @ (y - X @ b)
    r2 = (y - X @ b) @ u
    W = Vi - _degrees(n, p, reml) / r2 * np.outer(u, u)
    if reml:
        W = W - ViX @ _solve(X.T @ ViX, ViX.T)
    D = np.asarray(Z).T @ (W * together(groups)) @ np.asarray(Z)
    return (D + D.T) / 2.0


def gradient_theta(theta, y, X, Z, groups, reml, weights=None, offset=None, structure="full"):
    """Derivative of the criterion by theta through Ghat = Lam Lam'."""
    Lam = lambda_from_theta(theta, np.asarray(Z).shape[1], structure)
    D = gradient_ghat(y, X, Z, groups, Lam @ Lam.T, reml, weights, offset)
    return theta_from_lambda(2.0 * D @ Lam, structure)


def hessian_theta(theta, y, X, Z, groups, reml, weights=None, offset=None, structure="full"):
    """Second derivatives by theta: fourth-order central differences of the exact gradient."""
    theta = np.asarray(theta, dtype=float)
    k = len(theta)
    H = np.empty((k, k))
    for j in range(k):
        h = 1e-3 * max(1.0, abs(theta[j]))
        step = np.zeros(k)
        step[j] = h

        def g(t):
            return gradient_theta(t, y, X, Z, groups, reml, weights, offset, structure)

        H[:, j] = (8 * (g(theta + step) - g(theta - step)) - (g(theta + 2 * step) - g(theta - 2 * step))) / (12 * h)
    return (H + H.T) / 2.0


# ------------------------------------------------------------------------------------------------------------
# estimates at a given Ghat


def cov_unscaled(X, Z, groups, Ghat, weights=None):
    """(X'V^-1 X)^-1 relative to sigma2."""
    X = np.asarray(X, dtype=float)
    V = relative_v(Z, groups, Ghat, weights)
    return _solve(X.T @ _solve(V, X), np.eye(X.shape[1]))


def beta(y, X, Z, groups, Ghat, weights=None, offset=None):
    """Generalised least squares."""
    X = np.asarray(X, dtype=float)
    L = cholesky(relative_v(Z, groups, Ghat, weights))
    LX = scipy.linalg.solve_triangular(L, X, lower=True)
    Ly = scipy.linalg.solve_triangular(L, _response(y, offset), lower=True)
    return np.linalg.lstsq(LX, Ly, rcond=None)[0]


def sigma2(y, X, Z, groups, Ghat, reml, weights=None, offset=None):
    """r'V^-1 r / nu."""
    r = marginal_residuals(y, X, beta(y, X, Z, groups, Ghat, weights, offset), offset)
    return float(r @ _solve(relative_v(Z, groups, Ghat, weights), r) / _degrees(*np.shape(X), reml))


def cov_params(y, X, Z, groups, Ghat, reml, weights=None, offset=None):
    """sigma2 (X'V^-1 X)^-1."""
    return sigma2(y, X, Z, groups, Ghat, reml, weights, offset) * cov_unscaled(X, Z, groups, Ghat, weights)


def blups(y, X, Z, groups, Ghat, weights=None, offset=None):
    """(m, q) conditional means of the random effects: (I (x) Ghat) Z_big' V^-1 (y - X beta)."""
    levels, Z_big = random_design(Z, groups)
    r = marginal_residuals(y, X, beta(y, X, Z, groups, Ghat, weights, offset), offset)
    big = np.kron(np.eye(len(levels)), Ghat)
    return (big @ Z_big.T @ _solve(relative_v(Z, groups, Ghat, weights), r)).reshape(len(levels), -1)


def blup_covariances(y, X, Z, groups, Ghat, reml, weights=None, offset=None):
    """(m, q, q): sigma2 (Ghat - Ghat Z'V^-1 Z Ghat) for each level, beta held fixed."""
    levels, Z_big = random_design(Z, groups)
    q = np.asarray(Z).shape[1]
    big = np.kron(np.eye(len(levels)), Ghat)
    C = big - big @ Z_big.T @ _solve(relative_v(Z, groups, Ghat, weights), Z_big @ big)
    s2 = sigma2(y, X, Z, groups, Ghat, reml, weights, offset)
    return np.array([s2 * C[i * q : (i + 1) * q, i * q : (i + 1) * q] for i in range(len(levels))])


def fitted(y, X, Z, groups, Ghat, weights=None, offset=None):
    """offset + X beta + Z b."""
    _, Z_big = random_design(Z, groups)
    b = blups(y, X, Z, groups, Ghat, weights, offset)
    o = 0.0 if offset is None else np.asarray(offset, dtype=float)
    return o + np.asarray(X) @ beta(y, X, Z, groups, Ghat, weights, offset) + Z_big @ b.ravel()


def marginal_residuals(y, X, b, offset=None):
    """y - offset - X beta."""
    return _response(y, offset) - np.asarray(X, dtype=float) @ b


def residuals(y, X, Z, groups, Ghat, reml, kind="conditional", weights=None, offset=None):
    """Residuals in the order of the rows.

    conditional: y - fitted. marginal: y - offset - X beta. pearson: conditional residual over its standard
    deviation sigma / sqrt(weight). whitened: per subject chol(V_i)^-1 (y_i - offset_i - X_i beta) / sigma with the
    rows of the subject in the order in which they stand in the data.
    """
    marginal = marginal_residuals(y, X, beta(y, X, Z, groups, Ghat, weights, offset), offset)
    if kind == "marginal":
        return marginal
    sigma = np.sqrt(sigma2(y, X, Z, groups, Ghat, reml, weights, offset))
    if kind == "whitened":
        out = np.empty(len(marginal))
        for level in np.unique(groups):
            rows = np.flatnonzero(np.asarray(groups) == level)
            out[rows] = whitened_subject(marginal[rows], subject_v(level, Z, groups, Ghat, weights)) / sigma
        return out
    conditional = np.asarray(y, dtype=float) - fitted(y, X, Z, groups, Ghat, weights, offset)
    if kind == "pearson":
        return conditional * (1.0 if weights is None else np.sqrt(weights)) / sigma
    assert kind == "conditional"
    return conditional


def whitened_subject(r, V):
    """chol(V)^-1 r."""
    return scipy.linalg.solve_triangular(np.linalg.cholesky(V), r, lower=True)


def subject_v(subject, Z, groups, Ghat, weights=None):
    """V_i / sigma2 of one subject, cut out of the full matrix."""
    rows = np.flatnonzero(np.asarray(groups) == subject)
    return relative_v(Z, groups, Ghat, weights)[np.ix_(rows, rows)]


def marginal_covariance(subject, Z, groups, G, sigma2, weights=None):
    """Z_i G Z_i' + sigma2 diag(1 / w_i), in natural units."""
    return sigma2 * subject_v(subject, Z, groups, np.asarray(G) / sigma2, weights)


def loglik(y, X, Z, groups, b, G, sigma2, reml=False, weights=None, offset=None):
    """(Restricted) log-likelihood at given parameters, nothing profiled. For REML, `b` should be the GLS estimate."""
    X = np.asarray(X, dtype=float)
    n, p = X.shape
    V = sigma2 * relative_v(Z, groups, np.asarray(G) / sigma2, weights)
    r = marginal_residuals(y, X, b, offset)
    value = _degrees(n, p, reml) * np.log(2.0 * np.pi) + _log_det(V) + r @ _solve(V, r)
    if reml:
        value += _log_det(X.T @ _solve(V, X))
    return -0.5 * value


# ------------------------------------------------------------------------------------------------------------
# a new subject


def new_subject_blup(y, X, Z, b, G, sigma2, weights=None, offset=None):
    """Conditional mean and covariance of the effects of a subject that was not in the fit, given its rows."""
    Z = np.asarray(Z, dtype=float)
    R = sigma2 * (np.eye(len(Z)) if weights is None else np.diag(1.0 / np.asarray(weights, dtype=float)))
    V = Z @ G @ Z.T + R
    gain = _solve(V, Z @ G).T  # G Z' V^-1
    return gain @ marginal_residuals(y, X, b, offset), G - gain @ Z @ G


def new_subject_prediction(x_new, z_new, y, X, Z, b, G, sigma2, cov_b, fixed=True, noise=False, weights=None):
    """Predictions for rows (x_new, z_new) of a subject of which the rows (y, X, Z) have been seen; y may be empty.

    Returns mean and covariance of the prediction error. The error is z (b_i - E b_i) + c (beta - betahat) with
    c = x - z G Z'V^-1 X; `fixed` includes the second part (uncertainty of the fixed effects), `noise` the residual
    variance of a new observation with weight 1. The same formula holds for a subject that was in the fit.
    """
    x_new, z_new = np.atleast_2d(x_new).astype(float), np.atleast_2d(z_new).astype(float)
    X, Z = np.asarray(X, dtype=float), np.asarray(Z, dtype=float)
    mean_b, cov_of_b = new_subject_blup(y, X, Z, b, G, sigma2, weights)
    variance = z_new @ cov_of_b @ z_new.T
    if fixed:
        R = sigma2 * (np.eye(len(Z)) if weights is None else np.diag(1.0 / np.asarray(weights, dtype=float)))
        c = x_new - z_new @ G @ Z.T @ _solve(Z @ G @ Z.T + R, X)
        variance = variance + c @ cov_b @ c.T
    if noise:
        variance = variance + sigma2 * np.eye(len(z_new))
    return x_new @ b + z_new @ mean_b, variance


# ------------------------------------------------------------------------------------------------------------
# the optimum


@dataclass(frozen=True)
class Fit:
    theta: np.ndarray
    Ghat: np.ndarray
    G: np.ndarray
    sigma2: float
    beta: np.ndarray
    cov_params: np.ndarray
    criterion: float
    gradient: np.ndarray  # by the scaled parameters of the search
    hessian: np.ndarray
    levels: np.ndarray
    blups: np.ndarray
    fitted: np.ndarray


def fit(y, X, Z, groups, reml=True, weights=None, structure="full", offset=None, start=None):
    """Best of several searches.

    The search runs on a Z with uncorrelated columns of unit mean square (for a diagonal structure: unit mean square
    only), where a factor of order 1 is a sensible start; the criterion does not change. `start` is an optional theta
    in the caller's units, and then the only start.
    """
    Z = np.asarray(Z, dtype=float)
    n, q = Z.shape
    T = np.linalg.qr(Z, mode="r") / np.sqrt(n) if structure == "full" else np.diag(np.sqrt(np.mean(Z**2, axis=0)))
    Zs = np.linalg.solve(T.T, Z.T).T

    def objective(t):
        return float(criterion_theta(t, y, X, Zs, groups, reml, weights, offset, structure))

    def gradient(t):
        return gradient_theta(t, y, X, Zs, groups, reml, weights, offset, structure)

    if start is not None:
        Lam = lambda_from_theta(np.asarray(start, dtype=float), q, structure)
        starts = [theta_from_lambda(semidefinite_cholesky(T @ Lam @ Lam.T @ T.T), structure)]
    else:
        eye = theta_from_lambda(np.eye(q), structure)
        rng = np.random.default_rng(20240229)
        starts = [eye, 0.1 * eye, 5.0 * eye, eye + 0.5 * rng.standard_normal(len(eye))]

    found = [scipy.optimize.minimize(objective, s, jac=gradient, method="BFGS", options={"gtol": 1e-7}) for s in starts]
    best = min(found, key=lambda r: r.fun)
    t, value = best.x, best.fun
    if len(t) <= 6:  # a simplex sees what a gradient cannot: a saddle that the line search sat down on
        simplex = scipy.optimize.minimize(
            objective, t, method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-11, "maxiter": 2000}
        )
        if simplex.fun < value:
            t, value = simplex.x, simplex.fun

    g = gradient(t)
    for _ in range(8):  # Newton steps: where the criterion is flat to rounding the gradient still is not
        H = hessian_theta(t, y, X, Zs, groups, reml, weights, offset, structure)
        w, U = np.linalg.eigh(H)
        usable = w > 1e-7 * max(1.0, w[-1])
        step = -(U[:, usable] / w[usable]) @ (U[:, usable].T @ g)
        g_new = gradient(t + step)
        if np.linalg.norm(g_new) >= np.linalg.norm(g) or objective(t + step) > value + 1e-9 * max(1.0, abs(value)):
            break
        t, g = t + step, g_new
        value = objective(t)

    Lam_s = lambda_from_theta(t, q, structure)
    Ti = np.linalg.inv(T)
    Ghat = Ti @ Lam_s @ Lam_s.T @ Ti.T
    s2 = sigma2(y, X, Zs, groups, Lam_s @ Lam_s.T, reml, weights, offset)
    return Fit(
        theta=theta_from_lambda(semidefinite_cholesky(Ghat), structure),
        Ghat=Ghat,
        G=s2 * Ghat,
        sigma2=s2,
        beta=beta(y, X, Zs, groups, Lam_s @ Lam_s.T, weights, offset),
        cov_params=s2 * cov_unscaled(X, Zs, groups, Lam_s @ Lam_s.T, weights),
        criterion=value,
        gradient=g,
        hessian=hessian_theta(t, y, X, Zs, groups, reml, weights, offset, structure),
        levels=np.unique(groups),
        blups=blups(y, X, Zs, groups, Lam_s @ Lam_s.T, weights, offset) @ Ti.T,
        fitted=fitted(y, X, Zs, groups, Lam_s @ Lam_s.T, weights, offset),
    )


# ------------------------------------------------------------------------------------------------------------
# lme4's results, as arrays


SINGLE_FACTOR = (
    "cake",
    "dyestuff",
    "dyestuff2",
    "machines_q3",
    "orthodont_intercept",
    "orthodont_slope",
    "oxboys",
    "sleepstudy_intercept",
    "sleepstudy_slope",
    "sleepstudy_uncorrelated",
)


@dataclass(frozen=True)
class Block:
    """One of the two fits ("reml", "ml") of a reference."""

    beta: np.ndarray
    se: np.ndarray
    vcov: np.ndarray
    sigma: float
    theta: np.ndarray
    G: np.ndarray
    Ghat: np.ndarray
    criterion: float
    loglik: float
    aic: float
    bic: float
    n_params: int
    singular: bool
    ranef: np.ndarray  # in the order of numpy.unique of the group labels
    condvar: np.ndarray
    condvar_rows: np.ndarray  # the levels to which condvar belongs, as rows of ranef (20 levels at most were kept)
    fitted: np.ndarray  # first rows only
    resid: np.ndarray


@dataclass(frozen=True)
class Reference:
    name: str
    formula: str
    columns: dict[str, np.ndarray]  # factors as strings, numbers as floats
    response: str
    coef_names: list[str]
    effect_names: list[str]
    group_name: str
    structure: str
    y: np.ndarray
    X: np.ndarray
    Z: np.ndarray
    groups: np.ndarray
    levels: np.ndarray
    blocks: dict[bool, Block] = field(repr=False)  # by reml

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        return self.y, self.X, self.Z, self.groups


def read_csv(path: Path, factors: list[str]) -> dict[str, np.ndarray]:
    with path.open(newline="") as handle:
        rows = list(csv.reader(handle))
    columns = {name: [row[j] for row in rows[1:]] for j, name in enumerate(rows[0])}
    return {k: np.array(v) if k in factors else np.array(v, dtype=float) for k, v in columns.items()}


def design_column(name: str, columns: dict[str, np.ndarray], factors: list[str]) -> np.ndarray:
    """Column of a coefficient from R's name of it: a product of numeric columns and of level indicators."""
    out = np.ones(len(next(iter(columns.values()))))
    for piece in name.split(":"):
        if piece == "(Intercept)":
            continue
        if piece in columns and piece not in factors:
            out = out * columns[piece]
            continue
        matches = [f for f in factors if piece.startswith(f) and piece[len(f) :] in columns[f]]
        assert len(matches) == 1, name
        out = out * (columns[matches[0]] == piece[len(matches[0]) :])
    return out


def _block(data: dict[str, Any], reml: bool, factor: str, levels: np.ndarray) -> Block:
    G = scipy.linalg.block_diag(*[np.array(t["cov"]) for t in data["varcorr"]])
    order = [str(level) for level in levels]
    condvar = data["condvar"][factor]["values"]
    kept = [i for i, g in enumerate(order) if g in condvar]
    return Block(
        beta=np.array([data["beta"][c] for c in data["coef_names"]]),
        se=np.array([data["se"][c] for c in data["coef_names"]]),
        vcov=np.array(data["vcov"]),
        sigma=data["sigma"],
        theta=np.array(data["theta"]),
        G=G,
        Ghat=G / data["sigma"] ** 2,
        criterion=data["reml_criterion" if reml else "deviance"],
        loglik=data["loglik"],
        aic=data["aic"],
        bic=data["bic"],
        n_params=data["n_params"],
        singular=data["singular"],
        ranef=np.array([data["ranef"][factor]["values"][g] for g in order]),
        condvar=np.array([condvar[order[i]] for i in kept]),
        condvar_rows=np.array(kept),
        fitted=np.array(data["fitted"]),
        resid=np.array(data["resid"]),
    )


@cache
def reference(name: str) -> Reference:
    data = json.loads((REFERENCE / f"{name}.json").read_text())
    factors = data["factors"]
    columns = read_csv(REFERENCE / data["data"], factors)
    factor = data["reml"]["varcorr"][0]["group"]
    effects = [e for term in data["reml"]["varcorr"] for e in term["names"]]
    groups = np.array([":".join(parts) for parts in zip(*[columns[f] for f in factor.split(":")], strict=True)])
    levels = np.unique(groups)
    response = data["formula"].split("~")[0].strip()
    return Reference(
        name=name,
        formula=data["formula"],
        columns=columns,
        response=response,
        coef_names=data["reml"]["coef_names"],
        effect_names=effects,
        group_name=factor,
        structure="diagonal" if "||" in data["formula"] else "full",
        y=columns[response],
        X=np.column_stack([design_column(c, columns, factors) for c in data["reml"]["coef_names"]]),
        Z=np.column_stack([design_column(c, columns, factors) for c in effects]),
        groups=groups,
        levels=levels,
        blocks={reml: _block(data["reml" if reml else "ml"], reml, factor, levels) for reml in (True, False)},
    )
