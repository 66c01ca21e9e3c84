"""The design and the covariance: variance along a variable, and which observations there are."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..diagnostics.marginal import least_variance_time, marginal_covariance_at, slope_columns
from ..errors import LMMError
from ..support.arguments import checked
from ..support.checks import float_array, plain_array
from ..support.types import Array
from ._columns import held_column
from ._style import BLACK, BLUE, GREY, SKY, VERMILLION, legend_above, own_axes, plain, pyplot, sample, tidy, variable

if TYPE_CHECKING:
    from ..design.grouping import Grouping
    from ..estimation.fit import Fit
    from ..estimation.model import Model

__all__ = ["marginal_variance", "missingness"]


NAMED = 40
COLUMNS = 60
PATTERNS = 25
LINES = 150
FEW = 12


@checked
def marginal_variance(result: Fit, x: ArrayLike | None = None, *, ax: Any = None, data: bool = False) -> Any:
    """Variance of an observation along the variable of the random slope: total, and the residual part.

    Parameters
    ----------
    result : LMMResult
        Of a model with random effects of one variable: an intercept and a slope or transforms of it, or the levels of a
        factor.
    x : (k,) array, optional
        Points, or levels of a factor; by default 101 over the observed range, or all levels.
    ax : matplotlib Axes, optional
    data : bool
        Return what would be drawn as a tidy table, and draw nothing: the variable, ``variance`` and ``residual``.

    Returns
    -------
    Axes, or table

    Raises
    ------
    LMMError
        For other random effects, or without matplotlib.

    Examples
    --------
    >>> import fastlmm_core as flc
    >>> fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
    >>> flc.plots.marginal_variance(fit, data=True).head(2).round(1)
       Days  variance  residual
    0   0.0    1267.0     654.9
    1   0.1    1269.0     654.9
    """
    if not data:
        pyplot()
    model = result.model
    name, at, levels = _points(model, x)
    found = marginal_covariance_at(result, at if model.spec is None else {name: at})
    flat = np.full(len(at), result.sigma2)
    if data:
        return tidy(model.library, [("curve", {name: at, "variance": found.variance, "residual": flat})])
    ax = own_axes(ax)
    if levels:
        place = np.arange(len(at))
        ax.bar(place, flat, width=0.55, color=GREY, alpha=0.35, label="residual variance")
        ax.bar(place, found.variance - flat, width=0.55, bottom=flat, color=SKY, edgecolor=BLUE, alpha=0.8,
               label="random effects")  # fmt: skip
        ax.set_xticks(place, [str(level) for level in at.tolist()])
    else:
        ax.fill_between(at, 0.0, result.sigma2, color=GREY, alpha=0.25, linewidth=0)
        ax.plot(at, found.variance, color=BLUE, linewidth=2.2, label="total variance")
        ax.plot(at, flat, color=BLACK, linewidth=1.3, linestyle="--", label="residual variance")
        _mark_least(result, at, ax)
    ax.set_xlabel(name)
    ax.set_ylabel(f"variance of {model.response_name}")
    ax.set_ylim(0.0, 1.08 * float(found.variance.max()))
    plain(ax)
    legend_above(ax)
    return ax


def _points(model: Model, x: ArrayLike | None) -> tuple[str, NDArray[Any], bool]:
    """Name and points of the variable of the random effects, and whether these are levels of a factor."""
    if model.spec is None:
        column = slope_columns(model)[0]
        name, observed = model.exog_re_names[column], model.exog_re[:, column]
    else:
        names = model.spec.random_variables
        if len(names) != 1:
            used = f"use {', '.join(names)}" if names else "are intercepts: the variance is the same everywhere"
            raise LMMError(
                f"the random effects {used}; a plot of the variance is along one variable, and marginal_covariance_at "
                "takes a table of points"
            )
        name = names[0]
        held = held_column(model, name)
        observed = model.exog_re[:, slope_columns(model)[0]] if held is None else held
    if observed.dtype.kind == "O":
        reference = None if model.spec is None else model.spec.reference.get(name)
        known = list(reference) if isinstance(reference, tuple) else sorted(set(observed.tolist()))
        chosen = known if x is None else list(plain_array(x, "x").tolist())
        for level in chosen:
            if level not in known:
                raise LMMError(f"x: {name!r} has no level {level!r}; its levels are {', '.join(map(repr, known))}")
        points = np.empty(len(chosen), dtype=object)
        points[:] = chosen
        return name, points, True
    at = np.linspace(float(observed.min()), float(observed.max()), 101) if x is None else float_array(x, "x", 1)
    if not len(at):
        raise LMMError("x holds no values; give some, or leave it out for the range observed")
    return name, at, False


def _mark_least(result: Fit, at: Array, ax: Any) -> None:
    """A mark where the variance is smallest, of a straight slope."""
    try:
        least = least_variance_time(result)
    except LMMError:  # a curve
        return
    if at.min() <= least.at <= at.max():
        ax.plot(least.at, least.variance, linestyle="none", marker="v", markersize=8, color=VERMILLION,
                label=f"smallest, at {least.at:.3g}")  # fmt: skip


@checked
def missingness(model: Model, x: Any = None, *, factor: str | None = None, ax: Any = None, data: bool = False) -> Any:
    """Which groups were observed when: a row per group, or per pattern where there are many groups.

    Parameters
    ----------
    model : LinearMixedModel
    x : str or (n,) array, optional
        The occasions: a column of the data, X or Z by name, or values or labels for the rows used or of the data; by
        default the variable of the random slope.
        Where hardly any rows share one, or there are more than 60, they are drawn as times: a line from the first to
        the last of each group with a mark for each row.
    factor : str, optional
        The grouping factor, where there are several; by default that with most levels.
    ax : matplotlib Axes, optional
    data : bool
        Return a tidy table, and draw nothing: for each level of the factor and each occasion the ``count`` of rows.

    Returns
    -------
    Axes, or table
        With up to 40 groups a row for each; with more, the 25 most frequent patterns and how many groups have them, or
        with times the groups, of more than 150 a sample.

    Raises
    ------
    LMMError
        For unknown columns or factors, or without matplotlib.

    Examples
    --------
    >>> import fastlmm_core as flc
    >>> fev = flc.datasets.load("fev")
    >>> model = flc.lmm("FEV1 ~ AVISIT + (1 | USUBJID)", fev)
    >>> flc.plots.missingness(model, "AVISIT", data=True).head(2)
      USUBJID AVISIT  count
    0     PT1   VIS1      0
    1     PT1   VIS2      1
    """
    if not data:
        pyplot()
    values, name, ticks = variable(model, x)
    grouping = model.factor(factor).grouping
    m = len(grouping.labels)
    times, place = np.unique(values, return_inverse=True)
    own_times = len(times) > FEW and 2 * len(values) < 3 * len(times)
    if ticks is None and (own_times or len(times) > COLUMNS):
        if data:
            columns = {grouping.name: grouping.labels[grouping.index], name: values}
            return tidy(model.library, [("rows", {**columns, "count": np.ones(len(values), dtype=np.intp)})])
        return _timelines(grouping, values, name, ax)
    seen = np.zeros((m, len(times)), dtype=np.intp)
    np.add.at(seen, (grouping.index, place), 1)
    if data:
        occasions: Any = times if ticks is None else [ticks[int(t)] for t in times.tolist()]
        columns = {grouping.name: np.repeat(grouping.labels, len(times)), name: np.tile(occasions, m)}
        return tidy(model.library, [("cells", {**columns, "count": seen.ravel()})])
    if m <= NAMED:
        # the most complete on top, then those observed longest
        order = np.lexsort((np.arange(m), -_last(seen), -(seen > 0).sum(axis=1)))
        table, texts, label = seen[order], [str(a) for a in grouping.labels[order].tolist()], grouping.name
    else:
        patterns, counts = np.unique(seen > 0, axis=0, return_counts=True)
        order = np.argsort(-counts, kind="stable")[:PATTERNS]
        table, texts = patterns[order].astype(np.intp), [f"{count:,}" for count in counts[order].tolist()]
        rest = len(patterns) - len(order)
        label = f"how many of {grouping.name} have the pattern"
        if rest:
            label += f"\n({rest:,} more patterns, {int(m - counts[order].sum()):,} levels)"
    rows = len(table)
    ax = own_axes(ax, (float(np.clip(0.35 * len(times) + 2.0, 4.5, 9.0)), float(np.clip(0.22 * rows + 1.3, 2.4, 9.0))))
    drawn = np.clip(table, 0, 2)
    colors = import_module("matplotlib.colors").ListedColormap(["#FFFFFF", SKY, BLUE])
    mesh = ax.pcolormesh(
        np.arange(len(times) + 1) - 0.5, np.arange(rows + 1) - 0.5, drawn, cmap=colors, vmin=-0.5, vmax=2.5,
        edgecolors="#BBBBBB", linewidth=0.5,
    )  # fmt: skip
    mesh.set_antialiased(True)
    ax.set_yticks(np.arange(rows), texts, fontsize=8)
    step = -(-len(times) // 12)
    texts = [f"{t:.6g}" for t in times.tolist()] if ticks is None or len(ticks) != len(times) else ticks
    ax.set_xticks(np.arange(0, len(times), step), texts[::step])
    ax.invert_yaxis()
    ax.set_xlabel(name)
    ax.set_ylabel(label)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    patch = import_module("matplotlib.patches").Patch
    shown = [(0, "#FFFFFF", "not observed"), (1, SKY, "observed"), (2, BLUE, "more than once")]
    handles = [patch(facecolor=c, edgecolor="#BBBBBB", label=t) for k, c, t in shown if (drawn == k).any()]
    legend_above(ax, handles=handles)
    return ax


def _timelines(grouping: Grouping, times: Array, name: str, ax: Any) -> Any:
    """A row per group: a line from its first row to its last, and a mark for each; those observed longest on top."""
    m = len(grouping.labels)
    last, first = np.full(m, -np.inf), np.full(m, np.inf)
    np.maximum.at(last, grouping.index, times)
    np.minimum.at(first, grouping.index, times)
    chosen = sample(m, LINES)
    order = chosen[np.lexsort((chosen, first[chosen], -last[chosen]))]
    row = np.full(m, -1)
    row[order] = np.arange(len(order))
    shown = row[grouping.index] >= 0
    named = len(order) <= NAMED
    ax = own_axes(ax, (6.4, float(np.clip(0.22 * len(order) + 1.3, 2.4, 7.0))))
    ax.hlines(np.arange(len(order)), first[order], last[order], color=SKY, linewidth=1.4 if named else 0.5, zorder=1)
    ax.plot(times[shown], row[grouping.index[shown]], linestyle="none", marker="o" if named else "|", color=BLUE,
            markersize=3.5 if named else 2.5, markeredgewidth=1.0 if named else 0.7, zorder=2)  # fmt: skip
    if named:
        ax.set_yticks(np.arange(len(order)), [str(a) for a in grouping.labels[order].tolist()], fontsize=8)
        ax.set_ylabel(grouping.name)
    else:
        of = "" if len(order) == m else f" of {m:,}"
        ax.set_ylabel(f"{grouping.name}, by the last row ({len(order):,}{of})")
    ax.set_ylim(len(order) - 0.3, -0.7)
    ax.set_xlabel(name)
    plain(ax)
    return ax


def _last(seen: NDArray[np.intp]) -> NDArray[np.intp]:
    """Last occasion of each group."""
    return np.asarray(seen.shape[1] - 1 - np.argmax(seen[:, ::-1] > 0, axis=1))
