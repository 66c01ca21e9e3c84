"""One row about a fit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..diagnostics.marginal import r2

if TYPE_CHECKING:
    from ..estimation.fit import Fit

__all__ = ["glance_columns"]


def glance_columns(result: Fit) -> dict[str, Any]:
    """Columns of a table with one row; see `LMMResult.glance`."""
    explained = r2(result)
    values: dict[str, Any] = {
        "nobs": result.nobs,
        **{f"n_groups_{name}": count for name, count in result.n_groups.items()},
        "df_resid": result.model.df_resid,
        "n_parameters": result.n_parameters,
        "sigma": result.sigma,
        **({"llf": result.llf, "criterion": result.criterion} if result.model.has_response else {}),
        **({"aic": result.aic, "bic": result.bic} if result.stated is None else {}),
        "r2_marginal": explained["marginal"],
        "r2_conditional": explained["conditional"],
        "reml": result.reml,
        "converged": result.converged,
        "singular": result.singular,
    }
    return {name: np.array([value]) for name, value in values.items()}
