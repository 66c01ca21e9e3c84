"""Data, population line and the lines of the groups."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import LMMError
from ..support.arguments import checked
from ..support.checks import plain_array
from ._style import BLACK, BLUE, GREY, binned, grid, legend_above, own_axes, plain, pyplot, sample, variable

if TYPE_CHECKING:
    from ..design.grouping import Grouping
    from ..result import LMMResult

__all__ = ["trajectories"]

Array = NDArray[np.float64]

LINES = 100
"""Groups drawn in one plot where there are more."""

PANELS = 20

CLASSES = 60
"""Points of the population line where the other covariates have to be averaged."""


@checked
def trajectories(
    result: LMMResult,
    x: Any = None,
    layout: Literal["spaghetti", "panels"] = "spaghetti",
    subjects: Any = None,
    *,
    factor: str | None = None,
    ax: Any = None,
) -> Any:
    """The data with the population line and the fitted line of each group.

    Parameters
    ----------
    result : LMMResult
    x : str or (n,) array, optional
        Horizontal axis: a column of X or Z, or values or labels for the rows used or of the data; by default the
        variable of the random slope.
    layout : {"spaghetti", "panels"}
        All in one plot, or a plot for each group.
    subjects : sequence of labels or int, optional
        Groups to draw, or how many; by default all up to 100 (panels: 20), of more a random sample that is the same in
        every call.
    factor : str, optional
        The grouping factor, where there are several; by default that with most levels.
    ax : matplotlib Axes, optional
        For layout="spaghetti".

    Returns
    -------
    Axes, or list of Axes for layout="panels"

    Raises
    ------
    LMMError
        For unknown columns, groups or layouts, or without matplotlib.

    Notes
    -----
    The population line is X beta (+ offset) at the values of x; where it depends on other covariates too, its mean over
    the rows with that x (in up to 60 classes of equal size).  In panels it is that of the group's own covariates.
    """
    if layout not in ("spaghetti", "panels"):
        raise LMMError(f"layout={layout!r} is unknown: use 'spaghetti' or 'panels'")
    if layout == "panels" and ax is not None:
        raise LMMError("layout='panels' makes a figure of its own: leave ax out")
    pyplot()
    model = result.model
    grouping = model.factor(factor).grouping
    values, name, ticks = variable(model, x)
    chosen = _chosen(grouping, subjects, LINES if layout == "spaghetti" else PANELS)
    rows = np.flatnonzero(np.isin(grouping.index, chosen))
    rows = rows[np.lexsort((values[rows], grouping.index[rows]))]
    parts = np.split(rows, np.flatnonzero(np.diff(grouping.index[rows])) + 1)
    if layout == "panels":
        axes = _panels(result, grouping, values, name, parts)
    else:
        axes = [_spaghetti(result, grouping, values, name, parts, own_axes(ax))]
    if ticks is not None:
        for one in axes:
            one.set_xticks(np.arange(len(ticks)), ticks)
    return axes if layout == "panels" else axes[0]


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


def _population(result: LMMResult, x: Array) -> tuple[Array, Array, bool]:
    """Points of the population line, and whether other covariates have been averaged."""
    mean = result.population_mean
    order = np.argsort(x, kind="stable")
    first = order[np.flatnonzero(np.diff(x[order], prepend=np.nan) != 0.0)]
    values = x[first]
    place = np.searchsorted(values, x)
    tolerance = 1e-9 * max(float(np.ptp(mean)), float(np.abs(mean).max()) * 1e-6)
    if (np.abs(mean - mean[first][place]) <= tolerance).all():
        return values, mean[first], False
    centre, average, _ = binned(x, mean, CLASSES)
    return centre, average, True


def _spaghetti(
    result: LMMResult, grouping: Grouping, x: Array, name: str, parts: list[NDArray[np.intp]], ax: Any
) -> Any:
    model, fitted = result.model, result.fitted_mean
    count, shown = len(grouping.labels), len(parts)
    strength = float(np.clip(8.0 / shown, 0.25, 0.9))
    every = np.concatenate(parts)
    size = float(np.clip(2500.0 / len(every), 3.0, 14.0))
    ax.scatter(x[every], model.endog[every], s=size, color=GREY, alpha=0.6, linewidths=0, label="data", zorder=1)
    for i, part in enumerate(parts):
        label = f"{grouping.name}: own lines" + ("" if shown == count else f" ({shown} of {count:,})")
        ax.plot(
            x[part], fitted[part], color=BLUE, alpha=strength, linewidth=1.0, label=label if i == 0 else None, zorder=2,
            marker="o" if (x[part] == x[part[0]]).all() else None, markersize=2.5,
        )  # fmt: skip
    at, mean, averaged = _population(result, x)
    label = "population" + (" (mean over other covariates)" if averaged else "")
    ax.plot(at, mean, color=BLACK, linewidth=2.6, linestyle=(0, (5, 1.5)), label=label, zorder=3)
    ax.set_xlabel(name)
    ax.set_ylabel(model.response_name)
    plain(ax)
    legend = legend_above(ax, handletextpad=0.5, columnspacing=1.2)
    for handle in legend.legend_handles:
        handle.set_alpha(1.0)
    return ax


def _panels(result: LMMResult, grouping: Grouping, x: Array, name: str, parts: list[NDArray[np.intp]]) -> list[Any]:
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
