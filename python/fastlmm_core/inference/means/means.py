"""Estimated marginal means, slopes, and comparisons among them (Searle, Speed and Milliken 1980, Am. Stat. 34, 216).

Means are linear functions of the coefficients on the reference grid, averaged over the other factors, as by R's
emmeans; degrees of freedom and covariances come from `inference`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...errors import LMMError
from ...support.arguments import checked
from ...support.checks import check_level
from ...support.display import Cells, Part, Shown
from ...support.hints import option
from ...support.types import Array
from ..options import check_options
from . import multiplicity
from .conditions import conditions_of
from .contrasts import CONTRASTS, Method, comparisons
from .families import Options, adjustment, estimated, families_of
from .grid import ReferenceGrid
from .letters import compact_letters
from .response import ResponseScale, response_scale

if TYPE_CHECKING:
    from ...estimation.fit import Fit
    from ..sandwich import Sandwich
    from .equivalence import Equivalence
    from .joint_tests import JointTests

__all__ = ["Contrasts", "Estimates", "MarginalMeans", "emmeans", "slopes"]

Labels = dict[str, list[Any]]


@checked
@dataclass(frozen=True, repr=False)
class Estimates(Shown):
    """Estimates with standard errors, limits and t tests, some of which may be NaN because they are not estimable.

    Attributes
    ----------
    labels : dict
        What each row stands for: columns of labels.
    estimate, std_error, df, conf_low, conf_high : (n,) array
    statistic, pvalues : (n,) array
        t statistic of the hypothesis that the estimate is zero (z for infinite df), and its p-value.
    L : (n, p) array
        The linear functions of the coefficients.
    level : float
        Of the limits.
    adjust : str
        Adjustment of p-values and limits for the number of estimates.
    notes : tuple of str
    result : LMMResult
        The fit.
    scale : ResponseScale or None
        The scale of the response that they are on; None for that of the model.
    """

    labels: Labels
    estimate: Array
    std_error: Array
    df: Array
    conf_low: Array
    conf_high: Array
    statistic: Array
    pvalues: Array
    L: Array = field(repr=False)
    level: float
    adjust: str
    notes: tuple[str, ...]
    result: Fit = field(repr=False)
    scale: ResponseScale | None = field(repr=False)

    _tests = True

    def equivalence(self, margin: float | tuple[float, float], *, alpha: float = 0.05) -> Equivalence:
        """Test whether the estimates lie within margins, by two one-sided tests each.

        Parameters
        ----------
        margin : float or pair of float
            Half the width of the interval around zero, or its ends; on the scale of the model.
        alpha : float
            Level of each one-sided test; the limits have level 1 - 2 alpha.

        Returns
        -------
        Equivalence

        Raises
        ------
        LMMError
            For margins that are no interval, and estimates on the scale of the response.
        """
        from .equivalence import equivalence

        if self.scale is not None:
            raise LMMError("equivalence is tested on the scale of the model: leave transform= out, and give log(1.25)")
        numbers = (self.estimate, self.std_error, self.df)
        return equivalence(self.labels, numbers, margin, alpha, self.result.model.library)

    def to_frame(self) -> Any:
        """A table in the library of the caller's data: labels, estimate, std_error, df, conf_low, conf_high,
        statistic, p_value.
        """
        return self.result.model.table(self._columns())

    def _columns(self) -> dict[str, Any]:
        return {
            **self.labels,
            "estimate": self.estimate,
            "std_error": self.std_error,
            "df": self.df,
            "conf_low": self.conf_low,
            "conf_high": self.conf_high,
            "statistic": self.statistic,
            "p_value": self.pvalues,
        }

    def _cells(self) -> tuple[list[str], list[list[str]]]:
        from ...support.text_tables import aligned_cells, estimate_cells, p_value_cell, statistic_cell

        errors = self.std_error.tolist()
        columns = [[str(value) for value in values] for values in self.labels.values()]
        numbers = (self.estimate, self.conf_low, self.conf_high)
        shown = [estimate_cells(values.tolist(), errors, 4) for values in numbers]
        columns += [
            shown[0],
            estimate_cells(errors, errors, 4),
            aligned_cells([f"{v:.2f}" for v in self.df.tolist()]),
            *shown[1:],
        ]
        header = [*self.labels, "Estimate", "SE", "df", f"{100.0 * self.level:g}% CI", ""]
        if self._tests:
            columns += [aligned_cells([statistic_cell(v) for v in self.statistic.tolist()])]
            columns += [[p_value_cell(v) for v in self.pvalues.tolist()]]
            header += ["z" if np.isinf(self.df).all() else "t", "p"]
        return header, [list(row) for row in zip(*columns, strict=True)]

    def __str__(self) -> str:
        from ...support.text_tables import text_table

        header, rows = self._cells()
        return "\n".join([*text_table(header, rows, left=len(self.labels)), "", *self.notes]).rstrip()

    def _shown(self) -> Iterator[Part]:
        yield Cells(*self._cells(), left=len(self.labels))
        yield from self.notes


@checked
class Contrasts(Estimates):
    """Comparisons of marginal means; prints as text and shows as HTML in notebooks."""


@checked
@dataclass(frozen=True, repr=False)
class MarginalMeans(Estimates):
    """Marginal means, or slopes; prints as text and shows as HTML in notebooks.

    Attributes
    ----------
    factors, by : tuple of str
        Variables whose combinations make the means, and those that only divide them into families.
    comparison : Contrasts or None
        The comparisons that were asked for.
    """

    factors: tuple[str, ...]
    by: tuple[str, ...]
    comparison: Contrasts | None
    _grid: ReferenceGrid = field(repr=False)
    _options: Options = field(repr=False)

    _tests = False

    @property
    def contrasts(self) -> Any:
        """The comparisons as a table in the library of the caller's data; None if none were asked for."""
        return None if self.comparison is None else self.comparison.to_frame()

    def contrast(
        self,
        method: Method = "pairwise",
        adjust: str | None = None,
        level: float | None = None,
        ref: Any = None,
    ) -> Contrasts:
        """Compare the means, within each combination of the levels of `by`.

        Parameters
        ----------
        method : str or mapping
            "pairwise", "revpairwise", "reference" (each with one of them), "sequential" or "consecutive" (each with the
            one before), "effects" (each with the mean of all), "polynomial", or names to weights, one per mean. A
            mapping of each factor to one of these gives contrasts of contrasts (interactions), e.g.
            ``{"arm": "pairwise", "week": "consecutive"}``, without adjustment by default.
        adjust : str, optional
            One of `multiplicity.ADJUSTMENTS`.  By default "tukey" for pairs, "mvt" for "reference" (Dunnett's test)
            and "sequential", "fdr" for "effects", otherwise "none".
        level : float, optional
            Of the limits; by default that of the means.
        ref : label, optional
            With what "reference" compares: a level, for several factors a tuple, for contrasts of contrasts a mapping
            of factors to levels; by default the reference level of the formula's coding, as in
            ``C(arm, Treatment('placebo'))``, or the first where that has none.

        Returns
        -------
        Contrasts

        Raises
        ------
        LMMError
            For unknown methods, adjustments or levels, and weights of the wrong number.
        """
        level = self.level if level is None else level
        families = families_of(self.labels, self.by)
        levels = {name: self._grid.levels[name] for name in self.factors}
        compared, stacked = comparisons(method, levels, ref, self._grid.coded(self.factors))
        name, pairs = adjustment(method, adjust)
        L = np.vstack([stacked @ self.L[rows] for rows in families])
        labels: Labels = {name: names * len(families) for name, names in compared.items()}
        for variable in self.by:
            labels[variable] = [self.labels[variable][rows[0]] for rows in families for _ in stacked]
        sizes = [np.arange(len(stacked)) + i * len(stacked) for i in range(len(families))]
        sums = np.tile(stacked.sum(axis=1), len(families))
        found = estimated(self.result, L, level, name, sizes, self._options, sums, stacked if pairs else None)
        if self.scale is not None:
            found = self.scale.comparisons(found, stacked)
        return Contrasts(labels=labels, **found, scale=self.scale)

    def letters(self, alpha: float = 0.05, *, adjust: str = "tukey") -> Any:
        """The means with letters: those that share one do not differ at level alpha, within each combination of `by`.

        Parameters
        ----------
        alpha : float
        adjust : str
            One of `multiplicity.ADJUSTMENTS`, of the pairwise comparisons.

        Returns
        -------
        table
            In the library of the caller's data: labels, estimate, letters ("a" for the smallest means, "" where there
            is no estimate).
        """
        if not 0.0 < alpha < 0.5:
            raise LMMError(f"alpha={alpha} must lie between 0 and 0.5, e.g. 0.05")
        pvalues = self.contrast("pairwise", adjust).pvalues
        letters = np.empty(len(self.estimate), dtype=object)
        for rows, found in zip(self.families(), pvalues.reshape(len(self.families()), -1), strict=True):
            pairs = [(i, j) for i in range(len(rows)) for j in range(i + 1, len(rows))]
            there = [i for i in np.argsort(self.estimate[rows]).tolist() if not np.isnan(self.estimate[rows[i]])]
            at = {mean: place for place, mean in enumerate(there)}
            apart = [(at[i], at[j]) for (i, j), p in zip(pairs, found.tolist(), strict=True) if p < alpha]
            letters[rows] = ""
            letters[rows[there]] = compact_letters(len(there), apart)
        return self.result.model.table({**self.labels, "estimate": self.estimate, "letters": letters})

    def joint_test(self) -> JointTests:
        """F tests that the means do not differ: one per factor and interaction, within each combination of `by`.

        Returns
        -------
        JointTests
        """
        from .joint_tests import joint_tests

        return joint_tests(self.result, self._grid, self.factors, self.by, (self.labels, self.L), self._options)

    def untransformed(self) -> MarginalMeans:
        """The same means on the scale of the model."""
        if self.scale is None:
            return self
        ones = np.ones(len(self.L))
        found = estimated(self.result, self.L, self.level, self.adjust, self.families(), self._options, ones, None)
        return replace(self, **found, comparison=None, scale=None)

    def families(self) -> list[NDArray[np.intp]]:
        """Rows of each combination of the levels of `by`."""
        return families_of(self.labels, self.by)

    def __str__(self) -> str:
        means = super().__str__()
        return means if self.comparison is None else f"{means}\n\n{self.comparison}"

    def _shown(self) -> Iterator[Part]:
        yield from super()._shown()
        if self.comparison is not None:
            yield from self.comparison._shown()


def emmeans(
    result: Fit,
    factors: str | Sequence[str],
    *,
    by: str | Sequence[str] | None = None,
    at: Mapping[str, Any] | None = None,
    contrasts: Method | None = None,
    adjust: str | None = None,
    level: float = 0.95,
    ddf: str = "satterthwaite",
    information: str = "auto",
    robust: Sandwich | None = None,
    ref: Any = None,
    weights: str = "equal",
    transform: str = "none",
) -> MarginalMeans:
    """Estimated marginal means of the levels of one or more factors.

    Parameters
    ----------
    result : LMMResult
        Of a model from a formula.
    factors : str or sequence of str
        Variables whose combinations make the means; ``"a:b"`` is short for ``["a", "b"]``.
    by : str or sequence of str, optional
        Further variables: comparisons are made within their combinations only.
    at : mapping, optional
        Values of covariates, which otherwise stand at their means, or a selection of levels.
    contrasts : str or mapping, optional
        Comparisons, as for `MarginalMeans.contrast`.
    adjust : str, optional
        Adjustment of the comparisons, or of the means where there are none.
    level : float
        Of the confidence limits.
    ddf : {"satterthwaite", "kenward-roger", "residual", "normal"}
    information : {"auto", "expected", "observed"}
        For Kenward-Roger.
    robust : Sandwich, optional
        Instead of the covariance of the model.
    ref : label or tuple of labels, optional
        With what ``contrasts="reference"`` compares, as for `MarginalMeans.contrast`.
    weights : {"equal", "proportional", "cells", "flat"}
        Of the levels that are averaged over: equal; by the number of rows of each combination in all data, the same for
        all means; by the number of rows with the levels of the mean; or equal for the combinations that have such rows,
        and zero for others (nested factors).
    transform : {"none", "response", "median", "mean"}
        For a response like ``log(y)`` or ``sqrt(y)``: medians of y ("response" is another word for it), or means of y
        under normal errors, which are larger. Comparisons of logarithms are ratios of y.

    Returns
    -------
    MarginalMeans
        The mean of the offset of the model, if there is one, is part of the means.

    Raises
    ------
    LMMError
        For a model from arrays, unknown variables, levels or options.
    """
    grid = ReferenceGrid(result.model, at, weights)
    chosen, conditions = _variables(factors, "factors"), _variables(by, "by")
    scale = response_scale(result, transform)
    options = (ddf, information, robust)
    later = scale is not None and contrasts is not None  # comparisons are made of what is on the scale of the model
    compared = (None, None, None) if later else (contrasts, adjust, ref)
    means = _means(result, grid, chosen, conditions, None, compared, level, options)
    if scale is None:
        return means
    names = ("estimate", "std_error", "conf_low", "conf_high", "notes")
    means = replace(means, **scale.means({name: getattr(means, name) for name in names}), scale=scale)
    return means if contrasts is None else replace(means, comparison=means.contrast(contrasts, adjust, ref=ref))


def slopes(
    result: Fit,
    variable: str,
    factors: str | Sequence[str] | None = None,
    *,
    by: str | Sequence[str] | None = None,
    at: Mapping[str, Any] | None = None,
    contrasts: Method | None = None,
    adjust: str | None = None,
    level: float = 0.95,
    ddf: str = "satterthwaite",
    information: str = "auto",
    robust: Sandwich | None = None,
    ref: Any = None,
    weights: str = "equal",
) -> MarginalMeans:
    """Slopes of the linear predictor along a covariate, averaged over the levels of factors.

    Parameters
    ----------
    result : LMMResult
        Of a model from a formula.
    variable : str
        A numeric variable; the slope is taken at its mean or at the values in `at`, by a central difference over a
        thousandth of its range.
    factors : str or sequence of str, optional
        Variables for whose combinations slopes are estimated; one slope if there are none.
    at : mapping, optional
        As for `emmeans`, but several values of a numeric variable give a slope each.
    by, contrasts, adjust, level, ddf, information, robust, ref, weights
        As for `emmeans`.

    Returns
    -------
    MarginalMeans

    Raises
    ------
    LMMError
        As `emmeans`, and for a variable that is not numeric.
    """
    grid = ReferenceGrid(result.model, at, weights)
    step = 5e-4 * grid.range_of(variable)
    chosen, conditions = _variables(factors, "factors"), _variables(by, "by")
    chosen += tuple(name for name in grid.several if name not in (*chosen, *conditions))
    return _means(
        result, grid, chosen, conditions, (variable, step), (contrasts, adjust, ref), level, (ddf, information, robust)
    )


def _means(
    result: Fit,
    grid: ReferenceGrid,
    factors: tuple[str, ...],
    by: tuple[str, ...],
    along: tuple[str, float] | None,
    compared: tuple[Method | None, str | None, Any],
    level: float,
    options: Options,
) -> MarginalMeans:
    contrasts, adjust, ref = compared
    if contrasts is None and ref is not None:
        raise LMMError("ref is for contrasts='reference'; leave it out, or ask for these contrasts")
    check_level(level)
    check_options(*options)
    repeated = [name for name in factors if name in by]
    if repeated:
        raise LMMError(f"by: {repeated[0]!r} is one of `factors` too; name it once")
    if along is None and not factors:
        raise LMMError("factors is empty: name at least one variable")
    if isinstance(contrasts, str) and contrasts not in CONTRASTS:
        raise LMMError(
            f"contrasts={contrasts!r} is unknown: use one of {', '.join(CONTRASTS)}, or names to weights"
            f"{option('contrasts', contrasts, CONTRASTS)}"
        )
    grid.check(factors, "factors")
    grid.check(by, "by")
    names = (*factors, *by)
    labels = grid.cells(names)
    if along is None:
        L, weights = grid.functions(names), np.ones(len(labels[names[0]]))
    else:
        variable, step = along
        L = (grid.functions(names, {variable: step}) - grid.functions(names, {variable: -step})) / (2.0 * step)
        weights = np.zeros(len(L))
        labels = labels if names else {"slope": [variable]}
    families = families_of(labels, by)
    own = "none" if adjust is None or contrasts is not None else multiplicity.method_name(adjust)
    if own == "tukey":
        raise LMMError("adjust='tukey' is for comparisons: give contrasts='pairwise', or use 'sidak'")
    found = estimated(result, L, level, own, families, options, weights, None)
    found["notes"] += conditions_of(grid, names, None if along is None else along[0])
    means = MarginalMeans(
        labels=labels, **found, factors=factors, by=by, comparison=None, _grid=grid, _options=options, scale=None
    )  # fmt: skip
    return means if contrasts is None else replace(means, comparison=means.contrast(contrasts, adjust, ref=ref))


def _variables(given: str | Sequence[str] | None, argument: str) -> tuple[str, ...]:
    if given is None:
        return ()
    names: list[Any] = list(given) if np.ndim(given) == 1 else [given]
    if not all(isinstance(name, str) for name in names):
        raise LMMError(f"{argument} must be names of variables, not {given!r}")
    return tuple(dict.fromkeys(part.strip() for name in names for part in name.split(":")))
