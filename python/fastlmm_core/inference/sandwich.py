"""Robust (sandwich) covariances of the fixed effects, and the t and F tests that go with them.

Clusters i are independent of each other, whatever the covariance V_i within them is modelled to be.  In coordinates in
which the coefficients are uncorrelated (see `estimation.information`) and the rows are whitened, V_i = L_i L_i',

    U_i = L_i^-1 X_i Phi^(1/2),  sum U_i'U_i = I,      e_i = L_i^-1 (y_i - X_i beta),      H_ii = U_i U_i',

the covariance of the coefficients is estimated by sum U_i'A_i e_i e_i'A_i U_i with

    CR0   A_i = I                    Liang and Zeger (1986, Biometrika 73, 13-22)
    CR1   A_i = (m / (m - 1))^(1/2)  for m clusters
    CR2   A_i = (I - H_ii)^(-1/2)    Bell and McCaffrey (2002, Surv. Methodol. 28, 169-181), Kauermann and Carroll
                                     (2001, JASA 96, 1387-1396): unbiased where V_i is right
    CR3   A_i = (I - H_ii)^-1        close to the jackknife, here without the factor (m - 1) / m

and Moore and Penrose's inverse where a coefficient is known from one cluster alone.  Any root L_i gives the same.
H_ii is replaced by its eigenvalues h and the rows F_i = W_i'U_i of its eigenvectors W_i, found from the smaller of
U_i U_i' and U_i'U_i = X_i'V_i^-1 X_i in these coordinates: a large cluster costs a problem of the size of X.

With the variance of l'beta estimated by sum (w_i'z)^2, where z is standard normal if the model is right, and

    a_i = A_i U_i l,   b_i = U_i'a_i,   w_i'w_j = (i = j) a_i'a_j - b_i'b_j,

Satterthwaite's degrees of freedom 2 E^2 / Var are (sum a'a - sum b'b)^2 / (sum (a'a)^2 - 2 sum a'a b'b + |sum b b'|^2).
Several rows are tested by Hotelling's T^2 with the degrees of freedom eta of the Wishart distribution that has the
total variance of the estimated covariance (Pustejovsky and Tipton 2018, J. Bus. Econ. Stat. 36, 672-683: HTZ).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..design.independence import cluster_labels, of_equal_size
from ..engines.rows import conditioned_rows
from ..errors import LMMError
from ..estimation.refinement import solved
from ..estimation.whitening import rows_covariance
from ..support.blas_threads import quiet_product
from ..support.types import Array, Index
from ..tables.columns import Column
from .options import check_vcov

if TYPE_CHECKING:
    from ..estimation.fit import Fit

__all__ = ["Sandwich", "sandwich"]


ALONE = 1e-10
"""1 - h below which a direction is known from one cluster alone, and its residual is zero."""

LOST = 0.1
"""Share of a variance that comes from what single clusters know alone, above which it is not estimated.

The residuals of these clusters are zero along such directions, so that the estimate would be too small by that share.
"""

SINGULAR = 1e-10
"""Smallest eigenvalue of the estimated covariance of rows, relative to the largest, that is not taken for zero."""

ROUNDING = 1e-11
"""Error of X'V^-1 X in coordinates in which it is the identity, from which V^-1 X is improved."""

FORMED = 32
"""Rows of a cluster whose covariance matrix is formed in any case."""

HELD = 1 << 20
"""Numbers in the arrays over clusters that are taken together."""


class _Piece(NamedTuple):
    """Some clusters of one size.

    Attributes
    ----------
    rows : (c, d, r) array
        F_i, whose rows are orthogonal with squares h_i; d is the smaller of the cluster's rows and r.
    leverage : (c, d) array
        h_i.
    rest : (c, d) array
        e_i along the same directions.
    """

    rows: Array
    leverage: Array
    rest: Array

    @property
    def alone(self) -> Array:
        """The rows (k, r) of directions that a cluster knows alone, those of all clusters together."""
        return self.rows[1.0 - self.leverage <= ALONE]


@dataclass(frozen=True, eq=False, repr=False)
class Sandwich:
    """A robust covariance of the fixed effects, in whitened coordinates and relative to sigma^2.

    Attributes
    ----------
    kind : {"CR0", "CR1", "CR2", "CR3"}
    cluster : str
        What the clusters are.
    n_clusters : int
    half : (r, r) array
        L_xx^-1: coefficients are x_map half' times whitened ones.
    inner : (r, r) array
        Their covariance; the identity is that of the model.
    """

    kind: str
    cluster: str
    n_clusters: int
    half: Array
    inner: Array
    _pieces: tuple[_Piece, ...] = field(repr=False)

    @property
    def clusters(self) -> str:
        """How many clusters there are, and what they are."""
        return f"{self.n_clusters} clusters ({self.cluster})"

    def moments(self, rows: Array) -> tuple[Array, Array]:
        """Variances of single rows, whitened (k, r), relative to sigma^2, and Satterthwaite's degrees of freedom.

        NaN where the clusters do not tell them.
        """
        k, r = rows.shape
        step = max(1, HELD // (max(r, 1) * max([r, *(len(piece.rest) for piece in self._pieces)])))
        if k <= step:
            return self._moments(rows)
        parts = [self._moments(rows[begin : begin + step]) for begin in range(0, k, step)]
        variance, df = (np.concatenate(found) for found in zip(*parts, strict=True))
        return variance, df

    def _moments(self, rows: Array) -> tuple[Array, Array]:
        """`moments` of so many rows that arrays over clusters, rows and coefficients are of a modest size."""
        k, r = rows.shape
        mean, square, lost, products = np.zeros(k), np.zeros(k), np.zeros(k), np.zeros((k, r, r))
        for piece in self._pieces:
            a, b = self._directions(piece, rows)
            own, other = (a * a).sum(axis=1), (b * b).sum(axis=1)
            mean += (own - other).sum(axis=0)
            square += (own * (own - 2.0 * other)).sum(axis=0)
            alone = piece.alone @ rows.T
            lost += (alone * alone).sum(axis=0)
            turned = b.transpose(2, 1, 0)
            products += turned @ turned.transpose(0, 2, 1)
        square += (products * products).sum(axis=(1, 2))
        known = lost <= LOST * (rows * rows).sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            variance = np.where(known, ((rows @ self.inner) * rows).sum(axis=1), np.nan)
            return variance, np.where(known, mean * mean / square, np.nan)

    def joint_df(self, rows: Array) -> float:
        """Degrees of freedom eta of the Wishart distribution for orthonormal whitened rows (k, r).

        Hotelling's T^2 times (eta - k + 1) / (eta k) is then taken for F with k and eta - k + 1 degrees of freedom.
        NaN where the clusters do not tell the covariance of the rows.
        """
        k, r = rows.shape
        expected, lost = np.zeros((k, k)), np.zeros((k, k))
        for piece in self._pieces:
            a, b = self._directions(piece, rows)
            expected += np.einsum("cds,cdt->st", a, a) - np.einsum("crs,crt->st", b, b)
            alone = piece.alone @ rows.T
            lost += alone.T @ alone
        values, vectors = np.linalg.eigh(expected)
        if np.linalg.eigvalsh(lost)[-1] > LOST or not values[0] > SINGULAR * values[-1]:
            return float("nan")
        rows = (vectors / np.sqrt(values)).T @ rows
        total = 0.0
        products = np.zeros((k, k, r, r)) if k * k * r * r <= HELD else None
        for piece in self._pieces:
            a, b = self._directions(piece, rows)
            own, other = a.transpose(0, 2, 1) @ a, b.transpose(0, 2, 1) @ b
            trace = np.trace(own, axis1=1, axis2=2)
            total += float((trace * (trace - 2.0 * np.trace(other, axis1=1, axis2=2))).sum())
            total += float((own * (own - 2.0 * other)).sum())
            if products is not None:
                products += np.einsum("cis,cjt->stij", b, b, optimize=True)
        if products is not None:
            return float(k * (k + 1) / (total + _double_sum(products)))
        for s in range(k):
            line = np.zeros((k, r, r))
            for piece in self._pieces:
                b = self._directions(piece, rows)[1]
                line += np.einsum("ci,cjt->tij", b[:, :, s], b, optimize=True)
            total += _double_sum(line)
        return float(k * (k + 1) / total)

    def _directions(self, piece: _Piece, rows: Array) -> tuple[Array, Array]:
        """a_i (c, d, k) along the eigenvectors of H_ii, and b_i (c, r, k)."""
        a = (piece.rows @ rows.T) * _adjustment(self.kind, piece.leverage, self.n_clusters)[:, :, None]
        return a, piece.rows.transpose(0, 2, 1) @ a

    def hotelling_f(self, basis: Array, z: Array) -> tuple[float, float]:
        """F and its denominator degrees of freedom for orthonormal whitened rows (k, r) and their estimates over sigma.

        NaN where there are too few clusters for so many rows.
        """
        k = len(basis)
        eta = self.joint_df(basis)
        freedom = eta - k + 1.0
        squared = self.hotelling(basis, z)
        if not (freedom > 0.0 and np.isfinite(squared)):
            return np.nan, np.nan
        return squared * freedom / (eta * k), freedom

    def hotelling(self, basis: Array, z: Array) -> float:
        """Hotelling's T^2 of orthonormal whitened rows (k, r); NaN where their covariance is singular."""
        values, vectors = np.linalg.eigh(basis @ self.inner @ basis.T)
        if not values[0] > SINGULAR * values[-1]:
            return float("nan")
        along = vectors.T @ z
        return float((along * along / values).sum())


def _double_sum(products: Array) -> float:
    """Sum of |G|^2 + tr(G G) over the matrices G in the last two axes."""
    return float((products * (products + np.swapaxes(products, -1, -2))).sum())


def _adjustment(kind: str, leverage: Array, m: int) -> Array:
    """Eigenvalues of A_i."""
    if kind == "CR0":
        return np.ones_like(leverage)
    if kind == "CR1":
        return np.full_like(leverage, np.sqrt(m / (m - 1.0)))
    left = 1.0 - leverage
    known = left > ALONE
    power = -0.5 if kind == "CR2" else -1.0
    return np.where(known, np.where(known, left, 1.0) ** power, 0.0)


# ---- from a fit ----------------------------------------------------------------------------------


def sandwich(result: Fit, vcov: str = "model", cluster: Any = None) -> Sandwich | None:
    """The robust covariance of a fit, None for that of the model.

    Parameters
    ----------
    result : LMMResult
    vcov : {"model", "CR0", "CR1", "CR2", "CR3"}
    cluster : str or (n,) array, optional
        A grouping factor, a column of the data, or a label for each row; by default the rows that share no random
        effect with others.

    Returns
    -------
    Sandwich or None

    Raises
    ------
    LMMError
        For an unknown `vcov`, a `cluster` without a robust one, clusters that are not independent, or fewer than two.
    """
    check_vcov(vcov)
    if vcov == "model":
        if cluster is not None:
            raise LMMError("cluster is for robust covariances: give vcov='CR2' (or 'CR0', 'CR1', 'CR3') with it")
        return None
    result.require_estimates("vcov", "robust covariances are those of estimates from a response")
    if cluster is not None and not isinstance(cluster, str):
        name, labels = _given(result, vcov, cluster)
        return _made(result, vcov, name, labels, _pieces(result, labels))
    name, labels = result.once(("clusters", cluster), lambda: _given(result, vcov, cluster))
    pieces = result.once(("clusters", cluster, "pieces"), lambda: _pieces(result, labels))
    return result.once(("sandwich", vcov, cluster), lambda: _made(result, vcov, name, labels, pieces))


def _made(result: Fit, vcov: str, name: str, labels: Index, pieces: tuple[_Piece, ...]) -> Sandwich:
    m, r = int(labels.max()) + 1, result.model.problem.rank
    half = np.ascontiguousarray(np.linalg.inv(result.solution.chol))
    meat = np.zeros((r, r))
    for piece in pieces:
        scores = np.einsum("cdr,cd->cr", piece.rows, _adjustment(vcov, piece.leverage, m) * piece.rest)
        meat += scores.T @ scores
    return Sandwich(vcov, name, m, half, meat, pieces)


def _given(result: Fit, vcov: str, cluster: Any) -> tuple[str, Index]:
    """What the clusters are, and the cluster of each row, 0 to m - 1, all used."""
    model = result.model
    design = model.design
    apart = cluster_labels(design)
    if cluster is None:
        names = [f.grouping.name for f in design.factors]
        if apart.max() == 0:
            raise LMMError(
                f"vcov={vcov!r} needs clusters that are independent of each other, but through {' and '.join(names)}, "
                "which are crossed, every row depends on every other; use the covariance of the model (vcov='model'), "
                "or a model whose only grouping factor is what the clusters are to be"
            )
        # of nested factors the coarsest has as many levels as there are clusters
        coarsest = [f.grouping.name for f in design.factors if f.grouping.m == apart.max() + 1]
        return (coarsest[-1] if coarsest else " and ".join(names)), apart
    shown, labels = _labels(result, cluster)
    count = int(labels.max()) + 1
    if count < 2:
        raise LMMError(f"cluster={shown} has one level; robust covariances need at least two independent clusters")
    first = np.full(int(apart.max()) + 1, -1, dtype=np.intp)
    first[apart[::-1]] = np.arange(len(apart))[::-1]
    split = np.flatnonzero(labels != labels[first[apart]])
    if len(split):
        row = int(split[0])
        other = int(first[apart[row]])
        factors = [f.grouping for f in design.factors if f.grouping.index[row] == f.grouping.index[other]]
        shared = f", both {factors[0].name} {factors[0].labels[factors[0].index[row]]!r}," if factors else ""
        raise LMMError(
            f"cluster={shown} has rows {other} and {row} (counting from 0, of the rows used){shared} in different "
            "clusters, though they are not independent in the model; name a column that keeps together what shares "
            "random effects"
        )
    return shown.strip("'"), labels


def _labels(result: Fit, cluster: Any) -> tuple[str, Index]:
    """What a message calls the clusters, and the place of each row's label among those that occur."""
    model, design = result.model, result.model.design
    if isinstance(cluster, str):
        known = [f.grouping for f in model.factors if f.grouping.name == cluster]
        if known:
            return repr(cluster), known[0].index
        if design.source is None:
            names = " or ".join(repr(f.grouping.name) for f in model.factors)
            raise LMMError(
                f"cluster={cluster!r} is not a grouping factor ({names}), and there is no table of which it could be a "
                "column (the model is from arrays, a pickle or a file): give the label of each row instead"
            )
        table = design.source_table()
        if table is None:
            raise LMMError(
                f"cluster={cluster!r}: the table has other rows, or another order of rows, than the "
                f"{design.caller_rows.count} of which the model was made; give the label of each row instead"
            )
        shown, column, rows = repr(cluster), table.column(cluster, "`cluster`"), design.caller_rows.used
    else:
        shown, rows = "given labels", None
        column = Column("`cluster`", design.caller_rows.values(cluster, "cluster"))
    gap = column.missing()
    if gap is not None and (gap if rows is None else gap[rows]).any():
        row = int(np.flatnonzero(gap if rows is None else gap[rows])[0])
        raise LMMError(f"{column.title} has no label at row {row} (counting from 0, of the rows used); give one")
    return shown, np.asarray(column.codes(rows)[0], dtype=np.intp)


# ---- clusters ------------------------------------------------------------------------------------


def _pieces(result: Fit, labels: Index) -> tuple[_Piece, ...]:
    """The rows of X and the residuals of all clusters, whitened, along the eigenvectors of H_ii."""
    model = result.model
    problem, solution = model.problem, result.solution
    r = problem.rank
    half = np.linalg.inv(solution.chol)
    base = quiet_product(model.exog, problem.beta_base) + (0.0 if model.offset is None else model.offset)
    X = problem.conditioned_x(model.exog)
    rest = ((model.endog - base) / problem.scale - quiet_product(X, solution.beta)) * (problem.scale / result.sigma)
    columns = np.column_stack([quiet_product(X, half.T), rest])
    large = np.bincount(labels)[labels] > max(r, FORMED)
    found: list[_Piece] = []
    small = np.flatnonzero(~large)
    for local in of_equal_size(labels[small], HELD):
        step = max(1, HELD // (local.shape[1] * (r + 1)))
        for begin in range(0, len(local), step):
            rows = small[local[begin : begin + step]]
            lower = np.linalg.cholesky(rows_covariance(result, rows) / result.sigma2)
            found.append(_turned(np.linalg.solve(lower, columns[rows])))
    if large.any():
        inverse = _solved(result, columns)
        chosen = np.flatnonzero(large)
        for local in of_equal_size(labels[chosen], HELD):
            rows = chosen[local]
            products = columns[rows][:, :, :r].transpose(0, 2, 1) @ inverse[rows]
            found.append(_decomposed(products))
    return tuple(found)


def _solved(result: Fit, columns: Array) -> Array:
    """V^-1 columns by rows, V relative to sigma^2."""
    model = result.model
    factors = model.factors
    rows = conditioned_rows(
        [model.exog_re[:, f.columns] for f in factors],
        [f.grouping.index for f in factors],
        model.weights,
        model.problem.z_map,
    )
    found: Array = result.engine.solve(columns, rows)
    # the columns of X are orthonormal in V^-1, unless large random effects leave little of them but rounding errors
    r = columns.shape[1] - 1
    if model.residual is None and np.abs(columns[:, :r].T @ found[:, :r] - np.eye(r)).max(initial=0.0) > ROUNDING:
        found = solved(result.engine, columns, rows, result.optimum.factor)
    return found


def _turned(whitened: Array) -> _Piece:
    """A piece from whitened rows [U_i e_i] (c, s, r + 1)."""
    U, e = whitened[:, :, :-1], whitened[:, :, -1:]
    s, r = U.shape[1:]
    if s > r:
        return _decomposed(U.transpose(0, 2, 1) @ whitened)
    values, vectors = np.linalg.eigh(U @ U.transpose(0, 2, 1))
    back = vectors.transpose(0, 2, 1)
    return _Piece(back @ U, np.clip(values, 0.0, 1.0), (back @ e)[:, :, 0])


def _decomposed(products: Array) -> _Piece:
    """A piece from U_i'[U_i e_i] (c, r, r + 1)."""
    S = products[:, :, :-1]
    values, vectors = np.linalg.eigh(0.5 * (S + S.transpose(0, 2, 1)))
    values = np.clip(values, 0.0, 1.0)
    back = vectors.transpose(0, 2, 1)
    length = np.sqrt(values)
    along = (back @ products[:, :, -1:])[:, :, 0]
    # where a cluster tells nothing of a direction, its residuals have nothing along it
    rest = np.where(length > 1e-8, along / np.where(length > 1e-8, length, 1.0), 0.0)
    return _Piece(length[:, :, None] * back, values, rest)
