"""Random effects: caterpillars, and how partial pooling moves the groups' own estimates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..diagnostics.pooling import Pooling, pooling
from ..errors import LMMError
from ..prediction.effect_errors import effect_covariances
from ..support.arguments import checked
from ..support.checks import check_level
from ..support.distributions import quantile
from ..support.types import Array
from ._style import (
    BLACK,
    BLUE,
    GREY,
    ORANGE,
    SKY,
    VERMILLION,
    effect_position,
    legend_above,
    own_axes,
    plain,
    pyplot,
    rows_with_room,
    sample,
    tidy,
)

if TYPE_CHECKING:
    from ..estimation.fit import Fit

__all__ = ["caterpillar", "shrinkage"]


NAMED = 60
"""Groups whose labels fit beside an axis."""

ARROWS = 150

INTERVALS = 5000


@checked
def caterpillar(
    result: Fit,
    effect: str | None = None,
    *,
    term: str | None = None,
    level: float = 0.95,
    ax: Any = None,
    data: bool = False,
) -> Any:
    """BLUPs of one random effect in increasing order, with intervals from their conditional covariances.

    Parameters
    ----------
    result : LMMResult
    effect : str, optional
        By default the first.
    term : str, optional
        The random-effects term, where several have an effect of this name.
    level : float
        Of the intervals (normal, of the error of the BLUP with that of the fixed effects; the variance parameters are
        taken as known).
    ax : matplotlib Axes, optional
    data : bool
        Return what would be drawn as a tidy table, and draw nothing: the labels of the groups, ``estimate``,
        ``conf_low`` and ``conf_high``.

    Returns
    -------
    Axes, or table
        With more than 60 groups the three highest and lowest are named.

    Raises
    ------
    LMMError
        For an unknown effect or level, or without matplotlib.

    Examples
    --------
    >>> import fastlmm_core as flc
    >>> fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
    >>> flc.plots.caterpillar(fit, data=True).head(2).round(1)
      Subject  estimate  conf_low  conf_high
    0     309     -40.4     -66.1      -14.7
    1     310     -39.0     -64.6      -13.3
    """
    check_level(level)
    if not data:
        pyplot()
    at, column = effect_position(result, effect, term)
    model = result.model
    factor = model.factors[at]
    labels = factor.grouping.labels
    covariance = effect_covariances(result, "prediction")[at]
    inside = column - factor.start
    values = result.blups[at][:, inside]
    half = float(quantile(0.5 + 0.5 * level, None)) * np.sqrt(covariance[:, inside, inside])
    order = np.argsort(values, kind="stable")
    order = order[sample(len(order), INTERVALS)]
    extremes = [str(label) for label in labels[np.argsort(values, kind="stable")].tolist()]
    values, half = values[order], half[order]
    if data:
        columns = {"estimate": values, "conf_low": values - half, "conf_high": values + half}
        return tidy(model.library, [("intervals", {factor.grouping.name: labels[order], **columns})])
    m = len(values)
    ax = own_axes(ax, (5.6, float(np.clip(0.19 * m, 2.4, 9.0)) if m <= NAMED else 6.4))
    rank = np.arange(m)
    away = np.abs(values) > half
    few = m <= min(NAMED, rows_with_room(ax))
    for mask, color, pale, marker, text in (
        (~away, GREY, "#CCCCCC", "o", "interval covers 0"),
        (away, BLUE, SKY, "D", "does not"),
    ):
        if not mask.any():
            continue
        ax.hlines(
            rank[mask], (values - half)[mask], (values + half)[mask], color=color if few else pale,
            linewidth=1.4 if few else 0.8, zorder=2,
        )  # fmt: skip
        ax.plot(
            values[mask], rank[mask], linestyle="none", marker=marker, color=color if few or marker == "D" else BLACK,
            label=text, zorder=3, markerfacecolor="white" if marker == "o" and few else None,
            markersize=4.5 if few else 1.2 if m > 500 else 2.5,
        )  # fmt: skip
    ax.axvline(0.0, color=BLACK, linewidth=0.9, linestyle="--", zorder=1)
    if few:
        ax.set_yticks(rank, [str(label) for label in labels[order].tolist()], fontsize=8 if m > 25 else 9)
        ax.set_ylabel(factor.grouping.name)
    else:
        ax.set_ylabel(f"{factor.grouping.name}, in order ({m:,}{'' if m == len(labels) else f' of {len(labels):,}'})")
        ax.text(
            0.01, 0.99, f"highest: {', '.join(extremes[:-4:-1])}\nlowest: {', '.join(extremes[:3])}", va="top",
            transform=ax.transAxes, fontsize="small",
        )  # fmt: skip
    ax.set_ylim(-0.8 - 0.005 * m, m - 0.2 + 0.005 * m)
    ax.set_xlabel(f"{model.exog_re_names[column]}: deviation from the population, {100 * level:g} % interval")
    plain(ax)
    ax.legend(loc="lower right", frameon=False, fontsize="small", markerscale=1.0 if few else 4.0 if m > 500 else 2.0)
    return ax


def _ellipse(centre: Array, covariance: Array, level: float) -> Array:
    """Points of the curve that holds `level` of a bivariate normal distribution (2, 200); a segment if singular."""
    values, vectors = np.linalg.eigh(covariance)
    turn = np.linspace(0.0, 2.0 * np.pi, 201)
    circle = np.array([np.cos(turn), np.sin(turn)])
    radius = np.sqrt(-2.0 * np.log1p(-level))
    return np.asarray(centre[:, None] + radius * (vectors * np.sqrt(np.maximum(values, 0.0))) @ circle)


@checked
def shrinkage(
    result: Fit,
    effects: str | Sequence[str] | None = None,
    *,
    term: str | None = None,
    levels: Sequence[float] = (0.5, 0.95),
    ax: Any = None,
    data: bool = False,
) -> Any:
    """How partial pooling moves each group's own estimates towards the population.

    With two coefficients, arrows in their plane and the ellipses of G around the population coefficients, which hold
    the given shares of the distribution of the true coefficients.  Own estimates far outside the ellipses
    are not in the picture; the legend has their number.  With one coefficient, an arrow per group.

    Parameters
    ----------
    result : LMMResult
    effects : one or two str, optional
        Coefficients that vary; by default the first two, or the only one.
    term : str, optional
        Random-effects term.
    levels : sequence of float
        Of the ellipses.
    ax : matplotlib Axes, optional
    data : bool
        Return a tidy table, and draw nothing: of each group and coefficient ``own``, ``partial`` and ``population``.

    Returns
    -------
    Axes, or table

    Raises
    ------
    LMMError
        For unknown effects, or without matplotlib.

    Examples
    --------
    >>> import fastlmm_core as flc
    >>> fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
    >>> flc.plots.shrinkage(fit, data=True).head(2).round(1)
      Subject     effect    own  partial  population
    0     308  Intercept  244.2    253.7       251.4
    1     309  Intercept  205.1    211.0       251.4
    """
    if not data:
        pyplot()
    for level in levels:
        check_level(level, "levels")
    found = pooling(result, term)
    names = list(found.names)
    wanted = names[:2] if effects is None else [effects] if isinstance(effects, str) else list(effects)
    if not 1 <= len(wanted) <= 2 or any(name not in names for name in wanted):
        raise LMMError(f"effects must be one or two of {', '.join(names)}, not {', '.join(map(str, wanted))}")
    columns = [names.index(name) for name in wanted]
    own, partial = found.no_pooling[:, columns], found.partial_pooling[:, columns]
    if data:
        names_of = np.repeat(wanted, len(own))
        pulled = {"own": own.T.ravel(), "partial": partial.T.ravel()}
        pulled |= {"population": np.repeat(found.population[columns], len(own))}
        labels = np.tile(found.labels, len(wanted))
        return tidy(result.model.library, [("arrows", {found.group_name: labels, "effect": names_of, **pulled})])
    exists = np.flatnonzero(np.isfinite(own).all(axis=1))
    shown = exists[sample(len(exists), ARROWS)]
    note = f" ({len(shown)} of {len(found.labels):,})" if len(shown) < len(found.labels) else ""
    ax = own_axes(ax, (6.4, 5.4) if len(columns) == 2 else (5.6, float(np.clip(0.2 * len(shown), 2.6, 9.0))))
    if len(columns) == 1:
        return _one(ax, found, columns[0], own[shown, 0], partial[shown, 0], shown, note)
    centre = found.population[columns]
    strength = 0.9 if len(shown) <= 40 else 0.45
    move = partial[shown] - own[shown]
    ax.quiver(
        own[shown, 0], own[shown, 1], move[:, 0], move[:, 1], angles="xy", scale_units="xy", scale=1.0,
        color=GREY, alpha=strength, width=0.0028, headwidth=4.5, headlength=5.5, zorder=2,
    )  # fmt: skip
    size = 5.0 if len(shown) <= 40 else 3.2
    ax.plot(*own[shown].T, linestyle="none", marker="o", markersize=size, markerfacecolor="white", color=ORANGE,
            label=f"own least squares{note}", zorder=3)  # fmt: skip
    ax.plot(*partial[shown].T, linestyle="none", marker="o", markersize=size, color=BLUE, label="partially pooled",
            zorder=4)  # fmt: skip
    ax.plot(*centre, linestyle="none", marker="P", markersize=10, color=VERMILLION, markeredgecolor="white",
            label="population", zorder=5)  # fmt: skip
    block = _covariance(result, term)[np.ix_(columns, columns)]
    styles = ("-", "--", ":", "-.")
    for i, level in enumerate(levels):
        curve = _ellipse(centre, block, level)
        ax.plot(*curve, color=BLACK, linewidth=1.1, linestyle=styles[i % 4], label=f"G, {100 * level:g} %", zorder=1)
    ax.set_xlabel(wanted[0])
    ax.set_ylabel(wanted[1])
    ax.margins(0.06)
    _clip(ax, own[shown], partial[shown], _ellipse(centre, block, max(levels, default=0.95)))
    plain(ax)
    legend_above(ax)
    return ax


def _clip(ax: Any, own: Array, partial: Array, curve: Array) -> None:
    """Limits around the ellipse, the partially pooled estimates and most of the own ones, if some lie far outside."""
    middle = curve.mean(axis=1)
    wide = middle[:, None] + 1.3 * (curve - middle[:, None])
    most = np.quantile(own, [0.05, 0.95], axis=0).T
    inside = np.column_stack([wide, partial.T, most])
    low, high = inside.min(axis=1), inside.max(axis=1)
    room = 0.06 * (high - low)
    low, high = low - room, high + room
    outside = int(((own < low) | (own > high)).any(axis=1).sum())
    if outside and (high > low).all():
        ax.set_xlim(low[0], high[0])
        ax.set_ylim(low[1], high[1])
        noun = "arrow starts" if outside == 1 else "arrows start"
        ax.plot([], [], linestyle="none", label=f"{outside} {noun} outside")


def _covariance(result: Fit, term: str | None) -> Array:
    """G of the coefficients of a Pooling."""
    model = result.model
    if term is None:
        part = model.factors[0].columns
    else:
        block = model.structure.blocks[model.term_names.index(term)]
        part = slice(block.start, block.stop)
    return np.asarray(result.covariance[part, part])


def _one(ax: Any, found: Pooling, column: int, own: Array, partial: Array, shown: NDArray[np.intp], note: str) -> Any:
    order = np.argsort(own, kind="stable")
    rank = np.arange(len(order))
    own, partial, shown = own[order], partial[order], shown[order]
    named = len(shown) <= min(NAMED, rows_with_room(ax))
    ax.axvline(found.population[column], color=VERMILLION, linestyle="--", linewidth=1.6, label="population", zorder=1)
    ax.hlines(rank, own, partial, color=GREY, linewidth=1.2, zorder=2)
    size = 5.0 if named else 2.8
    ax.plot(own, rank, linestyle="none", marker="o", markersize=size, markerfacecolor="white", color=ORANGE,
            label=f"own least squares{note}", zorder=3)  # fmt: skip
    ax.plot(
        partial, rank, linestyle="none", marker="o", markersize=size, color=BLUE, label="partially pooled", zorder=4
    )
    ax.set_xlabel(found.names[column])
    if named:
        ax.set_yticks(rank, [str(label) for label in found.labels[shown].tolist()], fontsize=8)
    ax.set_ylabel(found.group_name if named else f"{found.group_name}, in order")
    plain(ax)
    legend_above(ax)
    return ax
