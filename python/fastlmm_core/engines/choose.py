"""Which engine takes a design."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..design.design import Design
from ..design.grouping import Grouping
from ..errors import LMMError
from ..support.blas_threads import quiet_blas
from ..support.types import Array, Index
from .one_factor.conditioning import condition
from .protocol import Problem

if TYPE_CHECKING:
    from ..covariance.parameters import CovarianceStructure
    from .crossed.problem import CrossedProblem, Factor

__all__ = ["condition_factors", "problem_of"]


QUICK_FROM = 2000
"""Rows from which nested factors are taken in by one pass; below, each column is treated with more care."""


def problem_of(design: Design, y: Array | None, given: bool = False) -> tuple[Problem, tuple[Grouping, ...]]:
    """Condition a design with a response, for the engine that evaluates it soonest.

    Parameters
    ----------
    design : Design
    y : (n,) array or None
        None for a design without a response.
    given : bool
        Whether the parameters are, so that designs and responses that leave them open are taken too.

    Returns
    -------
    Problem
    tuple of Grouping
        The grouping factors, counted.

    Raises
    ------
    LMMError
        For what cannot be fitted; see `condition` and `condition_factors`.
    """
    part, offset = design.random, design.offset
    if y is None:
        y, offset, given = np.zeros(len(design.exog)), None, True
    if design.residual is None and len(part.codes) == 1:
        known = design.shared_columns
        Z = part.parts[0] if len(part.parts) == 1 else part.Z
        problem, present, columns = condition(
            y, design.exog, Z, part.codes[0], design.weights, offset, part.structure, z_names=part.columns,
            given=given, sigma=design.sigma, known=known,
        )  # fmt: skip
        if columns is not None and columns is not known:
            design.keep_columns(columns)
        return problem, design.groupings or (Grouping(part.codes[0], present),)
    with quiet_blas(len(design.exog), design.exog.shape[1] + part.Z.shape[1] + 1):
        return _conditioned(design, y, offset, given)


def _conditioned(design: Design, y: Array, offset: Array | None, given: bool) -> tuple[Problem, tuple[Grouping, ...]]:
    """`problem_of` where residuals have a structure, or there are several grouping factors."""
    part = design.random
    if design.residual is not None:
        from .residual.problem import condition_residual

        return condition_residual(design, y, offset, given)
    from .crossed.problem import Factor

    factors = [
        Factor(part.columns_of(span), read.codes, read.n_slots, read.name, part.columns[span])
        for read, span in zip(part.codes, part.spans, strict=True)
    ]
    found = condition_factors(y, design.exog, factors, design.weights, offset, part.structure, given, design.sigma)
    return found, tuple(Grouping(read) for read in part.codes)


def condition_factors(
    y: Array,
    X: Array,
    factors: list[Factor],
    weights: Array | None,
    offset: Array | None,
    structure: CovarianceStructure,
    given: bool = False,
    sigma: float | None = None,
) -> CrossedProblem:
    """Cross-products of a model with several grouping factors, conditioned.

    Parameters
    ----------
    y, X : (n,), (n, p) arrays
    factors : list of Factor
        Different grouping factors; several terms on one factor make one with all their columns.
    weights, offset : (n,) arrays or None
    structure : CovarianceStructure
        Over the columns of all factors, in their order.
    given : bool
        Whether the parameters are: then only values that are not finite are refused, and y may be 0 throughout, for a
        design without a response.  So that r^2 is positive whatever y is, n is added to y_o'y_o.
    sigma : float, optional
        Residual standard deviation where it is known: what is not identified beside it is told when G is estimated, and
        any response will do.

    Raises
    ------
    LMMError
        For values that are not finite, a constant response, collinear columns of a Z, random effects that the fixed
        effects explain, covariance parameters that are not identified, a response without residual
        variation.
    """
    # loaded with the first model that needs them
    from .crossed.problem import condition_crossed
    from .nested.problem import condition_chain

    codes = [np.ascontiguousarray(f.codes, dtype=np.intp) for f in factors]
    for f, code in zip(factors, codes, strict=True):
        _check_codes(code, f.m, f.name)
    # what restricts a covariance may identify parameters that a free one does not: told when they are estimated
    if len(y) >= QUICK_FROM and not (given or sigma is not None or structure.restricted):
        quick = condition_chain(y, X, factors, codes, weights, offset, structure)
        if quick is not None:
            return quick
    return condition_crossed(y, X, factors, codes, weights, offset, structure, given=given, sigma=sigma)


def _check_codes(codes: Index, m: int, name: str) -> None:
    """Refuse codes that are not 0 to m - 1, all of them in use: the kernels write where they point."""
    if codes.min() < 0 or len(counts := np.bincount(codes, minlength=m)) != m or not counts.all():
        raise LMMError(
            f"internal error: the codes of the grouping factor {name!r} are not 0 to {m - 1} with rows for each; "
            "please report this with the model that led to it"
        )
