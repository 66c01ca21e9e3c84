"""Residuals: four diagnostic panels, and quantile plots with simulated envelopes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..batch_result import BatchResult
from ..diagnostics.residuals import residuals
from ..errors import LMMError
from ..estimation.many.pieces import fit_many
from ..simulation.draws import simulate
from ..support.arguments import checked
from ..support.checks import check_count, check_level
from ..support.types import Array
from ._style import BLACK, BLUE, GREY, SKY, VERMILLION, effect_position, new_axes, own_axes, plain, pyplot, smooth, tidy

if TYPE_CHECKING:
    from ..design.grouping import Grouping
    from ..estimation.fit import Fit

__all__ = ["against_fitted", "by_group", "qq", "quick_envelope", "residual_panels"]


POINTS = 4000
"""Points of a scatter plot above which densities are drawn, and of a quantile plot above which it is thinned."""

HELD = 20_000_000
"""Simulated values held at a time."""

BOXES = 40


@checked
def residual_panels(result: Fit, *, factor: str | None = None, data: bool = False) -> Any:
    """Four views of the residuals: against fitted values, their size, their quantiles, by group.

    Residuals are Pearson residuals (conditional, over sigma).  Curves are local linear fits.  The
    band of the quantiles is simulated, see `qq` (none where the model has more than 20,000 rows, or 5,000 and several
    grouping factors).  With more than 40
    groups, the standard deviation of the residuals in each group is shown in place of box plots.

    Parameters
    ----------
    result : LMMResult
    factor : str, optional
        The grouping factor of the last view, where there are several; by default that with most levels.
    data : bool
        Return what would be drawn as a tidy table, and draw nothing: ``fitted``, ``residual``, the group.

    Returns
    -------
    (2, 2) array of Axes, or table

    Raises
    ------
    LMMError
        For an unknown factor, or without matplotlib.

    Examples
    --------
    >>> import fastlmm_core as flc
    >>> fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
    >>> list(flc.plots.residual_panels(fit, data=True).columns)
    ['fitted', 'residual', 'Subject']
    """
    grouping = result.model.factor(factor).grouping
    residual, fitted = residuals(result, "pearson"), result.fitted_mean
    if data:
        columns = {"fitted": np.asarray(fitted), "residual": residual}
        return tidy(result.model.library, [("rows", {**columns, grouping.name: grouping.labels[grouping.index]})])
    axes = new_axes(2, 2, (4.6, 3.6))
    against_fitted(result, axes[0, 0])
    _against(axes[0, 1], fitted, np.sqrt(np.abs(residual)), "√|Pearson residual|")
    for ax, title in zip(axes.ravel(), ("Residuals and fitted values", "Scale and location", "Quantiles", "Groups"),
                         strict=True):  # fmt: skip
        ax.set_title(title, fontsize="medium", loc="left")
    qq(result, "residuals", envelope=quick_envelope(result), ax=axes[1, 0])
    by_group(axes[1, 1], grouping, residual)
    return axes


def against_fitted(result: Fit, ax: Any) -> None:
    """Pearson residuals against fitted values, with a smooth curve."""
    _against(ax, result.fitted_mean, residuals(result, "pearson"), "Pearson residual")
    ax.axhline(0.0, color=BLACK, linewidth=0.8, linestyle="--")


def quick_envelope(result: Fit) -> bool:
    """Whether the band of the quantiles is simulated in seconds: there is none for stated parameters."""
    return result.stated is None and bool(result.nobs <= (20_000 if len(result.model.factors) == 1 else 5_000))


def _against(ax: Any, x: Array, y: Array, name: str) -> None:
    if len(x) > POINTS:
        ax.hexbin(x, y, gridsize=45, bins="log", cmap="Greys", mincnt=1, linewidths=0.0)
    else:
        size = float(np.clip(4000.0 / len(x), 4.0, 16.0))
        ax.scatter(x, y, s=size, color=GREY, alpha=0.7, linewidths=0)
    ax.plot(*smooth(x, y), color=VERMILLION, linewidth=1.8, label="local linear fit")
    ax.set_xlabel("fitted value")
    ax.set_ylabel(name)
    plain(ax)


def by_group(ax: Any, grouping: Grouping, residual: Array) -> None:
    index, labels = grouping.index, grouping.labels
    order = np.argsort(index, kind="stable")
    starts = np.flatnonzero(np.diff(index[order], prepend=-1))
    if len(labels) <= BOXES:
        drawn = ax.boxplot(
            np.split(residual[order], starts[1:]), widths=0.6, patch_artist=True,
            flierprops={"marker": "o", "markersize": 3, "markerfacecolor": "white", "markeredgecolor": GREY},
            medianprops={"color": VERMILLION, "linewidth": 1.6},
        )  # fmt: skip
        for box in drawn["boxes"]:
            box.set(facecolor=SKY, alpha=0.6, edgecolor=BLACK, linewidth=0.8)
        ax.axhline(0.0, color=BLACK, linewidth=0.8, linestyle="--")
        texts = [str(label) for label in labels.tolist()]
        crowded = len(labels) > 6 or max(map(len, texts)) > 5
        ax.set_xticks(np.arange(1, len(labels) + 1), texts, rotation=90 if crowded else 0, fontsize=7 if crowded else 9)
        ax.set_xlabel(grouping.name)
        ax.set_ylabel("Pearson residual")
    else:
        count = np.bincount(index)
        mean = np.bincount(index, weights=residual) / count
        spread = np.bincount(index, weights=(residual - mean[index]) ** 2)
        several = count > 1
        sd = np.sort(np.sqrt(spread[several] / (count[several] - 1)))
        ax.plot(np.arange(len(sd)), sd, color=BLUE, linewidth=0, marker="o", markersize=2.0 if len(sd) > 300 else 3.5)
        ax.axhline(float(np.median(sd)), color=VERMILLION, linewidth=1.5, label="median")
        ax.locator_params(axis="x", nbins=4)
        ax.set_xlabel(f"{grouping.name}, in order ({len(sd):,})")
        ax.set_ylabel("SD of the residuals in the group")
        ax.set_ylim(bottom=0.0)
        ax.legend(frameon=False, fontsize="small", loc="upper left")
    plain(ax)


@checked
def qq(
    result: Fit,
    what: Literal["residuals", "blups"] = "residuals",
    *,
    effect: str | None = None,
    term: str | None = None,
    envelope: bool = True,
    n_sim: int = 199,
    level: float = 0.95,
    seed: int = 0,
    ax: Any = None,
    data: bool = False,
) -> Any:
    """Ordered residuals or BLUPs against normal quantiles, with an envelope of simulated fits.

    The envelope holds, for each rank, the share `level` of `n_sim` simulations: responses are drawn from the fitted
    model and fitted again (with several grouping factors from its estimates on), so that shrinkage and the dependence
    of residuals are in it (Atkinson 1985, Plots, Transformations and Regression, sec. 4.2; Schuetzenmeister and Piepho
    2012, Comp. Stat. Data Anal. 56, 1405-1416).
    The line is their median: what is expected of a model that is right, whose conditional residuals and BLUPs have a
    standard deviation below that of their distribution.  Without an envelope it is the normal distribution with the
    standard deviation of what is drawn.

    Parameters
    ----------
    result : LMMResult
    what : {"residuals", "blups"}
        Pearson residuals, or BLUPs of one random effect.
    effect, term : str, optional
        The random effect; by default the first.
    envelope : bool
    n_sim : int
    level : float
    seed : int
        Of the simulations.
    ax : matplotlib Axes, optional
    data : bool
        Return what would be drawn as a tidy table, and draw nothing: ``theoretical``, ``value``, and with an envelope
        ``expected`` (its median), ``low`` and ``high``.

    Returns
    -------
    Axes, or table

    Raises
    ------
    LMMError
        For unknown options, or without matplotlib.

    Examples
    --------
    >>> import fastlmm_core as flc
    >>> fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
    >>> flc.plots.qq(fit, data=True).head(2).round(2)
       theoretical  value  expected   low  high
    0        -2.70  -3.95     -2.49 -3.52 -1.98
    1        -2.36  -3.84     -2.15 -2.62 -1.80
    """
    from scipy.special import ndtri

    if what not in ("residuals", "blups"):
        raise LMMError(f"what={what!r} is unknown: use 'residuals' or 'blups'")
    check_level(level)
    check_count(n_sim, "n_sim", 19)
    if not data:
        pyplot()
    model = result.model
    at, column = effect_position(result, effect, term) if what == "blups" else (0, 0)
    inside = column - model.factors[at].start if what == "blups" else 0
    values = residuals(result, "pearson") if what == "residuals" else result.blups[at][:, inside]
    n = len(values)
    values = np.sort(values)
    # Blom's approximation of the expected order statistics
    theory = ndtri((np.arange(1, n + 1) - 0.375) / (n + 0.25))
    ranks = _ranks(n)
    spread = float(np.sqrt(np.mean(values**2)))
    theory, values = theory[ranks], values[ranks]
    band: dict[str, Array] = {}
    if envelope:
        simulated = _ordered(result, what, at, inside, n_sim, seed, ranks)
        low, middle, high = np.quantile(simulated, [0.5 - 0.5 * level, 0.5, 0.5 + 0.5 * level], axis=0)
        band = {"expected": middle, "low": low, "high": high}
    if data:
        return tidy(model.library, [("points", {"theoretical": theory, "value": values, **band})])
    ax = own_axes(ax, (5.0, 4.4))
    noun = "residuals" if what == "residuals" else "BLUPs"
    ax.plot(theory, values, linestyle="none", marker="o", color=BLUE, zorder=2, label=noun,
            markersize=2.2 if n > 1000 else 3.4)  # fmt: skip
    if band:
        # above the points, which would hide it where there are many
        ax.fill_between(
            theory, band["low"], band["high"], facecolor=SKY, edgecolor=BLACK, alpha=0.35, linewidth=0.8, zorder=3,
            label=f"{100 * level:g} % of simulated fits",
        )  # fmt: skip
        ax.plot(theory, band["expected"], color=VERMILLION, linewidth=1.3, linestyle="--", zorder=4,
                label="their median")  # fmt: skip
    else:
        ends = theory[[0, -1]]
        ax.plot(ends, spread * ends, color=VERMILLION, linewidth=1.3, linestyle="--", zorder=4,
                label=f"normal, SD {spread:.3g}")  # fmt: skip
    ax.set_xlabel("normal quantile")
    of = f" ({model.factors[at].grouping.name})" if len(model.factors) > 1 else ""
    label = "Pearson residual" if what == "residuals" else f"BLUP of {model.exog_re_names[column]}{of}"
    ax.set_ylabel(label)
    plain(ax)
    ax.legend(loc="upper left", frameon=False, fontsize="small")
    return ax


def _ranks(n: int) -> NDArray[np.intp]:
    """All ranks, or of very many those of the tails and some between."""
    if n <= POINTS:
        return np.arange(n)
    edge = POINTS // 8
    middle = np.linspace(edge, n - 1 - edge, POINTS - 2 * edge)
    return np.unique(np.concatenate([np.arange(edge), middle.astype(np.intp), np.arange(n - edge, n)]))


def _ordered(result: Fit, what: str, at: int, inside: int, n_sim: int, seed: int, ranks: NDArray[np.intp]) -> Array:
    """Order statistics of simulated fits (n_sim, ranks), a piece of the simulations at a time."""
    size = max(1, HELD // result.nobs)
    parts = []
    for begin in range(0, n_sim, size):
        key = seed if begin == 0 else np.random.default_rng([seed, begin])
        values = _refitted(result, what, at, inside, simulate(result, min(size, n_sim - begin), key))
        values.sort(axis=1)
        parts.append(values[:, ranks])
    return np.concatenate(parts)


def _refitted(result: Fit, what: str, at: int, inside: int, responses: Array) -> Array:
    """What is plotted, for each response fitted by the same model (n_responses, count)."""
    model = result.model
    weight = model.root_weights
    if len(model.factors) > 1:
        # responses of this fit have their optimum near its own: no search for others
        start = None if model.residual is not None or model.structure.restricted else result.theta
        fits = [result.again(model.with_response(y), start=start) for y in responses]
        if what == "blups":
            return np.array([fit.blups[at][:, inside] for fit in fits])
        return np.array([residuals(fit, "pearson") for fit in fits])
    batch = fit_many(partial(BatchResult, model, type(result), result.reml), responses)
    usable = np.flatnonzero(np.isfinite(batch.sigma2))
    effects = batch.random_effects(usable)
    if what == "blups":
        return np.asarray(effects[:, :, inside])
    rest = responses[usable] - np.nan_to_num(batch.params[usable]) @ model.exog.T
    if model.offset is not None:
        rest -= model.offset
    for j, column in enumerate(model.exog_re.T):
        rest -= effects[:, model.grouping.index, j] * column
    return np.asarray(rest * weight / np.sqrt(batch.sigma2[usable])[:, None])
