"""Group means: centring within groups, and within against between effects.

A covariate x that varies within and between groups carries two effects, of x - x_i. and of x_i. (the group's mean).  A
model with x alone estimates a mixture; ``within(x, g) + between(x, g)`` separates them, and ``x + between(x, g)`` has
their difference, the contextual effect, as the coefficient of the mean (Mundlak 1978, Econometrica 46, 69-85; Enders
and Tofighi 2007, Psychological Methods 12, 121-138).  Centring at the grand mean is formulaic's ``center(x)``.

The functions know of group means only; what a formula calls are `formula_functions`, which remember the means of the
fit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import LMMError
from ..support.checks import float_array, plain_array
from ..tables.columns import native_frame

if TYPE_CHECKING:
    from ..inference.wald_test import WaldTest
    from ..result import LMMResult

__all__ = ["ContextualEffect", "between", "contextual_effect", "formula_functions", "group_mean", "within"]

Array = NDArray[np.float64]

VARIES = 1e-10
"""Relative size below which differences within groups, or between their means, are rounding."""


def _means(x: Array, codes: NDArray[np.intp], m: int, weights: Array | None = None) -> Array:
    """Means of groups 0..m-1; the second pass takes out the rounding of a large common offset."""
    count = np.bincount(codes, weights=weights, minlength=m)
    means = np.full(m, x[0] if len(x) else 0.0)
    for _ in range(2):
        rest = x - means[codes]
        means = means + np.bincount(codes, weights=rest if weights is None else rest * weights, minlength=m) / count
    return means


def _grouped(x: ArrayLike, groups: tuple[Any, ...]) -> tuple[Array, NDArray[np.intp], list[Any]]:
    """Values, codes and labels; several grouping columns make one label of each combination."""
    from ..design.grouping import integer_codes, label_codes

    values = float_array(x, "x", 1)
    if not groups:
        raise LMMError("the groups are missing: give the group of each row, as in within(x, g)")
    codes = np.zeros(len(values), dtype=np.intp)
    labels: list[Any] = [()]
    for group in groups:
        column = plain_array(group, "the group")
        if column.ndim != 1 or len(column) != len(values):
            raise LMMError(f"the groups have the shape {column.shape}, but x has {len(values)} values")
        own, names = integer_codes(column) if column.dtype.kind in "iu" else label_codes(column, "the group")
        if len(own) and own.min() < 0:
            raise LMMError(f"the groups have no label in row {int(np.argmin(own))}; drop such rows")
        codes, used = integer_codes(codes * len(names) + own)
        listed = names.tolist()
        labels = [(*labels[k // len(listed)], listed[k % len(listed)]) for k in used.tolist()]
    return values, codes, labels


def group_mean(x: ArrayLike, *groups: Any) -> Array:
    """Mean of x over the group of each row.

    Parameters
    ----------
    x : (n,) array
    *groups : (n,) arrays of labels
        Several are crossed: groups are the combinations that occur.

    Returns
    -------
    (n,) array

    Raises
    ------
    LMMError
        For arrays of different lengths or missing labels.
    """
    values, codes, labels = _grouped(x, groups)
    return np.asarray(_means(values, codes, len(labels))[codes])


between = group_mean


def within(x: ArrayLike, *groups: Any) -> Array:
    """x less its mean over the group of each row.

    Parameters
    ----------
    x : (n,) array
    *groups : (n,) arrays of labels
        See `group_mean`.

    Returns
    -------
    (n,) array

    Raises
    ------
    LMMError
        For arrays of different lengths or missing labels.
    """
    values = float_array(x, "x", 1)
    return np.asarray(values - group_mean(values, *groups))


def _remembered(x: Any, groups: tuple[Any, ...], state: dict[str, Any]) -> tuple[Array, Array]:
    """Values and group means: of the fit for groups that it has seen, of these rows for others."""
    values, codes, labels = _grouped(x, groups)
    means = _means(values, codes, len(labels))
    if "means" in state:
        known = state["means"]
        means = np.array([known.get(label, mean) for label, mean in zip(labels, means.tolist(), strict=True)])
    else:
        state["means"] = dict(zip(labels, means.tolist(), strict=True))
    return values, means[codes]


@cache
def formula_functions() -> dict[str, Callable[..., Any]]:
    """The functions that formulas know beside those of formulaic: ``within(x, g)`` and ``between(x, g)``.

    On new data, groups of the fit keep their means in the fit; a group that is new has the mean of its new rows.
    """
    from formulaic.transforms import stateful_transform  # type: ignore[import-untyped]

    def within(data: Any, *groups: Any, _state: dict[str, Any]) -> Array:
        values, means = _remembered(data, groups, _state)
        return values - means

    def between(data: Any, *groups: Any, _state: dict[str, Any]) -> Array:
        return _remembered(data, groups, _state)[1]

    return {"within": stateful_transform(within), "between": stateful_transform(between)}


@dataclass(frozen=True)
class ContextualEffect:
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
    result: LMMResult = field(repr=False)
    _library: str = field(repr=False)

    def to_frame(self) -> Any:
        """One row per covariate, in the library of the caller's data (or a dict of arrays)."""
        columns = {
            "term": list(self.names), "within": self.within, "between": self.between, "contextual": self.estimate,
            "std_error": self.std_error, "df": self.df, "p_value": self.pvalues,
        }  # fmt: skip
        return native_frame(self._library, columns)

    def __repr__(self) -> str:
        parts = ", ".join(
            f"{name} {value:.4g} (se {se:.3g}, p {p:.3g})"
            for name, value, se, p in zip(self.names, self.estimate, self.std_error, self.pvalues, strict=True)
        )
        return f"<ContextualEffect: between less within: {parts}>"


def contextual_effect(
    result: LMMResult,
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
    from ..inference.wald import wald

    model = result.model
    grouping = model.factor(factor).grouping
    m = len(grouping.labels)
    names = list(model.exog_names)
    means = np.empty(model.exog.shape)
    for j, column in enumerate(model.exog.T):
        means[:, j] = _means(column, grouping.index, m, model.weights)[grouping.index]
    rounding = VARIES * np.ptp(model.exog, axis=0) + 8.0 * np.finfo(float).eps * np.abs(model.exog).max(axis=0)
    varies = np.abs(model.exog - means).max(axis=0) > rounding
    differs = np.ptp(means, axis=0) > rounding
    if x is None:
        chosen = [j for j in model.problem.kept.tolist() if varies[j] and differs[j]]
        if not chosen:
            raise LMMError(
                f"no column of X varies both within levels of {grouping.name!r} and between their means: there is no "
                "contextual effect"
            )
    else:
        wanted = [x] if isinstance(x, str) else list(x)
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
            chosen.append(j)
    larger = _with_columns(result, means[:, chosen], tuple(f"{names[j]} (group mean)" for j in chosen))
    extra = np.arange(len(names), len(names) + len(chosen))
    dropped = np.setdiff1d(np.append(chosen, extra), larger.model.problem.kept)
    if len(dropped):
        raise LMMError(
            f"{larger.model.exog_names[dropped[0]]!r} is a combination of the other columns of X: the model contains "
            "the group means already"
        )
    L = np.zeros((len(extra), len(larger.model.exog_names)))
    L[np.arange(len(extra)), extra] = 1.0
    test = wald(larger, L, None, ddf, "expected", tuple(larger.model.exog_names[k] for k in extra.tolist()))
    inside = larger._params[chosen]
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


def _with_columns(result: LMMResult, columns: Array, names: tuple[str, ...]) -> LMMResult:
    """The fit of the same model with more columns in X; a model from arrays, as no formula makes these columns."""
    from ..model import LinearMixedModel

    old = result.model
    model = LinearMixedModel.__new__(LinearMixedModel)
    model._setup(
        old.endog, np.column_stack([old.exog, columns]), old.random, old.weights, old.offset,
        (*old.exog_names, *names), None, old.response_name, old.n_dropped, old.kept,
    )  # fmt: skip
    return model.fit(reml=result.reml)
