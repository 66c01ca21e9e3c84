"""Robust covariances and their degrees of freedom from matrices of all rows, by the definitions.

    residuals   e = (I - X Phi X'V^-1) y
    estimate    of the variance of l'beta, or of a covariance: quadratic forms e'Q e, written out for all rows
    df          2 E(q)^2 / Var(q) for q ~ the quadratic form in e when y has covariance V
    HTZ         eta with the total variance of the estimated covariance in coordinates in which its mean is I

Nothing is taken cluster by cluster but the adjustments A_i, which are by blocks of rows.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg


def covariance(factors, weights, sigma2, n):
    """V (n, n): `factors` are (Z, index, G) of each grouping factor."""
    V = np.diag(sigma2 / (np.ones(n) if weights is None else weights))
    for Z, index, G in factors:
        V = V + (Z @ G @ Z.T) * (index[:, None] == index)
    return V


def power(matrix, exponent):
    """Power of a symmetric matrix, of its positive part."""
    values, vectors = np.linalg.eigh(0.5 * (matrix + matrix.T))
    keep = values > 1e-9
    return (vectors[:, keep] * values[keep] ** exponent) @ vectors[:, keep].T


class Dense:
    """Forms for one kind: `form(l, k)` is Q with l'V^R k = y'Q y."""

    def __init__(self, X, V, labels, kind):
        n = len(X)
        root = np.linalg.cholesky(V)
        Xw = np.linalg.solve(root, X)
        self.Phi = np.linalg.inv(Xw.T @ Xw)
        H = Xw @ self.Phi @ Xw.T
        rest = (np.eye(n) - H) @ np.linalg.inv(root)
        self.clusters = []
        m = len(np.unique(labels))
        for label in np.unique(labels):
            own = np.flatnonzero(labels == label)
            # whitened within the cluster: V is zero between clusters, so that its rows of L are its own
            left = np.eye(len(own)) - H[np.ix_(own, own)]
            A = {
                "CR0": lambda left: np.eye(len(left)),
                "CR1": lambda left: np.sqrt(m / (m - 1.0)) * np.eye(len(left)),
                "CR2": lambda left: power(left, -0.5),
                "CR3": lambda left: power(left, -1.0),
            }[kind](left)
            self.clusters.append((Xw[own].T @ A @ rest[own]).T)  # (n, p): U_i'A_i e_i is this times y
        self.V, self.p = V, X.shape[1]

    def form(self, one, other):
        left, right = self.Phi @ one, self.Phi @ other
        return sum(np.outer(T @ left, T @ right) for T in self.clusters)

    def estimate(self, y):
        eye = np.eye(self.p)
        return np.array([[y @ self.form(i, j) @ y for j in eye] for i in eye])

    def mean(self, L):
        return np.array([[np.trace(self.form(i, j) @ self.V) for j in L] for i in L])

    def df(self, row):
        Q = self.form(row, row) @ self.V
        return 2.0 * np.trace(Q) ** 2 / (2.0 * np.trace(Q @ Q))

    def eta(self, L):
        k = len(L)
        turned = scipy.linalg.inv(scipy.linalg.sqrtm(self.mean(L)).real) @ L
        total = 0.0
        for i in turned:
            for j in turned:
                Q = self.form(i, j)
                total += np.trace(Q @ self.V @ Q @ self.V) + np.trace(Q @ self.V @ Q.T @ self.V)
        return k * (k + 1) / total

    def htz(self, L, beta, y):
        """F, numerator and denominator degrees of freedom."""
        k, eta = len(L), self.eta(L)
        squared = (L @ beta) @ np.linalg.solve(L @ self.estimate(y) @ L.T, L @ beta)
        return squared * (eta - k + 1.0) / (eta * k), k, eta - k + 1.0
