"""Estimates side by side: marginal means with comparison arrows, coefficients of several models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import LMMError
from ..inference.means.families import families_of
from ..inference.means.means import MarginalMeans
from ..inference.wald import coefficient_intervals
from ..support.arguments import checked
from ..support.types import Array
from ._style import BLACK, GREY, SERIES, SKY, VERMILLION, legend_above, own_axes, plain, pyplot, tidy

if TYPE_CHECKING:
    from ..estimation.fit import Fit

__all__ = ["coefficients", "emmeans"]


ROWS = 60
"""Estimates whose labels fit beside an axis."""


@checked
def emmeans(
    means: MarginalMeans, *, arrows: bool = True, adjust: str | None = None, ax: Any = None, data: bool = False
) -> Any:
    """Marginal means, or slopes, with their intervals and with arrows that compare them.

    Intervals say where each mean is, and not which means differ.  That is what the arrows are for: two means of one
    family differ at the level of the intervals where their arrows do not overlap.  Their lengths are fitted so that the
    arrow of the higher mean to the left and that of the lower one to the right add up to the smallest difference that
    is significant, with most weight on pairs near it (as R's emmeans does).

    Parameters
    ----------
    means : MarginalMeans
        Of `LMMResult.emmeans` or `LMMResult.slopes`.
    arrows : bool
        Draw the arrows, where there are two means or more in a family.
    adjust : str, optional
        Adjustment of the comparisons for their number, by default Tukey's.
    ax : matplotlib Axes, optional
    data : bool
        Return what would be drawn as a tidy table, and draw nothing: the labels, ``estimate``, ``conf_low``,
        ``conf_high``, and the ends of the arrows ``arrow_low`` and ``arrow_high``, NaN where there is none.

    Returns
    -------
    Axes, or table
        The legend says so where no arrows can tell all comparisons.

    Raises
    ------
    LMMError
        For more than 60 means, unknown adjustments, or without matplotlib.

    Examples
    --------
    >>> import fastlmm_core as flc
    >>> teeth = flc.lmm("distance ~ age * Sex + (age | Subject)", flc.datasets.load("orthodont")).fit()
    >>> flc.plots.emmeans(teeth.emmeans("Sex"), data=True).round(2)
          Sex  estimate  conf_low  conf_high  arrow_low  arrow_high
    0  Female     22.65     21.44      23.85        NaN       23.43
    1    Male     24.97     23.97      25.97      24.18         NaN
    """
    if not isinstance(means, MarginalMeans):
        raise LMMError(f"means must be what emmeans() or slopes() returns, not of type {type(means).__name__!r}")
    if not data:
        pyplot()
    count = len(means.estimate)
    low, high, faithful = _arrows(means, adjust) if arrows else (np.full(count, np.nan), np.full(count, np.nan), True)
    library = means.result.model.library
    if data:
        columns = {"estimate": means.estimate, "conf_low": means.conf_low, "conf_high": means.conf_high}
        return tidy(library, [("means", {**means.labels, **columns, "arrow_low": low, "arrow_high": high})])
    if count > ROWS:
        raise LMMError(f"means: {count} do not fit into a plot; select levels with at=, or take data=True")
    families = families_of(means.labels, means.by)
    place = np.empty(count)
    start = 0.0
    for rows in families:
        place[rows] = start + np.arange(len(rows))
        start += len(rows) + 0.6
    ax = own_axes(ax, (6.0, float(np.clip(0.36 * start + 1.4, 2.4, 10.0))))
    ax.hlines(place, means.conf_low, means.conf_high, color=SKY, linewidth=8.0, alpha=0.75, zorder=1,
              label=f"{100 * means.level:g} % interval")  # fmt: skip
    ax.plot(means.estimate, place, linestyle="none", marker="o", color=BLACK, markersize=5, zorder=4)
    drawn = False
    for end in (low, high):
        for i in np.flatnonzero(np.isfinite(end)):
            ax.annotate(
                "", (end[i], place[i]), (means.estimate[i], place[i]), zorder=3, annotation_clip=False,
                arrowprops={"arrowstyle": "-|>", "color": VERMILLION, "linewidth": 1.5, "shrinkA": 0, "shrinkB": 0},
            )  # fmt: skip
            drawn = True
    if drawn:
        text = "arrows that overlap: no difference" + ("" if faithful else " (not of all pairs)")
        ax.plot([], [], color=VERMILLION, linewidth=1.5, marker=">", markersize=4, label=text)
    ax.set_yticks(place, [", ".join(map(str, row)) for row in zip(*means.labels.values(), strict=True)] or ["all"])
    ax.set_ylim(place.max() + 0.7, -0.7)
    ax.set_ylabel(", ".join(means.labels))
    scale = means.scale
    ax.set_xlabel(f"estimate ({means.result.model.response_name})" if scale is None else f"{scale.name} ({scale.what})")
    plain(ax)
    legend_above(ax)
    return ax


def _arrows(means: MarginalMeans, adjust: str | None) -> tuple[Array, Array, bool]:
    """Ends of the arrows of each mean, and whether their overlaps are the comparisons."""
    count = len(means.estimate)
    low, high = np.full(count, np.nan), np.full(count, np.nan)
    families = families_of(means.labels, means.by)
    sizes = {len(rows) for rows in families}
    if len(sizes) != 1 or max(sizes) < 2 or count > ROWS:
        return low, high, True
    # differences are compared on the scale of the model; what overlaps there overlaps on that of the response
    scale, linear = means.scale, means.untransformed()
    pairs = linear.contrast("pairwise", adjust)
    half = 0.5 * (pairs.conf_high - pairs.conf_low).reshape(len(families), -1)
    faithful = True
    for rows, critical in zip(families, half, strict=True):
        left, right, told = _lengths(linear.estimate[rows], critical)
        low[rows] = linear.estimate[rows] - left
        high[rows] = linear.estimate[rows] + right
        faithful = faithful and told
    return (low, high, faithful) if scale is None else (scale.back(low), scale.back(high), faithful)


def _lengths(estimate: Array, critical: Array) -> tuple[Array, Array, bool]:
    """Lengths of the arrows to the left and to the right of k means, NaN for what has none to compare with.

    Parameters
    ----------
    estimate : (k,) array
    critical : (k (k - 1) / 2,) array
        The smallest significant difference of each pair, in the order of the upper triangle by rows.
    """
    from scipy.optimize import nnls

    k = len(estimate)
    first, second = np.triu_indices(k, 1)
    usable = np.isfinite(critical) & (critical > 0.0)
    left, right = np.full(k, np.nan), np.full(k, np.nan)
    if not usable.any():
        return left, right, True
    first, second, critical = first[usable], second[usable], critical[usable]
    swap = estimate[second] > estimate[first]
    upper, lower = np.where(swap, second, first), np.where(swap, first, second)
    distance = (estimate[upper] - estimate[lower]) / critical
    rows = np.arange(len(upper))
    A = np.zeros((len(upper), 2 * k))
    A[rows, upper] = A[rows, k + lower] = 1.0
    weight = 1.0 / (0.05 + np.abs(distance - 1.0))
    # of many solutions that with arrows of like length
    like = 1e-3 * np.eye(2 * k) * weight.min()
    target = np.concatenate([weight * critical, like.diagonal() * 0.5 * critical.mean()])
    found = nnls(np.vstack([weight[:, None] * A, like]), target)[0]
    left[upper], right[lower] = found[upper], found[k + lower]
    together = found[upper] + found[k + lower]
    return left, right, bool(((together >= estimate[upper] - estimate[lower]) == (distance <= 1.0)).all())


@checked
def coefficients(
    *results: Fit,
    names: Sequence[str] | None = None,
    intercept: bool = False,
    level: float = 0.95,
    ddf: str = "satterthwaite",
    ax: Any = None,
    data: bool = False,
) -> Any:
    """Coefficients of one model or several with their intervals, the models beside each other.

    Parameters
    ----------
    *results : LMMResult
    names : sequence of str, optional
        Of the models; by default 1, 2, ...
    intercept : bool
        Draw it too; it is on another scale than the others.
    level : float
        Of the intervals.
    ddf : str
        Degrees of freedom, see `LMMResult.test`.
    ax : matplotlib Axes, optional
    data : bool
        Return what would be drawn as a tidy table, and draw nothing: ``model``, ``term``, ``estimate``, ``std_error``,
        ``conf_low`` and ``conf_high``.

    Returns
    -------
    Axes, or table

    Raises
    ------
    LMMError
        Without a model, for names of another number, more models than can be told apart, or without matplotlib.

    Examples
    --------
    >>> import fastlmm_core as flc
    >>> fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
    >>> flc.plots.coefficients(fit, data=True).round(2)
      model  term  estimate  std_error  conf_low  conf_high
    0     1  Days     10.47       1.55      7.21      13.73
    """
    from ..estimation.fit import Fit

    if not results:
        raise LMMError("coefficients needs a result, or several: coefficients(m1, m2)")
    for i, result in enumerate(results):
        if not isinstance(result, Fit):
            raise LMMError(
                f"coefficients(): result {i + 1} must be an LMMResult, not of type {type(result).__name__!r}"
            )
    titles = [str(i + 1) for i in range(len(results))] if names is None else [str(name) for name in names]
    if len(titles) != len(results):
        raise LMMError(f"names has {len(titles)} names for {len(results)} models; give one for each")
    if len(results) > len(SERIES):
        raise LMMError(f"{len(results)} models are more than can be told apart; draw at most {len(SERIES)}")
    if not data:
        pyplot()
    tables = [coefficient_intervals(result, level, ddf, "auto", None) for result in results]
    terms = dict.fromkeys(term for result in results for term in result.model.exog_names)
    shown = [term for term in terms if intercept or term not in ("Intercept", "(Intercept)")] or list(terms)
    at = {term: i for i, term in enumerate(shown)}
    if data:
        layers: dict[str, list[Any]] = {name: [] for name in ("model", "term", *_COLUMNS)}
        for title, result, table in zip(titles, results, tables, strict=True):
            for j, term in enumerate(result.model.exog_names):
                if term in at:
                    layers["model"].append(title)
                    layers["term"].append(term)
                    for name in _COLUMNS:
                        layers[name].append(float(table[name][j]))
        return tidy(results[0].model.library, [("coefficients", layers)])
    ax = own_axes(ax, (6.0, float(np.clip((0.3 + 0.14 * len(results)) * len(shown) + 1.3, 2.2, 10.0))))
    width = 0.6 / len(results)
    for i, (title, result, table) in enumerate(zip(titles, results, tables, strict=True)):
        mine = [j for j, term in enumerate(result.model.exog_names) if term in at]
        place = np.array([at[result.model.exog_names[j]] for j in mine]) + (i - 0.5 * (len(results) - 1)) * width
        color, style, marker = SERIES[i]
        ax.hlines(place, table["conf_low"][mine], table["conf_high"][mine], color=color, linestyle=style, linewidth=1.8)
        ax.plot(table["estimate"][mine], place, linestyle="none", marker=marker, color=color, markersize=6, label=title,
                markeredgecolor="white")  # fmt: skip
    ax.axvline(0.0, color=GREY, linewidth=0.9, linestyle="--", zorder=0)
    ax.set_yticks(np.arange(len(shown)), shown)
    ax.set_ylim(len(shown) - 0.4, -0.6)
    ax.set_xlabel(f"coefficient, {100 * level:g} % interval")
    plain(ax)
    if len(results) > 1:
        legend_above(ax)
    return ax


_COLUMNS = ("estimate", "std_error", "conf_low", "conf_high")
