"""Covariates of responses, columns of X with values of each response's own: the terms they make, and their means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ...design.design import Design
from ...errors import LMMError
from ...formula.coding import FixedTerm, fixed_terms
from ...support.types import Array

__all__ = ["at_means", "terms_with_covariates"]

SPANNED = 1e-9
"""Distance of the columns of X from a column of ones that is rounding error."""


def terms_with_covariates(design: Design, names: Sequence[str], of: Sequence[int]) -> tuple[FixedTerm, ...]:
    """The terms of the fixed part in the order of the columns; products with all columns of a term are one.

    Parameters
    ----------
    design : Design
    names : sequence of str
        Of the covariates, which come after the columns of the design.
    of : sequence of int
        Column by which each is multiplied, -1 for none.
    """
    out = list(fixed_terms(design))
    owner = {j: term for term in out for j in term.columns}
    first, at, none = design.exog.shape[1], 0, frozenset[str]()
    while at < len(names):
        base = names[at].partition(":")[0]
        name, count = names[at], 1
        variables, factors, numeric = frozenset({base}), none, none
        if of[at] >= 0:
            owned = owner[of[at]]
            variables, factors, numeric = owned.variables | variables, owned.factors, owned.numeric
            width = len(owned.columns)
            bases = {other.partition(":")[0] for other in names[at : at + width]}
            if list(of[at : at + width]) == list(owned.columns) and bases == {base}:
                name, count = f"{base}:{owned.name}", width
        columns = range(first + at, first + at + count)
        out.append(FixedTerm(name, columns, variables, factors, numeric | {base}))
        at += count
    return tuple(out)


def at_means(
    exog: Array, covariates: Mapping[str, Array], of: Sequence[int], there: NDArray[np.bool_], params: Array
) -> tuple[dict[str, Array], Array]:
    """Covariates less their means over the observations of each response, and the coefficients of the same fits.

    Parameters
    ----------
    exog : (n, p) array
    covariates : mapping of str to (n_responses, n) or (1, n) arrays
    of : sequence of int
        Column of X by which each is multiplied, -1 for none.
    there : (n_responses, n) bool array
        Which observations each response has.
    params : (n_responses, .) array
        Coefficients of the columns of X and of the covariates as they are.

    Raises
    ------
    LMMError
        Where the columns of X do not span a constant.
    """
    p = exog.shape[1]
    constant = np.linalg.lstsq(exog, np.ones(len(exog)))[0]
    if np.abs(exog @ constant - 1.0).max() > SPANNED:
        raise LMMError(
            "means and slopes with covariates of single responses need an intercept; test the coefficients by test()"
        )
    # what is exactly a coefficient stays so
    constant[np.abs(constant) < SPANNED] = 0.0
    counts = np.maximum(there.sum(axis=1), 1)
    out, moved = params.copy(), {}
    for j, (name, values) in enumerate(covariates.items()):
        mean = np.where(there, values, 0.0).sum(axis=1) / counts
        moved[name] = values - mean[:, None]
        along = constant if of[j] < 0 else np.eye(p)[of[j]]
        out[:, :p] += (np.nan_to_num(params[:, p + j]) * mean)[:, None] * along
    return moved, out
