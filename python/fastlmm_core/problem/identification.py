"""Whether the data tell the covariance parameters apart: the rank of the derivatives of V.

Rows divided by the roots of their weights' inverses have V = sigma^2 I + sum_k g_k D_k, linear in the residual variance
and the free elements g_k of G; D_k = sum_a Z_a E_k Z_a' over the levels of a factor, E_k a symmetric unit matrix.  The
restricted likelihood sees Q V Q, Q the projector on what the columns of X leave: its parameters are identified if and
only if the matrices Q D_k Q, D_0 = I, are linearly independent, that is if their Gram matrix, of the elements

    tr(Q D_k Q D_l) = tr(D_k D_l) - 2 tr(X'D_k D_l X) + tr(X'D_k X X'D_l X),

has full rank.  (Linear covariance structures: Anderson 1973, Ann. Statist. 1, 135-141; the matrix is that of MINQUE(0),
Rao 1971, J. Multivar. Anal. 1, 445-456.)  All traces are sums over levels, or pairs of levels with rows in common.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..covariance.parameters import CovarianceStructure
from ..errors import LMMError
from ..support.types import Array, Index
from .aliasing import term_text
from .columns import RANK_TOLERANCE

__all__ = [
    "GroupedColumns",
    "Shared",
    "clearly_identified",
    "gram_of_derivatives",
    "parts_identify",
    "refuse_unidentified",
]


SUSPECT = 1e-9
"""Eigenvalue of the Gram matrix of unit matrices, sums of products that lose digits, below which rows are looked at."""

DRAWS = 4
"""Random vectors whose products with a matrix of the rows tell whether it vanishes."""

CLEAR = 1e-6
"""Eigenvalue of the Gram matrix on a part of the rows from which the rest need not be looked at."""

PART = 24
"""Groups of a part of the data that may identify the parameters by itself."""

LEVELS, LEVEL_ROWS = 3, 60
"""Levels of each factor, and rows of each, that are looked at before all of them."""

SAMPLED_FROM = 2000
"""Rows from which some are looked at before all of them."""

MANY = 5
"""Names that a message lists at most."""

CHUNK = 1 << 15
"""Pairs of levels that are taken together."""


class GroupedColumns(NamedTuple):
    """The random effects of one grouping factor.

    Attributes
    ----------
    Z : (n, q) array
        Conditioned columns, weighted.
    codes : (n,) int array
        Level of each row, 0 to m - 1.
    m : int
    name : str
    columns : sequence of str
        Names of the columns.
    """

    Z: Array
    codes: NDArray[Any]
    m: int
    name: str
    columns: Sequence[str]

    @property
    def n_rows(self) -> int:
        """Rows of all levels."""
        return len(self.codes)


class Shared(NamedTuple):
    """Products of levels of two factors that have rows in common.

    Attributes
    ----------
    first, second : int
        The factors, first <= second.
    one, other : (pairs,) int arrays
        Levels.
    products : (pairs, q_first, q_second) array
        Z_a'Z_b.
    """

    first: int
    second: int
    one: Index
    other: Index
    products: Array


def shared_levels(factors: Sequence[GroupedColumns]) -> list[Shared]:
    """The products of all pairs of levels with rows in common, from the rows."""
    found = []
    for f, one in enumerate(factors):
        for g in range(f, len(factors)):
            other = factors[g]
            if f == g:
                cell, levels, count = one.codes, np.arange(one.m), one.m
                a = b = levels
            else:
                cell = one.codes.astype(np.int64) * other.m + other.codes
                present, cell = np.unique(cell, return_inverse=True)
                a, b = np.divmod(present, other.m)
                count = len(present)
            products = np.empty((count, one.Z.shape[1], other.Z.shape[1]))
            for i, x in enumerate(one.Z.T):
                for j, z in enumerate(other.Z.T):
                    products[:, i, j] = np.bincount(cell, x * z, count)
            found.append(Shared(f, g, a, b, products))
    return found


def crossed_levels(factor: GroupedColumns, X: Array) -> Array:
    """Z_a'X (m, q, r) of the levels."""
    out = np.empty((factor.m, factor.Z.shape[1], X.shape[1]))
    for i, z in enumerate(factor.Z.T):
        for j, x in enumerate(X.T):
            out[:, i, j] = np.bincount(factor.codes, z * x, factor.m)
    return out


def gram_of_derivatives(
    shared: Sequence[Shared], crossed: Sequence[Array], structure: CovarianceStructure, n: int
) -> tuple[Array, Array]:
    """tr(Q D_k Q D_l) of the residual variance and the free elements of G.

    Parameters
    ----------
    shared : sequence of Shared
        Of all pairs of factors, each with itself first.
    crossed : sequence of (m_f, q_f, r) arrays
        Z_a'X of each factor; X orthonormal, r = 0 for V itself.
    structure : CovarianceStructure
        Over the columns of all factors, side by side.
    n : int
        Rows.

    Returns
    -------
    gram : (k + 1, k + 1) array
        The residual variance first.
    size : (k + 1,) array
        Frobenius norms of the D_k.
    """
    rows, columns = structure.positions
    starts = np.cumsum([0, *(c.shape[1] for c in crossed)])
    factor = np.searchsorted(starts, rows, side="right") - 1
    i, j = rows - starts[factor], columns - starts[factor]
    weight = np.where(i == j, 0.5, 1.0)
    count = len(rows)
    traces, projected = np.zeros((count + 1, count + 1)), np.zeros((count + 1, count + 1))
    r = crossed[0].shape[2]
    inner = np.zeros((count + 1, r, r))  # X'D_k X
    traces[0, 0], inner[0] = n, np.eye(r)
    for f, C in enumerate(crossed):
        flat = C.reshape(len(C), -1)
        square = (flat.T @ flat).reshape(C.shape[1], r, C.shape[1], r)
        for k in np.flatnonzero(factor == f):
            half = weight[k] * square[i[k], :, j[k], :]
            inner[k + 1] = half + half.T
    for pair in shared:
        own = np.flatnonzero(factor == pair.first)
        others = np.flatnonzero(factor == pair.second)
        if pair.first == pair.second:
            total = pair.products.sum(axis=0)
            traces[0, own + 1] = traces[own + 1, 0] = 2.0 * weight[own] * total[i[own], j[own]]
        square, twice = _sums(pair, crossed)
        # sums of K_is K_jt, and of K_js M_ti, over the pairs of levels: M = Z_b'X X'Z_a
        both = 2.0 * np.outer(weight[own], weight[others])
        a, b, s, t = i[own][:, None], j[own][:, None], i[others], j[others]
        block = np.ix_(own + 1, others + 1)
        traces[block] = both * (square[a, s, b, t] + square[a, t, b, s])
        projected[block] = 0.5 * both * (twice[b, s, t, a] + twice[b, t, s, a] + twice[a, s, t, b] + twice[a, t, s, b])
        if pair.first != pair.second:
            traces[block[1].T, block[0].T] = traces[block].T
            projected[block[1].T, block[0].T] = projected[block].T
    projected[0] = projected[:, 0] = np.einsum("kii->k", inner)
    flat = inner.reshape(count + 1, -1)
    return traces - 2.0 * projected + flat @ flat.T, np.sqrt(np.maximum(traces.diagonal(), 0.0))


def _sums(pair: Shared, crossed: Sequence[Array]) -> tuple[Array, Array]:
    """Sums over pairs of levels of K_is K_jt (q, q', q, q') and of K_js (Z_b'X X'Z_a)_ti (q, q', q', q)."""
    _, q, w = pair.products.shape
    square, twice = np.zeros((q * w, q * w)), np.zeros((q * w, w * q))
    for at in range(0, len(pair.one), CHUNK):
        part = slice(at, at + CHUNK)
        K = pair.products[part].reshape(-1, q * w)
        square += K.T @ K
        one, other = crossed[pair.first][pair.one[part]], crossed[pair.second][pair.other[part]]
        if one.shape[2]:
            twice += K.T @ (other @ one.transpose(0, 2, 1)).reshape(-1, w * q)
    return square.reshape(q, w, q, w), twice.reshape(q, w, w, q)


def _eigen(gram: Array, size: Array) -> tuple[Array, Array]:
    """Eigenvalues and vectors of the Gram matrix of matrices of length one."""
    size = np.where(size > 0.0, size, 1.0)
    scaled = gram / np.outer(size, size)
    values, vectors = np.linalg.eigh(scaled)
    return values, vectors


def parts_identify(products: Array, counts: Array, structure: CovarianceStructure, r: int) -> bool:
    """Whether a few groups of one factor are enough to identify all parameters.

    A matrix D = sum_k c_k D_k with Q D Q = 0 has rank 2 r at most.  Parts of the data without rows in common each of
    which has D_k that are independent, more than 2 r of them, leave no such D but zero.

    Parameters
    ----------
    products : (m, q, q) array
        Z_a'Z_a; some groups are enough.
    counts : (m,) array
        Rows.
    structure : CovarianceStructure
    r : int
        Rank of X.
    """
    parts = 2 * r + 1
    if len(products) < parts:
        return False
    width = min(PART, len(products) // parts)
    for part in range(parts):
        mine = slice(part * width, (part + 1) * width)
        levels = np.arange(width)
        shared = Shared(0, 0, levels, levels, products[mine])
        nothing = np.zeros((width, structure.q, 0))
        gram, size = gram_of_derivatives([shared], [nothing], structure, int(counts[mine].sum()))
        if not size.all() or _eigen(gram, size)[0][0] < CLEAR:
            return False
    return True


def telling_rows(codes: Sequence[NDArray[Any]]) -> Index:
    """Rows of a few levels of each factor, which identify all parameters as a rule."""
    chosen = [np.flatnonzero(level_of == level)[:LEVEL_ROWS] for level_of in codes for level in range(LEVELS)]
    return np.unique(np.concatenate(chosen))


def clearly_identified(factors: Sequence[GroupedColumns], X: Array, structure: CovarianceStructure) -> bool:
    """Whether some rows, by themselves, identify all parameters.

    Contrasts of these rows are contrasts of all: what they tell apart is told apart.

    Parameters
    ----------
    factors : sequence of GroupedColumns
        Of these rows; levels by any numbers.
    X : (n, r) array
        Columns of the fixed effects, weighted.
    structure : CovarianceStructure
    """
    some = []
    for f in factors:
        levels, codes = np.unique(f.codes, return_inverse=True)
        some.append(f._replace(codes=codes, m=len(levels)))
    left, sizes, _ = np.linalg.svd(X, full_matrices=False)
    basis = left[:, sizes > 1e-10 * sizes.max(initial=1e-300)]
    gram, size = gram_of_derivatives(shared_levels(some), [crossed_levels(f, basis) for f in some], structure, len(X))
    return bool(size.all() and _eigen(gram, size)[0][0] > CLEAR)


def refuse_unidentified(
    shared: Sequence[Shared],
    crossed: Sequence[Array],
    structure: CovarianceStructure,
    n: int,
    z_map: Array,
    rows: Callable[[], tuple[Sequence[GroupedColumns], Array]],
) -> None:
    """Refuse covariance parameters that no data on this design can tell apart.

    Parameters
    ----------
    shared, crossed, structure, n
        As for `gram_of_derivatives`, of conditioned columns.
    z_map : (q, q) array
        b = z_map b_o.
    rows : callable
        Gives the factors and X_o, weighted, where sums of products raise a suspicion.

    Raises
    ------
    LMMError
        Names the parameters, the terms and the remedy.
    """
    gram, size = gram_of_derivatives(shared, crossed, structure, n)
    values, vectors = _eigen(gram, size)
    if values[0] > SUSPECT:
        return
    factors, X = rows()
    null = _vanishing(vectors[:, values <= SUSPECT], size, factors, X, structure)
    if not null.shape[1]:
        return
    by_x = not _vanishing(null, size, factors, X[:, :0], structure).shape[1]
    null = null / np.where(size > 0.0, size, 1.0)[:, None]
    raise LMMError(_message(_first_dependent(_natural(null, structure, z_map)), structure, factors, by_x))


def _vanishing(
    suspected: Array, size: Array, factors: Sequence[GroupedColumns], X: Array, structure: CovarianceStructure
) -> Array:
    """The combinations of the columns of `suspected`, of D_k / size_k, for which Q D Q is zero to rounding error.

    Products with random vectors are sums over rows in which little cancels: they tell what is small from zero.
    """
    n, d = len(factors[0].codes), suspected.shape[1]
    drawn = np.random.default_rng(0).standard_normal((n, DRAWS))
    before = drawn - X @ (X.T @ drawn)
    rows, columns = structure.positions
    owner = [f for f in factors for _ in f.columns]
    Z = [z for f in factors for z in f.Z.T]
    weights = suspected / np.where(size > 0.0, size, 1.0)[:, None]
    out = before[:, :, None] * weights[0]
    for k, (i, j) in enumerate(zip(rows.tolist(), columns.tolist(), strict=True)):
        f = owner[i]
        for one, other in {(i, j), (j, i)}:
            sums = np.array([np.bincount(f.codes, Z[other] * w, f.m) for w in before.T]).T
            out += (Z[one][:, None] * sums[f.codes])[:, :, None] * weights[k + 1]
    flat = out.reshape(n, -1)
    flat = flat - X @ (X.T @ flat)
    _, sizes, right = np.linalg.svd(flat.reshape(n * DRAWS, d), full_matrices=False)
    return np.asarray(suspected @ right[sizes <= RANK_TOLERANCE * np.sqrt(DRAWS)].T)


def _natural(null: Array, structure: CovarianceStructure, z_map: Array) -> Array:
    """Vectors of the null space for G in natural units, times the size of what each element does to V."""
    rows, columns = structure.positions
    length = 1.0 / np.linalg.norm(np.linalg.inv(z_map), axis=0)  # of a column of Z, relative to root n
    out = np.empty(null.shape)
    out[0] = null[0]
    for d, vector in enumerate(null.T):
        G = np.zeros((structure.q, structure.q))
        G[rows, columns] = G[columns, rows] = vector[1:]
        G = z_map @ G @ z_map.T
        out[1:, d] = G[rows, columns] / (length[rows] * length[columns])
    return out


def _first_dependent(null: Array) -> list[int]:
    """The first parameter that depends on those before it, and these."""
    null = null / np.linalg.norm(null, axis=0)
    for last in range(len(null)):
        _, sizes, right = np.linalg.svd(null[last + 1 :])
        rank = int((sizes > 1e-6).sum())
        if rank < null.shape[1]:
            vector = null @ right[-1]
            return np.flatnonzero(np.abs(vector) > 1e-4 * np.abs(vector).max()).tolist()
    raise AssertionError("the null space has a vector")


def _message(involved: list[int], structure: CovarianceStructure, factors: Sequence[GroupedColumns], by_x: bool) -> str:
    """What cannot be told apart, why and what to do; parameters are numbered from 1, 0 is the residual variance."""
    rows, columns = structure.positions
    names = [column for f in factors for column in f.columns]
    owner = [f for f in factors for _ in f.columns]
    parameters = [k - 1 for k in involved if k]
    listed = ["the residual variance"] if 0 in involved else []
    for block in structure.blocks:
        own = [k for k in parameters if block.start <= rows[k] < block.stop]
        variances = [f"{names[rows[k]]!r}" for k in own if rows[k] == columns[k]]
        covariances = [f"{names[columns[k]]!r} with {names[rows[k]]!r}" for k in own if rows[k] != columns[k]]
        term = term_text(names[block.start : block.stop], block.structure, owner[block.start].name)
        both = [
            f"the {what}{'' if len(of) == 1 else 's'} of {_and(of)}"
            for what, of in (("variance", variances), ("covariance", covariances))
            if of
        ]
        if both:
            listed.append(f"{' and '.join(both)} in {term}")
    single, k = owner[rows[parameters[0]]], parameters[0]
    if len(involved) == 2 and 0 in involved and single.m == single.n_rows and not by_x:
        alone = sum(f is single for f in owner) == 1
        remedy = "use ordinary regression" if alone else f"leave {names[rows[k]]!r} out"
        return (
            f"every level of {single.name!r} has one observation: {listed[1]} cannot be told from the residual "
            f"variance; {remedy}, or take a coarser factor"
        )
    where = "once the fixed effects are taken out" if by_x else "in these data"
    some_covariance = any(rows[k] != columns[k] for k in parameters)
    if len(involved) == 1:
        remedy = "make these random effects independent (||)" if some_covariance else "leave this random effect out"
        return f"{listed[0]} cannot be told: {where}, no pair of observations depends on it; {remedy}"
    concerned = list(dict.fromkeys(f"{owner[rows[k]].name!r}" for k in parameters))
    if 0 in involved:
        remedy = f"use fewer random effects for each level of {_and(concerned)}, or coarser factors"
    elif some_covariance:
        remedy = "leave one of these random effects out, or make those of a term independent (||)"
    else:
        remedy = "leave one of these random effects out"
    return (
        f"{_and(listed)} cannot be told apart: {where}, what one of these parameters adds to the covariance of the "
        f"observations the others can make up for; {remedy}"
    )


def _and(items: list[str]) -> str:
    if len(items) > MANY:
        items = [*items[: MANY - 1], f"{len(items) - MANY + 1} more"]
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def refuse_unidentified_rows(
    factors: Sequence[GroupedColumns], X: Array, structure: CovarianceStructure, z_map: Array
) -> None:
    """Refuse covariance parameters that no data on this design can tell apart, from the rows.

    Parameters
    ----------
    factors : sequence of GroupedColumns
    X : (n, r) array
        X_o, weighted; orthonormal.
    structure : CovarianceStructure
        Over the columns of all factors, side by side.
    z_map : (q, q) array
        b = z_map b_o.

    Raises
    ------
    LMMError
        As `refuse_unidentified`.
    """
    if len(X) >= SAMPLED_FROM:
        rows = telling_rows([f.codes for f in factors])
        some = [f._replace(Z=f.Z[rows], codes=f.codes[rows]) for f in factors]
        if clearly_identified(some, X[rows], structure):
            return
    crossed = [crossed_levels(f, X) for f in factors]
    refuse_unidentified(shared_levels(factors), crossed, structure, len(X), z_map, lambda: (factors, X))
