"""Dense linear mixed model with several grouping factors, from n x n matrices by textbook formulas.

y = offset + X beta + sum_t Z_t b_t + e: every term t has its own columns, its grouping and its covariance
sigma2 * Ghat_t; terms are independent of each other and e ~ N(0, sigma2 diag(1 / weights)).  Everything follows from
V = R + sum_t Z_t (I (x) Ghat_t) Z_t'.  Nothing is eliminated in any order and no code is shared with the package.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import scipy.linalg
import scipy.optimize

import dense_inference
import fastlmm_core as flc
import oracle

# ------------------------------------------------------------------------------------------------------------
# the model


@dataclass(frozen=True)
class Term:
    """The columns `Z` (n, q) vary between the levels of `groups`; terms of one `name` have the same groups."""

    name: str
    Z: np.ndarray
    groups: np.ndarray
    structure: str = "full"

    @property
    def q(self) -> int:
        return self.Z.shape[1]

    @property
    def size(self) -> int:
        """Number of parameters."""
        return self.q if self.structure == "diagonal" else self.q * (self.q + 1) // 2

    @cached_property
    def levels(self) -> np.ndarray:
        return np.unique(self.groups)

    @cached_property
    def wide(self) -> np.ndarray:
        """n x (m q), level by level."""
        return oracle.random_design(self.Z, self.groups)[1]

    @cached_property
    def same(self) -> np.ndarray:
        """Whether two rows have the same level."""
        return self.groups[:, None] == self.groups

    def spread(self, G: np.ndarray) -> np.ndarray:
        """Z (I (x) G) Z' of all levels: Z_i G Z_i' of each, and nothing between them."""
        return np.where(self.same, self.Z @ G @ self.Z.T, 0.0)

    def collected(self, W: np.ndarray) -> np.ndarray:
        """Sum over the levels of Z_i' W_ii Z_i."""
        return self.Z.T @ np.where(self.same, W, 0.0) @ self.Z


@dataclass(frozen=True)
class At:
    """Criterion and estimates at given Ghat."""

    value: float
    W: np.ndarray  # d(criterion) = trace(W dV)
    Vi: np.ndarray
    beta: np.ndarray
    sigma2: float
    unscaled: np.ndarray  # (X'V^-1 X)^-1
    u: np.ndarray  # V^-1 (y - offset - X beta)


@dataclass(frozen=True)
class Design:
    """Data and terms; the terms of one factor side by side, as the package puts them."""

    y: np.ndarray
    X: np.ndarray
    terms: tuple[Term, ...]
    weights: np.ndarray | None = None
    offset: np.ndarray | None = None

    @property
    def model(self) -> flc.LinearMixedModel:
        terms = [flc.RandomTerm(t.Z, t.groups, name=t.name, structure=t.structure) for t in self.terms]
        return flc.LinearMixedModel(self.y, self.X, terms=terms, weights=self.weights, offset=self.offset)

    @cached_property
    def noise(self) -> np.ndarray:
        return np.eye(len(self.y)) if self.weights is None else np.diag(1.0 / self.weights)

    @cached_property
    def response(self) -> np.ndarray:
        return self.y if self.offset is None else self.y - self.offset

    @property
    def factors(self) -> dict[str, list[int]]:
        """Places of the terms of each grouping factor, the factor with most levels first."""
        places: dict[str, list[int]] = {}
        for i, term in enumerate(self.terms):
            places.setdefault(term.name, []).append(i)
        return dict(sorted(places.items(), key=lambda item: -len(self.terms[item[1][0]].levels)))

    def ordered(self) -> Design:
        """Terms in lme4's order: by the number of levels, those of one factor as they were given."""
        order = [i for places in self.factors.values() for i in places]
        return Design(self.y, self.X, tuple(self.terms[i] for i in order), self.weights, self.offset)

    def lambdas(self, theta: np.ndarray) -> list[np.ndarray]:
        out, at = [], 0
        for term in self.terms:
            out.append(oracle.lambda_from_theta(theta[at : at + term.size], term.q, term.structure))
            at += term.size
        assert at == len(theta)
        return out

    def theta(self, factors: list[np.ndarray]) -> np.ndarray:
        return np.concatenate(
            [oracle.theta_from_lambda(Lam, t.structure) for Lam, t in zip(factors, self.terms, strict=True)]
        )

    def v(self, G: list[np.ndarray]) -> np.ndarray:
        """R + sum_t Z_t (I (x) G_t) Z_t'."""
        return self.noise + sum(term.spread(g) for term, g in zip(self.terms, G, strict=True))

    def at(self, G: list[np.ndarray], reml: bool) -> At:
        n, p = self.X.shape
        L = np.linalg.cholesky(self.v(G))
        Li = scipy.linalg.solve_triangular(L, np.eye(n), lower=True)
        Q, R = np.linalg.qr(Li @ self.X)
        ly = Li @ self.response
        rest = ly - Q @ (Q.T @ ly)
        rest = rest - Q @ (Q.T @ rest)
        r2, nu = float(rest @ rest), n - p if reml else n
        value = 2.0 * np.sum(np.log(np.diag(L))) + nu * (1.0 + np.log(2.0 * np.pi * r2 / nu))
        if reml:
            value += 2.0 * np.sum(np.log(np.abs(np.diag(R))))
        Ri, u = np.linalg.inv(R), Li.T @ rest
        inner = Li - Q @ (Q.T @ Li) if reml else Li
        W = Li.T @ inner - nu / r2 * np.outer(u, u)
        return At(float(value), W, Li.T @ Li, Ri @ (Q.T @ ly), r2 / nu, Ri @ Ri.T, u)

    def criterion(self, theta: np.ndarray, reml: bool) -> float:
        return self.at([L @ L.T for L in self.lambdas(theta)], reml).value

    def gradient(self, theta: np.ndarray, reml: bool) -> np.ndarray:
        return self.both(theta, reml)[1]

    def both(self, theta: np.ndarray, reml: bool) -> tuple[float, np.ndarray]:
        """Criterion and gradient."""
        factors = self.lambdas(theta)
        at = self.at([L @ L.T for L in factors], reml)
        slopes = [2.0 * t.collected(at.W) @ L for t, L in zip(self.terms, factors, strict=True)]
        return at.value, self.theta(slopes)

    # what follows from the estimates

    def blups(self, G: list[np.ndarray], reml: bool) -> dict[str, np.ndarray]:
        """(m, q) conditional means by factor: (I (x) Ghat) Z'V^-1 (y - X beta)."""
        u = self.at(G, reml).u
        out = {}
        for name, places in self.factors.items():
            out[name] = np.column_stack(
                [(self.terms[i].wide.T @ u).reshape(-1, self.terms[i].q) @ G[i] for i in places]
            )
        return out

    def blup_covariances(self, G: list[np.ndarray], reml: bool) -> dict[str, np.ndarray]:
        """(m, q, q) by factor: G - G Z'V^-1 Z G of all random effects of a level, beta held fixed."""
        at = self.at(G, reml)
        out = {}
        for name, places in self.factors.items():
            joint = scipy.linalg.block_diag(*[G[i] for i in places])
            Z = np.column_stack([self.terms[i].Z for i in places])
            groups = self.terms[places[0]].groups
            found = []
            for level in self.terms[places[0]].levels:
                rows = np.flatnonzero(groups == level)
                half = Z[rows] @ joint
                found.append(at.sigma2 * (joint - half.T @ at.Vi[np.ix_(rows, rows)] @ half))
            out[name] = np.array(found)
        return out

    def fitted(self, G: list[np.ndarray], reml: bool) -> np.ndarray:
        """y - R V^-1 (y - X beta): what the random effects leave is the noise's share."""
        return self.y - self.noise @ self.at(G, reml).u

    def clusters(self) -> list[np.ndarray]:
        """Rows that covariances join, however indirectly."""
        joined = self.v([np.eye(t.q) + 0.1 for t in self.terms]) != 0.0
        for term in self.terms:
            joined |= term.groups[:, None] == term.groups
        reach = np.linalg.matrix_power(joined.astype(float), 1)
        for _ in range(12):
            reach = (reach @ reach > 0.0).astype(float)
        return [np.flatnonzero(row) for row in np.unique(reach, axis=0)]

    def residuals(self, G: list[np.ndarray], reml: bool, kind: str) -> np.ndarray:
        at = self.at(G, reml)
        marginal = self.response - self.X @ at.beta
        if kind == "marginal":
            return marginal
        if kind == "whitened":
            V, out = at.sigma2 * self.v(G), np.empty(len(marginal))
            for rows in self.clusters():
                out[rows] = oracle.whitened_subject(marginal[rows], V[np.ix_(rows, rows)])
            return out
        conditional = self.noise @ at.u
        if kind == "pearson":
            return conditional / np.sqrt(at.sigma2 * np.diag(self.noise))
        if kind == "studentized":  # var(e) = R (V^-1 - V^-1 X (X'V^-1 X)^-1 X'V^-1) R
            ViX = at.Vi @ self.X
            P = at.Vi - ViX @ at.unscaled @ ViX.T
            return conditional / np.sqrt(at.sigma2 * np.diag(self.noise @ P @ self.noise))
        assert kind == "conditional"
        return conditional

    # the optimum

    def scaled(self) -> tuple[Design, list[np.ndarray]]:
        """The same model with columns of unit mean square, uncorrelated within a full term, and b_scaled = T b."""
        turns, terms = [], []
        for t in self.terms:
            size = np.sqrt(np.mean(t.Z**2, axis=0))
            T = np.linalg.qr(t.Z, mode="r") / np.sqrt(len(t.Z)) if t.structure == "full" else np.diag(size)
            turns.append(T)
            terms.append(Term(t.name, np.linalg.solve(T.T, t.Z.T).T, t.groups, t.structure))
        return Design(self.y, self.X, tuple(terms), self.weights, self.offset), turns

    def turned(self, theta: np.ndarray, turns: list[np.ndarray]) -> np.ndarray:
        """Theta of the scaled model."""
        out = []
        for Lam, T in zip(self.lambdas(theta), turns, strict=True):
            # not by way of the covariance matrix: a singular one would leave elements of 1e-8 where there are none
            upper = np.linalg.qr((T @ Lam).T, mode="r")
            out.append(upper.T * np.where(np.diagonal(upper) < 0.0, -1.0, 1.0))
        return self.theta(out)

    def least(self, reml: bool, extra: list[np.ndarray], seed: int = 0, draws: int = 3) -> float:
        """The least criterion from several starts of BFGS, `extra` (theta in the caller's units) among them."""
        scaled, turns = self.scaled()
        eye = self.theta([np.eye(t.q) for t in self.terms])
        rng = np.random.default_rng(seed)
        starts = [eye, 0.1 * eye, *(eye * rng.exponential(1.5) + 0.7 * rng.normal(size=len(eye)) for _ in range(draws))]
        starts += [self.turned(theta, turns) for theta in extra]
        return min(
            scipy.optimize.minimize(scaled.both, s, (reml,), jac=True, method="BFGS", options={"gtol": 1e-6}).fun
            for s in starts
        )


class Inference(dense_inference.Dense):
    """The dense tests of one factor, for a V that is linear in the elements of all G_t, at a fit's own estimates."""

    def __init__(self, design: Design, result: Any, terms: list[int] | None = None) -> None:
        self.y, self.X, self.reml = design.response, design.X, result.reml
        self.sigma2 = result.sigma2
        self.V_k = []
        V = result.sigma2 * design.noise
        for i, (t, G) in enumerate(zip(design.terms, result.G.values(), strict=True)):
            free = np.eye(t.q, dtype=bool) if t.structure == "diagonal" else np.ones((t.q, t.q), dtype=bool)
            V = V + t.spread(G)
            if terms is None or i in terms:
                self.V_k += [t.spread(D) for D in dense_inference.unit_matrices(free)]
        self.V_k.append(design.noise)
        self.settle(V)


# ------------------------------------------------------------------------------------------------------------
# random designs


def make(kind: str, seed: int, *, weights: bool = False, spread: float = 1.0) -> Design:
    """A small random data set.

    Kinds: nested, nested3 (a chain), crossed (all combinations), partial (some, unequally often), mixed (a chain and a
    factor across), slopes (terms with up to three columns), split (several terms on one factor), deep.
    """
    rng = np.random.default_rng([seed, *kind.encode()])
    n = 60
    if kind in ("nested", "slopes", "split"):
        fine = np.sort(rng.integers(0, 12, n))
        codes = {"a:b": fine, "a": rng.permutation(4)[fine % 4]}
    elif kind == "nested3":
        fine = np.sort(rng.integers(0, 18, n))
        codes = {"a:b:c": fine, "a:b": fine // 2, "a": fine // 6}
    elif kind == "crossed":
        codes = {"a": np.arange(n) % 10, "b": np.arange(n) // 10}
    elif kind == "partial":
        codes = {"a": rng.integers(0, 11, n), "b": rng.integers(0, 5, n)}
    elif kind == "three":
        codes = {"a": rng.integers(0, 9, n), "b": rng.integers(0, 6, n), "c": rng.integers(0, 4, n)}
    elif kind in ("mixed", "mixed_slopes"):
        fine = rng.integers(0, 12, n)
        codes = {"a:b": fine, "a": fine // 3, "c": rng.integers(0, 5, n)}
    else:
        raise AssertionError(kind)
    names = {name: rng.permutation([f"{name}{k}" for k in range(20)])[c] for name, c in codes.items()}
    x, z = rng.normal(size=(2, n)) + 0.5
    one = np.ones(n)
    if kind == "slopes":
        terms = [
            Term("a:b", np.column_stack([one, x]), names["a:b"]),
            Term("a", np.column_stack([one, x, z]), names["a"]),
        ]
    elif kind == "split":
        terms = [
            Term("a:b", np.column_stack([one, x]), names["a:b"], "diagonal"),
            Term("a", np.column_stack([one, z]), names["a"]),
            Term("a", x[:, None], names["a"]),
        ]
    elif kind == "mixed_slopes":
        terms = [
            Term("c", np.column_stack([one, x]), names["c"]),
            Term("a", one[:, None], names["a"]),
            Term("a:b", np.column_stack([x, z]), names["a:b"], "diagonal"),
        ]
    else:
        terms = [Term(name, one[:, None], labels) for name, labels in names.items()]
    X = np.column_stack([one, x, rng.normal(size=n) > 0.3])
    y = X @ np.array([10.0, 1.0, -2.0])
    w = rng.uniform(0.4, 2.5, n) if weights else None
    offset = rng.normal(size=n) if weights else None
    for term in terms:
        L = np.tril(rng.normal(size=(term.q, term.q))) * 0.5 + np.eye(term.q)
        if term.structure == "diagonal":
            L = np.diag(np.diag(L))
        b = spread * rng.normal(size=(len(term.levels), term.q)) @ L.T
        y = y + np.sum(term.Z * b[np.searchsorted(term.levels, term.groups)], axis=1)
    y = y + rng.normal(size=n) / (1.0 if w is None else np.sqrt(w)) + (0.0 if offset is None else offset)
    order = rng.permutation(n)
    terms = [Term(t.name, t.Z[order], t.groups[order], t.structure) for t in terms]
    return Design(
        y[order],
        X[order],
        tuple(terms),
        None if w is None else w[order],
        None if offset is None else offset[order],
    ).ordered()


# ------------------------------------------------------------------------------------------------------------
# lme4's results


@dataclass(frozen=True)
class Reference:
    """One of lme4's fits, and its data with factors as text."""

    data: dict[str, Any]
    columns: dict[str, np.ndarray]

    @property
    def formula(self) -> str:
        return self.data["formula"]

    def block(self, reml: bool) -> dict[str, Any]:
        return self.data["reml" if reml else "ml"]


@cache
def reference(name: str) -> Reference:
    data = json.loads((oracle.REFERENCE / f"{name}.json").read_text())
    return Reference(data, oracle.read_csv(oracle.REFERENCE / data["data"], data["factors"]))
