"""What responses with covariates of their own share: a covariate widens X alone, and groups stay what they are.

The responses are summed and searched several at a time, on sums that do not grow with the number of groups where these
have the same Z_i'Z_i (see lanes/responses_with_covariates.pxi).  Few groups take a search of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ... import kernels
from ...engines.one_factor.problem import HALF, SIX, TELLING, OneFactorProblem, one_factor
from ...engines.scaling import criterion_constant
from ...errors import LMMError
from ...kernels.records.batches import BatchPatterns
from ...kernels.records.stacks import SharedLines
from ...support.types import Array
from .one_factor import shared_design

if TYPE_CHECKING:
    from ..model import Model

__all__ = ["shared_lines"]

FEWEST = 256
"""Responses for which what they share is worth making."""

MOST_COVARIATES, MOST_EFFECTS = 3, 3
"""Covariates of each response, and random effects, that the kernels have room for."""

SAME = 1e-9
"""Distance of orthonormal columns of Z_i from those of all groups that is rounding error."""

FULL_RANK = 1e-4
"""Smallest pivot of a group that tells of its effects, where all groups together tell m: see `vary_freely`."""


def shared_lines(model: Model, factors: Sequence[int], count: int) -> SharedLines | None:
    """What responses with covariates share; None where each is to be conditioned by itself.

    Parameters
    ----------
    model : Model
        The design without covariates; with its weights and offset, if it has any.
    factors : sequence of int
        Column of X by which each covariate is multiplied, -1 for none.
    count : int
        Responses.
    """
    structure, room = model.structure, 0 < len(factors) <= MOST_COVARIATES and model.structure.q <= MOST_EFFECTS
    if count < FEWEST or not room or not structure.one_full:
        return None
    try:
        whole = model.fittable()
        problem = one_factor(whole.problem)
    except LMMError:
        # responses may be fitted even so, on some of the rows
        return None
    if problem.saturated or problem.outside or problem.rank < model.exog.shape[1]:
        return None
    rank = problem.rank + len(factors)
    made = model.once(("shared by responses with covariates", rank), lambda: _shared(whole, problem, rank))
    if made is None or all(factor < 0 for factor in factors):
        return made
    order = made.design.rows.order
    x = model.exog if order is None else model.exog[order]
    return made._replace(times=[None if factor < 0 else np.ascontiguousarray(x[:, factor]) for factor in factors])


def _shared(model: Model, problem: OneFactorProblem, rank: int) -> SharedLines | None:
    """What does not depend on which covariates there are; None for few groups that do not tell alike."""
    design = shared_design(model)
    assert isinstance(design, kernels.BatchDesign)
    n, m, q = problem.n, problem.m, model.structure.q
    unit = float(np.sqrt(n / m))
    patterns, sizes = design.patterns, np.diff(design.rows.start)
    R = np.zeros((len(patterns.R), q, q))
    R[:, *np.triu_indices(q)] = patterns.R / unit
    pivots = np.diagonal(R, axis1=1, axis2=2)
    each = np.repeat(np.arange(len(R)), np.diff(patterns.groups))
    telling = (sizes > q) & (pivots > FULL_RANK / np.sqrt(m)).all(axis=1)[each]
    if m < SIX * q or telling.sum() < 2 * rank + 1:
        return None
    if np.tril(problem.z_map, -1).any():
        # a constant column that is not the first: coordinates of a problem depend on where its rows are centred
        return None
    complete = bool((pivots > 0.0).all())
    balanced = n - rank >= 2 * m * q and problem.evenness >= HALF
    return SharedLines(
        design=design,
        R=_packed(R),
        unit=unit,
        z_map=np.ascontiguousarray(problem.z_map / unit),
        kept=np.zeros(rank, dtype=np.intc),
        times=(),
        constant=(criterion_constant(problem, True), criterion_constant(problem, False)),
        balanced=balanced,
        few=problem.few,
        alike=complete and problem.telling >= TELLING * m,
        spanned=balanced and _spanned(design.patterns, R, m),
    )


def _spanned(patterns: BatchPatterns, R: Array, m: int) -> bool:
    """Whether all groups have the same Z_i'Z_i, and X as many columns as carry it, of m groups with enough beyond."""
    q, width = R.shape[1], int(patterns.columns[-1])
    alike = len(R) == 1 and bool(np.abs(R[0] - np.eye(q)).max() <= SAME)
    return alike and width * q == len(patterns.exact) and bool(patterns.exact.all()) and m - width >= SIX * q - 1


def _packed(R: Array) -> Array:
    """Upper triangles by rows."""
    return np.ascontiguousarray(R[:, *np.triu_indices(R.shape[1])])
