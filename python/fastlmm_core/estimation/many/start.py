"""Where the searches of many responses on one design start: a point that all share, and what a step from it needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from ...covariance.parameters import vech_positions
from ...engines.one_factor.problem import OneFactorProblem, one_factor
from ...kernels import unpack
from ...kernels.records.batches import BatchPatterns, BatchStart
from ...support.types import Array, Index
from ..search import descend

if TYPE_CHECKING:
    from ...covariance.parameters import CovarianceStructure
    from ..model import Model

__all__ = ["batch_start"]


BENT_EFFECTS, BENT_PATTERNS = 4, 2**15
"""Random effects, and patterns of groups, up to which the first step goes beyond scoring."""

PIECE = 2**12
"""Patterns whose products are held at once."""


def batch_start(model: Model, patterns: BatchPatterns) -> BatchStart:
    """A point from which to take one step of scoring, and what that takes, see lanes/start.pxi.

    Scores and expected information are those of sigma^2 and the covariances of random effects together: tr(P V_a P V_b)
    (Patterson and Thompson 1971, Biometrika 58, 545-554), by ML with V^-1 for P.

    Parameters
    ----------
    model : Model
    patterns : BatchPatterns
    """
    problem, structure = one_factor(model.problem), model.structure
    q, r = structure.q, problem.rank
    fitted = _minimum(problem, structure)
    relative = fitted @ fitted.T + 0.25 * problem.m / problem.n * np.eye(q)
    first = structure.canonical(np.asarray(np.linalg.cholesky(relative), dtype=np.float64))
    upper = np.zeros((len(patterns.R), q, q))
    upper[:, *np.triu_indices(q)] = patterns.R
    spread = upper @ first
    inverse = np.linalg.inv(np.eye(q) + spread @ spread.transpose(0, 2, 1))
    solved = upper.transpose(0, 2, 1) @ inverse
    N = solved @ upper
    owner = np.repeat(np.arange(len(upper)), np.diff(patterns.columns))
    turned = inverse[owner] @ patterns.cx
    E = solved[owner] @ patterns.cx
    tall = (len(owner) * q, r)
    H = unpack(patterns.within_xx, r) + patterns.cx.reshape(tall).T @ turned.reshape(tall)
    half = np.asarray(np.linalg.inv(np.linalg.cholesky(H)), dtype=np.float64)

    lower, position = vech_positions(q)
    directions = np.zeros((len(lower), q, q))
    directions[np.arange(len(lower)), lower, position] = directions[np.arange(len(lower)), position, lower] = 1.0
    bent = 1 < len(upper) <= BENT_PATTERNS and q <= BENT_EFFECTS
    along = (first @ first.T)[lower, position]
    # V = I + sum of the directions times the elements of G^
    basis = np.eye(1 + len(lower))
    basis[0, 1:] = -along
    free = np.append(0, 1 + np.flatnonzero(structure.free[lower, position]))
    found = []
    for nu, (trace, square, third) in zip(
        (problem.n - r, problem.n), _traces(directions, patterns, N, E @ half.T, bent), strict=True
    ):
        whole = np.zeros((len(basis), len(basis)))
        whole[1:, 1:], whole[0, 1:], whole[1:, 0], whole[0, 0] = square, trace, trace, nu
        information = basis @ whole @ basis.T
        scoring = np.zeros_like(information)
        scoring[np.ix_(free, free)] = np.linalg.pinv(information[np.ix_(free, free)])
        bend = np.zeros((len(basis),) * 3)
        if bent:
            bend[1:, 1:, 1:], bend[0, 0, 0] = third, nu
            bend[0, 1:, 1:] = bend[1:, 0, 1:] = bend[1:, 1:, 0] = square
            bend[0, 0, 1:] = bend[0, 1:, 0] = bend[1:, 0, 0] = trace
            for _ in range(3):
                # the last index becomes the first one
                bend = (bend @ basis.T).transpose(2, 0, 1)
        found.append((trace, square, scoring, bend))
    by_reml, by_ml = (tuple(np.ascontiguousarray(one) for one in group) for group in found)
    return BatchStart(
        first=np.ascontiguousarray(first),
        along=np.ascontiguousarray(along),
        inverse=np.ascontiguousarray(inverse),
        solved=np.ascontiguousarray(solved),
        N=np.ascontiguousarray(N),
        turned=np.ascontiguousarray(turned),
        E=np.ascontiguousarray(E),
        half=np.ascontiguousarray(half),
        trace=(by_reml[0], by_ml[0]),
        square=(by_reml[1], by_ml[1]),
        scoring=(by_reml[2], by_ml[2]),
        bend=(by_reml[3], by_ml[3]) if bent else None,
    )


def _minimum(problem: OneFactorProblem, structure: CovarianceStructure) -> Array:
    """Lambda where a search of the response of a problem ends: whether it is its only minimum does not matter."""
    engine = problem.criterion()
    engine.reml = True
    begin = problem.start(engine)
    found = descend(engine, structure, begin)
    return structure.factor(begin if found is None else found[1])


Traces: TypeAlias = tuple[Array, Array, Array]


def _traces(
    directions: Array, patterns: BatchPatterns, N: Array, E: Array, third: bool
) -> tuple[Traces, Traces]:  # fmt: skip
    """tr(M D_a), tr(M D_a M D_b) and, if wanted, tr(M D_a M D_b M D_c) (which depends on the order of the directions).

    First of M = N - E E' of all groups together, N block by block, then of N alone.
    """
    sums: list[Array] = []
    for begin in range(0, len(N), PIECE):
        end = min(begin + PIECE, len(N))
        widths, counts = np.diff(patterns.columns[begin : end + 1]), np.diff(patterns.groups[begin : end + 1])
        owner = np.repeat(np.arange(end - begin), widths)
        columns = E[patterns.columns[begin] : patterns.columns[end]]
        found = _sums(directions, counts, owner, N[begin:end], columns, third)
        sums = [one + other for one, other in zip(sums, found, strict=True)] if sums else found
    of_n, square_of_n, J, once = sums[:4]
    trace = of_n - np.trace(J, axis1=1, axis2=2)
    square = square_of_n - once - once.T + np.einsum("aij,bji->ab", J, J)
    if not third:
        return (trace, square, np.empty(0)), (of_n, square_of_n, np.empty(0))
    # of a cycle of three M, the parts with E once, twice and three times
    cube_of_n, single, Q = sums[4:]
    part = np.einsum("aij,bcji->abc", J, Q) - single
    cube = cube_of_n + part + part.transpose(2, 0, 1) + part.transpose(1, 2, 0)
    pairs = (J[:, None] @ J[None]).reshape(*square.shape, J[0].size)
    cube = cube - pairs @ J.transpose(0, 2, 1).reshape(len(J), J[0].size).T
    return (trace, square, cube), (of_n, square_of_n, cube_of_n)


def _sums(directions: Array, counts: Index, owner: Index, N: Array, E: Array, third: bool) -> list[Array]:
    """tr D_aN, tr D_aN D_bN, E'D_aE, tr E'D_aN D_bE, summed over groups; if wanted tr D_aN D_bN D_cN,
    tr E'D_aN D_bN D_cE, E'D_aN D_bE.

    `counts` of each block of N; the rows of E belong to the blocks `owner`.
    """
    count, p = len(directions), E.shape[2]
    DN = directions[:, None] @ N
    ND = DN.transpose(0, 1, 3, 2)
    flat_ND = ND.reshape(count, -1).T
    weighted = counts[:, None, None] * DN
    DE = directions[:, None] @ E
    flat = E.transpose(2, 0, 1).reshape(p, E.shape[0] * E.shape[1])
    J = np.stack([flat @ one.reshape(-1, p) if p else np.zeros((0, 0)) for one in DE])
    left = (ND[:, owner] @ E).reshape(count, E.size)
    trace, square = np.einsum("acii->a", weighted), weighted.reshape(count, -1) @ flat_ND
    out = [trace, square, J, left @ DE.reshape(count, E.size).T]
    if not third:
        return out
    single, Q = np.empty((count,) * 3), np.empty((count, count, p, p))
    for b in range(count):
        along = DN[b][owner] @ DE
        Q[b] = flat @ along.reshape(count, flat.shape[1], p)
        single[:, b] = left @ along.reshape(count, E.size).T
    return [*out, np.stack([(one[None] @ DN).reshape(count, -1) @ flat_ND for one in weighted]), single, Q]
