"""The certificate of an optimum: its decrement, its curvature, and the boundary."""

from __future__ import annotations

from functools import lru_cache
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from ..covariance.parameters import CovarianceStructure
from ..engines.protocol import LinearEngine
from ..kernels import orthogonal_columns, smallest_parts
from ..support.types import Array
from .methods import Ended
from .optimum import CERTIFIED, SINGULAR, Optimum

__all__ = ["decrement_of", "settle", "small_directions"]


def decrement_of(gradient: Array, hessian: Array) -> tuple[float, float]:
    """Square root of twice the decrease that a Newton step promises; the smallest eigenvalue over the largest one."""
    values, vectors = np.linalg.eigh(hessian)
    largest = float(np.max(np.abs(values)))
    if largest == 0.0:
        return float(np.linalg.norm(gradient)), 0.0
    size = np.maximum(np.abs(values), 1e-12 * largest)
    return float(np.sqrt(np.sum((vectors.T @ gradient) ** 2 / size))), float(values[0] / largest)


def small_directions(factor: Array, structure: CovarianceStructure, per_group: Array) -> tuple[Array, Array]:
    """Lambda with its negligible singular values set to zero, and the directions of zero variance."""
    q = structure.q
    pieces: list[tuple[slice, Array, NDArray[np.bool_]]] = []
    for block in structure.blocks:
        part = slice(block.start, block.stop)
        inner = factor[part, part]
        columns = orthogonal_columns(inner) if block.correlated else inner
        pieces.append((part, columns, (columns * columns).sum(axis=0) > SINGULAR**2 / per_group[block.start]))
    if all(keep.all() for _, _, keep in pieces):
        return factor, np.empty((q, 0))
    snapped = np.zeros_like(factor)
    null: list[Array] = []
    for (part, columns, keep), block in zip(pieces, structure.blocks, strict=True):
        kept = np.where(keep, columns, 0.0)
        snapped[part, part] = kept
        basis = np.linalg.svd(kept)[0] if block.correlated else np.eye(len(kept))
        out = basis[:, keep.sum() :] if block.correlated else basis[:, ~keep]
        null.extend(np.pad(direction, (part.start, q - part.stop)) for direction in out.T)
    return structure.canonical(snapped), np.array(null).T.reshape(q, len(null))


@lru_cache(maxsize=64)
def _no_directions(q: int) -> Array:
    """None of the directions of q effects."""
    out = np.empty((q, 0))
    out.setflags(write=False)
    return out


def settle(
    criterion: LinearEngine,
    structure: CovarianceStructure,
    found: Ended,
    levels: Array,
    n: int,
    method: str,
    note: str,
    turn: Array | None = None,
) -> tuple[Optimum, Array | None]:
    """Certify an optimum; also a better start where the boundary turns out to be the wrong one.

    `turn` is the rotation in force (see `ClusterCriterion.rotate`); the results are in its coordinates.  `note` ends
    the message of a certified optimum.
    """
    theta, gradient, hessian, value, decrement, lowest = found[:6]
    if structure.one_full:
        factor, least, lowest_diagonal = smallest_parts(theta, structure.flat, structure.q)
    else:
        factor = structure.factor(theta)
        least, lowest_diagonal = 0.0, float(factor.diagonal().min())
    snapped, null, singular, wrong = factor, _no_directions(structure.q), False, None
    if not least > SINGULAR**2 * levels.item(0) / n:
        snapped, null = small_directions(factor, structure, n / levels)
        singular = null.shape[1] > 0
    if singular:
        at_zero = structure.theta(snapped)
        if not np.array_equal(at_zero, theta):
            # a search on its way to the boundary ends so close to it that G^ is the same, and what is known of it holds
            criterion.rotate(turn)
        value, gradient, hessian = criterion.evaluate(at_zero, 2)
        decrement = None
        if value <= found.value + 1e-11 * (abs(found.value) + n):
            theta, factor = at_zero, snapped
            # on the cone of covariance matrices no direction out of the null space may lower the criterion
            slope = criterion.solution()[3]
            slope = np.where(structure.free, slope if turn is None else turn @ slope @ turn.T, 0.0)
            per_group = n / levels
            size = per_group * np.sqrt(levels)
            slopes, directions = np.linalg.eigh(null.T @ (slope / np.sqrt(np.outer(size, size))) @ null)
            if slopes[0] < -CERTIFIED:
                wrong = np.column_stack([factor, 0.5 / np.sqrt(per_group) * (null @ directions[:, 0])])
        else:
            null, singular = null[:, :0], False
            criterion.evaluate(theta, 2)
            _, gradient, hessian, value, decrement = found[:5]
    if not singular and (found.decrement is None or lowest_diagonal < 0.0):
        factor = structure.canonical(factor)
        theta = structure.theta(factor)
        value, gradient, hessian = criterion.evaluate(theta, 2)
        decrement = None
    assert gradient is not None and hessian is not None
    if decrement is None or lowest is None:
        decrement, lowest = decrement_of(gradient, hessian)
    converged = bool(decrement <= CERTIFIED and lowest >= -1e-6 and wrong is None and isfinite(value))
    if converged:
        message = f"certified: the gradient vanishes to rounding error{', on the boundary' if singular else ''}{note}"
    elif found.unfinished:
        message = (
            "not certified: stopped at the limit of iterations; the criterion can still be lowered (a Newton step "
            f"promises {0.5 * decrement**2:.1e})"
        )
    elif wrong is not None or (decrement <= CERTIFIED and lowest < -1e-6):
        message = "not certified: a saddle point, the criterion can still be lowered"
    else:
        message = f"not certified: the criterion can still be lowered by about {0.5 * decrement**2:.1e}"
    # by place, which is faster than by name
    optimum = Optimum(
        theta, factor, float(value), gradient, hessian, decrement, converged, singular, criterion.n_evaluations, method,
        message, null, found.trace,
    )  # fmt: skip
    return optimum, wrong
