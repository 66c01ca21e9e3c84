"""Inference for fixed effects from n x n matrices by the textbook formulas, in the caller's units.

The parameters are the free elements of G and sigma2, in which V = sum_k x_k V_k is linear. P_k, Q_kl, A_1 and so on are
those of Kenward and Roger (1997, Biometrics 53, 983-997), section 2 and 3. Nothing here is profiled, whitened or taken
subject by subject.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import oracle


def unit_matrices(free: np.ndarray) -> list[np.ndarray]:
    """Symmetric matrices with a one (or two) where an element of G is free."""
    out = []
    q = len(free)
    for i in range(q):
        for j in range(i + 1):
            if free[i, j]:
                D = np.zeros((q, q))
                D[i, j] = D[j, i] = 1.0
                out.append(D)
    return out


@dataclass
class Dense:
    """A model at given G and sigma2; `free` (q, q) says which elements of G are parameters."""

    y: np.ndarray
    X: np.ndarray
    Z: np.ndarray
    groups: np.ndarray
    G: np.ndarray
    sigma2: float
    free: np.ndarray
    weights: np.ndarray | None = None
    reml: bool = True

    def __post_init__(self) -> None:
        n = len(self.y)
        levels, big = oracle.random_design(self.Z, self.groups)
        noise = np.eye(n) if self.weights is None else np.diag(1.0 / self.weights)
        self.units = unit_matrices(self.free)
        self.V_k = [big @ np.kron(np.eye(len(levels)), D) @ big.T for D in self.units] + [noise]
        self.settle(big @ np.kron(np.eye(len(levels)), self.G) @ big.T + self.sigma2 * noise)

    def settle(self, V):
        """What all tests are made of, from the covariance matrix and its derivatives V_k."""
        self.Vi = np.linalg.inv(V)
        self.ViX = self.Vi @ self.X
        self.Phi = np.linalg.inv(self.X.T @ self.ViX)
        self.beta = self.Phi @ (self.ViX.T @ self.y)
        self.P = self.Vi - self.ViX @ self.Phi @ self.ViX.T
        self.P_k = [-self.ViX.T @ V_k @ self.ViX for V_k in self.V_k]
        self.S_k = [self.Vi @ V_k for V_k in self.V_k]

    # first and second derivatives of -2 log-likelihood, beta profiled out

    def slope(self) -> np.ndarray:
        M = self.P if self.reml else self.Vi
        u = self.P @ self.y
        return np.array([np.sum(M * V_k) - u @ V_k @ u for V_k in self.V_k])

    def hessian(self) -> np.ndarray:
        M = self.P if self.reml else self.Vi
        u = self.P @ self.y
        T = [M @ V_k for V_k in self.V_k]
        w = np.array([V_k @ u for V_k in self.V_k])
        return np.array([[-np.sum(a * b.T) for b in T] for a in T]) + 2.0 * w @ self.P @ w.T

    def expected(self) -> np.ndarray:
        """Twice the expected information (Kenward and Roger, eq. 5, times 2)."""
        K = len(self.V_k)
        out = np.empty((K, K))
        for k in range(K):
            for j in range(K):
                inner = 2.0 * self.Phi @ self.Q(k, j) - self.Phi @ self.P_k[k] @ self.Phi @ self.P_k[j]
                out[k, j] = np.sum(self.S_k[k] * self.S_k[j].T) - np.trace(inner)
        return out

    def Q(self, k: int, j: int) -> np.ndarray:
        return self.ViX.T @ self.V_k[k] @ self.Vi @ self.V_k[j] @ self.ViX

    # covariance of the variance parameters

    def covariance(self, information: str, rank_factor: np.ndarray | None = None) -> np.ndarray:
        """W; `rank_factor` F (q, r) with G = F F' keeps to matrices of that rank, but for "expected"."""
        if information == "expected":
            return 2.0 * np.linalg.inv(self.expected())
        H = self.expected() if information == "auto" else self.hessian()
        if rank_factor is None:
            return 2.0 * np.linalg.inv(H)
        q, r = rank_factor.shape
        slope = np.zeros((q, q))
        # the expectation of the score is zero: the bend of the set adds to the observed information only
        of_g = self.slope()[:-1] * (information == "observed")
        for value, D in zip(of_g, self.units, strict=True):
            slope += value * D / np.sum(D * D)
        changes, places = [], []
        for i in range(q):
            for j in range(r):
                dF = np.zeros((q, r))
                dF[i, j] = 1.0
                D = dF @ rank_factor.T + rank_factor @ dF.T
                changes.append([*(D[np.nonzero(np.tril(U))][0] for U in self.units), 0.0])
                places.append((i, j))
        changes.append([0.0] * len(self.units) + [1.0])
        T = np.array(changes)
        inner = T @ H @ T.T
        for a, (i, j) in enumerate(places):
            for b, (k, m) in enumerate(places):
                inner[a, b] += 2.0 * slope[i, k] * (j == m)
        # rotations of F change nothing: the eigenvalues that belong to them are zero
        scale = np.sqrt(np.diag(inner))
        values, vectors = np.linalg.eigh(inner / np.outer(scale, scale))
        keep = values > 1e-9
        assert np.sum(~keep) == r * (r - 1) // 2
        vectors = vectors[:, keep] / scale[:, None]
        return 2.0 * T.T @ (vectors / values[keep]) @ vectors.T @ T

    # tests

    def satterthwaite(self, row: np.ndarray, rank_factor: np.ndarray | None = None) -> float:
        g = np.array([-row @ self.Phi @ P_k @ self.Phi @ row for P_k in self.P_k])
        return 2.0 * (row @ self.Phi @ row) ** 2 / (g @ self.covariance("observed", rank_factor) @ g)

    def adjusted(self, information: str, rank_factor: np.ndarray | None = None) -> np.ndarray:
        W = self.covariance(information, rank_factor)
        K = range(len(self.V_k))
        Lambda = sum(W[k, j] * (self.Q(k, j) - self.P_k[k] @ self.Phi @ self.P_k[j]) for k in K for j in K)
        return self.Phi + 2.0 * self.Phi @ Lambda @ self.Phi

    def fai_cornelius(self, L: np.ndarray, rhs: np.ndarray) -> tuple[float, float]:
        values, vectors = np.linalg.eigh(L @ self.Phi @ L.T)
        t2 = (vectors.T @ (L @ self.beta - rhs)) ** 2 / values
        df = np.array([self.satterthwaite(vectors[:, i] @ L) for i in range(len(L))])
        E = np.sum(df / (df - 2.0))
        return float(np.mean(t2)), 2.0 * E / (E - len(L))

    def kenward_roger(
        self, L: np.ndarray, rhs: np.ndarray, information: str, rank_factor: np.ndarray | None = None
    ) -> tuple[float, float]:
        q = len(L)
        W = self.covariance(information, rank_factor)
        Theta = L.T @ np.linalg.inv(L @ self.Phi @ L.T) @ L
        M = [Theta @ self.Phi @ P_k @ self.Phi for P_k in self.P_k]
        K = range(len(M))
        A1 = sum(W[k, j] * np.trace(M[k]) * np.trace(M[j]) for k in K for j in K)
        A2 = sum(W[k, j] * np.trace(M[k] @ M[j]) for k in K for j in K)
        B = (A1 + 6.0 * A2) / (2.0 * q)
        g = ((q + 1) * A1 - (q + 4) * A2) / ((q + 2) * A2)
        c1, c2, c3 = (c / (3 * q + 2 * (1 - g)) for c in (g, q - g, q + 2 - g))
        E = 1.0 / (1.0 - A2 / q)
        V = (2.0 / q) * (1.0 + c1 * B) / ((1.0 - c2 * B) ** 2 * (1.0 - c3 * B))
        rho = V / (2.0 * E**2)
        m = 4.0 + (q + 2.0) / (q * rho - 1.0)
        lam = m / (E * (m - 2.0))
        gap = L @ self.beta - rhs
        return float(lam / q * gap @ np.linalg.solve(L @ self.adjusted(information, rank_factor) @ L.T, gap)), m


def at_optimum(result) -> Dense:
    """The dense model at a fit's own G and sigma2."""
    model = result.model
    structure = model.structure
    free = np.zeros((structure.q, structure.q), dtype=bool)
    rows, columns = structure.positions
    free[rows, columns] = free[columns, rows] = True
    y = model.endog if model.offset is None else model.endog - model.offset
    groups = np.asarray(model.grouping.index)
    X = model.exog[:, model.problem.kept]
    return Dense(
        y, X, model.exog_re, groups, oracle.covariance_blocks(result), result.sigma2, free, model.weights, result.reml
    )
