"""A fit for the functions of the package marginaleffects: predictions, comparisons and slopes, averaged in any way.

They are about the population: random effects are zero.  marginaleffects has one number of degrees of freedom for all
estimates, so that its tests are z tests here; those of `emmeans` have Satterthwaite's or Kenward and Roger's.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import LMMError
from ..inference import wald as inference
from ..support.arguments import checked
from ..tables.columns import Table

if TYPE_CHECKING:
    from ..estimation.fit import Fit

__all__ = ["marginaleffects_model"]


@checked
def marginaleffects_model(result: Fit, data: Any = None, ddf: str = "normal", information: str = "auto") -> Any:
    """The fit as a model that marginaleffects understands.

    Parameters
    ----------
    result : LMMResult
        Of a model from a formula.
    data : frame or dict of arrays, optional
        The table that the model was fitted to, where the result comes from a file or a pickle and has lost it.
    ddf : {"normal", "kenward-roger"}
        Covariance matrix of the coefficients; Kenward and Roger's is adjusted for small samples.
    information : {"auto", "expected", "observed"}
        For Kenward-Roger.

    Returns
    -------
    marginaleffects model
        For the first argument of its functions, e.g. ``avg_comparisons(marginaleffects_model(result))``.

    Raises
    ------
    LMMError
        For a model from arrays, an offset that is not the name of a column, another `ddf`, or dropped columns.

    Examples
    --------
    >>> import fastlmm_core as flc
    >>> teeth = flc.lmm("distance ~ age * Sex + (age | Subject)", flc.datasets.load("orthodont")).fit()
    >>> from marginaleffects import avg_slopes                                       # doctest: +SKIP
    >>> avg_slopes(flc.marginaleffects_model(teeth), variables="age", by="Sex")      # doctest: +SKIP
    """
    try:
        import polars as pl

        classes = import_module("marginaleffects.classes")
    except ImportError as error:
        raise LMMError("marginaleffects is not installed; install it, e.g. pip install marginaleffects") from error
    model, spec = result.model, result.model.spec
    if spec is None:
        raise LMMError("marginaleffects needs a model from a formula")
    if ddf not in ("normal", "kenward-roger"):
        raise LMMError(f"ddf={ddf!r} cannot be passed on to marginaleffects: use 'normal' or 'kenward-roger'")
    if result.dropped_columns:
        raise LMMError(
            "marginaleffects does not know what is estimable; leave the dropped columns "
            f"{', '.join(result.dropped_columns)} out of the model"
        )
    if model.offset is not None and spec.offset_name is None:
        raise LMMError("the offset must be given by the name of a column for marginaleffects")
    table = Table(model.design.origin(data).table)
    names = list(spec.reference)
    needed = [*names, *([spec.offset_name] if spec.offset_name else [])]
    columns: dict[str, Any] = {}
    for name in needed:
        column = table.column(name)
        levels = spec.reference.get(name)
        if isinstance(levels, tuple) and column.number is None:
            codes, labels = column.codes(model.design.kept)
            # text levels as an Enum: marginaleffects takes no strings
            columns[name] = pl.Series(labels[codes].astype(str), dtype=pl.Enum([str(level) for level in levels]))
        else:
            values = np.asarray(column.number)
            columns[name] = values[model.rows_used]
    response = next(name for name in ("response", "_response", "__response") if name not in columns)
    frame = pl.DataFrame({response: model.endog, **columns})
    kinds = {name: _kind(frame[name]) for name in needed}
    quoted = " + ".join(f"`{name}`" for name in needed) or "1"
    covariance = inference.covariance(result, ddf, information)
    formula, offset = spec, model.offset is not None

    class FastLMM(classes.ModelAbstract):  # type: ignore[misc,name-defined]
        def validation(self) -> None:
            # its own tells types by a look for 0 and 1 that raises an error for floats since polars 2
            self.coef, self.response_name, self.formula = vault.coef, response, vault.formula
            vault.variables_type = kinds

        def get_exog(self, newdata: Any) -> NDArray[np.float64]:
            design = formula.fixed(newdata.select(names))
            if not offset:
                return design
            return np.column_stack([design, np.asarray(formula.offset(newdata))])

        def get_predict(self, params: Any, newdata: Any) -> Any:
            design = newdata if isinstance(newdata, np.ndarray) else self.get_exog(newdata)
            estimate = design @ np.append(params, 1.0) if offset else design @ np.asarray(params)
            rows = pl.Series("rowid", np.arange(len(estimate), dtype=np.int32))
            return pl.DataFrame({"rowid": rows, "estimate": estimate})

        def get_vcov(self, vcov: Any = True) -> NDArray[np.float64] | None:
            if not isinstance(vcov, bool):
                raise LMMError("vcov must be True, False or a matrix; choose by ddf= of marginaleffects_model")
            return covariance if vcov else None

        def get_autodiff_args(self) -> dict[str, Any] | None:
            return None if offset else {"model_type": "linear", "family": None, "link": None}

    vault = classes.ModelVault(
        coef=result.beta.copy(),
        coefnames=np.array(model.exog_names),
        formula=f"{response} ~ {quoted}",
        modeldata=frame,
        package="fastlmm_core",
        variable_names=[response, *needed],
    )
    return FastLMM(result, vault)


def _kind(column: Any) -> str:
    """What marginaleffects calls the type of a column of polars."""
    if column.dtype.is_numeric():
        whole = "integer" if column.dtype.is_integer() else "numeric"
        return "binary" if np.isin(column.to_numpy(), (0, 1)).all() else whole
    return "boolean" if str(column.dtype) == "Boolean" else "character"
