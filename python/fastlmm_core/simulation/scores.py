"""Parametric draws of what a fit sees of its responses, and the responses themselves where they are asked for.

With one grouping factor and independent residuals a response enters its fit by cross-products with Z and X within the
groups, whose joint distribution is known: so many numbers as there are random effects, or a few where groups share a
design (see lanes/scores.pxi), in place of one for each observation.  A response is a line of these scores and, from a
stream beside theirs, what they leave open: directions that are uniform on a sphere or a Stiefel manifold, orthogonal to
what the scores tell (Muirhead 1982, Aspects of Multivariate Statistical Theory, th. 2.1.13 and 3.2.14).
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..engines.one_factor.problem import one_factor
from ..estimation.many.one_factor import shared_design
from ..kernels import BatchDesign, unpack
from ..kernels.records.batches import BatchScores
from ..support.seeds import beside
from ..support.types import Array

if TYPE_CHECKING:
    from ..estimation.model import Model

__all__ = ["DrawnSums", "Scores"]

SPANNED = 1e-10
"""Share of a column of X within groups, below which it counts as spanned by Z."""

BLOCK = 2**15
"""Numbers of scores that share a block of a stream."""

LARGEST, SMALLEST = 2048, 64
"""Lines in a block."""

COMPLETED = 64
"""Responses whose remainders share a stream."""


class DrawnSums(NamedTuple):
    """Cross-products of y - X beta of lines of scores.

    Attributes
    ----------
    columns : (count, n_columns, q) array
        c_y of the columns of the patterns.
    rest : dict
        Of patterns with several groups, cross-products of c_y among what the columns leave (count, q, q).
    beta : (count, r) array
        With X.
    total : (count,) array
        With itself.
    """

    columns: Array
    rest: dict[int, Array]
    beta: Array
    total: Array


class Scores:
    """Draws of responses of one source by their scores.

    Parameters
    ----------
    model : Model
        With one grouping factor, independent residuals and a problem that any of its responses conditions.
    sigma2 : float
    relative_factor : (q, q) array
    mean : (n,) array
        X beta plus offset.

    Attributes
    ----------
    meaning : BatchScores
        For the lanes.
    coefficients : (p,) array
        What is added to those of a fit of scores, which are of y - X beta; zero for dropped columns.
    size : int
        Lines in a block of a stream.
    rows : BatchRows
    patterns : BatchPatterns
        Of the design.
    """

    def __init__(self, model: Model, sigma2: float, relative_factor: Array, mean: Array) -> None:
        problem, design = one_factor(model.problem), shared_design(model)
        assert isinstance(design, BatchDesign)
        self.model, self.mean = model, mean
        rows, patterns = design.rows, design.patterns
        q, r = model.structure.q, problem.rank
        self.counts = np.diff(patterns.groups)
        self.columns = np.diff(patterns.columns)
        upper = np.zeros((len(self.counts), q, q))
        upper[:, *np.triu_indices(q)] = patterns.R
        live = np.diagonal(upper, axis1=1, axis2=2) > 0.0
        turned = upper @ np.linalg.solve(problem.z_map, relative_factor)
        roots = np.sqrt(sigma2) * np.linalg.cholesky(np.eye(q) + turned @ turned.transpose(0, 2, 1))
        self.roots = roots * live[:, :, None] * live[:, None, :]
        values, vectors = np.linalg.eigh(unpack(patterns.within_xx, r))
        kept = values > SPANNED
        self.within = vectors[:, kept] * np.sqrt(values[kept])
        self.several = np.flatnonzero(self.counts > 1)
        self.n_columns, self.n_within = int(patterns.columns[-1]), int(kept.sum())
        self.df = problem.n - int(self.counts @ live.sum(axis=1)) - self.n_within
        # T of the patterns with several groups: chi-squares of these degrees of freedom, normal numbers where True
        left = (self.counts - self.columns)[self.several, None]
        lower, upper_index = np.tril_indices(q)
        self._diagonal = np.maximum(left - np.arange(q), 0)
        self._below = (lower != upper_index) & (upper_index < left)
        self._on = lower == upper_index
        width = self.n_columns * q + self.n_within + len(self.several) * len(lower) + 1
        self.meaning = BatchScores(
            spread=np.ascontiguousarray(self.roots[:, lower, upper_index]),
            within_root=np.ascontiguousarray(np.sqrt(sigma2) * self.within),
            variance=float(sigma2),
            width=width,
        )
        self.size = max(SMALLEST, min(LARGEST, BLOCK // width))
        rest = mean if model.offset is None else mean - model.offset
        weighted = rest if model.weights is None else rest * model.weights
        self.coefficients = problem.x_map @ (problem.conditioned_x(model.exog).T @ weighted)
        self.rows, self.patterns = rows, patterns

    def lines(self, rng: np.random.Generator, count: int) -> Array:
        """Lines of scores (count, width)."""
        width = self.meaning.width
        plain = self.n_columns * self.roots.shape[1] + self.n_within
        out = np.empty((count, width))
        # a stream for each kind: each takes as many random bits as it happens to need
        chi, below, own = (beside(rng, place) for place in (1, 2, 3))
        out[:, :plain] = rng.standard_normal((count, plain))
        out[:, -1] = chi.chisquare(self.df, count)
        if len(self.several):
            triangles = np.zeros((count, len(self.several), len(self._on)))
            n_below, live = int(self._below.sum()), self._diagonal > 0
            if n_below:
                triangles[:, self._below] = below.standard_normal((count, n_below))
            diagonal = np.zeros((count, *live.shape))
            if live.sum() == 1:
                diagonal[:, live] = own.chisquare(self._diagonal[live][0], (count, 1))
            elif live.any():
                diagonal[:, live] = own.chisquare(self._diagonal[live], (count, int(live.sum())))
            triangles[:, :, self._on] = np.sqrt(diagonal)
            out[:, plain:-1] = triangles.reshape(count, -1)
        return out

    def sums(self, lines: Array) -> DrawnSums:
        """What lines say of y - X beta: their cross-products with Z and X."""
        q, patterns = self.roots.shape[1], self.patterns
        count, at = len(lines), self.n_columns * q
        owner = np.repeat(np.arange(len(self.columns)), self.columns)
        columns = np.einsum("cka,kba->ckb", lines[:, :at].reshape(count, -1, q), self.roots[owner])
        within = lines[:, at : at + self.n_within]
        beta = within @ self.meaning.within_root.T + np.einsum("cka,kaj->cj", columns, patterns.cx)
        total = np.einsum("cka,cka->c", columns, columns)
        total += self.meaning.variance * ((within * within).sum(axis=1) + lines[:, -1])
        lower = np.tril_indices(q)
        T = np.zeros((count, len(self.several), q, q))
        T[:, :, *lower] = lines[:, at + self.n_within : -1].reshape(count, len(self.several), len(lower[0]))
        rest = {}
        for k, pattern in enumerate(self.several.tolist()):
            half = self.roots[pattern] @ T[:, k]
            rest[pattern] = half @ half.transpose(0, 2, 1)
            total += np.trace(rest[pattern], axis1=1, axis2=2)
        return DrawnSums(columns, rest, beta, total)

    def __call__(self, rng: np.random.Generator, count: int) -> Array:
        """Responses (count, n)."""
        return self.completed(rng, self.lines(rng, count), np.arange(count))

    def completed(self, rng: np.random.Generator, lines: Array, places: NDArray[np.intp]) -> Array:
        """Responses with the given scores (len(lines), n).

        Parameters
        ----------
        rng : Generator
            At the beginning of the block.
        lines : (count, width) array
        places : (count,) int array
            Places of the lines in their block.
        """
        n, m, q = self.model.nobs, len(self.rows.start) - 1, self.roots.shape[1]
        out = np.empty((len(lines), n))
        for part in np.unique(places // COMPLETED).tolist():
            mine = np.flatnonzero(places // COMPLETED == part)
            inside: Any = places[mine] - part * COMPLETED
            most = int(inside.max()) + 1
            if np.array_equal(inside, np.arange(most)):
                inside = slice(None)
            noise = beside(rng, 4 + 2 * part).standard_normal((most, n))[inside]
            free = np.zeros((len(mine), m, q))
            if len(self.several):
                free = beside(rng, 5 + 2 * part).standard_normal((most, m, q))[inside]
            out[mine] = self._responses(lines[mine], noise, free)
        return out

    def _responses(self, lines: Array, noise: Array, free: Array) -> Array:
        """Responses with these scores; noise (count, n) and free (count, m, q) give their directions."""
        rows, order = self.rows, self.rows.order
        Q, U = self._spanned
        q, first = Q.shape[1], rows.start[:-1]
        sizes = np.diff(rows.start)
        at = self.n_columns * q
        z, within = lines[:, :at].reshape(len(lines), -1, q), lines[:, at : at + self.n_within]
        acc = self._group_scores(z, lines[:, at + self.n_within : -1], free)
        sigma = np.sqrt(self.meaning.variance)
        w = rows.weights
        # what neither Q nor U reach is e - Q Q'We - U U'We, drawn out to its length; `basis` is W Q
        e = noise if w is None else noise / np.sqrt(w)
        along = _products_of_rows(e, U if w is None else U * w[:, None])
        norm = np.einsum("cn,cn->c", noise, noise) - np.einsum("cw,cw->c", along, along)
        cross = np.empty((q, *acc.shape[:2]))
        for a in range(q):
            np.add.reduceat(e * rows.basis[:, a], first, axis=1, out=cross[a])
            norm -= np.einsum("cm,cm->c", cross[a], cross[a])
        size = np.sqrt(self.meaning.variance * np.divide(lines[:, -1], norm, out=np.zeros(len(norm)), where=norm > 0.0))
        y = e * size[:, None]
        for a in range(q):
            y += np.repeat(acc[:, :, a] - size[:, None] * cross[a], sizes, axis=1) * Q[:, a]
        y += _products_of_rows(sigma * within - size[:, None] * along, U.T)
        out: Array = y
        if order is not None:
            out = np.empty_like(y)
            out[:, order] = y
        out += self.mean
        return out

    def _group_scores(self, z: Array, triangles: Array, free: Array) -> Array:
        """Q'W (y - X beta) of each group, sorted by pattern (count, m, q)."""
        q, patterns = z.shape[2], self.patterns
        owner = np.repeat(np.arange(len(self.columns)), self.columns)
        columns = np.einsum("cka,kba->ckb", z, self.roots[owner])
        acc = np.empty((len(z), int(patterns.groups[-1]), q))
        alone = self.counts == 1
        acc[:, patterns.groups[:-1][alone]] = columns[:, patterns.columns[:-1][alone]]
        T = np.zeros((len(z), len(self.several), q, q))
        T[:, :, *np.tril_indices(q)] = triangles.reshape(len(z), len(self.several), len(self._on))
        for k, pattern in enumerate(self.several.tolist()):
            groups = slice(patterns.groups[pattern], patterns.groups[pattern + 1])
            loading = patterns.loading[groups, : self.columns[pattern]]
            mine = columns[:, patterns.columns[pattern] : patterns.columns[pattern + 1]]
            frame = _orthonormal(free[:, groups], loading, int(self.counts[pattern] - self.columns[pattern]))
            rest = frame @ T[:, k].transpose(0, 2, 1) @ self.roots[pattern].T
            acc[:, groups] = np.einsum("gk,cka->cga", loading, mine) + rest
        return acc

    @cached_property
    def _spanned(self) -> tuple[Array, Array]:
        """Q, of which rows of a group are orthonormal, and U, an orthonormal basis of X within groups; rows sorted."""
        problem, rows = one_factor(self.model.problem), self.rows
        order: Any = slice(None) if rows.order is None else rows.order
        Q = rows.basis if rows.weights is None else rows.basis / rows.weights[:, None]
        x = problem.conditioned_x(self.model.exog[order])
        first, sizes = rows.start[:-1], np.diff(rows.start)
        for _ in range(2):
            crossed = np.add.reduceat(rows.basis[:, :, None] * x[:, None, :], first, axis=0)
            x = x - np.einsum("na,naj->nj", Q, np.repeat(crossed, sizes, axis=0))
        norms = np.sum(self.within**2, axis=0)
        return Q, x @ (self.within / norms)


def _products_of_rows(rows: Array, matrix: Array) -> Array:
    """`rows @ matrix`, row by row: BLAS takes other kernels for other numbers of rows, with other last bits."""
    out: Array = (rows[:, None] @ matrix)[:, 0]
    return out


def _orthonormal(free: Array, loading: Array, rank: int) -> Array:
    """Orthonormal columns (count, m, q) that are orthogonal to those of `loading`; zero beyond `rank`."""
    out = free.copy()
    q = free.shape[2]
    out[:, :, rank:] = 0.0
    for _ in range(2):
        out -= np.einsum("gk,cka->cga", loading, np.einsum("gk,cga->cka", loading, out))
        for a in range(min(q, rank)):
            for b in range(a):
                out[:, :, a] -= np.einsum("cg,cg->c", out[:, :, b], out[:, :, a])[:, None] * out[:, :, b]
            out[:, :, a] /= np.linalg.norm(out[:, :, a], axis=1)[:, None]
    return out
