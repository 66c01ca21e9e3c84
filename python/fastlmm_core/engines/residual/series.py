"""The criterion of long series: residuals that are a Markov chain, whitened row by row, and random effects of subjects.

With [Z X y] whitened by R_i (see `covariance.residual.markov`), each subject is known by its sums of products A_i(phi)
and their derivatives: nothing is of the size of a subject squared. For G = Lambda Lambda' and the triangular factor
[r b; 0 c] of A_i (r for Z, b and c for [X y]),

    log|V_i| = log|R_i| + log|I + r G r'|,   H_i = c'c + b'(I + r G r')^-1 b,
    N_i = Z'V_i^-1Z = r'(I + r G r')^-1 r,   Q_i = Z'V_i^-1[X y] = r'(I + r G r')^-1 b

and, with P = G - G N G and U = [-P B; I] for A_i = [A B; B' C],

    dH = U'A_a U  along phi,   -Q'DQ  along D in G,
    d2H = U'A_ab U - 2 sym (A_a U)_z'P (A_b U)_z,   -2 sym (T (A_a U)_z)'D Q,   2 sym Q'D N D'Q,   T = I - N G
    dlog|V| = dlog|R| + tr(P A_a),   tr(N D),
    d2log|V| = d2log|R| + tr(P A_ab) - tr(P A_a P A_b),   tr(T A_a T'D),   -tr(N D N D').
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ...covariance.parameters import CovarianceStructure
from ...covariance.residual.markov import Chain, Products, chain_of, products, whiten_twice
from ...covariance.residual.varied import Varied
from ...design.residual import ResidualPart, Stratum
from ...errors import LMMError
from ..rows import Rows
from .effects import EffectsCriterion

__all__ = ["SeriesCriterion", "chains_of"]

COSTLY = 20_000
"""Rows from which the certified minimum of one start is enough."""

Array = NDArray[np.float64]
Index = NDArray[np.intp]


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
    """

    def __init__(
        self, chains: list[Chain], xy: Array, Z: Array, structure: CovarianceStructure, spans: list[slice],
        part: ResidualPart,
    ) -> None:  # fmt: skip
        super().__init__(xy.shape[1], len(xy), structure, spans, part)
        # strata one after the other, the subjects of each together
        order = part.sorted_rows
        self.order = order = order[np.argsort(part.stratum[order], kind="stable")]
        self.columns = np.column_stack((Z, xy))[order]
        codes = np.asarray(part.subject.codes)[order]
        self.starts = np.append(np.flatnonzero(np.append(True, codes[1:] != codes[:-1])), len(order))
        stratum = part.stratum[order[self.starts[:-1]]]
        self.q, self.m = Z.shape[1], len(stratum)
        self.costly = len(xy) > COSTLY
        self.groups: list[tuple[Stratum, Chain, slice, Array, Index]] = []
        for g, chain in enumerate(chains):
            mine = np.flatnonzero(stratum == g)
            first = int(self.starts[mine[0]])
            rows = slice(first, int(self.starts[mine[-1] + 1]))
            self.groups.append((part.strata[g], chain, rows, part.where[order[rows]], self.starts[mine] - first))

    def _summed(self, phi: Array) -> None:
        """Sums of products and their derivatives in phi, with those of log|R|: in those of each stratum."""
        k, width = self.part.n_parameters, self.columns.shape[1]
        self.triangle = np.empty((self.m, width, width))
        self.log_r, self.d_log_r, self.dd_log_r = 0.0, np.zeros(k), np.zeros((k, k))
        self.found: list[tuple[Stratum, slice, Products]] = []
        subject = 0
        for stratum, chain, rows, where, starts in self.groups:
            scale, inner = stratum.own(phi)
            found = products(chain, inner, where, starts, self.columns[rows])
            here = slice(subject, subject + len(starts))
            subject = here.stop
            self.found.append((stratum, here, found))
            self.triangle[here] = found.triangle / np.sqrt(scale)
            own = np.arange(stratum.start + stratum.scaled, stratum.stop)
            self.log_r += found.log_det + (rows.stop - rows.start) * float(np.log(scale))
            self.d_log_r[own] += found.log_det_first
            self.dd_log_r[np.ix_(own, own)] += found.log_det_second
            if stratum.scaled:
                self.d_log_r[stratum.start] += rows.stop - rows.start

    def _derivatives(self, phi: Array) -> tuple[Array, Array]:
        """Derivatives of the sums of products A_i in phi (k, m, K, K), (k, k, m, K, K)."""
        k, width = self.part.n_parameters, self.columns.shape[1]
        dA, ddA = np.zeros((k, self.m, width, width)), np.zeros((k, k, self.m, width, width))
        for stratum, here, found in self.found:
            scale, _ = stratum.own(phi)
            own = slice(stratum.start + stratum.scaled, stratum.stop)
            dA[own, here] = found.first / scale
            ddA[own, own, here] = found.second / scale
            if stratum.scaled:
                # R is e^tau R~, and A has the factor e^-tau
                tau = stratum.start
                dA[tau, here] = -self.triangle[here].transpose(0, 2, 1) @ self.triangle[here]
                ddA[tau, tau, here] = -dA[tau, here]
                ddA[tau, own, here] = ddA[own, tau, here] = -dA[own, here]
        return dA, ddA

    def reduce(self, x: Array) -> tuple[float, Array | None]:
        """log|V| and H."""
        factor, phi = self.split(x)
        self._summed(phi)
        self.G = factor @ factor.T
        q = self.q
        if not (np.isfinite(self.triangle).all() and np.isfinite(self.G).all()):
            return np.inf, None
        self.r, self.b, c = self.triangle[:, :q, :q], self.triangle[:, :q, q:], self.triangle[:, q:, q:]
        core = np.eye(q) + self.r @ self.G @ self.r.transpose(0, 2, 1)
        self.inner = np.linalg.inv(core)
        log_det = self.log_r + float(np.linalg.slogdet(core)[1].sum())
        H = (c.transpose(0, 2, 1) @ c + self.b.transpose(0, 2, 1) @ self.inner @ self.b).sum(axis=0)
        self._phi = phi
        return log_det, H

    def weigh(self, turn: Array) -> None:
        """Sums of products and their derivatives, brought to [A e]."""
        q, width = self.q, self.columns.shape[1]
        halves = self.r.transpose(0, 2, 1) @ self.inner
        self.N = halves @ self.r
        self.Q = halves @ self.b @ turn
        self.P = self.G - self.G @ self.N @ self.G
        self.T = np.eye(q) - self.N @ self.G
        U = np.empty((self.m, width, self.c))
        U[:, :q] = -self.G @ self.Q  # P B = G T B = G Q
        U[:, q:] = turn
        dA, ddA = self._derivatives(self._phi)
        along = dA @ U
        self.E = along[:, :, :q]
        self.dA = dA[:, :, :q, :q]
        self.dH = np.einsum("izj,kizl->kjl", U, along)
        cross = np.einsum("kizj,izy,liyj->klj", self.E, self.P, self.E, optimize=True)
        self.ddH = np.einsum("izj,klizy,iyj->klj", U, ddA, U, optimize=True) - 2.0 * cross
        lost = np.einsum("iab,kibc,icd,lida->kl", self.P, self.dA, self.P, self.dA, optimize=True)
        self.tr_dd = self.dd_log_r + np.einsum("iab,kliba->kl", self.P, ddA[:, :, :, :q, :q]) - lost
        self.units_of_g = np.zeros((len(self.units), q, q))
        places, rows_of, columns_of = np.arange(len(self.units)), self.units[:, 1], self.units[:, 2]
        self.units_of_g[places, rows_of, columns_of] = self.units_of_g[places, columns_of, rows_of] = 1.0

    def first(self, x: Array, ratio: float, bracket: float) -> Array:
        """Along the unit directions of G and along phi."""
        S = self._crossed()
        traces = np.concatenate(
            (
                np.einsum("dab,iba->d", self.units_of_g, self.N),
                self.d_log_r + np.einsum("iab,kiba->k", self.P, self.dA),
            )
        )
        out = traces - ratio * S[:, -1, -1] - bracket * np.trace(S[:, :-1, :-1], axis1=1, axis2=2)
        self._slope_g = out[: len(self.units)]
        return np.asarray(out)

    def _crossed(self) -> Array:
        """[A e]'D[A e] for all directions."""
        of_g = np.einsum("iaj,dab,ibk->djk", self.Q, self.units_of_g, self.Q, optimize=True)
        return np.concatenate((of_g, -self.dH))

    def along(self, c_n: float, c_e: float, c_x: float) -> Array:
        """Second derivatives along pairs of directions, the bend of V in phi with them."""
        if c_n != -1.0:
            self._refuse()
        weights = np.append(np.full(self.c - 1, 0.5 * c_x), 0.5 * c_e)
        n_u, k = len(self.units), self.part.n_parameters
        out = np.empty((n_u + k, n_u + k))
        D = self.units_of_g
        DQ = np.einsum("dab,ibj->diaj", D, self.Q)
        ND = np.einsum("iab,dbc->diac", self.N, D)
        out[:n_u, :n_u] = 2.0 * np.einsum("diaj,iab,eibj,j->de", DQ, self.N, DQ, weights, optimize=True)
        out[:n_u, :n_u] -= np.einsum("diab,eiba->de", ND, ND, optimize=True)
        TE = np.einsum("iab,kibj->kiaj", self.T, self.E)
        mixed = -2.0 * np.einsum("kiaj,diaj,j->dk", TE, DQ, weights, optimize=True)
        TAT = self.T @ self.dA @ self.T.transpose(0, 2, 1)
        mixed += np.einsum("kiab,dba->dk", TAT, D, optimize=True)
        out[:n_u, n_u:], out[n_u:, :n_u] = mixed, mixed.T
        out[n_u:, n_u:] = self.tr_dd + self.ddH @ weights
        return out

    def bend(self, x: Array) -> Array:
        """Part of `along`."""
        return np.zeros((self.part.n_parameters, self.part.n_parameters))

    @staticmethod
    def _refuse() -> None:
        raise LMMError(
            "the expected information, and Kenward and Roger's adjustment, are not to be had for series so long; "
            "take ddf='satterthwaite'"
        )

    def sandwich_along(self, weight: Array) -> Array:
        """Not to be had."""
        self._refuse()
        return weight

    def within(self, tables: list[Array]) -> Array:
        """Not to be had."""
        self._refuse()
        return np.zeros((0, 0))

    @property
    def places(self) -> list[tuple[int, Index | Array]]:
        """Not to be had: no matrix is made of the residuals of a subject."""
        self._refuse()
        return []

    def solve(self, v: Array, rows: Rows) -> Array:
        """V^-1 v by the rows of the problem."""
        columns = v.reshape(len(v), -1)
        root = np.ones(len(v)) if rows.weights is None else np.sqrt(rows.weights)
        held = (root[:, None] * columns)[self.order]
        phi = self._phi

        def inverse(given: Array) -> Array:
            out = np.empty_like(given)
            for stratum, chain, part, where, starts in self.groups:
                scale, inner = stratum.own(phi)
                out[part] = whiten_twice(chain, inner, where, starts, given[part]) / scale
            return out

        solved = inverse(held)
        if self.q:
            Z = self.columns[:, : self.q]
            spread = inverse(Z)
            for i, part in enumerate(slice(a, b) for a, b in pairwise(self.starts.tolist())):
                core = self.G - self.G @ self.N[i] @ self.G
                solved[part] -= spread[part] @ (core @ (Z[part].T @ solved[part]))
        out = np.empty(columns.shape)
        out[self.order] = solved
        return np.asarray(root[:, None] * out).reshape(v.shape)
