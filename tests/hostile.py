"""Random hostile mixed-model problems, and a search for the best criterion that owes nothing to the library.

`problem(seed)` draws one of `COUNT` problems; `best_criterion(problem)` searches for the minimum of its profiled
criterion with scipy's general optimisers from many starts. Only numpy and scipy are used.

The search can be trusted on hostile data because it never sees them: in extended precision, X becomes an orthogonal
matrix, y its standardised least-squares residual, and Z = Z_o T with Z_oᵀZ_o = n I. With Λ the factor of G_o/σ²,

    d = Σ log|V_i| + ν (1 + log(2π r²/ν)) [+ log|XᵀV⁻¹X| for REML],   V_i = I + Z_i ΛΛᵀ Z_iᵀ,   ν = n [- p for REML],

and the criterion in the caller's units differs by a known constant. The search uses the Woodbury form (small matrices,
all groups at once); its best points are evaluated again through a dense Cholesky factor of every V_i and a QR
decomposition of the whitened rows, where nothing cancels, and the best of all is polished there.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.optimize import minimize

COUNT = 300

KINDS = (
    "tiny groups",
    "singular covariance",
    "extreme units",
    "far time origin",
    "collinear columns",
    "heavy tails",
    "huge offset",
    "dominant random effects",
    "few groups",
    "everything",
)

METHODS = {
    "L-BFGS-B": {"ftol": 1e-14, "gtol": 1e-9, "maxiter": 500},
    "BFGS": {"gtol": 1e-9, "maxiter": 500},
    "Nelder-Mead": {"xatol": 1e-7, "fatol": 1e-11, "maxiter": 3000, "maxfev": 3000, "adaptive": True},
    "Powell": {"xtol": 1e-7, "ftol": 1e-14, "maxiter": 200, "maxfev": 3000},
}

_OUTSIDE = 1e12  # what the search sees where the criterion cannot be evaluated


# -------------------------------------------------------------------------------------------------------- problems


@dataclass(frozen=True)
class Problem:
    """One data set, rows in random order: y (n,), X (n, p), Z (n, q), groups (n,) arbitrary integer labels."""

    seed: int
    kind: str
    reml: bool
    y: np.ndarray
    X: np.ndarray
    Z: np.ndarray
    groups: np.ndarray

    @property
    def name(self) -> str:
        return f"{self.seed:03d} {self.kind}"


def problem(seed: int) -> Problem:
    """Problem number `seed`; the kinds alternate, two of three are REML."""
    kind = KINDS[seed % len(KINDS)]
    everything = kind == "everything"
    rng = np.random.default_rng([20260, seed])
    q = int(rng.integers(1, 4))

    # Group sizes. Three groups always have more rows than random effects, and there are more rows than random effects
    # over all groups: σ² is told apart from G.
    n_groups = int(rng.integers(4, 6)) if kind == "few groups" else int(rng.integers(8, 41))
    largest = 3 if kind == "tiny groups" or everything else 8
    sizes = rng.integers(1, largest + 1, n_groups)
    sizes[:3] = q + 3
    while sizes.sum() <= n_groups * q + 5:
        sizes[rng.integers(n_groups)] += 1
    codes = np.repeat(np.arange(n_groups), sizes)
    n = codes.size

    # Columns: 1, time, covariate w (random as well if q = 3), one covariate that varies between groups only.
    t = rng.uniform(0.0, 5.0, n) if rng.random() < 0.5 else rng.integers(0, 6, n).astype(float)
    w = rng.standard_normal(n)
    between = rng.standard_normal(n_groups)[codes]
    design = np.column_stack([np.ones(n), t, w, between])
    p = int(rng.integers(1, 5))

    # Covariance relative to σ = 1.
    sd = np.exp(rng.normal(0.0, 1.0, q))
    if kind == "dominant random effects" or (everything and rng.random() < 0.3):
        sd *= 10.0 ** rng.uniform(1.0, 3.0)
    factor = np.tril(rng.normal(size=(q, q)))
    factor *= (sd / np.linalg.norm(factor, axis=1))[:, None]
    if kind == "singular covariance" or (everything and rng.random() < 0.5):
        rank = int(rng.integers(0, q))
        factor[:, rank:] = 0.0
    heavy = kind == "heavy tails" or (everything and rng.random() < 0.3)

    def noise(shape: int | tuple[int, ...]) -> np.ndarray:
        return rng.standard_t(1.5, shape) if heavy else rng.standard_normal(shape)

    random_part = np.sum((noise((n_groups, q)) @ factor.T)[codes] * design[:, :q], axis=1)
    y = design[:, :p] @ rng.normal(0.0, 2.0, p) + random_part + noise(n)

    # The hostilities: none changes the statistical problem, all change its numbers.
    x = design[:, :p].copy()
    z = design[:, :q].copy()
    if kind == "collinear columns" or (everything and rng.random() < 0.5):
        near = 10.0 ** (rng.uniform(-3.0, -1.0) if everything else rng.uniform(-5.0, -2.0))
        x = np.column_stack([x, x[:, -1] + near * rng.standard_normal(n)])
    if kind == "far time origin" or everything:
        origin = rng.choice([-1.0, 1.0]) * 10.0 ** (rng.uniform(2.0, 4.0) if everything else rng.uniform(2.0, 6.0))
        for columns in (x, z):
            if columns.shape[1] > 1:
                columns[:, 1] += origin
    if kind == "huge offset" or everything:
        y = y + rng.choice([-1.0, 1.0]) * 10.0 ** (rng.uniform(3.0, 6.0) if everything else rng.uniform(4.0, 10.0))
    if kind == "extreme units" or everything:
        y = y * 10.0 ** rng.uniform(-6.0, 6.0)
        x = x * 10.0 ** rng.uniform(-6.0, 6.0, x.shape[1])
        z = z * 10.0 ** rng.uniform(-6.0, 6.0, z.shape[1])

    order = rng.permutation(n)
    labels = rng.permutation(10 * n_groups)[:n_groups] - 5 * n_groups
    return Problem(seed, kind, seed % 3 != 0, y[order], x[order], z[order], labels[codes][order])


# ------------------------------------------------------------------------------------------------------ conditioning


def _orthonormalise(columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Q and upper R with columns = Q R: Gram-Schmidt, twice, in the widest floating type of the platform."""
    k = columns.shape[1]
    q = columns.astype(np.longdouble)
    r = np.eye(k, dtype=np.longdouble)
    for _ in range(2):
        step = np.zeros((k, k), dtype=np.longdouble)
        for j in range(k):
            for i in range(j):
                step[i, j] = np.sum(q[:, i] * q[:, j])
                q[:, j] -= step[i, j] * q[:, i]
            step[j, j] = np.sqrt(np.sum(q[:, j] ** 2))
            q[:, j] /= step[j, j]
        r = step @ r
    return q, r


@dataclass(frozen=True)
class Conditioned:
    """The well-scaled twin of a problem; criterion(caller's units) = criterion(here) + shift."""

    y: np.ndarray
    x: np.ndarray
    z: np.ndarray
    codes: np.ndarray
    reml: bool
    shift: float
    z_transform: np.ndarray

    @classmethod
    def of(cls, problem: Problem) -> Conditioned:
        n, p = problem.X.shape
        x, r_x = _orthonormalise(problem.X)
        z, r_z = _orthonormalise(problem.Z)
        root_n = np.sqrt(np.longdouble(n))
        y = problem.y.astype(np.longdouble)
        for _ in range(2):
            y = y - x @ (x.T @ y)
        scale = np.sqrt(np.sum(y**2) / n)
        nu = n - p if problem.reml else n
        shift = 2 * nu * np.log(scale)
        if problem.reml:
            shift += 2 * np.sum(np.log(np.diag(r_x)))
        return cls(
            y=(y / scale).astype(float),
            x=x.astype(float),
            z=(z * root_n).astype(float),
            codes=np.unique(problem.groups, return_inverse=True)[1],
            reml=problem.reml,
            shift=float(shift),
            z_transform=(r_z / root_n).astype(float),
        )

    @cached_property
    def cross_products(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        columns = np.column_stack([self.x, self.y])
        groups = self.codes.max() + 1
        a = np.zeros((groups, self.z.shape[1], self.z.shape[1]))
        c = np.zeros((groups, self.z.shape[1], columns.shape[1]))
        np.add.at(a, self.codes, self.z[:, :, None] * self.z[:, None, :])
        np.add.at(c, self.codes, self.z[:, :, None] * columns[:, None, :])
        return a, c, columns.T @ columns

    @property
    def size(self) -> int:
        """Number of elements of theta: the lower triangle of Λ, row by row."""
        q = self.z.shape[1]
        return q * (q + 1) // 2

    @cached_property
    def unit(self) -> np.ndarray:
        """I (q, q)."""
        return np.eye(self.z.shape[1])

    @cached_property
    def triangle(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the elements of theta stand in Λ."""
        return np.tril_indices(self.z.shape[1])

    @cached_property
    def groups(self) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Of each group, its rows, and Z and [X y] of them."""
        xy = np.column_stack([self.x, self.y])
        rows = [np.flatnonzero(self.codes == g) for g in range(self.codes.max() + 1)]
        return [(at, self.z[at], xy[at]) for at in rows]

    def factor(self, theta: np.ndarray) -> np.ndarray:
        factor = np.zeros_like(self.unit)
        factor[self.triangle] = theta
        return factor

    def theta_of(self, relative_covariance: np.ndarray) -> np.ndarray:
        """theta from G/σ² in the caller's units (approximate where the transformation cancels)."""
        inner = self.z_transform @ relative_covariance @ self.z_transform.T
        values, vectors = np.linalg.eigh((inner + inner.T) / 2)
        root = np.linalg.qr((vectors * np.sqrt(np.maximum(values, 0.0))).T, mode="r").T
        return root[np.tril_indices(root.shape[0])]

    def _combine(self, logdet_v: float, root: np.ndarray) -> float:
        """The criterion from Σ log|V_i| and the triangular factor of [X y]ᵀV⁻¹[X y]."""
        p = self.x.shape[1]
        diagonal = np.abs(np.diag(root))
        nu = self.y.size - (p if self.reml else 0)
        value = logdet_v + nu * (1.0 + np.log(2.0 * np.pi * diagonal[-1] ** 2 / nu))
        if self.reml:
            value += 2.0 * np.sum(np.log(diagonal[:-1]))
        return float(value)

    def woodbury(self, theta: np.ndarray) -> float:
        """The criterion from cross-products: fast, loses digits where the random effects explain nearly everything."""
        a, c, s = self.cross_products
        factor = self.factor(theta)
        try:
            lower = np.linalg.cholesky(self.unit + factor.T @ a @ factor)
            u = np.linalg.solve(lower, factor.T @ c).reshape(-1, s.shape[0])
            root = np.linalg.cholesky(s - u.T @ u)
        except np.linalg.LinAlgError:
            return _OUTSIDE
        value = self._combine(2.0 * float(np.sum(np.log(np.diagonal(lower, axis1=1, axis2=2)))), root)
        return value if np.isfinite(value) else _OUTSIDE

    def dense(self, theta: np.ndarray) -> float:
        """The criterion from a Cholesky factor of every V_i: slow, accurate."""
        factor = self.factor(theta)
        logdet_v = 0.0
        whitened = np.empty((self.y.size, self.x.shape[1] + 1))
        for rows, z, xy in self.groups:
            half = z @ factor
            try:
                lower = np.linalg.cholesky(np.eye(half.shape[0]) + half @ half.T)
            except np.linalg.LinAlgError:
                return _OUTSIDE
            logdet_v += 2.0 * float(np.sum(np.log(np.diag(lower))))
            whitened[rows] = np.linalg.solve(lower, xy)
        return self._combine(logdet_v, np.linalg.qr(whitened, mode="r"))

    def exact(self, theta: np.ndarray) -> float:
        """The same in the widest floating type: the search above picks what rounding flatters most."""
        wide = np.longdouble
        factor = self.factor(theta).astype(wide)
        k = self.x.shape[1] + 1
        total = np.zeros((k, k), dtype=wide)
        logdet = wide(0.0)
        for _, z, xy in self.groups:
            half = z.astype(wide) @ factor
            lower = _cholesky(np.eye(len(half), dtype=wide) + half @ half.T)
            logdet += 2.0 * np.sum(np.log(np.diag(lower)))
            white = xy.astype(wide)
            for i in range(len(white)):
                white[i] = (white[i] - lower[i, :i] @ white[:i]) / lower[i, i]
            total += white.T @ white
        return self._combine(float(logdet), _cholesky(total).T.astype(float))


def _cholesky(matrix: np.ndarray) -> np.ndarray:
    """Lower Cholesky factor in the type of the matrix (LAPACK has no wider one than double)."""
    lower = np.zeros_like(matrix)
    for j in range(len(matrix)):
        lower[j, j] = np.sqrt(matrix[j, j] - lower[j, :j] @ lower[j, :j])
        for i in range(j + 1, len(matrix)):
            lower[i, j] = (matrix[i, j] - lower[i, :j] @ lower[j, :j]) / lower[j, j]
    return lower


# ------------------------------------------------------------------------------------------------------------ search


def _starts(conditioned: Conditioned, number: int, seed: int) -> list[np.ndarray]:
    """Diagonal starts of several sizes first, then random lower triangles."""
    rng = np.random.default_rng([7, seed])
    q = conditioned.z.shape[1]
    lower = np.tril_indices(q)
    starts = [scale * np.eye(q)[lower] for scale in (1.0, 0.1, 10.0, 0.01, 0.3)]
    while len(starts) < number:
        starts.append(rng.standard_normal(lower[0].size) * 10.0 ** rng.uniform(-1.5, 1.5))
    return starts[:number]


def _minimise(
    conditioned: Conditioned, start: np.ndarray, method: str, dense: bool = False
) -> tuple[float, np.ndarray]:
    criterion = conditioned.dense if dense else conditioned.woodbury
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        found = minimize(criterion, start, method=method, options=METHODS[method])
    return float(found.fun), np.asarray(found.x)


def best_criterion(
    problem: Problem,
    starts: int = 10,
    relative_covariance: np.ndarray | None = None,
    conditioned: Conditioned | None = None,
) -> float:
    """The lowest criterion that any method finds from any start, in the caller's units.

    `relative_covariance` (G/σ² of a fit under test) adds one more start, so that a criterion reported below the best of
    the search is recognised as a better optimum when it is one.
    """
    conditioned = Conditioned.of(problem)
    candidates = []
    points = _starts(conditioned, starts, problem.seed)
    if relative_covariance is not None:
        points.append(conditioned.theta_of(relative_covariance))
        candidates.append((conditioned.woodbury(points[-1]), points[-1]))
    for point in points:
        candidates += [_minimise(conditioned, point, method) for method in METHODS]
    candidates.append((conditioned.woodbury(np.zeros(conditioned.size)), np.zeros(conditioned.size)))
    candidates.sort(key=lambda candidate: candidate[0])
    finalists = [point for _, point in candidates[:5]]
    point = min(finalists, key=conditioned.dense)
    finalists.append(_minimise(conditioned, point, "Nelder-Mead", dense=True)[1])
    return min(map(conditioned.exact, finalists)) + conditioned.shift
