"""The rows of the data with what the fit says of each: fitted values, residuals, leverage, group effects.

Cook's distance is that of the coefficients at the variance parameters of the fit, as in lme4: with P and Phi as in
`leverage`, leaving out row i changes the coefficients by Phi X'V^-1 e_i (Py)_i / P_ii, so that

    D_i = (b - b_i)'Phi^-1 (b - b_i) / rank(X) = |l_i|^2 e_i^2 / (rank(X) sigma^2 v_i^2)

with e_i the conditional residual, sigma^2 v_i its variance and l_i the row of R V^-1 X, whitened (Christensen, Pearson
and Johnson 1992, Technometrics 34, 38-45).  `influence` estimates the variance parameters anew.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import LMMError
from ..tables.alignment import positions
from ..tables.columns import Table
from ..tables.rows import CallerRows, rows_of_table, with_columns
from .leverage import cooks_distances, leverage_parts, row_variances
from .residuals import residuals
from .studentized import standardized

if TYPE_CHECKING:
    from ..estimation.fit import Fit

__all__ = ["augment"]


def augment(result: Fit, data: Any = None, prefix: str = "") -> Any:
    """See `LMMResult.augment`."""
    found = {prefix + name: values for name, values in _of_fit(result).items()}
    rows = result.model.design.caller_rows
    if data is None:
        columns = _of_model(result)
        _refuse_clash(found, columns)
        return rows.table(columns | found)
    table = Table(data)
    _refuse_clash(found, table.names)
    at = _places(table, rows)
    chosen = rows_of_table(data, at)
    _check_same(result, chosen, table.index is not None and rows.index is not None)
    if at is not None and table.index is None:
        found = {prefix + "row": at, **found}
        _refuse_clash(found, table.names)
    return with_columns(chosen, found)


def _check_same(result: Fit, chosen: Any, by_label: bool) -> None:
    """Refuse other data than those of the fit; of rows found by label the response may be another (`refit`)."""
    model, spec = result.model, result.model.spec
    if spec is None:
        return
    table = Table(chosen)
    if not np.allclose(spec.fixed(table), model.exog, rtol=1e-9, atol=0.0):
        raise LMMError("data are not those of the fit: columns of the fixed part have other values")
    if not by_label and not np.allclose(spec.response(table), model.endog, rtol=1e-9, atol=0.0):
        raise LMMError(
            f"data are not those of the fit: the response {model.response_name!r} has other values; leave data out"
        )


def _refuse_clash(found: Collection[str], columns: Collection[str]) -> None:
    clash = [name for name in found if name in columns]
    if clash:
        raise LMMError(
            f"the data have a column {clash[0]!r} already; give prefix=, e.g. prefix='.', for the names of what is "
            "added"
        )


def _of_model(result: Fit) -> dict[str, Any]:
    """Response, columns of the design, groups, weights and offset."""
    model = result.model
    columns: dict[str, Any] = {model.response_name: model.endog}
    designs = [(model.exog_names, model.exog), (model.exog_re_names, model.exog_re)]
    for names, values in designs:
        for j, name in enumerate(names):
            if name != "Intercept" and name not in columns:
                columns[name] = values[:, j]
    for factor in model.factors:
        columns.setdefault(factor.grouping.name, factor.grouping.labels[factor.grouping.index])
    for name, given in (("weights", model.weights), ("offset", model.offset)):
        if given is not None:
            columns.setdefault(name, given)
    return columns


def _of_fit(result: Fit) -> dict[str, Any]:
    """What the fit says of each row."""
    model = result.model
    columns: dict[str, Any] = {
        "fitted": result.fitted_mean,
        "fitted_population": result.population_mean,
        "resid": result.rest,
        **{f"resid_{kind}": residuals(result, kind) for kind in ("marginal", "pearson", "whitened")},
    }
    if model.residual is None:  # what follows is for residuals that are independent given the random effects
        rows = row_variances(result)
        parts = leverage_parts(rows)
        columns["resid_studentized"] = standardized(result, rows)
        columns["leverage"] = parts["overall"]
        if result.stated is None:  # stated coefficients do not follow the response
            columns |= {"leverage_fixed": parts["fixed"], "leverage_random": parts["random"]}
            columns["cooks_distance"] = cooks_distances(result, rows)
    for effects, factor in zip(result.blups, model.factors, strict=True):
        for j, name in enumerate(result.effect_names[factor.columns]):
            columns[f"{name}|{factor.grouping.name}"] = effects[factor.grouping.index, j]
    return columns


def _places(table: Table, rows: CallerRows) -> NDArray[np.intp] | None:
    """Where the rows of the fit stand in a table, None for all of them in order."""
    if table.library == "pandas" and rows.index is not None:
        return rows.used if table.index.equals(rows.index) else positions(table.index, rows.used_index, "data")
    n = len(rows.positions)
    if table.n_rows == rows.count:
        return rows.used
    if table.n_rows != n:
        raise LMMError(f"data has {table.n_rows} rows, but the model was made from {rows.count}; give the same table")
    return None
