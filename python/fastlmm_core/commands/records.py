"""Results as what JSON knows."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import __version__
from ..errors import LMMError
from ..tables.columns import Table

if TYPE_CHECKING:
    from ..inference.options import Ddf
    from ..result import LMMResult

__all__ = ["fit_record", "plain", "rows_record", "table_record"]


def fit_record(result: LMMResult, level: float, ddf: Ddf) -> dict[str, Any]:
    """What a fit knows, by the names in `LMMResult`."""
    from ..report.tidy import tidy_columns

    model = result.model
    names = model.exog_names
    fixed = tidy_columns(result, "fixed", level, ddf, "auto")

    def named(column: str) -> dict[str, Any]:
        return dict(zip(names, fixed[column], strict=True))

    return {
        "version": __version__,
        "formula": None if model.spec is None else model.spec.formula,
        "residual": None if model.residual is None else model.residual.term,
        "reml": result.reml,
        "nobs": result.nobs,
        "n_dropped": model.n_dropped,
        "n_groups": result.n_groups,
        "params": named("estimate"),
        "bse": named("std_error"),
        "ddf": ddf,
        "df": named("df"),
        "tvalues": named("statistic"),
        "pvalues": named("p_value"),
        "conf_int": {
            name: [low, high] for name, low, high in zip(names, fixed["conf_low"], fixed["conf_high"], strict=True)
        },
        "level": level,
        "cov_params": result.cov,
        "dropped_columns": result.dropped_columns,
        "random_effects_names": {
            term: model.exog_re_names[block.start : block.stop]
            for term, block in zip(model.term_names, model.structure.blocks, strict=True)
        },
        "theta": result.theta,
        "sigma2": result.sigma2,
        "sigma_known": model.sigma is not None,
        "G": result.G,
        "variance_components": _or_why_not(lambda: rows_record(result.variance_components(level, method="wald"))),
        "random_effects": {
            factor.grouping.name: {
                str(label): row for label, row in zip(factor.grouping.labels.tolist(), values.tolist(), strict=True)
            }
            for factor, values in zip(model.factors, result.blups, strict=True)
            if factor.stop > factor.start
        },
        "random_effects_std_error": {
            factor.grouping.name: np.sqrt(np.diagonal(values, axis1=1, axis2=2))
            for factor, values in zip(model.factors, result.blup_covariances, strict=True)
            if factor.stop > factor.start
        },
        "random_effects_rank": result.random_effects_rank,
        "residual_parameters": (
            None if model.residual is None else _or_why_not(lambda: rows_record(result.residual_parameters()))
        ),
        "anova": _or_why_not(lambda: rows_record(result.anova(ddf=ddf).to_frame())),
        "icc": _or_why_not(result.icc),
        "r2": result.r2(),
        "criterion": result.criterion,
        "llf": result.llf,
        "aic": result.aic,
        "bic": result.bic,
        "information_criteria": rows_record(result.information_criteria()),
        "n_parameters": result.n_parameters,
        "df_resid": result.df_resid,
        "optima": [{"value": one.value, "theta": one.theta} for one in result.optima],
        "converged": result.converged,
        "singular": result.singular,
        "singular_components": result.singular_components,
        "gradient_norm": result.gradient_norm,
        "n_evaluations": result.n_evaluations,
        "message": result.message,
    }


def _or_why_not(make: Any) -> Any:
    """A part of the record, or the sentence that says why there is none."""
    try:
        return make()
    except LMMError as error:
        return {"error": str(error)}


def rows_record(frame: Any) -> list[dict[str, Any]]:
    """The rows of a table, each by the names of its columns."""
    table = Table(frame)
    columns = {name: np.asarray(table.column(name).raw).tolist() for name in table.names}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def table_record(found: Any) -> dict[str, Any]:
    """A table of tests or estimates: its title, its rows, and the notes below it."""
    title = getattr(found, "title", None)
    return ({} if title is None else {"title": title}) | {"rows": rows_record(found.to_frame()), "notes": found.notes}


def plain(value: Any) -> Any:
    """What JSON knows: lists for arrays and tuples, null for NaN and infinities."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
