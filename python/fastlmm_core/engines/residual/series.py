"""The criterion of series: residuals that are a Markov chain, whitened row by row, and random effects of subjects.

With [Z X y] whitened by R_i (see `covariance.residual.markov`), each subject is known by its sums of products A_i(phi)
and their derivatives: nothing is of the size of a subject squared, and of A_i only the rows of Z are kept, the rest of
all subjects is summed up (`kernels.residuals.ChainProducts`, `SubjectSums`).  For G = Lambda Lambda' and the triangular
factor [r b; 0 c] of A_i (r for Z, b and c for [X y]),

    log|V_i| = log|R_i| + log|I + r G r'|,   H_i = c'c + b'(I + r G r')^-1 b,
    N_i = Z'V_i^-1Z = r'(I + r G r')^-1 r,   Q_i = Z'V_i^-1[X y] = r'(I + r G r')^-1 b

and, with P = G - G N G and U = [-P B; I] for A_i = [A B; B' C],

    dH = U'A_a U  along phi,   -Q'DQ  along D in G,
    d2H = U'A_ab U - 2 sym (A_a U)_z'P (A_b U)_z,   -2 sym (T (A_a U)_z)'D Q,   2 sym Q'D N D'Q,   T = I - N G
    dlog|V| = dlog|R| + tr(P A_a),   tr(N D),
    d2log|V| = d2log|R| + tr(P A_ab) - tr(P A_a P A_b),   tr(T A_a T'D),   -tr(N D N D').
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from ...covariance.parameters import CovarianceStructure
from ...covariance.residual.markov import (
    Chain,
    Gaps,
    Products,
    chain_of,
    gaps_of,
    products,
    products_of_gaps,
    sums_of_gaps,
    whiten_twice,
)
from ...covariance.residual.varied import Varied
from ...design.residual import ResidualPart, Stratum
from ...errors import LMMError
from ...kernels.records.rows import ConditionedRows
from ...kernels.residuals import GapProducts, SubjectSums
from ...support.types import Array, Index
from .clusters import ClusterCriterion
from .effects import EffectsCriterion

__all__ = ["SeriesCriterion", "chains_of"]

IN_FULL = 1_000
"""Rows of a subject up to which its covariance matrix is formed, where something asks for it."""

LOST = 1e4
"""Multiple of what is left from which a difference has lost too many digits."""

COSTLY = 2_000
"""Rows from which the certified minimum of one start is enough."""


def chains_of(part: ResidualPart) -> list[Chain] | None:
    """The structures of the strata as Markov chains, None where some is none."""
    found = []
    for stratum in part.strata:
        structure = stratum.structure
        width = 1 if part.where.ndim == 1 else part.where.shape[1]
        if isinstance(structure, Varied):
            width -= structure.function.n_columns
        found.append(chain_of(structure, width))
    chains = [chain for chain in found if chain is not None]
    return chains if len(chains) == len(found) else None


@dataclass(frozen=True)
class _Series:
    """The subjects of a stratum.

    Attributes
    ----------
    stratum : Stratum
    chain : Chain
    rows : slice
        Of the sorted rows.
    subjects : slice
    where : (n,) or (n, d) array
        Of its rows.
    starts : (m,) intp array
        First row of each subject, in these rows.
    gaps : Gaps
    sums : GapProducts or None
        Over the gaps of subjects, where these are few.
    """

    stratum: Stratum
    chain: Chain
    rows: slice
    subjects: slice
    where: Array
    starts: Index
    gaps: Gaps
    sums: GapProducts | None

    def products(self, phi: Array, columns: Array, q: int, by_rows: bool) -> Products:
        """Sums of products of its rows of the columns; see `covariance.residual.markov`.

        Parameters
        ----------
        phi : (k,) array
            Of all strata.
        columns : (n, K) array
        q : int
        by_rows : bool
            Whether the rows are read whatever the gaps are.
        """
        inner = self.stratum.own(phi)[1]
        if self.sums is None or by_rows:
            return products(self.chain, inner, self.where, self.starts, columns[self.rows], q, self.gaps)
        return products_of_gaps(self.chain, inner, self.gaps, self.sums)


class SeriesCriterion(EffectsCriterion):
    """The profiled criterion in (theta, phi).

    Parameters
    ----------
    chains : list of Chain
        One for each stratum.
    xy : (n, c) array
        [X y], weighted.
    Z : (n, q) array
        Weighted columns of the random effects of subjects, conditioned; q may be 0.
    structure : CovarianceStructure
    spans : list of slice
    part : ResidualPart
    in_full : callable
        Makes the criterion with each subject's covariance matrix.
    """

    def __init__(
        self, chains: list[Chain], xy: Array, Z: Array, structure: CovarianceStructure, spans: list[slice],
        part: ResidualPart, in_full: Callable[[], ClusterCriterion],
    ) -> None:  # fmt: skip
        super().__init__(xy.shape[1], len(xy), structure, spans, part)
        self._make_full = in_full
        # strata one after the other, the subjects of each together
        order = part.sorted_rows
        self.order = order = order[np.argsort(part.stratum[order], kind="stable")]
        columns = np.column_stack((Z, xy))
        self.columns = columns if np.array_equal(order, np.arange(len(xy))) else np.take(columns, order, axis=0)
        codes = np.asarray(part.subject.codes)[order]
        self.starts = np.append(np.flatnonzero(np.append(True, codes[1:] != codes[:-1])), len(order))
        stratum = part.stratum[order[self.starts[:-1]]]
        self.q, self.m = Z.shape[1], len(stratum)
        self.costly = len(xy) > COSTLY
        self.series: list[_Series] = []
        for g, chain in enumerate(chains):
            mine = np.flatnonzero(stratum == g)
            subjects = slice(int(mine[0]), int(mine[-1]) + 1)
            first = int(self.starts[subjects.start])
            rows = slice(first, int(self.starts[subjects.stop]))
            where, starts = part.where[order[rows]], self.starts[mine] - first
            gaps = gaps_of(chain, where, starts)
            sums = sums_of_gaps(chain, starts, self.columns[rows], self.q, gaps)
            self.series.append(_Series(part.strata[g], chain, rows, subjects, where, starts, gaps, sums))
        places = np.ascontiguousarray(self.units[:, 1:])
        self.sums = SubjectSums(self.m, self.q, self.c, part.n_parameters, places)

    def _summed(self, phi: Array, by_rows: bool = False) -> None:
        """Sums of products and their derivatives in phi, with those of log|R|: in those of each stratum."""
        k = self.part.n_parameters
        self.triangle = np.empty((self.m, self.q, self.columns.shape[1]))
        self.log_r, self.d_log_r, self.dd_log_r = 0.0, np.zeros(k), np.zeros((k, k))
        self.found: list[Products] = []
        self.left: list[Array] = []
        for own in self.series:
            stratum, n = own.stratum, own.rows.stop - own.rows.start
            scale = stratum.own(phi)[0]
            found = own.products(phi, self.columns, self.q, by_rows)
            self.found.append(found)
            self.triangle[own.subjects] = found.triangle / np.sqrt(scale)
            self.left.append(found.left / scale)
            inner = np.arange(stratum.start + stratum.scaled, stratum.stop)
            self.log_r += found.log_det + n * float(np.log(scale))
            self.d_log_r[inner] += found.log_det_first
            self.dd_log_r[np.ix_(inner, inner)] += found.log_det_second
            if stratum.scaled:
                self.d_log_r[stratum.start] += n

    def _derivatives(self, phi: Array) -> tuple[Array, Array]:
        """Derivatives of the first rows of A_i in phi (k, m, q, K), (k, k, m, q, K)."""
        if len(self.found) == 1:
            # one stratum, on the scale of sigma^2
            return self.found[0].first, self.found[0].second
        k, width = self.part.n_parameters, self.columns.shape[1]
        dA, ddA = np.zeros((k, self.m, self.q, width)), np.zeros((k, k, self.m, self.q, width))
        for series, found in zip(self.series, self.found, strict=True):
            stratum, here = series.stratum, series.subjects
            scale, _ = stratum.own(phi)
            own = slice(stratum.start + stratum.scaled, stratum.stop)
            dA[own, here] = found.first / scale
            ddA[own, own, here] = found.second / scale
            if stratum.scaled:
                # R is e^tau R~, and A has the factor e^-tau
                tau = stratum.start
                dA[tau, here] = -self.triangle[here, :, : self.q].transpose(0, 2, 1) @ self.triangle[here]
                ddA[tau, tau, here] = -dA[tau, here]
                ddA[tau, own, here] = ddA[own, tau, here] = -dA[own, here]
        return dA, ddA

    def _rest_derivatives(self, phi: Array) -> tuple[Array, Array]:
        """Derivatives of the last part of A_i in phi, summed (k, c, c), (k, k, c, c)."""
        k, q = self.part.n_parameters, self.q
        dA, ddA = np.zeros((k, self.c, self.c)), np.zeros((k, k, self.c, self.c))
        for series, found, left in zip(self.series, self.found, self.left, strict=True):
            stratum, here = series.stratum, series.subjects
            scale, _ = stratum.own(phi)
            own = slice(stratum.start + stratum.scaled, stratum.stop)
            dA[own] = found.first_rest / scale
            ddA[own, own] = found.second_rest / scale
            if stratum.scaled:
                tau, outer = stratum.start, self.triangle[here, :, q:].reshape(-1, self.c)
                dA[tau] = -(left + outer.T @ outer)
                ddA[tau, tau] = -dA[tau]
                ddA[tau, own] = ddA[own, tau] = -dA[own]
        return dA, ddA

    def reduce(self, x: Array) -> tuple[float, Array | None]:
        """log|V| and H."""
        factor, phi = self.split(x)
        self._phi, self.G = phi, factor @ factor.T
        log_det, H = self._reduced(phi, by_rows=False)
        if H is not None and self._lost(H):
            return self._reduced(phi, by_rows=True)
        return log_det, H

    def _reduced(self, phi: Array, by_rows: bool) -> tuple[float, Array | None]:
        self._summed(phi, by_rows)
        if not (np.isfinite(self.triangle).all() and np.isfinite(self.G).all()):
            return np.inf, None
        log_det, H = self.sums.reduce(self.triangle, self.G)
        return self.log_r + log_det, H + sum(self.left)

    def _lost(self, H: Array) -> bool:
        """Whether what the effects of subjects leave was lost in a difference."""
        extents = [
            found.extent / own.stratum.own(self._phi)[0]
            for own, found in zip(self.series, self.found, strict=True)
            if found.extent is not None
        ]
        return bool(extents) and bool((sum(extents) > LOST * H.diagonal()).any())

    def whitened(self) -> Array:
        """Rows with the sums of products H, subject by subject."""
        if any(found.root is None for found in self.found):
            self._reduced(self._phi, by_rows=True)
        rest = [
            found.root / np.sqrt(own.stratum.own(self._phi)[0])
            for own, found in zip(self.series, self.found, strict=True)
            if found.root is not None
        ]
        return np.concatenate((self.sums.middle()[1].reshape(-1, self.c), *rest))

    def weigh(self, turn: Array) -> None:
        """Sums of products and their derivatives, brought to [A e]."""
        dA, ddA = self._derivatives(self._phi)
        self.sum_n, self.traces, self.of_g, self.of_phi = self.sums.weigh(turn, dA, ddA)
        dX, ddX = self._rest_derivatives(self._phi)
        self.of_phi += turn.T @ dX @ turn
        self.bent = np.einsum("ij,klij->klj", turn, ddX @ turn)

    def first(self, x: Array, ratio: float, bracket: float) -> Array:
        """Along the unit directions of G and along phi."""
        S = self._crossed()
        a, b = self.units[:, 1], self.units[:, 2]
        of_g = np.where(a == b, 1.0, 2.0) * self.sum_n[a, b]
        traces = np.concatenate((of_g, self.d_log_r + self.traces))
        out = traces - ratio * S[:, -1, -1] - bracket * np.trace(S[:, :-1, :-1], axis1=1, axis2=2)
        self._slope_g = out[: len(self.units)]
        return np.asarray(out)

    def _crossed(self) -> Array:
        """[A e]'D[A e] for all directions."""
        return np.concatenate((self.of_g, -self.of_phi))

    def along(self, c_n: float, c_e: float, c_x: float) -> Array:
        """Second derivatives along pairs of directions, the bend of V in phi with them."""
        weights = np.append(np.full(self.c - 1, 0.5 * c_x), 0.5 * c_e)
        out = self.sums.along(weights)
        n_u = len(self.units)
        out[n_u:, n_u:] += self.dd_log_r + self.bent @ weights
        return out

    def bend(self, x: Array) -> Array:
        """Part of `along`."""
        return np.zeros((self.part.n_parameters, self.part.n_parameters))

    # ---- what only matrices of the residuals of subjects tell ------------------------------------

    @cached_property
    def _longest(self) -> int:
        """Rows of the subject that has most."""
        return int(np.diff(self.starts).max())

    @cached_property
    def _in_full(self) -> ClusterCriterion:
        """The criterion with each subject's covariance matrix, where these are not too large."""
        if self._longest > IN_FULL:
            raise LMMError(
                f"a subject has {self._longest} rows, and the expected information, and Kenward and Roger's "
                f"adjustment, need the covariance matrix of its rows (up to {IN_FULL} rows); take ddf='satterthwaite'"
            )
        return self._make_full()

    def _full_at(self, x: Array, order: int) -> ClusterCriterion:
        """The same criterion in full, at a point."""
        full = self._in_full
        full.reml, full.alone = self.reml, self.alone
        full.evaluate(x, order)
        return full

    def _at_last(self) -> ClusterCriterion:
        """The same criterion in full, at the last point."""
        assert self._point is not None
        return self._full_at(self._point, 2)

    def in_full(self, x: Array) -> ClusterCriterion | None:
        """The criterion with matrices in full, at x; None where a subject has too many rows."""
        return self._full_at(x, 1) if self._longest <= IN_FULL else None

    def expected(self) -> Array:
        """tr(V^-1 dV V^-1 dV) less twice that within X, for pairs of directions."""
        return self._at_last().expected()

    def sandwich_along(self, weight: Array) -> Array:
        """Sum over pairs of directions (r, r)."""
        return self._at_last().sandwich_along(weight)

    def within(self, tables: list[Array]) -> Array:
        """A'TA for matrices T over the places of the tables (r, r)."""
        return self._at_last().within(tables)

    @property
    def places(self) -> list[tuple[int, Index | Array]]:
        """Stratum and places of the tables of the criterion in full."""
        return self._in_full.places

    def solve(self, v: Array, rows: ConditionedRows) -> Array:
        """V^-1 v by the rows of the problem."""
        columns = v.reshape(len(v), -1)
        root = np.ones(len(v)) if rows.weights is None else np.sqrt(rows.weights)
        held = (root[:, None] * columns)[self.order]
        phi = self._phi

        def inverse(given: Array) -> Array:
            out = np.empty_like(given)
            for own in self.series:
                scale, inner = own.stratum.own(phi)
                out[own.rows] = whiten_twice(own.chain, inner, own.where, own.starts, given[own.rows]) / scale
            return out

        solved = inverse(held)
        if self.q:
            Z = self.columns[:, : self.q]
            spread, N = inverse(Z), self.sums.middle()[0]
            for i, part in enumerate(slice(a, b) for a, b in pairwise(self.starts.tolist())):
                core = self.G - self.G @ N[i] @ self.G
                solved[part] -= spread[part] @ (core @ (Z[part].T @ solved[part]))
        out = np.empty(columns.shape)
        out[self.order] = solved
        return np.asarray(root[:, None] * out).reshape(v.shape)
