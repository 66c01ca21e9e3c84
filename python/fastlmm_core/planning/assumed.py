"""Models at stated parameters: what is known of them before there are data, or from a paper."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import ArrayLike

from ..design.design import Source
from ..errors import LMMError
from ..estimation.fit import Fit
from ..estimation.stated import stated_fit
from ..estimation.statements import (
    coefficients,
    covariance_factor,
    refuse_other_scale,
    residual_phi,
    residual_variance,
)
from ..formula.specification import model_data
from ..model import LinearMixedModel, design_of
from ..result import LMMResult
from ..support.arguments import checked

__all__ = ["assume", "generating"]


@checked
def assume(
    formula: str | LinearMixedModel, data: Any = None, params: Mapping[str, float] | ArrayLike | None = None,
    G: Any = None, sigma2: float | None = None, *, R: Any = None, residual: str | None = None, weights: Any = None,
    offset: Any = None,
) -> LMMResult:  # fmt: skip
    """A model at stated parameters: those of a plan, of a paper, of a textbook.

    Nothing is estimated, so that any design will do: one group, two visits for two random effects each, columns that
    depend on each other.  What depends on estimates (tests, intervals of parameters, profiles) is refused; only fits of
    draws (`simulate_fit`, `fastlmm_core.power`) need a design on which the parameters can be estimated.

    Parameters
    ----------
    formula : str or LinearMixedModel
        As for `lmm`; or a model, with a response or without (``LinearMixedModel(None, X, Z, groups)``), for arrays.
    data : pandas.DataFrame, polars.DataFrame, pyarrow.Table or dict of arrays
        The rows, for a formula.  The response may be absent: random effects, residuals and the log-likelihood need it,
        covariances, simulation and predictions do not.  Rows with missing values in columns that are there are left
        out, as in `lmm`; the levels of a categorical column are those that it declares, though no row may have them.
    params : mapping of coefficient name to value, or (p,) array
        Fixed effects on the scale of the response, all of them.
    G : (q, q) array, or mapping of term to array
        Covariance matrix of the random effects of a group (a number for a single one), positive semidefinite; in place
        of a matrix ``{"sd": (q,), "corr": (q, q)}``, with a number for the correlation of two and nothing for none.
    sigma2 : float
        Residual variance (of an observation of weight 1).
    R : mapping of parameter to value, array in their order, or matrix
        Instead of sigma2 for structured residuals: the parameters that `LMMResult.residual_parameters` has, or the
        covariance matrix over the visits for an unstructured one.
    residual : str, optional
        As for `lmm`.
    weights, offset : str or array, optional
        As for `lmm`.

    Returns
    -------
    LMMResult
        With ``stated`` set.

    Raises
    ------
    LMMError
        For parameters that do not fit the design.

    See Also
    --------
    LMMResult.at : A fit moved to other parameters, or to other rows.

    Examples
    --------
    Two visits of each patient cannot tell four variance parameters, but stated ones say what to expect of them:

    >>> import fastlmm_core as flc
    >>> visits = {"patient": [1, 1], "year": [0.0, 2.0]}
    >>> model = flc.assume("y ~ year + (year | patient)", visits, [10.0, 1.0], [[1.0, 0.5], [0.5, 0.25]], 1.0)
    >>> model.marginal_covariance_at([0.0, 2.0]).covariance
    array([[2., 2.],
           [2., 5.]])
    """
    if params is None:
        raise LMMError("params is missing: state the fixed effects (params), G and sigma2")
    if isinstance(formula, str):
        if data is None:
            raise LMMError("data is missing: give the rows of the design, e.g. one group with the times of its visits")
        found = model_data(formula, data, weights=weights, offset=offset, residual=residual, optional=True)
        source = Source(data, {"weights": weights, "offset": offset, "residual": residual})
        model = LinearMixedModel.of(design_of(found, source, True), found.y, True)
    else:
        if any(given is not None for given in (data, weights, offset, residual)):
            raise LMMError("a model holds its data, weights and offset: give params=, G= and sigma2= only")
        model = formula
    part, phi = model.design.residual, None
    for name, value, needed in (
        ("G", G, model.structure.q),
        ("sigma2", sigma2, part is None),
        ("R", R, part is not None),
    ):
        if value is None and needed:
            raise LMMError(f"{name} is missing: state the fixed effects (params), G and sigma2 (or R for residual=)")
    refuse_other_scale(part, sigma2, R)
    if part is None:
        variance = residual_variance(sigma2)
    else:
        phi, variance = residual_phi(part, R)
    factor = covariance_factor(G, model.structure, model.term_names) / variance**0.5
    return stated_fit(LMMResult, model, coefficients(params, model.exog_names), factor, variance, phi=phi)


def generating(source: Any) -> LMMResult:
    """What draws come from: a result, at its estimates or at stated parameters.

    Raises
    ------
    LMMError
        For anything else.
    """
    if isinstance(source, LMMResult):
        return source
    if isinstance(source, Fit):
        return LMMResult(source.model, source.optimum, source.reml, source.solution, source.stated)
    raise LMMError(f"source must be a fitted model or one from assume(), not {type(source).__name__!r}")
