"""Arrays to a conditioned problem: cross-products, orthonormal columns, rank.

One pass over the rows is enough where offsets and scales taken from a sample of the rows leave the columns well
conditioned; otherwise a QR decomposition supplies a better transformation and a second pass is made with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from ... import kernels
from ...covariance.parameters import CovarianceStructure
from ...design.grouping import Codes
from ...errors import LMMError
from ...kernels.records.rows import RowColumns, Rows, SharedColumns
from ...problem.aliasing import default_names, refuse_aliased, suspects
from ...problem.columns import WELL_CONDITIONED, rotation, spread, z_preconditioner
from ...problem.identification import GroupedColumns, Shared, parts_identify, refuse_unidentified
from ...support.blas_threads import quiet_blas
from ...support.threads import threads_in_use
from ...support.types import Array
from .problem import OneFactorProblem
from .reading import BLOCK, ArrayRows, RowReader, first_columns, log_sum
from .summing import MOSTLY_EXPLAINED, Conditioned, conditioned_sums

__all__ = ["EXACT_WITHIN", "MOSTLY_BETWEEN", "condition", "condition_rows", "z_rotation"]


AT_ONCE = 2**15
"""Rows up to which a problem is conditioned in one call; one that needs a second look is then read once more."""

COMPRESS_FROM = 64
"""Groups below which an evaluation is cheaper than the search for equal ones."""

MOSTLY_BETWEEN = 1e-6
"""Share of the variation of y within groups below which it is summed from the rows again."""

SPANNED = 1e-10
"""Share of a combination of columns of X within groups below which the columns of Z explain it."""

EXACT_WITHIN = 1e-12
"""A column of [X y] whose part within groups is relatively smaller lies in the span of Z_i."""

LIMITS = (BLOCK, WELL_CONDITIONED, MOSTLY_EXPLAINED, MOSTLY_BETWEEN, EXACT_WITHIN)
"""What tells `kernels.condition_once` that a problem needs no second look at its rows."""


def condition(
    y: Array,
    X: Array,
    Z: Array,
    groups: Codes,
    weights: Array | None,
    offset: Array | None,
    structure: CovarianceStructure,
    *,
    z_names: Sequence[str] | None = None,
    given: bool = False,
    sigma: float | None = None,
    known: SharedColumns | None = None,
) -> tuple[OneFactorProblem, NDArray[np.intp] | None, SharedColumns | None]:
    """Cross-products of a model, conditioned.

    Parameters
    ----------
    y, X, Z : (n,), (n, p), (n, q) arrays
    groups : Codes
    weights, offset : (n,) arrays or None
    structure : CovarianceStructure
    z_names : (q,) sequence of str, optional
        Names of the columns of Z, for messages.
    given : bool
        Whether the parameters are: then only values that are not finite are refused, and y may be 0 throughout, for a
        design without a response.  So that r^2 is positive whatever y is, n is added to y_o'y_o.
    sigma : float, optional
        Residual standard deviation where it is known: what is not identified beside it is told when G is estimated, and
        any response will do.
    known : SharedColumns, optional
        What has come of the same X, Z, groups and weights with another response.

    Returns
    -------
    OneFactorProblem
    (m,) array or None
        The slots of groups that have rows, None for all.
    SharedColumns or None
        What holds for any response, where one look at the rows was enough.

    Raises
    ------
    LMMError
        For values that are not finite, a constant response, collinear columns of Z, random effects that the fixed
        effects explain, covariance parameters that are not identified, or a response without residual variation.
    """
    rows = Rows(X, y, Z, groups.codes, groups.base, groups.n_slots, weights, offset)
    quick = len(y) <= AT_ONCE and structure.one_full and X.shape[1] < kernels.MANY - 1 and not given
    found = kernels.condition_once(rows, LIMITS, known) if quick else None
    if found is None:
        with quiet_blas(len(y), X.shape[1] + structure.q + 1):
            problem, present = condition_rows(ArrayRows(rows), structure, groups.name, z_names, given, None, sigma)
        return problem, present, None
    (raw, packed, within), (xy, base, scale, exact), told = found
    n, m, q, r = len(y), len(raw), structure.q, X.shape[1]
    smaller = kernels.compress(packed, m, q, r + 1) if m >= COMPRESS_FROM else None
    read = packed if smaller is None else smaller
    if known is None:
        assert told is not None
        free = kernels.vary_freely(packed, raw, q, 2 * r + 1, 1e-4 * sqrt(n) / m)
        balanced = kernels.balanced(read, within, q, r + 1, structure.free)
        known = SharedColumns(*told, free, balanced, 0.0 if weights is None else -log_sum(weights))
    to_z, z_scale, x_scale, to_x, z_map, x_map, x_constant, _, present, log_det, free, balanced, log_constant = known
    problem = OneFactorProblem(
        n, m, structure, raw, read, smaller is None, within, to_z, xy, z_scale, x_scale, to_z, to_x, x_constant >= 0,
        z_map, x_map, base, scale, _all(r), log_constant, 2.0 * log_det, False, 0, 0.0, balanced,
    )  # fmt: skip
    if sigma is None and (exact or not free):
        with quiet_blas(len(y), X.shape[1] + structure.q + 1):
            _refuse_what_cannot_be_fitted(problem, free, exact, ArrayRows(rows), groups.name, z_names)
    return problem, present, known


def condition_rows(
    reader: RowReader,
    structure: CovarianceStructure,
    name: str,
    z_names: Sequence[str] | None = None,
    given: bool = False,
    columns: RowColumns | None = None,
    sigma: float | None = None,
) -> tuple[OneFactorProblem, NDArray[np.intp] | None]:
    """`condition` for rows from anywhere.

    Parameters
    ----------
    reader : RowReader
    structure : CovarianceStructure
    name : str
        Of the grouping factor.
    z_names, given
        See `condition`.
    columns : RowColumns, optional
        Shifts and scales to begin with; by default those that the first rows tell.
    sigma
        See `condition`.

    Returns
    -------
    OneFactorProblem
    (m,) array or None
        The slots that have rows, None for all.
    """
    if columns is None:
        columns = first_columns(reader, structure.one_full)
    sums = conditioned_sums(
        reader,
        columns,
        lambda gram, n, _: (np.eye(structure.q), 1.0) if given else z_rotation(gram, n, structure),
        lambda triangle, n: z_preconditioner(triangle, n, structure),
        given,
        sigma=sigma,
    )
    assert sums is not None
    problem, present, free, exact = _finish(reader, sums, structure, len(columns.beta0))
    if given:
        problem.within[-1] += problem.n
    elif sums.alone:
        problem.within[-1] += sums.alone
    elif sigma is None:
        _refuse_what_cannot_be_fitted(problem, free, exact, reader, name, z_names)
    return problem, present


@lru_cache(maxsize=64)
def _all(r: int) -> NDArray[np.intp]:
    """The positions of r columns."""
    out = np.arange(r)
    out.setflags(write=False)
    return out


def _refuse_what_cannot_be_fitted(
    problem: OneFactorProblem, free: bool, exact: bool, reader: RowReader, name: str, z_names: Sequence[str] | None
) -> None:
    """Refuse parameters that are not identified, and a response without residual variation.

    `free`: it shows already that all parameters are identified; `exact`: the random effects reproduce y in every group.
    """
    if problem.structure.restricted:
        # it may identify parameters that free covariances do not: told when they are estimated
        return
    if not free:
        _refuse_what_is_not_identified(problem, reader, name, z_names)
    if exact and not problem.saturated:
        raise LMMError(
            "y is reproduced exactly within every group by the random effects: the residual variance is zero; "
            "use fewer random effects"
        )


def _refuse_what_is_not_identified(
    problem: OneFactorProblem, reader: RowReader, name: str, z_names: Sequence[str] | None
) -> None:
    """Refuse random effects that X explains in every group, and parameters that nothing tells apart."""
    structure, r, n = problem.structure, problem.rank, problem.n
    q, m = structure.q, len(problem.raw)
    n_a = q * (q + 1) // 2
    scaled = problem.raw[:, n_a:-1].reshape(m, q, -1)
    crossed = np.einsum("aij,ik,jl->akl", scaled, problem.z_transform, problem.xy_transform[:, :r], optimize=True)

    def rows() -> tuple[list[GroupedColumns], Array, Array]:
        read = reader.whole()
        root = 1.0 if read.weights is None else np.sqrt(read.weights)[:, None]
        occurs = np.zeros(read.n_slots, dtype=bool)
        occurs[read.codes - read.base] = True
        place = np.cumsum(occurs) - 1
        names = default_names(read.Z) if z_names is None else tuple(z_names)
        columns = GroupedColumns(problem.conditioned_z(read.Z) * root, place[read.codes - read.base], m, name, names)
        return [columns], problem.conditioned_x(read.X) * root, read.Z

    found = suspects(crossed, n, structure)
    if found:
        (own,), x_o, Z = rows()
        refuse_aliased(found, own.Z, x_o, own.codes, problem.z_map, Z, name, own.columns)
    lower = np.zeros((q, q), dtype=np.intp)
    lower[np.tril_indices(q)] = np.arange(n_a)
    packed = problem.raw[:, np.maximum(lower, lower.T)]
    products = problem.z_transform.T @ packed @ problem.z_transform
    if parts_identify(products, problem.raw[:, -1], structure, r):
        return
    levels = np.arange(m)
    shared = [Shared(0, 0, levels, levels, products)]
    refuse_unidentified(shared, [crossed], structure, n, problem.z_map, lambda: rows()[:2])


def z_rotation(packed: Array, n: int, structure: CovarianceStructure) -> tuple[Array, float]:
    """`rotation` from packed sums of products."""
    if structure.one_full:
        return kernels.rotation(packed, structure.q, n)
    return rotation(kernels.unpack(packed, structure.q), n, structure)


def spanned_rows(packed: Array, q: int, order: NDArray[np.intp], counts: Array, within: Array) -> tuple[int, bool]:
    """How many dimensions of the rows Z leaves, and whether X takes them all.

    Parameters
    ----------
    packed : (blocks, K, lanes) array
        Factored groups.
    q : int
        Columns of Z.
    order : (places,) array
        Group in each place, -1 for none.
    counts : (m,) array
        Rows of each group.
    within : (k, k) array
        [X y]'[X y] less the part between groups.
    """
    r = len(within) - 1
    taken = (packed[:, np.cumsum([0, *range(q, 1, -1)])] > 0.0).sum(axis=1).ravel()[: len(order)]
    # pivots that rounding has left are more than a group has rows
    rank = np.minimum(taken, np.where(order >= 0, counts[order], 0.0)).sum()
    outside = round(float(counts.sum() - rank))
    return outside, outside == np.count_nonzero(np.linalg.eigvalsh(within[:r, :r]) > SPANNED)


def padded(transform: Array) -> Array:
    out = np.eye(len(transform) + 1)
    out[:-1, :-1] = transform
    return out


def _finish(
    reader: RowReader, sums: Conditioned, structure: CovarianceStructure, p: int
) -> tuple[OneFactorProblem, NDArray[np.intp] | None, bool, bool]:
    """The problem of given sums, its slots, and whether its parameters are identified and y is reproduced in groups."""
    columns, kept, m, raw, packed_s, _, to_x, to_z, xy, beta, scale, alone = sums
    n, q, r, jobs = reader.n, structure.q, len(kept), threads_in_use()
    x_transform, z_transform = columns.x_transform, columns.z_transform
    present: NDArray[np.intp] | None = None
    if m < reader.n_slots:
        present = np.flatnonzero(raw[:, -1])
        raw = raw[present]
    alike = kernels.factor_alike(raw, to_z, xy, jobs) if m >= COMPRESS_FROM else None
    packed, between = kernels.factor_groups(raw, to_z, xy, jobs) if alike is None else alike
    wanted = 2 * r + 1
    some = raw[: 4 * wanted + 8]
    first = packed if alike is None else kernels.factor_groups(some, to_z, xy)[0]
    free = kernels.vary_freely(first, some, q, wanted, 1e-4 * sqrt(n) / m)
    within = kernels.within_part(packed_s, xy, between)
    x_rows = sums.x_rows
    z_rows = to_z if z_transform is None else z_transform @ to_z
    tolerance, saturated, outside = EXACT_WITHIN, False, 0
    slope, unexplained = kernels.within_regression(within, r + 1, EXACT_WITHIN)
    if unexplained < MOSTLY_BETWEEN * n:
        # sums of squares have lost digits: take out what X explains within groups and sum over the rows again
        xy[:r, r] -= to_x @ slope
        beta = columns.beta0 - xy[:r, r] * scale
        packed, alike = kernels.factor_groups(raw, to_z, xy, jobs)[0], None
        position = np.zeros(reader.n_slots, dtype=np.int64)
        position[slice(None) if present is None else present] = np.arange(m)
        conditioned = columns._replace(
            x_transform=xy if x_transform is None else padded(x_transform) @ xy,
            z_transform=z_rows,
            beta0=columns.beta0 if x_transform is None else x_transform @ columns.beta0,
        )
        within = reader.within(conditioned, kept, position, packed)
        tolerance = EXACT_WITHIN**2
        outside, saturated = spanned_rows(packed, q, np.arange(m), raw[:, -1], kernels.unpack(within, r + 1))
        if saturated:
            within[-r - 1 :] = 0.0
    exact = kernels.clear_exact(within, r + 1, float(n), tolerance)
    if alike is not None:
        smaller: Array | None = packed
    else:
        smaller = kernels.compress(packed, m, q, r + 1) if m >= COMPRESS_FROM else None
    x_map, beta_base, log_det = kernels.natural_map(
        columns.x_scale, columns.x_constant, to_x if x_transform is None else x_transform, beta
    )
    if x_transform is not None:
        beta_base = x_map @ beta
        x_map = x_map @ to_x
        log_det += kernels.log_diagonal(to_x)
    if r < p:
        x_map, beta_base = spread(x_map, kept, p), spread(beta_base, kept, p)
    z_map = kernels.natural_map(
        columns.z_scale, columns.z_constant, to_z if z_transform is None else z_transform, None
    )[0]
    if z_transform is not None:
        z_map = z_map @ to_z
    problem = OneFactorProblem(
        n=n,
        m=m,
        structure=structure,
        raw=raw,
        packed=packed if smaller is None else smaller,
        uniform=smaller is None,
        within=within,
        z_transform=to_z,
        xy_transform=xy,
        z_scale=columns.z_scale,
        x_scale=columns.x_scale,
        z_rows=z_rows,
        x_rows=x_rows,
        x_constant=columns.x_constant >= 0,
        z_map=z_map,
        x_map=x_map,
        beta_base=beta_base,
        scale=scale,
        kept=kept,
        log_constant=-reader.log_weights,
        log_jacobian=2.0 * log_det,
        saturated=saturated,
        outside=outside if saturated else 0,
        alone=alone,
    )
    return problem, present, free, exact
