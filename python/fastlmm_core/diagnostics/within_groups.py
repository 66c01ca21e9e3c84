"""Least-squares residuals within groups: what a regression of each group's rows alone leaves.

They do not depend on the variances, nor on what is said of the distribution of the random effects (Hilden-Minton 1995,
Multilevel diagnostics for mixed and hierarchical linear models; Loy and Hofmann 2014, J. Stat. Softw. 56(5), sec. 2).
For all groups at once, column by column: what the columns before have left of a column (Gram and Schmidt, twice) is
summed up over each group.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..support.types import Array

if TYPE_CHECKING:
    from ..estimation.fit import Fit

__all__ = ["within_groups"]


DEPENDENT = 1e-8
"""Share of a column, within a group, that is left by those on which it depends there."""


def within_groups(fit: Fit) -> Array:
    """y less its projection on the group's rows of the columns of X and Z (n,).

    Groups are the levels of the factor with most levels; rows are weighted by the prior weights.  The residuals of a
    group with no more rows than columns are 0.
    """
    model = fit.model
    factor = model.factors[0]
    index, m = factor.grouping.index, factor.grouping.m
    root = model.root_weights
    columns = np.column_stack([model.exog_re[:, factor.columns], model.exog[:, model.problem.kept]])
    basis: list[Array] = []

    def rest(values: Array) -> Array:
        for _ in range(2):
            for unit in basis:
                values = values - unit * np.bincount(index, unit * values, m)[index]
        return values

    for column in columns.T:
        own = column * root
        size = np.bincount(index, own * own, m)
        left = rest(own)
        norm = np.bincount(index, left * left, m)
        live = norm > DEPENDENT**2 * size
        scale = np.where(live, 1.0 / np.sqrt(np.where(live, norm, 1.0)), 0.0)
        basis.append(left * scale[index])
    # the residuals of the fit differ from y by the columns only, and have no large origin
    found = rest(fit.rest * root) / root
    full = np.bincount(index, minlength=m) <= sum(np.bincount(index, unit * unit, m) for unit in basis) + 0.5
    return np.where(full[index], 0.0, found)
