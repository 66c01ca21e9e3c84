"""Mixed-model problems whose criterion tends to have several minima, by family, and a dense search for the lowest.

`problem(family, seed)` draws one of any number of problems.  `search(problem)` searches for the minimum of the profiled
criterion from many starts, and `lowest(problem)` looks up what it has found in `reference/landscapes.json`; only numpy
and scipy are used, and V = I + sum_t Z_t (I (x) Lambda_t Lambda_t') Z_t' is an n x n matrix, so that nothing is shared
with the library's engines: neither elimination, nor starts, nor the optimiser.

Rows are divided by the square roots of the weights first.  X becomes an orthogonal matrix, y its standardised residual,
the columns of Z of each term an orthogonal one (independent effects: columns of unit mean square), all by Householder
QR; the criterion in the caller's units differs by a known constant.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from scipy.optimize import minimize
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


@dataclass(frozen=True)
class Term:
    """Random effects of the columns Z (n, q) for each level of `codes`, correlated or independent."""

    Z: np.ndarray
    codes: np.ndarray
    full: bool = True
    factor: str = "g"


@dataclass(frozen=True)
class Problem:
    """One data set."""

    family: str
    seed: int
    reml: bool
    y: np.ndarray
    X: np.ndarray
    terms: tuple[Term, ...]
    weights: np.ndarray | None = None

    @property
    def name(self) -> str:
        return f"{self.family} {self.seed}"


# -------------------------------------------------------------------------------------------------------- families


def _effects(rng: np.random.Generator, term: Term, sd: np.ndarray) -> np.ndarray:
    """Z b by row, b independent normal with the given standard deviations."""
    b = rng.standard_normal((term.codes.max() + 1, term.Z.shape[1])) * sd
    return np.sum(b[term.codes] * term.Z, axis=1)


def _line(t: np.ndarray) -> np.ndarray:
    return np.column_stack([np.ones(len(t)), t])


def distant_origin(rng: np.random.Generator) -> dict:
    """(t || g): 10 to 100 groups, 3 to 8 times, from an origin 0 to 50 units away; in half of them rows are missing."""
    m, k = int(rng.integers(10, 101)), int(rng.integers(3, 9))
    t = np.tile(np.arange(float(k)), m)
    codes = np.repeat(np.arange(m), k)
    if rng.random() < 0.5:
        keep = rng.random(m * k) < 0.85
        keep[::k] = True
        t, codes = t[keep], codes[keep]
    sd = 10.0 ** rng.uniform(-0.5, 1.0, 2)
    y = _effects(rng, Term(_line(t - t.mean()), codes), sd) + 0.3 * t + rng.standard_normal(len(t))
    Z = _line(t + rng.uniform(0.0, 50.0))
    return {"y": y, "X": Z, "terms": (Term(Z, codes, full=False),)}


def shifted_slope(rng: np.random.Generator) -> dict:
    """(1 | g) + (0 + x | g) with x far from zero: the same by two terms, x a covariate."""
    m = int(rng.integers(8, 40))
    codes = np.repeat(np.arange(m), rng.integers(2, 8, m))
    x = rng.standard_normal(len(codes))
    Z = _line(x + rng.uniform(-30.0, 30.0))
    sd = 10.0 ** rng.uniform(-0.5, 1.0, 2)
    y = _effects(rng, Term(_line(x), codes), sd) + x + rng.standard_normal(len(x))
    return {"y": y, "X": Z, "terms": (Term(Z[:, :1], codes), Term(Z[:, 1:], codes))}


def nested_slopes(rng: np.random.Generator) -> dict:
    """(t || school) + (t || pupil)."""
    schools, pupils, k = int(rng.integers(4, 10)), int(rng.integers(2, 6)), int(rng.integers(3, 6))
    pupil = np.repeat(np.arange(schools * pupils), k)
    school = pupil // pupils
    t = np.tile(np.arange(float(k)), schools * pupils)
    centred = _line(t - t.mean())
    y = _effects(rng, Term(centred, pupil), 10.0 ** rng.uniform(-0.5, 1.0, 2))
    y += _effects(rng, Term(centred, school), 10.0 ** rng.uniform(-0.5, 1.0, 2)) + rng.standard_normal(len(t))
    Z = _line(t + rng.uniform(0.0, 25.0))
    return {"y": y, "X": Z, "terms": (Term(Z, pupil, False, "pupil"), Term(Z, school, False, "school"))}


def _grouped(rng: np.random.Generator, m: int, q: int, largest: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes of m groups, and columns 1, time, normal covariates."""
    sizes = rng.integers(1, largest + 1, m)
    sizes[:3] = q + 3
    while sizes.sum() <= m * q + 5:
        sizes[rng.integers(m)] += 1
    codes = np.repeat(np.arange(m), sizes)
    n = len(codes)
    return codes, np.column_stack([np.ones(n), rng.uniform(0.0, 5.0, n), rng.standard_normal((n, 4))])


def eight_decades(rng: np.random.Generator) -> dict:
    """Weights from 1e-4 to 1e4, that the errors may or may not follow."""
    q = int(rng.integers(1, 4))
    codes, columns = _grouped(rng, int(rng.integers(6, 25)), q, 6)
    n = len(codes)
    weights = 10.0 ** rng.uniform(-4.0, 4.0, n)
    error = rng.standard_normal(n) / (np.sqrt(weights) if rng.random() < 0.5 else 1.0)
    p = int(rng.integers(1, 4))
    y = columns[:, :p].sum(axis=1) + error
    y += _effects(rng, Term(columns[:, :q], codes), 10.0 ** rng.uniform(-2.0, 1.0, q))
    return {"y": y, "X": columns[:, :p], "terms": (Term(columns[:, :q], codes),), "weights": weights}


def cauchy_errors(rng: np.random.Generator) -> dict:
    """Errors and effects with the tails of Cauchy's distribution (t with one degree of freedom)."""
    q = int(rng.integers(1, 4))
    codes, columns = _grouped(rng, int(rng.integers(6, 30)), q, 8)
    p = int(rng.integers(1, 4))
    y = columns[:, :p].sum(axis=1) + rng.standard_t(1.0, len(codes))
    b = rng.standard_t(1.0, (codes.max() + 1, q))
    y += np.sum(b[codes] * columns[:, :q], axis=1)
    return {"y": y, "X": columns[:, :p], "terms": (Term(columns[:, :q], codes),)}


def few_rows(rng: np.random.Generator) -> dict:
    """q up to 5 in 5 to 8 groups, n little above p: 54 rows for 24 fixed effects, as an example."""
    q, m = int(rng.integers(2, 6)), int(rng.integers(5, 9))
    n = m * q + int(rng.integers(8, 40))
    codes = np.sort(np.concatenate([np.repeat(np.arange(m), q), rng.integers(0, m, n - m * q)]))
    columns = np.column_stack([np.ones(n), rng.standard_normal((n, n))])
    p = int(rng.integers(q, max(q + 1, (n - q) * 6 // 10)))
    y = columns[:, :p] @ rng.standard_normal(p) + rng.standard_normal(n)
    y += _effects(rng, Term(columns[:, :q], codes), 10.0 ** rng.uniform(-1.0, 0.7, q))
    return {"y": y, "X": columns[:, :p], "terms": (Term(columns[:, :q], codes),)}


def small_weighted(rng: np.random.Generator) -> dict:
    """q = 2, 18 rows in 5 to 8 groups, weights over two decades."""
    m, n = int(rng.integers(5, 8)), 18
    codes = np.sort(np.concatenate([np.repeat(np.arange(m), 2), rng.integers(0, m, n - 2 * m)]))
    Z = _line(rng.standard_normal(n))
    weights = 10.0 ** rng.uniform(-1.0, 1.0, n)
    y = _effects(rng, Term(Z, codes), 10.0 ** rng.uniform(-1.0, 0.7, 2)) + rng.standard_normal(n) / np.sqrt(weights)
    return {"y": y, "X": Z, "terms": (Term(Z, codes),), "weights": weights}


def pharmacology(rng: np.random.Generator) -> dict:
    """Change of QT on concentration, time points and treatment, (1 + C | id): 48 ids, 12 time points, 574 rows.

    The concentration is zero for a quarter of the ids and hardly varies within the others, so that levels and slopes
    of the ids are told apart by how the ids differ.
    """
    ids, k = 48, 12
    codes, point = np.repeat(np.arange(ids), k), np.tile(np.arange(k), ids)
    keep = np.ones(ids * k, dtype=bool)
    keep[rng.choice(ids * k, 2, replace=False)] = False
    codes, point = codes[keep], point[keep]
    active = codes >= ids // 4
    level = 1.0 + rng.uniform(0.3, 1.2) * rng.standard_normal(ids)[codes]
    level *= 1.0 + 10.0 ** rng.uniform(-2.0, -0.5) * rng.standard_normal(len(codes))
    C = np.where(active, level, 0.0)
    points = (point[:, None] == np.arange(1, k)).astype(float)
    X = np.column_stack([C, points, ~active, active]).astype(float)
    first = rng.standard_normal(ids) * 10.0 ** rng.uniform(0.0, 0.8)
    slope = rng.standard_normal(ids) * 10.0 ** rng.uniform(-0.5, 0.8) - rng.choice([0.0, 0.5, 1.0]) * first
    y = 0.2 * C + rng.normal(0.0, 3.0, k)[point] + first[codes] + slope[codes] * C
    y += rng.normal(0.0, 3.0, len(codes)) * (1.0 + rng.choice([0.0, 1.0]) * rng.random(ids)[codes])
    return {"y": y, "X": X, "terms": (Term(_line(C), codes),)}


def several_terms(rng: np.random.Generator) -> dict:
    """Two to four terms, crossed or nested, intercepts or lines, correlated or not, in 30 to 80 rows."""
    n, count = int(rng.integers(30, 81)), int(rng.integers(2, 5))
    x = rng.standard_normal(n)
    line = _line(x)
    y = x + rng.standard_normal(n)
    terms = []
    for i in range(count):
        m = int(rng.integers(3, 9))
        codes = np.concatenate([np.arange(m), rng.integers(0, m, n - m)])
        rng.shuffle(codes)
        if terms and rng.random() < 0.3:
            codes = np.unique(terms[-1].codes * 100 + codes % 3, return_inverse=True)[1]
        if rng.random() < 0.3:
            terms.append(Term(_line(x + rng.uniform(-10.0, 10.0)), codes, bool(rng.random() < 0.5), f"f{i}"))
        else:
            terms.append(Term(line[:, :1], codes, True, f"f{i}"))
        y = y + _effects(rng, terms[-1], 10.0 ** rng.uniform(-1.0, 1.0, terms[-1].Z.shape[1]))
    return {"y": y, "X": line, "terms": tuple(terms)}


def identical_factors(rng: np.random.Generator) -> dict:
    """Two factors that differ in a few rows, and a third one perhaps."""
    n, m = int(rng.integers(40, 90)), int(rng.integers(6, 12))
    one = rng.integers(0, m, n)
    one[:m] = np.arange(m)
    other = one.copy()
    moved = rng.choice(np.arange(m, n), int(rng.integers(2, 6)), replace=False)
    other[moved] = rng.integers(0, m, len(moved))
    ones = np.ones((n, 1))
    terms = [Term(ones, one, True, "a"), Term(ones, other, True, "b")]
    if rng.random() < 0.5:
        third = rng.integers(0, 5, n)
        third[:5] = np.arange(5)
        terms.append(Term(ones, third, True, "c"))
    y = rng.standard_normal(n)
    for term in terms:
        y = y + _effects(rng, term, 10.0 ** rng.uniform(-1.0, 1.0, 1))
    return {"y": y, "X": np.column_stack([np.ones(n), rng.standard_normal(n)]), "terms": tuple(terms)}


def nearly_collinear(rng: np.random.Generator) -> dict:
    """X nearly collinear, columns in units from 1e-6 to 1e6, a response far from zero."""
    q = int(rng.integers(1, 4))
    codes, columns = _grouped(rng, int(rng.integers(6, 25)), q, 6)
    p = int(rng.integers(2, 5))
    X = np.column_stack([columns[:, :p], columns[:, p - 1] + 10.0 ** rng.uniform(-3.0, -1.0) * columns[:, p]])
    y = columns[:, :p].sum(axis=1) + _effects(rng, Term(columns[:, :q], codes), 10.0 ** rng.uniform(-1.0, 1.0, q))
    y = 10.0 ** rng.uniform(-6.0, 6.0) * (y + rng.standard_normal(len(y)) + 10.0 ** rng.uniform(0.0, 5.0))
    X = X * 10.0 ** rng.uniform(-6.0, 6.0, X.shape[1])
    Z = columns[:, :q] * 10.0 ** rng.uniform(-6.0, 6.0, q)
    return {"y": y, "X": X, "terms": (Term(Z, codes, bool(rng.random() < 0.7)),)}


def time_course(rng: np.random.Generator) -> dict:
    """Change of QT on concentration, time points and treatment, (1 + C | id): 48 ids, 12 time points, 574 rows.

    The concentration is zero for a quarter of the ids; in the others it decays from time point to time point, from
    levels that differ tenfold and more.  Errors are correlated along time, so that intercepts and slopes compete for
    them.
    """
    ids, k = 48, 12
    codes, point = np.repeat(np.arange(ids), k), np.tile(np.arange(k), ids)
    keep = np.ones(ids * k, dtype=bool)
    keep[rng.choice(ids * k, 2, replace=False)] = False
    active = codes >= ids // 4
    exposure = 1.8 * rng.standard_normal(ids)[codes] + 0.01 * rng.standard_normal(ids * k)
    C = np.where(active, np.exp(exposure - point / rng.uniform(2.0, 6.0)), 0.0)
    error = rng.standard_normal((ids, k))
    for j in range(1, k):
        error[:, j] = 0.9 * error[:, j - 1] + np.sqrt(0.19) * error[:, j]
    error *= 3.0 * np.exp(0.5 * rng.standard_normal((ids, 1)))
    y = 0.2 * C + rng.normal(0.0, 3.0, k)[point] + error.ravel()
    points = (point[:, None] == np.arange(1, k)).astype(float)
    X = np.column_stack([C, points, ~active, active]).astype(float)
    return {"y": y[keep], "X": X[keep], "terms": (Term(_line(C[keep]), codes[keep]),)}


def uneven_groups(rng: np.random.Generator) -> dict:
    """Four to fourteen groups for each effect, of different sizes and times; errors and effects normal or odd."""
    q = int(rng.integers(1, 4))
    m = int(rng.integers(4 * q, 14 * q))
    sizes = rng.integers(q, int(rng.integers(q + 3, 14)), m)
    sizes[:3] = q + 3
    codes = np.repeat(np.arange(m), sizes)
    n = len(codes)
    t = rng.uniform(-1.0, 1.0, n) if rng.random() < 0.7 else np.concatenate([np.arange(size) / 6.0 for size in sizes])
    Z = t[:, None] ** np.arange(q)
    if rng.random() < 0.3:
        Z = np.column_stack([np.ones(n), rng.standard_normal((n, q - 1))])
    X = np.column_stack([Z, rng.standard_normal((n, int(rng.choice([0, 0, 1, 2, 3]))))])
    draw = [
        rng.standard_normal,
        lambda size: rng.standard_t(3.0, size),
        lambda size: np.exp(rng.standard_normal(size)) - np.exp(0.5),
        lambda size: rng.standard_t(1.0, size),
    ][int(rng.integers(4))]
    weights = 10.0 ** rng.uniform(-1.0, 1.0, n) if rng.random() < 0.2 else None
    root = np.tril(rng.standard_normal((q, q))) * 10.0 ** rng.uniform(-1.5, 1.0, (q, 1))
    y = X.sum(axis=1) + np.sum((draw((m, q)) @ root.T)[codes] * Z, axis=1)
    y += draw(n) / np.sqrt(1.0 if weights is None or rng.random() < 0.3 else weights)
    return {"y": y, "X": X, "terms": (Term(Z, codes),), "weights": weights}


def varied_groups(rng: np.random.Generator) -> dict:
    """Six to fourteen groups for each effect, of times equal or not, drawn or resampled; errors normal or odd."""
    q = int(rng.choice([1, 2, 2, 2, 3]))
    m = int(rng.integers(6 * q, 14 * q))
    rows = int(rng.integers(2 * q + 1, 12))
    sizes = [
        rows - rng.binomial(2, 0.3, m),
        np.append(np.full(3, q + 3), rng.integers(q, int(rng.integers(q + 3, 14)), m - 3)),
        np.full(m, rows),
        rng.integers(2 * q, 30, m),
    ][int(rng.integers(4))]
    codes = np.repeat(np.arange(m), sizes)
    n = len(codes)
    kind = int(rng.integers(3))
    if kind == 0:
        t = rng.uniform(-1.0, 1.0, n)
    elif kind == 1:
        t = np.concatenate([np.arange(size) / 6.0 for size in sizes])
    else:
        begin, length = rng.uniform(-3.0, 3.0, m) * rng.choice([0.0, 0.3, 1.0], m), 10.0 ** rng.uniform(-1.0, 0.0, m)
        t = begin[codes] + rng.uniform(-1.0, 1.0, n) * length[codes]
    Z = t[:, None] ** np.arange(q)
    if rng.random() < 0.3:
        Z = np.column_stack([np.ones(n), rng.standard_normal((n, q - 1))])
    X = np.column_stack([Z, rng.standard_normal((n, int(rng.choice([0, 0, 1, 2, 3]))))])
    draws: list[Callable] = [
        rng.standard_normal,
        lambda size: rng.standard_t(3.0, size),
        lambda size: np.exp(rng.standard_normal(size)) - np.exp(0.5),
        lambda size: rng.standard_t(1.0, size),
        lambda size: 3.0 * (rng.random(size) < 0.15) * rng.standard_normal(size),
    ]
    effect, error = draws[int(rng.integers(5))], draws[int(rng.integers(4))]
    weights = 10.0 ** rng.uniform(-1.0, 1.0, n) if rng.random() < 0.2 else None
    root = np.tril(rng.standard_normal((q, q))) * 10.0 ** rng.uniform(-1.5, 1.0, (q, 1))
    y = X.sum(axis=1) + np.sum((effect((m, q)) @ root.T)[codes] * Z, axis=1)
    y += error(n) / np.sqrt(1.0 if weights is None or rng.random() < 0.3 else weights)
    if rng.random() < 0.3:
        picked = rng.integers(0, m, m)
        rows = np.concatenate([np.flatnonzero(codes == g) for g in picked])
        codes = np.repeat(np.arange(m), sizes[picked])
        y, X, Z, weights = y[rows], X[rows], Z[rows], None if weights is None else weights[rows]
    return {"y": y, "X": X, "terms": (Term(Z, codes),), "weights": weights}


FAMILIES: dict[str, Callable[[np.random.Generator], dict]] = {
    f.__name__: f
    for f in (
        distant_origin, shifted_slope, nested_slopes, eight_decades, cauchy_errors, few_rows, small_weighted,
        pharmacology, several_terms, identical_factors, nearly_collinear, time_course, uneven_groups,
        varied_groups,
    )
}  # fmt: skip


def problem(family: str, seed: int) -> Problem:
    """Problem number `seed` of a family; two of three are REML."""
    rng = np.random.default_rng([20261, sorted(FAMILIES).index(family), seed])
    return Problem(family, seed, seed % 3 != 0, **FAMILIES[family](rng))


# ---------------------------------------------------------------------------------------------------------- criterion


class Dense:
    """The profiled criterion of a problem and its gradient in theta, from the inverse of V.

    Rows that share no level with others are kept apart; all parts are padded with rows of zeros to one size s, which
    change nothing.  theta holds the lower triangle (independent effects: the diagonal) of each Lambda_t, row by row.
    """

    def __init__(self, problem: Problem) -> None:
        n, p = problem.X.shape
        root = np.ones(n) if problem.weights is None else np.sqrt(problem.weights)
        size = np.sqrt(np.mean((problem.X * root[:, None]) ** 2, axis=0))
        x, r_x = np.linalg.qr(problem.X * root[:, None] / size)
        y = problem.y * root
        for _ in range(2):
            y = y - x @ (x.T @ y)
        scale = np.sqrt(np.mean(y**2))
        self.n, self.p, self.reml = n, p, problem.reml
        self.nu = n - p if problem.reml else n
        self.shift = 2.0 * self.nu * np.log(scale) - 2.0 * np.sum(np.log(root))
        if problem.reml:
            self.shift += 2.0 * np.sum(np.log(np.abs(np.diag(r_x)) * size))
        part, place = _parts([term.codes for term in problem.terms])
        count, s = part.max() + 1, place.max() + 1
        self.xy = np.zeros((count, s, p + 1))
        self.xy[part, place] = np.column_stack([x, y / scale])
        self.wide, self.maps, self.positions = [], [], []
        for term in problem.terms:
            z = term.Z * root[:, None]
            r_z = np.linalg.qr(z, mode="r") / np.sqrt(n) if term.full else np.diag(np.sqrt(np.mean(z**2, axis=0)))
            within = np.zeros(n, dtype=int)
            for c in range(count):
                within[part == c] = np.unique(term.codes[part == c], return_inverse=True)[1]
            wide = np.zeros((count, s, within.max() + 1, z.shape[1]))
            wide[part, place, within] = np.linalg.solve(r_z.T, z.T).T
            self.wide.append(wide)
            self.maps.append(r_z)
            q = z.shape[1]
            self.positions.append(np.tril_indices(q) if term.full else (np.arange(q), np.arange(q)))
        self.cuts = np.cumsum([len(rows) for rows, _ in self.positions])
        self.unit = [np.sqrt((term.codes.max() + 1) / n) for term in problem.terms]

    def factors(self, theta: np.ndarray) -> list[np.ndarray]:
        """The Lambda_t."""
        out = []
        for positions, values, wide in zip(self.positions, np.split(theta, self.cuts[:-1]), self.wide, strict=True):
            factor = np.zeros((wide.shape[3],) * 2)
            factor[positions] = values
            out.append(factor)
        return out

    def theta_of(self, relative: list[np.ndarray]) -> np.ndarray:
        """Theta from the G_t / sigma^2 in the caller's units."""
        out = []
        for G, r_z, positions in zip(relative, self.maps, self.positions, strict=True):
            inner = r_z @ G @ r_z.T
            values, vectors = np.linalg.eigh((inner + inner.T) / 2.0)
            root = np.linalg.qr((vectors * np.sqrt(np.maximum(values, 0.0))).T, mode="r").T
            root = root if len(positions[0]) > len(G) or len(G) == 1 else np.diag(np.sqrt(np.diag(inner)))
            out.append(root[positions])
        return np.concatenate(out)

    def value(self, theta: np.ndarray) -> float:
        """The criterion less `shift`, by Cholesky factors of V and a QR decomposition of the whitened rows."""
        u = self._columns(self.factors(theta))
        lower = np.linalg.cholesky(np.eye(u.shape[1]) + u @ u.transpose(0, 2, 1))
        white = np.linalg.solve(lower, self.xy).reshape(-1, self.p + 1)
        diagonal = np.abs(np.diag(np.linalg.qr(white, mode="r")))
        out = 2.0 * np.sum(np.log(np.diagonal(lower, axis1=1, axis2=2)))
        out += self.nu * (1.0 + np.log(2.0 * np.pi * diagonal[-1] ** 2 / self.nu))
        return float(out + (2.0 * np.sum(np.log(diagonal[:-1])) if self.reml else 0.0))

    def _columns(self, factors: list[np.ndarray]) -> np.ndarray:
        parts = [wide @ factor for wide, factor in zip(self.wide, factors, strict=True)]
        return np.concatenate([part.reshape(*part.shape[:2], -1) for part in parts], axis=2)

    def with_gradient(self, theta: np.ndarray) -> tuple[float, np.ndarray]:
        """The criterion less `shift` and its gradient; huge where it cannot be evaluated."""
        factors = self.factors(theta)
        u = self._columns(factors)
        v = np.eye(u.shape[1]) + u @ u.transpose(0, 2, 1)
        try:
            w = np.linalg.inv(v)
            _, logdet = np.linalg.slogdet(v)
            e = w @ self.xy
            h = np.einsum("csi,csj->ij", self.xy, e)
            k = np.linalg.inv(h[:-1, :-1])
            beta = k @ h[:-1, -1]
            r2 = h[-1, -1] - h[:-1, -1] @ beta
            _, log_h = np.linalg.slogdet(h[:-1, :-1])
        except np.linalg.LinAlgError:
            return 1e12, np.zeros_like(theta)
        if not (np.isfinite(r2) and r2 > 0.0 and np.isfinite(logdet).all()):
            return 1e12, np.zeros_like(theta)
        value = np.sum(logdet) + self.nu * (1.0 + np.log(2.0 * np.pi * r2 / self.nu)) + (log_h if self.reml else 0.0)
        rest = e[..., -1] - e[..., :-1] @ beta
        slope = w - self.nu / r2 * rest[:, :, None] * rest[:, None, :]
        if self.reml:
            slope -= e[..., :-1] @ k @ e[..., :-1].transpose(0, 2, 1)
        gradient = []
        for wide, factor, positions in zip(self.wide, factors, self.positions, strict=True):
            columns = (wide @ factor).reshape(*wide.shape[:2], -1)
            turned = (slope @ columns).reshape(*wide.shape)
            gradient.append(2.0 * np.tensordot(wide, turned, axes=((0, 1, 2), (0, 1, 2)))[positions])
        return float(value), np.concatenate(gradient)


def _parts(codes: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The part of each row, rows of one part sharing levels directly or through others; its place in it."""
    n = len(codes[0])
    levels = [np.unique(c, return_inverse=True)[1] + i * n for i, c in enumerate(codes)]
    ends = np.concatenate([np.column_stack([np.arange(n), level]) for level in levels])
    _, dense = np.unique(ends[:, 1], return_inverse=True)
    size = n + dense.max() + 1
    graph = coo_array((np.ones(len(ends)), (ends[:, 0], n + dense)), shape=(size, size))
    part = np.unique(connected_components(graph, directed=False)[1][:n], return_inverse=True)[1]
    place = np.zeros(n, dtype=int)
    for c in range(part.max() + 1):
        place[part == c] = np.arange(np.sum(part == c))
    return part, place


# ------------------------------------------------------------------------------------------------------------- search


def _start(dense: Dense, rng: np.random.Generator) -> np.ndarray:
    """Theta of random principal standard deviations, over 4.5 decades, and axes."""
    out = []
    for unit, positions, wide in zip(dense.unit, dense.positions, dense.wide, strict=True):
        q = wide.shape[3]
        sizes = unit * 10.0 ** rng.uniform(-1.0, 3.5, q)
        if len(positions[0]) == q:
            out.append(sizes)
        else:
            axes = np.linalg.qr(rng.standard_normal((q, q)))[0]
            out.append(np.linalg.qr((axes * sizes).T, mode="r").T[positions])
    return np.concatenate(out)


def search(problem: Problem, points: int = 200, descents: int = 20, seed: int = 0) -> float:
    """The lowest criterion, in the caller's units, found from the best of many random points and some others."""
    dense = Dense(problem)
    rng = np.random.default_rng([7, seed, problem.seed])
    starts = [_start(dense, rng) for _ in range(points)]
    heights = [dense.with_gradient(start)[0] for start in starts]
    order = np.argsort(heights)
    chosen = [*order[: descents // 2], *order[descents // 2 :: max(1, points // (descents - descents // 2))]]
    best = dense.value(np.zeros(dense.cuts[-1]))
    options = {"maxiter": 300, "ftol": 1e-13, "gtol": 1e-8}
    for i in chosen:
        found = minimize(dense.with_gradient, starts[i], jac=True, method="L-BFGS-B", options=options)
        if found.fun < best + 1e-3:
            best = min(best, dense.value(found.x))
    return best + dense.shift


# ------------------------------------------------------------------------------------------------------------- record

RECORD = Path(__file__).parent / "reference" / "landscapes.json"
SEARCHED: dict[str, float] = {}
"""What `lowest` had to search for in this process."""


def digest(problem: Problem) -> str:
    """Of the numbers of a problem, to ten digits: exponentials of other CPUs differ in the last ones."""
    text = [str(problem.reml)]
    for array in (
        problem.y,
        problem.X,
        problem.weights,
        *(part for term in problem.terms for part in (term.Z, term.codes)),
    ):
        text.append("none" if array is None else " ".join(f"{value:.10e}" for value in np.ravel(array)))
    text += [str(term.full) for term in problem.terms]
    return hashlib.sha256("\n".join(text).encode()).hexdigest()[:20]


@cache
def recorded() -> dict[str, float]:
    return json.loads(RECORD.read_text())


def lowest(problem: Problem) -> float:
    """The lowest criterion of a problem, as recorded for its numbers, else by `search`."""
    key = digest(problem)
    if key in recorded():
        return recorded()[key]
    if key not in SEARCHED:
        SEARCHED[key] = search(problem)
    return SEARCHED[key]


def record() -> None:
    """Add what was searched for to the record."""
    values = json.loads(RECORD.read_text()) | SEARCHED
    RECORD.write_text(json.dumps(dict(sorted(values.items())), indent=0) + "\n")
