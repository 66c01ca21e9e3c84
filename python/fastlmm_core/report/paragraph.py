"""A fit in sentences, in the order in which papers tell it: design, estimation, estimates, variances."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np

from ..diagnostics.marginal import icc, r2
from ..errors import LMMError
from ..formula.coding import fixed_terms
from ..inference.anova import AnovaTable, anova
from ..inference.options import check_options
from ..inference.residual_parameters import residual_parameters
from ..inference.wald import coefficient_intervals
from ..inference.wald_test import method
from ..support.checks import check_level
from ..support.text_tables import degrees_cell, estimate_cells, statistic_cell

if TYPE_CHECKING:
    from ..estimation.fit import Fit
    from ..inference.sandwich import Sandwich

__all__ = ["paragraph"]

_FEW = 4
"""Parameters of structured residuals, and correlations, up to which they are told."""


def paragraph(result: Fit, level: float, ddf: str, information: str, robust: Sandwich | None) -> str:
    """One paragraph about a fit.

    Parameters
    ----------
    result : LMMResult
    level : float
        Of the confidence intervals.
    ddf, information, robust
        Of tests and intervals, see `inference.wald.wald`.

    Returns
    -------
    str

    Raises
    ------
    LMMError
        At parameters that were stated, not estimated; for a level outside (0, 1) or unknown options.
    """
    if result.stated is not None:
        raise LMMError("report() is about estimates, but the parameters of this model were stated; use summary()")
    check_level(level)
    check_options(ddf, information, robust)
    sentences = [*_design(result), *_estimation(result, level, ddf, robust)]
    sentences += _estimates(result, level, ddf, information, robust)
    return " ".join([*sentences, *_variances(result)])


def _design(result: Fit) -> Iterator[str]:
    model = result.model
    terms = [term.name for term in fixed_terms(model.design) if not term.is_intercept]
    fixed = f"fixed effects of {_listed(terms)}" if terms else "no fixed effects but the intercept"
    random = []
    for term, block in zip(model.term_names, model.structure.blocks, strict=True):
        effects = [_effect(name) for name in model.exog_re_names[block.start : block.stop]]
        apart = "" if len(effects) == 1 else ", correlated" if block.correlated else ", independent"
        random.append(f"random effects of {term} ({_listed(effects)}{apart})")
    residual = model.residual
    if residual is not None:
        random.append(f"residuals of the structure {residual.term}")
    yield f"{model.response_name} was analysed by a linear mixed model with {_listed([fixed, *random])}."
    groups = _listed([f"{count} levels of {name}" for name, count in result.n_groups.items()])
    sentence = (
        f"There were {result.nobs} observations of {groups}" if groups else f"There were {result.nobs} observations"
    )
    if model.n_dropped:
        sentence += f"; {model.n_dropped} rows with missing values were left out"
    if model.weighted:
        sentence += "; they were weighted"
    yield f"{sentence}."


def _estimation(result: Fit, level: float, ddf: str, robust: Sandwich | None) -> Iterator[str]:
    by = "restricted maximum likelihood (REML)" if result.reml else "maximum likelihood"
    yield (
        f"Parameters were estimated by {by} with fastlmm_core {metadata.version('fastlmm-core')} for Python "
        f"{platform.python_version()}."
    )
    if not result.converged:
        yield f"The optimum could not be certified ({result.message.removeprefix('not certified: ')})."
    if result.singular:
        yield f"The fit is singular: {'; '.join(result.singular_components)}."
    if robust is None:
        how = {"normal": "take variances for known", "kenward-roger": "are by Kenward and Roger's method"}
        yield f"Tests and {100.0 * level:g}% confidence intervals {how.get(ddf, f'use {method(ddf)}')}."
    else:
        freedom = {"normal": "normal quantiles"}.get(ddf, method(ddf))
        yield (
            f"Tests and {100.0 * level:g}% confidence intervals rest on a robust covariance ({robust.kind}, "
            f"{robust.n_clusters} clusters by {robust.cluster}), with {freedom}."
        )


def _estimates(result: Fit, level: float, ddf: str, information: str, robust: Sandwich | None) -> Iterator[str]:
    """Terms of several columns by F, the others by t."""
    terms = [term for term in fixed_terms(result.model.design) if len(term.columns)]
    numbers = coefficient_intervals(result, level, ddf, information, robust)
    several = {term.name for term in terms if len(term.columns) > 1}
    if several:
        table = anova(result, "III", ddf, information, robust)
        found = [_f(table, i, ddf) for i, name in enumerate(table.terms) if name in several]
        yield f"By type III tests, {_listed([text for text in found if text], '; ')}."
    shown = []
    for term in terms:
        if term.name in several or np.isnan(numbers["estimate"][term.columns[0]]):
            continue
        j = term.columns[0]
        shown.append(_t({key: float(values[j]) for key, values in numbers.items()}, result.model.exog_names[j], level))
    if shown:
        yield f"The estimate{'s were' if len(shown) > 1 else ' was'} {_listed(shown, '; ')}."


def _t(values: dict[str, float], name: str, level: float) -> str:
    error = values["std_error"]

    def cell(number: float, digits: int = 3) -> str:
        return estimate_cells([number], [error], digits)[0].strip()

    known = np.isinf(values["df"])
    statistic = "z" if known else f"t({degrees_cell(values['df'])})"
    what = "the intercept" if name == "Intercept" else name
    return (
        f"b = {cell(values['estimate'])} for {what}, SE = {cell(error)}, {100.0 * level:g}% CI "
        f"[{cell(values['conf_low'])}, {cell(values['conf_high'])}], {statistic} = "
        f"{statistic_cell(values['statistic'])}, {_p(values['p_value'])}"
    )


def _f(table: AnovaTable, i: int, ddf: str) -> str:
    if not table.df_num[i] or np.isnan(table.statistic[i]):
        return ""
    k, statistic = int(table.df_num[i]), float(table.statistic[i])
    if ddf == "normal":
        said = f"χ²({k}) = {statistic_cell(k * statistic)}"
    else:
        said = f"F({k}, {degrees_cell(float(table.df_denom[i]))}) = {statistic_cell(statistic)}"
    return f"{table.terms[i]}, {said}, {_p(float(table.pvalues[i]))}"


def _variances(result: Fit) -> Iterator[str]:
    model = result.model
    parts = []
    for (term, sd), block in zip(result.random_effects_sd.items(), model.structure.blocks, strict=True):
        names = [_effect(name) for name in model.exog_re_names[block.start : block.stop]]
        text = f"{_listed([f'{value:.4g} ({name})' for name, value in zip(names, sd.tolist(), strict=True)])} by {term}"
        corr = result.random_effects_corr[term]
        pairs = [
            f"{_share(float(corr[i, j]))}" + (f" ({names[j]}, {names[i]})" if len(names) > 2 else "")
            for j in range(len(names))
            for i in range(j + 1, len(names))
            if block.correlated and not np.isnan(corr[i, j])
        ]
        if len(pairs) > _FEW:
            known = corr[np.tril_indices(len(corr), -1)]
            low, high = float(np.nanmin(known)), float(np.nanmax(known))
            text += f" with correlations from {_share(low)} to {_share(high)}"
        elif pairs:
            text += f" with correlation{'s' * (len(pairs) > 1)} {_listed(pairs)}"
        parts.append(text)
    structured = model.residual is not None
    was = "was" if model.sigma is None else "is known and was held at"
    residual = "" if structured else f"; that of the residual {was} {result.sigma:.4g}"
    if parts:
        many = len(model.exog_re_names) > 1
        verb = "s of the random effects were" if many else " of the random effect was"
        yield f"The standard deviation{verb} {_listed(parts)}{residual}."
    if structured:
        found = residual_parameters(result)
        if len(found.names) <= _FEW:
            values = zip(found.names, found.estimate.tolist(), strict=True)
            yield f"Parameters of the residuals were {_listed([f'{value:.4g} ({name})' for name, value in values])}."
    explained = r2(result)
    said = f"Marginal R² was {_share(explained['marginal'])}, conditional R² {_share(explained['conditional'])}"
    if not model.structure.q:
        yield f"R² was {_share(explained['marginal'])}."
        return
    shares = icc(result)
    named = shares if isinstance(shares, dict) else {"": shares}
    correlation = _listed([_share(s) + (f" ({name})" if name else "") for name, s in named.items()])
    yield f"{said}; the intraclass correlation was {correlation}."


# ---- words ---------------------------------------------------------------------------------------


def _effect(name: str) -> str:
    return "intercept" if name == "Intercept" else name


def _listed(items: Sequence[Any], between: str = ", ") -> str:
    """a; a and b; a, b and c."""
    texts = [str(item) for item in items]
    if between != ", " or len(texts) < 2:
        return between.join(texts)
    return f"{', '.join(texts[:-1])} and {texts[-1]}"


def _share(value: float) -> str:
    """A number between -1 and 1, without the zero before the point."""
    return f"{value:.2f}".replace("0.", ".", 1)


def _p(value: float) -> str:
    if np.isnan(value):
        return "p not known"
    if value < 0.001:
        return "p < .001"
    return "p > .999" if value > 0.9995 else f"p = {value:.3f}".replace("0.", ".", 1)
