"""The design and the covariance: variance along a variable, and which observations there are."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..diagnostics.marginal import least_variance_time, marginal_covariance_at, slope_columns
from ..errors import LMMError
from ..support.arguments import checked
from ..support.checks import float_array
from ._style import BLACK, BLUE, GREY, SKY, VERMILLION, legend_above, own_axes, plain, pyplot, variable

if TYPE_CHECKING:
    from ..model import LinearMixedModel
    from ..result import LMMResult

__all__ = ["marginal_variance", "missingness"]

Array = NDArray[np.float64]

NAMED = 40
COLUMNS = 60
PATTERNS = 25


@checked
def marginal_variance(result: LMMResult, x: ArrayLike | None = None, *, ax: Any = None) -> Any:
    """Variance of an observation along the variable of the random slope: total, and the residual part.

    Parameters
    ----------
    result : LMMResult
        Of a model with random effects of one variable (an intercept and a slope, or a transform of it).
    x : (k,) array, optional
        Points; by default 101 over the observed range.
    ax : matplotlib Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    LMMError
        For other random effects, or without matplotlib.
    """
    pyplot()
    model = result.model
    observed = model.exog_re[:, slope_columns(model)[0]]
    low, high = float(observed.min()), float(observed.max())
    at = np.linspace(low, high, 101) if x is None else float_array(x, "x", 1)
    if not len(at):
        raise LMMError("x holds no values; give some, or leave it out for the range observed")
    found = marginal_covariance_at(result, at)
    ax = own_axes(ax)
    ax.fill_between(at, 0.0, result.sigma2, color=GREY, alpha=0.25, linewidth=0)
    ax.plot(at, found.variance, color=BLUE, linewidth=2.2, label="total variance")
    flat = np.full(len(at), result.sigma2)
    ax.plot(at, flat, color=BLACK, linewidth=1.3, linestyle="--", label="residual variance")
    least = least_variance_time(result)
    if at.min() <= least.at <= at.max():
        ax.plot(least.at, least.variance, linestyle="none", marker="v", markersize=8, color=VERMILLION,
                label=f"smallest, at {least.at:.3g}")  # fmt: skip
    ax.set_xlabel(least.variable)
    ax.set_ylabel(f"variance of {model.response_name}")
    ax.set_ylim(0.0, 1.08 * float(found.variance.max()))
    plain(ax)
    legend_above(ax)
    return ax


@checked
def missingness(model: LinearMixedModel, x: Any = None, *, factor: str | None = None, ax: Any = None) -> Any:
    """Which groups were observed when: a row per group, or per pattern where there are many groups.

    Parameters
    ----------
    model : LinearMixedModel
    x : str or (n,) array, optional
        The occasions: a column of X or Z, or values or labels for the rows used or of the data; by default the variable
        of the random slope.
        More than 60 different ones are put into 60 classes of equal width.
    factor : str, optional
        The grouping factor, where there are several; by default that with most levels.
    ax : matplotlib Axes, optional

    Returns
    -------
    Axes
        With up to 40 groups a row for each; with more, the 25 most frequent patterns and how many groups have them.

    Raises
    ------
    LMMError
        For unknown columns or factors, or without matplotlib.
    """
    pyplot()
    values, name, ticks = variable(model, x)
    grouping = model.factor(factor).grouping
    m = len(grouping.labels)
    times, place = np.unique(values, return_inverse=True)
    digits = ".6g"
    if len(times) > COLUMNS:
        digits = ".4g"
        edges = np.linspace(times[0], times[-1], COLUMNS + 1)
        place = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, COLUMNS - 1)
        times = 0.5 * (edges[1:] + edges[:-1])
    seen = np.zeros((m, len(times)), dtype=np.intp)
    np.add.at(seen, (grouping.index, place), 1)
    if m <= NAMED:
        # the most complete on top, then those observed longest
        order = np.lexsort((np.arange(m), -_last(seen), -(seen > 0).sum(axis=1)))
        table, texts, label = seen[order], [str(a) for a in grouping.labels[order].tolist()], grouping.name
    else:
        patterns, counts = np.unique(seen > 0, axis=0, return_counts=True)
        order = np.argsort(-counts, kind="stable")[:PATTERNS]
        table, texts = patterns[order].astype(np.intp), [f"{count:,}" for count in counts[order].tolist()]
        rest = len(patterns) - len(order)
        label = f"levels of {grouping.name} with the pattern"
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
    texts = [f"{t:{digits}}" for t in times.tolist()] if ticks is None or len(ticks) != len(times) else ticks
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


def _last(seen: NDArray[np.intp]) -> NDArray[np.intp]:
    """Last occasion of each group."""
    return np.asarray(seen.shape[1] - 1 - np.argmax(seen[:, ::-1] > 0, axis=1))
