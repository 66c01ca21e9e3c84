"""One row per estimate: coefficients, standard deviations and correlations, random effects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..covariance.elements import element_names, sd_and_cor
from ..errors import LMMError
from ..inference.options import check_options
from ..inference.residual_parameters import residual_parameters
from ..inference.wald import coefficient_intervals
from ..support.checks import check_level

if TYPE_CHECKING:
    from ..estimation.fit import Fit
    from ..inference.options import Ddf, Information
    from ..inference.sandwich import Sandwich

__all__ = ["FIXED", "fixed_columns", "tidy_columns"]

FIXED = ("term", "estimate", "std_error", "df", "statistic", "p_value", "conf_low", "conf_high")
"""Columns of the table of coefficients."""


def tidy_columns(
    result: Fit, effects: str, level: float, ddf: Ddf, information: Information, robust: Sandwich | None = None
) -> dict[str, list[str] | NDArray[Any]]:
    """Columns of a table with one row per estimate.

    Parameters
    ----------
    result : LMMResult
    effects : {"fixed", "ran_pars", "ran_vals"}
        "fixed": term, estimate, std_error, df, statistic, p_value, conf_low, conf_high.  "ran_pars": group, term
        (``sd_x|g``, ``cor_x.y|g``; ``sigma`` of the group Residual), estimate.  "ran_vals": group, level, term,
        estimate, std_error (the conditional standard deviation).
    level : float
        Of the confidence limits.
    ddf, information
        Degrees of freedom of tests and limits.
    robust : Sandwich, optional
        Instead of the covariance of the model, for "fixed".

    Returns
    -------
    dict

    Raises
    ------
    LMMError
        For unknown effects, a level outside (0, 1) or an unknown ddf.
    """
    if effects == "fixed":
        found = fixed_columns(result, level, ddf, information, robust)
        return found if result.stated is None else {name: found[name] for name in FIXED[:3]}
    if effects == "ran_pars":
        return _ran_pars(result)
    if effects == "ran_vals":
        return _ran_vals(result)
    raise LMMError(f"effects={effects!r} is unknown: use 'fixed', 'ran_pars' or 'ran_vals'")


def fixed_columns(
    result: Fit, level: float, ddf: Ddf, information: Information, robust: Sandwich | None
) -> dict[str, list[str] | NDArray[Any]]:
    """The columns `FIXED` of the coefficients; NaN for what is not known at stated parameters."""
    if result.stated is not None:
        check_level(level)
        check_options(ddf, information)
        p = len(result.beta)
        table = dict.fromkeys(FIXED[3:], np.full(p, np.nan))
        table |= {"estimate": result.beta, "std_error": np.sqrt(np.diag(result.cov))}
    else:
        table = coefficient_intervals(result, level, ddf, information, robust)
    return {"term": list(result.model.exog_names)} | {name: table[name] for name in FIXED[1:]}


def _ran_pars(result: Fit) -> dict[str, list[str] | NDArray[Any]]:
    elements = result.model.random.elements
    if result.model.residual is not None:
        found = residual_parameters(result)
        names = element_names(elements)[: len(elements)]
        own = sd_and_cor(elements, result.covariance[None])[0]
        return {
            "group": [*(element.term for element in elements), *["Residual"] * len(found.names)],
            "term": [*names, *found.names],
            "estimate": np.concatenate([own, found.estimate]),
        }
    known = result.model.sigma is not None
    return {
        "group": [*(element.term for element in elements), *([] if known else ["Residual"])],
        "term": list(element_names(elements))[: len(elements) if known else None],
        "estimate": np.append(sd_and_cor(elements, result.covariance[None])[0], [] if known else result.sigma),
    }


def _ran_vals(result: Fit) -> dict[str, list[str] | NDArray[Any]]:
    model = result.model
    terms = np.array(
        [
            term
            for term, block in zip(model.term_names, model.structure.blocks, strict=True)
            for _ in range(block.start, block.stop)
        ],
        dtype=object,
    )
    columns: dict[str, list[Any]] = {"group": [], "level": [], "term": [], "estimate": [], "std_error": []}
    for factor, effects, covariance in zip(model.factors, result.blups, result.blup_covariances, strict=True):
        labels, q = factor.grouping.labels, factor.stop - factor.start
        columns["group"] += [*terms[factor.columns]] * len(labels)
        columns["level"].append(np.repeat(labels, q))
        columns["term"] += [*model.exog_re_names[factor.columns]] * len(labels)
        columns["estimate"].append(effects.ravel())
        # rounding may leave a variance of -1e-20 where there is none
        columns["std_error"].append(np.sqrt(np.maximum(np.einsum("ijj->ij", covariance), 0.0)).ravel())
    if len({labels.dtype.kind for labels in columns["level"]}) > 1:
        columns["level"] = [labels.astype(str).astype(object) for labels in columns["level"]]
    return {
        name: np.concatenate(values) if name in ("level", "estimate", "std_error") else values
        for name, values in columns.items()
    }
