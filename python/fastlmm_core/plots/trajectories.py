"""Data, population line and the lines of the groups."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import LMMError
from ..support.arguments import checked
from ..support.checks import plain_array
from ..support.types import Array
from ._style import (
    BLACK,
    BLUE,
    GREY,
    SAMPLE,
    SERIES,
    grid,
    legend_above,
    own_axes,
    plain,
    pyplot,
    sample,
    smooth,
    tidy,
    variable,
)

if TYPE_CHECKING:
    from ..design.grouping import Grouping
    from ..estimation.fit import Fit
    from ..estimation.model import Model

__all__ = ["trajectories"]


LINES = 100
"""Groups drawn in one plot where there are more."""

PANELS = 20

CLASSES = 60
"""Values of x up to which the other covariates are averaged at each, and above which the line is smoothed."""


@checked
def trajectories(
    result: Fit,
    x: Any = None,
    layout: Literal["spaghetti", "panels"] = "spaghetti",
    subjects: Any = None,
    *,
    factor: str | None = None,
    by: Any = None,
    facet: Any = None,
    ax: Any = None,
    data: bool = False,
) -> Any:
    """The data with the population line and the fitted line of each group.

    Parameters
    ----------
    result : LMMResult
    x : str or (n,) array, optional
        Horizontal axis: a column of the data, X or Z by name, or values or labels for the rows used or of the data; by
        default the variable of the random slope.
    layout : {"spaghetti", "panels"}
        All in one plot, or a plot for each group.
    subjects : sequence of labels or int, optional
        Groups to draw, or how many; by default all up to 100 (panels: 20), of more a random sample that is the same in
        every call.
    factor : str, optional
        The grouping factor, where there are several; by default that with most levels.
    by, facet : str or (n,) array, optional
        For layout="spaghetti": a column, as for `x`, whose levels have a colour, or a plot, and a population line each.
    ax : matplotlib Axes, optional
        For layout="spaghetti" without facets.
    data : bool
        Return what would be drawn as a tidy table, and draw nothing: the rows of the groups drawn with ``observed``,
        ``fitted`` and ``population``.

    Returns
    -------
    Axes, list of Axes for layout="panels" and for facets, or table

    Raises
    ------
    LMMError
        For unknown columns, groups or layouts, or without matplotlib.

    Notes
    -----
    The population line is X beta (+ offset) at the values of x; where it depends on other covariates too, its mean over
    the rows with that x, smoothed by local linear fits where x has more than 60 values.  In panels it is
    that of the group's own covariates.

    Examples
    --------
    >>> import fastlmm_core as flc
    >>> fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
    >>> flc.plots.trajectories(fit, data=True).head(2).round(1)
      Subject  Days  observed  fitted  population
    0     308   0.0     249.6   253.7       251.4
    1     308   1.0     258.7   273.3       261.9
    """
    if layout not in ("spaghetti", "panels"):
        raise LMMError(f"layout={layout!r} is unknown: use 'spaghetti' or 'panels'")
    if ax is not None and (layout == "panels" or facet is not None):
        what = "layout='panels'" if layout == "panels" else "facet="
        raise LMMError(f"{what} makes a figure of its own: leave ax out")
    if layout == "panels" and not (by is None and facet is None):
        raise LMMError("layout='panels' has a plot for each group: leave by and facet out, or use layout='spaghetti'")
    if not data:
        pyplot()
    model = result.model
    grouping = model.factor(factor).grouping
    values, name, ticks = variable(model, x)
    chosen = _chosen(grouping, subjects, LINES if layout == "spaghetti" else PANELS)
    rows = np.flatnonzero(np.isin(grouping.index, chosen))
    color, panel = _split(model, by, "by", len(SERIES)), _split(model, facet, "facet", PANELS)
    rows = rows[np.lexsort((values[rows], panel.code[rows], color.code[rows], grouping.index[rows]))]
    if data:
        return _table(result, grouping, (values, name, ticks), (color, panel), rows)
    line = (grouping.index * len(color.levels) + color.code) * len(panel.levels) + panel.code
    parts = np.split(rows, np.flatnonzero(np.diff(line[rows])) + 1)
    if layout == "panels":
        axes = _panels(result, grouping, values, name, parts)
    else:
        axes = [own_axes(ax)] if facet is None else grid(len(panel.levels), (3.2, 3.2), sharex=True, sharey=True)
        for k, one in enumerate(axes):
            mine = [part for part in parts if panel.code[part[0]] == k]
            _spaghetti(result, grouping, values, name, mine, one, color, panel.code == k)
            if facet is not None:
                one.set_title(f"{panel.name} = {panel.levels[k]}", fontsize="small")
                one.label_outer()
        _legend(axes, facet is not None, color)
    if ticks is not None:
        for one in axes:
            one.set_xticks(np.arange(len(ticks)), ticks)
            one.set_xlim(-0.5, len(ticks) - 0.5)
    return axes if layout == "panels" or facet is not None else axes[0]


class _Split(NamedTuple):
    """The rows by a column: position of the level of each row, the levels, the name."""

    code: NDArray[np.intp]
    levels: list[str]
    name: str


def _split(model: Model, column: Any, argument: str, most: int) -> _Split:
    """Levels of a column; one of all rows where there is none."""
    if column is None:
        return _Split(np.zeros(model.nobs, dtype=np.intp), [""], "")
    values, name, labels = variable(model, column, argument)
    if labels is None:
        different, code = np.unique(values, return_inverse=True)
        labels = [f"{value:g}" for value in different.tolist()]
    else:
        code = values.astype(np.intp)
    if len(labels) > most:
        raise LMMError(
            f"{argument}={name!r} has {len(labels)} levels, of which {most} can be drawn; put them in classes"
        )
    return _Split(code, labels, name)


def _table(
    result: Fit, grouping: Grouping, axis: tuple[Array, str, list[str] | None], splits: tuple[_Split, _Split],
    rows: NDArray[np.intp],
) -> Any:  # fmt: skip
    """The rows that would be drawn."""
    values, name, ticks = axis
    x = values[rows] if ticks is None else np.array(ticks, dtype=object)[values[rows].astype(np.intp)]
    columns: dict[str, Any] = {grouping.name: grouping.labels[grouping.index[rows]], name: x}
    for split in splits:
        if split.name:
            columns[split.name] = np.array(split.levels, dtype=object)[split.code[rows]]
    columns["observed"] = result.model.endog[rows]
    columns["fitted"] = np.asarray(result.fitted_mean)[rows]
    columns["population"] = np.asarray(result.population_mean)[rows]
    return tidy(result.model.library, [("rows", columns)])


def _chosen(grouping: Grouping, subjects: Any, most: int) -> NDArray[np.intp]:
    count = len(grouping.labels)
    if subjects is None:
        return sample(count, most)
    if isinstance(subjects, int | np.integer):
        if subjects < 1:
            raise LMMError(f"subjects={subjects} must be at least 1, or the labels of groups")
        return sample(count, int(subjects))
    wanted = np.atleast_1d(plain_array(subjects, "subjects"))
    if not len(wanted):
        raise LMMError("subjects names no group; give labels of groups, or how many of them")
    try:
        found = grouping.locate(wanted)
    except TypeError as error:
        raise LMMError(f"subjects must be labels of groups, or how many of them: {error}") from error
    if (found < 0).any():
        missed = wanted[found < 0].tolist()[0]
        raise LMMError(f"subjects: {grouping.name} has no level {missed!r} among the rows used")
    return found


def _population(result: Fit, x: Array, rows: NDArray[np.intp]) -> tuple[Array, Array, bool]:
    """Points of the population line of some rows, and whether other covariates have been averaged."""
    x, mean = x[rows], np.asarray(result.population_mean)[rows]
    order = np.argsort(x, kind="stable")
    first = order[np.flatnonzero(np.diff(x[order], prepend=np.nan) != 0.0)]
    values = x[first]
    place = np.searchsorted(values, x)
    tolerance = 1e-9 * max(float(np.ptp(mean)), float(np.abs(mean).max()) * 1e-6)
    determined = bool((np.abs(mean - mean[first][place]) <= tolerance).all())
    if determined and (len(values) <= CLASSES or _even(values, mean[first])):
        return values, mean[first], False
    if len(values) > CLASSES:
        return *smooth(x, mean), True
    return values, np.bincount(place, weights=mean) / np.bincount(place), True


def _even(x: Array, y: Array) -> bool:
    """Whether nearly all points are close to the line between their neighbours, as on a curve of x alone."""
    share = (x[1:-1] - x[:-2]) / (x[2:] - x[:-2])
    away = np.abs(y[1:-1] - (1.0 - share) * y[:-2] - share * y[2:])
    return bool(np.quantile(away, 0.9) <= 0.01 * np.ptp(y))


def _spaghetti(
    result: Fit, grouping: Grouping, x: Array, name: str, parts: list[NDArray[np.intp]], ax: Any, color: _Split,
    inside: NDArray[np.bool_],
) -> None:  # fmt: skip
    """Data, lines of the groups and population lines of the rows `inside` one plot."""
    model, fitted = result.model, result.fitted_mean
    count, shown = len(grouping.labels), len({int(grouping.index[part[0]]) for part in parts})
    strength = float(np.clip(8.0 / max(shown, 1), 0.25, 0.9))
    several = len(color.levels) > 1
    said: set[str] = set()

    def once(label: str) -> str | None:
        if label in said:
            return None
        said.add(label)
        return label

    for level in range(len(color.levels)):
        mine = [part for part in parts if color.code[part[0]] == level]
        tint, style, marker = SERIES[level] if several else (BLUE, (0, (5, 1.5)), "o")
        if mine:
            every = np.concatenate(mine)
            size = float(np.clip(2500.0 / len(every), 3.0, 14.0))
            ax.scatter(
                x[every], model.endog[every], s=size, color=tint if several else GREY, alpha=0.6, linewidths=0,
                label=once("data"), zorder=1, marker=marker,
            )  # fmt: skip
        for part in mine:
            label = f"{grouping.name}: own lines" + ("" if shown == count else f" ({shown} of {count:,})")
            ax.plot(
                x[part], fitted[part], color=tint, alpha=0.6 * strength if several else strength, linewidth=1.0,
                label=once(label), zorder=2, marker="o" if (x[part] == x[part[0]]).all() else None, markersize=2.5,
            )  # fmt: skip
        rows = np.flatnonzero(inside & (color.code == level))
        if not len(rows):
            continue
        at, mean, averaged = _population(result, x, rows)
        label = "population" + (" (mean over other covariates)" if averaged else "")
        if several:
            ax.plot(at, mean, color="white", linewidth=4.4, zorder=3)
            label = color.levels[level]
        ax.plot(at, mean, color=tint if several else BLACK, linewidth=2.6, linestyle=style, label=label, zorder=4)
    ax.set_xlabel(name)
    ax.set_ylabel(model.response_name)
    plain(ax)


def _legend(axes: list[Any], facets: bool, color: _Split) -> None:
    """One legend: above the plot, or above all."""
    found: dict[str, Any] = {}
    for ax in axes:
        handles, labels = ax.get_legend_handles_labels()
        for handle, label in zip(handles, labels, strict=True):
            found.setdefault("own lines" if facets and ": own lines" in label else label, handle)
    if color.name:
        found = {label: found[label] for label in color.levels if label in found}
    title = f"{color.name}: population lines, data and lines of the groups" if color.name else None
    options: dict[str, Any] = {"handles": list(found.values()), "labels": list(found), "title": title}
    if facets:
        legend = axes[0].figure.legend(
            loc="outside upper center",
            ncols=4,
            frameon=False,
            fontsize="small",
            title_fontsize="small",
            handlelength=SAMPLE,
            **options,
        )
    else:
        legend = legend_above(
            axes[0], handletextpad=0.5, columnspacing=1.2, markerscale=2.0, title_fontsize="small", alignment="left",
            **options,
        )  # fmt: skip
    for handle in legend.legend_handles:
        handle.set_alpha(1.0)


def _panels(result: Fit, grouping: Grouping, x: Array, name: str, parts: list[NDArray[np.intp]]) -> list[Any]:
    model, fitted, mean = result.model, result.fitted_mean, result.population_mean
    size = (1.9, 1.8) if len(parts) > 6 else (2.3, 2.3)
    axes = grid(len(parts), size, most=6, sharex=True, sharey=True)
    for ax, part in zip(axes, parts, strict=True):
        ax.plot(x[part], mean[part], color=BLACK, linestyle=(0, (4, 1.5)), linewidth=1.5, label="population")
        ax.plot(x[part], fitted[part], color=BLUE, linewidth=1.8, label="own line")
        ax.plot(x[part], model.endog[part], linestyle="none", marker="o", markersize=3.2, color=BLACK, label="data")
        ax.set_title(str(grouping.labels[grouping.index[part[0]]]), fontsize="small", pad=3)
        plain(ax)
    figure = axes[0].figure
    figure.supxlabel(name)
    figure.supylabel(model.response_name)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False, fontsize="small")
    return axes
