"""Whether a covariate acts alike within and between groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import LMMError
from ..estimation.fit import Fit
from ..formula.group_means import means_of
from ..inference.wald import wald
from ..inference.wald_test import WaldTest
from ..problem.columns import RANK_TOLERANCE
from ..support.arguments import checked
from ..support.display import Cells, Shown
from ..support.text_tables import degrees_cell, p_value_cell
from ..support.types import Array
from ..tables.columns import native_frame

__all__ = ["ContextualEffect", "contextual_effect"]


VARIES = 1e-10
"""Relative size below which differences within groups, or between their means, are rounding."""


@checked
@dataclass(frozen=True, repr=False)
class ContextualEffect(Shown):
    """Difference of the effects between and within groups.

    Attributes
    ----------
    names : tuple of str
        The covariates.
    estimate, std_error, df, pvalues : (k,) arrays
        Of the coefficients of the group means beside the covariates themselves (between less within): standard errors,
        degrees of freedom and two-sided p-values that each is 0.
    within, between : (k,) arrays
        The effects of x within groups, and of its group mean.
    test : WaldTest
        Of all together (Hausman 1978, Econometrica 46, 1251-1271).
    result : LMMResult
        The fit with the group means, of a model from arrays.
    """

    names: tuple[str, ...]
    estimate: Array
    std_error: Array
    df: Array
    pvalues: Array
    within: Array
    between: Array
    test: WaldTest
    result: Fit = field(repr=False)
    _library: str = field(repr=False)

    def to_frame(self) -> Any:
        """One row per covariate, in the library of the caller's data (or a dict of arrays)."""
        columns = {
            "term": list(self.names), "within": self.within, "between": self.between, "contextual": self.estimate,
            "std_error": self.std_error, "df": self.df, "p_value": self.pvalues,
        }  # fmt: skip
        return native_frame(self._library, columns)

    def _shown(self) -> Iterator[str | Cells]:
        yield "Effects within groups and between their means"
        rows = [
            [
                name, *(f"{v:.4g}" for v in (self.within[i], self.between[i], self.estimate[i])),
                f"{self.std_error[i]:.3g}", degrees_cell(self.df[i]), p_value_cell(self.pvalues[i]),
            ]
            for i, name in enumerate(self.names)
        ]  # fmt: skip
        yield Cells(["", "Within", "Between", "Difference", "SE", "df", "p"], rows)
        if len(self.names) > 1:
            yield f"All together: p = {self.test.pvalue:.3g}"


def _spanned(columns: Array, X: Array) -> NDArray[np.bool_]:
    """Which columns are combinations of those of X; beside a constant their origins do not matter."""
    if ((X[:1] == X).all(axis=0) & (X[0] != 0.0)).any():
        columns, X = columns - columns.mean(axis=0), X - X.mean(axis=0)
    size = np.linalg.norm(X, axis=0)
    scaled = X / np.where(size > 0.0, size, 1.0)
    rest = columns - scaled @ np.linalg.lstsq(scaled, columns, rcond=None)[0]
    return np.asarray(np.linalg.norm(rest, axis=0) <= RANK_TOLERANCE * np.linalg.norm(columns, axis=0))


def contextual_effect(
    result: Fit,
    x: str | Sequence[str] | None = None,
    *,
    factor: str | None = None,
    ddf: str = "satterthwaite",
) -> ContextualEffect:
    """Test whether the effects of covariates are the same within and between groups.

    The model is fitted again with the group means of the covariates beside them.  Their coefficients are the
    differences between the effects; if they are not 0, the coefficient of x alone is a mixture of the two, and the
    random intercepts are correlated with x (Mundlak 1978; with all covariates that vary within groups this is Hausman's
    test).  Means are weighted by the prior weights, so that with a random intercept the coefficient of x is that of
    a regression with a fixed intercept for each group.

    Parameters
    ----------
    result : LMMResult
    x : str or sequence of str, optional
        Columns of X, by name; by default all that vary both within groups and between their means.
    factor : str, optional
        The grouping factor, where there are several; by default that with most levels.
    ddf : str
        Denominator degrees of freedom of the t tests, as for ``result.test``.

    Returns
    -------
    ContextualEffect

    Raises
    ------
    LMMError
        For an unknown column, or one that varies within groups only or between them only.
    """
    model = result.model
    grouping = model.factor(factor).grouping
    m = grouping.m
    names = list(model.exog_names)
    means = np.empty(model.exog.shape)
    for j, column in enumerate(model.exog.T):
        means[:, j] = means_of(column, grouping.index, m, model.weights)[grouping.index]
    rounding = VARIES * np.ptp(model.exog, axis=0) + 8.0 * np.finfo(float).eps * np.abs(model.exog).max(axis=0)
    varies = np.abs(model.exog - means).max(axis=0) > rounding
    differs = np.ptp(means, axis=0) > rounding
    # means that are combinations of the columns, as those of x times a property of the groups where all have one mean
    known = _spanned(means, model.exog)
    if x is None:
        chosen = [j for j in model.problem.kept.tolist() if varies[j] and differs[j] and not known[j]]
        if not chosen:
            raise LMMError(
                f"no column of X varies both within levels of {grouping.name!r} and between their means, in a way that "
                "the other columns do not determine: there is no contextual effect"
            )
    else:
        wanted = [x] if isinstance(x, str) else list(x)
        if not wanted:
            raise LMMError("x names no column; leave it out for all that vary within groups and between their means")
        chosen = []
        for name in wanted:
            if name not in names:
                raise LMMError(f"x={name!r} is not a column of X; choose of {', '.join(names)}")
            j = names.index(name)
            if not varies[j] or not differs[j]:
                what = "constant within groups" if not varies[j] else "of the same mean in every group"
                raise LMMError(
                    f"{name!r} is {what} of {grouping.name!r}: it has no within and between effects to compare"
                )
            if known[j]:
                raise LMMError(
                    f"the means of {name!r} over levels of {grouping.name!r} are combinations of the columns of X: the "
                    "model contains the group means already, or what they follow from"
                )
            chosen.append(j)
    columns = means[:, chosen], tuple(f"{names[j]} (group mean)" for j in chosen)
    larger = result.again(model.of(model.design.with_columns(*columns), model.endog))
    extra = np.arange(len(names), len(names) + len(chosen))
    dropped = np.setdiff1d(np.append(chosen, extra), larger.model.problem.kept)
    if len(dropped):
        raise LMMError(
            f"{larger.model.exog_names[dropped[0]]!r} is a combination of the other columns of X: the model contains "
            "the group means already"
        )
    L = np.zeros((len(extra), len(larger.model.exog_names)))
    L[np.arange(len(extra)), extra] = 1.0
    test = wald(larger, L, None, ddf, names=tuple(larger.model.exog_names[k] for k in extra.tolist()))
    inside = larger.beta[chosen]
    return ContextualEffect(
        names=tuple(names[j] for j in chosen),
        estimate=test.estimate,
        std_error=test.std_error,
        df=test.row_df,
        pvalues=test.row_pvalues,
        within=inside,
        between=inside + test.estimate,
        test=test,
        result=larger,
        _library=model.library,
    )
