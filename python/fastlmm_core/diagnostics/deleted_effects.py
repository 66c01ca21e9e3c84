"""Random effects and fitted values of the fits without each unit, at their estimates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..estimation.deletion.groups import Deletions
from ..estimation.deletion.rows import outside
from ..estimation.fit import Fit
from ..estimation.stated import stated_fit
from ..estimation.statements import residual_phi
from ..support.types import Array, Index

__all__ = ["deleted_effects", "deleted_fitted"]


def deleted_effects(result: Fit, found: Deletions, units: Sequence[Index]) -> tuple[Array, ...]:
    """BLUPs given the rows outside each unit (d, m, q) per grouping factor; NaN for groups that have none there."""
    model = result.model
    out = tuple(np.full((len(units), f.grouping.m, f.stop - f.start), np.nan) for f in model.factors)
    for i, unit in enumerate(units):
        if np.isnan(found.sigma2[i]):
            continue
        rows = outside(model.nobs, unit)
        part, phi, variance = model.residual, None, float(found.sigma2[i])
        if part is not None and found.residual is not None:
            phi, variance = residual_phi(part, found.residual[i])
        fit = stated_fit(Fit, model.rows(rows), found.params[i], found.factor[i], variance, phi=phi)
        for place, f, blups in zip(out, model.factors, fit.blups, strict=True):
            place[i, np.unique(f.grouping.index[rows])] = blups
    return out


def deleted_fitted(result: Fit, found: Deletions, units: Sequence[Index], effects: tuple[Array, ...]) -> Array:
    """Conditional means of all rows by each fit (d, n); see `Influence.fittedvalues`."""
    model = result.model
    out = np.nan_to_num(found.params) @ model.exog.T
    if model.offset is not None:
        out += model.offset
    for f, blups in zip(model.factors, effects, strict=True):
        for row, own in zip(out, np.nan_to_num(blups), strict=True):
            row += np.einsum("ij,ij->i", model.exog_re[:, f.columns], own[f.grouping.index])
    lost = np.isnan(found.params)
    lost[:, model.problem.dropped] = False
    for i, unit in enumerate(units):
        # what the rows that are left do not determine
        if lost[i].any():
            out[i, unit[(model.exog[np.ix_(unit, lost[i])] != 0.0).any(axis=1)]] = np.nan
    out[np.isnan(found.sigma2)] = np.nan
    return np.asarray(out)
