"""Whether the criterion of several intercepts is known to have one minimum only: balanced layouts.

Let U_f be the columns of Z_f divided by their length, the same for all, and P_f = U_f U_f'.  Where P_f P_g is P_g for
the coarser of two nested factors, and the projector on one direction common to both for crossed ones, V is a sum of
lambda_s P_s over orthogonal strata: of the residuals lambda_0 = sigma^2, of a factor that of the factor next finer plus
its own variance times the square of that length.  Where no P_f leads out of the columns of X, these do not tell on
estimates of X, and minus twice the (restricted) log-likelihood in the precisions w_s = 1 / lambda_s is

    sum_s S_s w_s - d_s log w_s    [+ log(lambda_a + lambda_b - lambda_c)]

with sums of squares S_s and degrees of freedom d_s, where w_f <= w_g for the factor g next finer: a convex function on
a convex set for any chain of nested factors, and for one that is crossed with its coarser members.

The last term is that of the direction common to the crossed a and b, c being the stratum next finer to both; by REML
it is not there where this direction is a column of X.  In x_s = d w_s / w_s, and with r_s = lambda_s / (lambda_a +
lambda_b - lambda_c), so that r_a + (r_b - r_c) = 1 and r_c <= 1, its second derivative is

    2 r_a x_a^2 + 2 r_b x_b^2 - 2 r_c x_c^2 - (r_a x_a + (r_b - r_c) x_b + r_c (x_b - x_c))^2  >=  -2 x_b^2 - 6 x_c^2

which d_b >= 2 and d_c >= 6 outweigh.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...support.types import Array, Index

if TYPE_CHECKING:
    from ...kernels.layouts import Layout, Stage, Tail

__all__ = ["has_one_minimum"]


SAME = 1e-9
"""Relative differences of products that are rounding errors."""

LEAST_CROSSED, LEAST_FINER = 2, 6
"""Degrees of freedom of one of two crossed factors, and of the stratum next finer to both, from which the criterion is
convex."""


def has_one_minimum(layout: Layout, cross: Array, n: int) -> bool:
    """Whether the criterion is known to have one minimum only, by REML and by maximum likelihood.

    Parameters
    ----------
    layout : Layout
        As it comes of the rows.
    cross : (n_slots, k) array
        Z'[X y], X orthonormal.
    n : int
        Observations.
    """
    items: list[Stage | Tail] = [*layout.stages, *layout.tails]
    if len(layout.tails) > 1 or any(item.q > 1 for item in items):
        return False
    slots = [at[:, 0] for at in layout.factor_slots()[0]]
    squares = [float(item.own[0, 0, 0]) for item in items]
    if not all(_constant(item.own, square) for item, square in zip(items, squares, strict=True)):
        return False
    if not all(_invariant(cross[at, :-1], square) for at, square in zip(slots, squares, strict=True)):
        return False
    if not _nested(layout.stages, squares):
        return False
    if not layout.tails:
        return n > layout.stages[0].m
    return _crossed(layout, squares, cross[slots[-1], :-1], n)


def _constant(values: NDArray[Any], value: float) -> bool:
    return bool((np.abs(values - value) <= SAME * abs(value)).all())


def _invariant(C: Array, square: float) -> bool:
    """Whether X'PX is a projector, from C = Z'X: P does not lead out of the columns of X."""
    inner = C.T @ C / square
    return bool((np.abs(inner @ inner - inner) <= SAME).all())


def _nested(stages: tuple[Stage, ...], squares: list[float]) -> bool:
    """Whether the columns of coarser factors of a chain are combinations of those of finer ones."""
    for s, stage in enumerate(stages):
        level: Index = np.arange(stage.m)
        for j, finer in enumerate(stages[s:-1]):
            assert finer.parent is not None
            level = finer.parent[level]
            taken = np.bincount(level, weights=stage.chain[:, 0, j] ** 2) / squares[s]
            if not _constant(taken, squares[s + 1 + j]):
                return False
    return True


def _crossed(layout: Layout, squares: list[float], C: Array, n: int) -> bool:
    """Whether the factor of the tail is crossed with the coarser ones of the chain, and finer ones are nested in it."""
    (tail,) = layout.tails
    finer, dimensions = n, []
    for stage, square in zip(layout.stages, squares[:-1], strict=True):
        assert stage.start is not None and stage.slots is not None and stage.panel is not None
        products = stage.panel**2 / square
        if len(products) == stage.m * tail.m and _constant(stage.panel, float(stage.panel[0])):
            if not _constant(products * (stage.m * tail.m), squares[-1]):
                return False
            dimensions.append(stage.m)
        elif len(products) == stage.m and (np.diff(stage.start) == 1).all() and not dimensions:
            if len(layout.comp_slot) > 2 or not _constant(np.bincount(stage.slots, weights=products), squares[-1]):
                return False
            finer = stage.m
        else:
            return False
    if not dimensions:
        return False
    common = C.sum(axis=0)
    return (
        float(common @ common) >= (1.0 - SAME) * tail.m * squares[-1]
        and max(dimensions[-1], tail.m) > LEAST_CROSSED
        and finer - dimensions[0] - tail.m + 1 >= LEAST_FINER
    )
