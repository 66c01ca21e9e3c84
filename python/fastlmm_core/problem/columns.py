"""Conditioning of columns: shifts, scales, rank, orthonormal columns; what is refused on the way.

X and the columns of each grouping factor are shifted and scaled, freed of columns that depend on others (X) or refused
for them (Z), and turned so that their cross-products are the identity.
"""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from typing import Any, NamedTuple

import numpy as np

from .. import kernels
from ..covariance.parameters import Block, CovarianceStructure
from ..errors import LMMError
from ..support.checks import sum_is_finite
from ..support.types import Array, Index

__all__ = [
    "RANK_TOLERANCE",
    "SAMPLE",
    "WELL_CONDITIONED",
    "ConditionedX",
    "condition_x",
    "condition_y",
    "condition_z",
    "factor_structure",
    "fixed_fields",
    "independent_columns",
    "nothing_left",
    "piece_rows",
    "refuse_non_finite",
    "revealed",
    "rotation",
    "scaled_triangle",
    "scaled_z",
    "spread",
    "z_preconditioner",
]


SAMPLE = 1000
"""Rows from which offsets and scales are taken."""

WELL_CONDITIONED = 1e-5
"""Smallest 1 - R^2 of a column on its predecessors for which cross-products are exact enough."""

VANISHING = 1e-290
"""y'y below which its digits are lost."""

RANK_TOLERANCE = 1e-7
"""A column whose part outside its predecessors is shorter than this, relatively, is dropped (as in R)."""


class ConditionedX(NamedTuple):
    """Fixed-effect columns that are kept, and how they are turned into orthonormal ones.

    Attributes
    ----------
    kept : (r,) array
    shift_scale : (2, r) array
    constant : int
        Which of the columns kept is constant, -1 for none.
    turn : (r, r) array
        From shifted, scaled (and weighted) rows to orthonormal columns.
    """

    kept: Index
    shift_scale: Array
    constant: int
    turn: Array


def refuse_non_finite(y: Array, X: Array, Z: Array, weights: Array | None, offset: Array | None) -> None:
    """Name the first value that is not finite.

    Raises
    ------
    LMMError
        If there is one.
    """
    for name, values in (("y", y), ("X", X), ("Z", Z), ("weights", weights), ("offset", offset)):
        if values is None or sum_is_finite(values) or np.isfinite(values).all():
            continue
        bad = np.argwhere(~np.isfinite(values))
        row = int(bad[0, 0])
        place = f"row {row}" + (f", column {int(bad[0, 1])}" if values.ndim == 2 else "")
        value = values[tuple(bad[0])]
        raise LMMError(
            f"{name} has {len(bad)} values that are not finite (first: {value} at {place}); "
            "remove or impute these rows before fitting"
        )


def spread(rows: Array, kept: Index, p: int) -> Array:
    """Rows of the columns kept, and zeros for the other ones of p columns."""
    out = np.zeros((p, *rows.shape[1:]))
    out[kept] = rows
    return out


def factor_structure(structure: CovarianceStructure, start: int, width: int) -> CovarianceStructure:
    """The blocks of the grouping factor whose `width` columns begin at `start`, by themselves."""
    stop = start + width
    return CovarianceStructure(
        tuple(Block(b.start - start, b.stop - start, b.structure) for b in structure.blocks if start <= b.start < stop)
    )


def scaled_triangle(columns: Array, shift_scale: Array, weights: Array | None, before: Array | None = None) -> Array:
    """R of the QR decomposition of shifted, scaled and weighted columns, in pieces.

    Parameters
    ----------
    columns : (n, p) array
    shift_scale : (2, p) array
    weights : (n,) array or None
    before : array, optional
        R of rows before these.

    Returns
    -------
    (min(n, p), p) array
    """
    step = piece_rows(columns.shape[1])
    triangle = np.zeros((0, columns.shape[1])) if before is None else before
    for start in range(0, len(columns), step):
        piece = slice(start, start + step)
        scaled = _scaled(columns[piece], shift_scale, None if weights is None else np.sqrt(weights[piece]))
        triangle = np.asarray(np.linalg.qr(np.vstack([triangle, scaled]), mode="r"), dtype=np.float64)
    return triangle


def piece_rows(width: int) -> int:
    """Rows of a piece that is decomposed at once: a power of two, several times the columns."""
    return 1 << max(11, (4 * width - 1).bit_length())


def revealed(triangle: Array) -> tuple[Index, Array]:
    """Columns that are not combinations of their predecessors, and the R factor of those, from that of all."""
    length = np.linalg.norm(triangle, axis=0)
    length[length == 0.0] = 1.0
    r = triangle / length
    kept: list[int] = []
    basis = np.zeros((r.shape[0], 0))
    for j in range(r.shape[1]):
        rest = r[:, j]
        for _ in range(2):
            rest = rest - basis @ (basis.T @ rest)
        norm = float(np.linalg.norm(rest))
        if norm > RANK_TOLERANCE:
            kept.append(j)
            basis = np.column_stack([basis, rest / norm])
    index = np.array(kept, dtype=np.intp)
    own: Array = np.asarray(np.linalg.qr(triangle[:, index], mode="r"), dtype=np.float64)
    return index, own


def independent_columns(
    triangle: Callable[[Array], Array], shift_scale: Array, constant: int, unshifted: Callable[[], Array]
) -> tuple[Index, Array, int, Array]:
    """Columns of X that do not depend on those before them, and a turn that makes them orthonormal but for rounding.

    Parameters
    ----------
    triangle : callable
        R of the QR decomposition of the columns, shifted and scaled by its argument (see `scaled_triangle`).
    shift_scale : (2, p) array
    constant : int
        The constant column that shifts lean on, -1 for none.
    unshifted : callable
        Gives the scales where that column is not kept.

    Returns
    -------
    kept : (r,) array
    shift_scale : (2, r) array
    constant : int
        Among the columns kept.
    turn : upper triangular (r, r) array
    """
    kept, own = revealed(triangle(shift_scale))
    if constant >= 0 and constant not in kept:
        shift_scale, constant = unshifted(), -1
        kept, own = revealed(triangle(shift_scale))
    if constant >= 0:
        constant = int(np.flatnonzero(kept == constant)[0])
    turn = np.triu(np.linalg.inv(own)) if len(kept) else np.zeros((0, 0))
    return kept, np.ascontiguousarray(shift_scale[:, kept]), constant, np.ascontiguousarray(turn)


def _scales(columns: Array, may_shift: bool) -> tuple[Array, int]:
    """Shift and scale of each column and the constant one, from all rows (see `kernels.column_scales`)."""
    n = len(columns)
    shift_scale, constant = kernels.column_scales(columns, n, may_shift)
    if constant >= 0 and not (columns[:, constant] == columns[0, constant]).all():
        return kernels.column_scales(columns, n, False)
    return shift_scale, constant


def condition_x(X: Array, weights: Array | None, spare: int = 0) -> tuple[ConditionedX, Array]:
    """Fixed-effect columns conditioned with care, from all rows.

    Parameters
    ----------
    X : (n, p) array
    weights : (n,) array or None
    spare : int
        Columns to be filled by the caller.

    Returns
    -------
    ConditionedX
    (n, r + spare) array
        X_o, weighted; orthonormal.
    """
    kept = np.arange(X.shape[1])
    root = None if weights is None else np.sqrt(weights)
    shift_scale, constant = _scales(X, True)
    scaled = _scaled(X, shift_scale, root)
    turn, margin = kernels.orthonormal(scaled.T @ scaled) if len(kept) else (np.zeros((0, 0)), 1.0)
    if margin < WELL_CONDITIONED:
        kept, shift_scale, constant, first = independent_columns(
            lambda scales: scaled_triangle(X, scales, weights),
            shift_scale,
            constant,
            lambda: kernels.column_scales(X, len(X), False)[0],
        )
        scaled = _scaled(X[:, kept], shift_scale, root)
        turned = scaled @ first
        turn = first @ kernels.orthonormal(turned.T @ turned)[0] if len(kept) else first
    turn = np.ascontiguousarray(turn)
    r = turn.shape[1]
    columns = np.empty((len(X), r + spare))
    np.matmul(scaled, turn, out=columns[:, :r])
    return ConditionedX(kept, shift_scale, constant, turn), columns


def fixed_fields(p: int, x: ConditionedX, coefficients: Array) -> dict[str, Any]:
    """What a problem holds of its fixed effects.

    Parameters
    ----------
    p : int
        Columns of X, with those that were dropped.
    x : ConditionedX
    coefficients : (r,) array
        Taken out of y, of the shifted and scaled columns.
    """
    columns_map = kernels.scale_map(x.shift_scale, x.constant)
    x_map, beta_base = columns_map @ x.turn, columns_map @ coefficients
    if len(x.kept) < p:
        x_map, beta_base = spread(x_map, x.kept, p), spread(beta_base, x.kept, p)
    return {
        "x_scale": x.shift_scale,
        "x_rows": x.turn,
        "x_constant": x.constant >= 0,
        "x_map": x_map,
        "beta_base": beta_base,
        "kept": x.kept,
        "log_jacobian": 2.0 * (kernels.log_diagonal(columns_map) + kernels.log_diagonal(x.turn)),
    }


def condition_y(
    y: Array, x: ConditionedX, x_o: Array, weights: Array | None, offset: Array | None, given: bool = False,
    sigma: float | None = None,
) -> tuple[Array, float, Array]:  # fmt: skip
    """The response less what X explains of it, weighted and scaled to unit variance.

    Parameters
    ----------
    y : (n,) array
    x, x_o : ConditionedX, (n, r) array
        From `condition_x`.
    weights, offset : (n,) arrays or None
    given : bool
        Whether the parameters are, so that any response will do.
    sigma : float, optional
        Residual standard deviation where it is known: any response will do, and is divided by it where X reproduces it.

    Returns
    -------
    rest : (n,) array
    scale : float
        Standard deviation by which it was divided.
    coefficients : (r,) array
        Taken out of y, of the shifted and scaled columns.

    Raises
    ------
    LMMError
        For a response that is constant, or that X reproduces.
    """
    takes_all = given or sigma is not None
    if (y == y[0]).all() and not takes_all:
        raise LMMError("y is constant: there is nothing to model; check that the right column is the response")
    # the residual of y, twice: the second pass takes out what rounding has left of X in the first
    rest = np.array(y if offset is None else y - offset)
    before = float(rest @ rest)
    shift = np.zeros(len(x.kept))
    if x.constant >= 0:
        shift[x.constant] = mean = rest.mean()
        rest -= mean
    if weights is not None:
        rest *= np.sqrt(weights)
    beta_o = np.zeros(len(x.kept))
    for _ in range(2):
        change = x_o.T @ rest
        rest -= x_o @ change
        beta_o += change
    squares = float(rest @ rest)
    if not squares > 1e-30 * before:
        if not takes_all:
            raise nothing_left(before)
        squares = before if before > 0.0 else float(len(y))
        if sigma is not None and not given:
            squares = len(y) * sigma**2
    scale = sqrt(squares / len(y))
    return rest / scale, scale, shift + x.turn @ beta_o


def nothing_left(squares: float) -> LMMError:
    """What y of which X leaves nothing is refused with; `squares`: y'y before."""
    if squares < VANISHING:
        return LMMError("y is so small that its squares vanish: rescale y to values above 1e-140 in size")
    return LMMError("y is reproduced exactly by the fixed effects: there is no variation left to model")


def _scaled(columns: Array, shift_scale: Array, root: Array | None) -> Array:
    scaled: Array = columns - shift_scale[0]
    scaled *= shift_scale[1]
    if root is not None:
        scaled *= root[:, None]
    return scaled


def condition_z(
    Z: Array, weights: Array | None, structure: CovarianceStructure, n: int | None = None
) -> tuple[Array, Array]:
    """Columns of one grouping factor conditioned with care, from all rows.

    Parameters
    ----------
    Z : (n, q) array
    weights : (n,) array or None
    structure : CovarianceStructure
        Of this factor.
    n : int, optional
        Rows that these stand for.

    Returns
    -------
    (n, q) array
        Z_o, weighted.
    z_map : (q, q) array
        b = z_map b_o.

    Raises
    ------
    LMMError
        For dependent columns.
    """
    n = n or len(Z)
    z_scale, constant = _scales(Z, structure.one_full)
    scaled = _scaled(Z, z_scale, None if weights is None else np.sqrt(weights))
    z_map = kernels.scale_map(z_scale, constant)
    turn, margin = rotation(scaled.T @ scaled, n, structure)
    if margin < WELL_CONDITIONED:
        first = z_preconditioner(scaled_triangle(Z, z_scale, weights), n, structure)
        scaled = scaled @ first
        z_map = z_map @ first
        turn, _ = rotation(scaled.T @ scaled, n, structure)
    return np.ascontiguousarray(scaled @ turn), z_map @ turn


def scaled_z(Z: Array, weights: Array | None, structure: CovarianceStructure) -> tuple[Array, Array]:
    """Columns of one grouping factor, shifted and scaled only: they may depend on each other; see `condition_z`."""
    z_scale, constant = _scales(Z, structure.one_full)
    scaled = _scaled(Z, z_scale, None if weights is None else np.sqrt(weights))
    return np.ascontiguousarray(scaled), kernels.scale_map(z_scale, constant)


def rotation(gram: Array, n: int, structure: CovarianceStructure) -> tuple[Array, float]:
    """Block-wise T with T' gram T = n I (diagonal blocks: unit diagonal only).

    Parameters
    ----------
    gram : (q, q) array
        Z'Z.
    n : int
    structure : CovarianceStructure

    Returns
    -------
    T : (q, q) array
    margin : float
        Smallest 1 - R^2 of a column on those before it, in full blocks.

    Raises
    ------
    LMMError
        For zero or proportional columns of a diagonal block.
    """
    out = np.zeros(gram.shape)
    margin = 1.0
    for block in structure.blocks:
        part = slice(block.start, block.stop)
        inner = np.ascontiguousarray(gram[part, part])
        if block.correlated:
            turn, smallest = kernels.orthonormal(inner)
            margin = min(margin, smallest)
        else:
            size = np.sqrt(np.diag(inner))
            turn = np.diag(1.0 / np.where(size > 0.0, size, 1.0))
            _check_diagonal(inner, size, block.start)
        out[part, part] = turn * sqrt(n)
    return out, margin


def _check_diagonal(gram: Array, size: Array, start: int) -> None:
    """Independent random effects may have dependent columns, but not zero or proportional ones."""
    for j in range(len(size)):
        length = np.where(size[:j] > 0.0, size[:j], 1.0)
        if size[j] == 0.0 or (np.abs(gram[j, :j]) >= (1.0 - 1e-12) * length * size[j]).any():
            raise LMMError(
                f"Z: column {start + j} is zero or proportional to one before it, so that its variance cannot be "
                "told from that one's; remove it from the random effects"
            )


def z_preconditioner(triangle: Array, n: int, structure: CovarianceStructure) -> Array:
    """Block-wise upper triangular T that makes the columns of Z nearly orthogonal.

    Parameters
    ----------
    triangle : (min(n, q), q) array
        R of the QR decomposition of the columns (see `scaled_triangle`).
    n : int
        Rows.
    structure : CovarianceStructure

    Raises
    ------
    LMMError
        For dependent columns of a full block.
    """
    q = triangle.shape[1]
    out = np.zeros((q, q))
    for block in structure.blocks:
        part = slice(block.start, block.stop)
        if not block.correlated:
            out[part, part] = np.eye(block.stop - block.start)
            continue
        index, own = revealed(triangle[:, part])
        if len(index) < block.stop - block.start:
            missing = sorted(set(range(block.stop - block.start)) - set(index.tolist()))
            raise LMMError(
                f"Z: column {block.start + missing[0]} is zero or a linear combination of the columns before it, so "
                "that its variance cannot be told from theirs; remove it from the random effects"
            )
        out[part, part] = np.triu(np.linalg.inv(own)) * np.sqrt(n)
    return out
