"""Likelihood profiles, bootstrap distributions, power curves, influence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

from ..errors import LMMError
from ..support.arguments import checked
from ..support.checks import check_level, check_share
from ..support.distributions import quantile
from ..support.types import Array
from ._style import BLACK, BLUE, GREY, SKY, VERMILLION, grid, legend_above, own_axes, plain, pyplot, tidy

if TYPE_CHECKING:
    from ..simulation.replicates import BootstrapResult

__all__ = ["bootstrap_density", "influence_plot", "power_curve", "profile_zeta"]


class ProfileLike(Protocol):
    """What a profile has."""

    @property
    def names(self) -> Sequence[str]:
        """Names."""

    def zeta(self, parameter: str) -> tuple[ArrayLike, ArrayLike]:
        """Values of a parameter and the signed roots of the likelihood ratio there."""


class PowerCurveLike(Protocol):
    """What a power curve has."""

    along: str
    values: Any
    results: Any

    @property
    def power(self) -> Any:
        """At each value."""

    @property
    def conf_low(self) -> Any:
        """Lower limits of each."""

    @property
    def conf_high(self) -> Any:
        """Upper limits of each."""

    def target(self, power: float = 0.8) -> float:
        """The value that reaches a power."""


class InfluenceLike(Protocol):
    """What a record of influence has."""

    @property
    def labels(self) -> Any:
        """Of the groups or observations."""

    @property
    def cooks_distance(self) -> Any:
        """Of each."""


def _wanted(names: Sequence[str], chosen: str | Sequence[str] | None, argument: str) -> list[str]:
    wanted = list(names) if chosen is None else [chosen] if isinstance(chosen, str) else list(chosen)
    if not wanted:
        raise LMMError(f"{argument} names nothing; choose of {', '.join(names)}")
    for name in wanted:
        if name not in names:
            raise LMMError(f"{argument}: {name!r} is not there; choose of {', '.join(names)}")
    return wanted


@checked
def profile_zeta(
    profile: ProfileLike,
    parameters: str | Sequence[str] | None = None,
    *,
    level: float = 0.95,
    ax: Any = None,
    data: bool = False,
) -> Any:
    """Signed root of the likelihood ratio against each parameter.

    A straight line means that the Wald interval is right.  The vertical lines are the ends of the profile interval,
    where the curve crosses the normal quantiles (Bates and Watts 1988, Nonlinear Regression, ch. 6).

    Parameters
    ----------
    profile : object with `names` and `zeta(name)`
    parameters : str or sequence of str, optional
        By default all.
    level : float
    ax : matplotlib Axes, optional
        For one parameter.
    data : bool
        Return what would be drawn as a tidy table, and draw nothing: ``parameter``, ``value`` and ``zeta``.

    Returns
    -------
    Axes, list of Axes for several parameters, or table

    Raises
    ------
    LMMError
        For unknown parameters, or without matplotlib.

    Examples
    --------
    >>> import fastlmm_core as flc
    >>> fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
    >>> flc.plots.profile_zeta(fit.profile("sigma"), data=True).head(2).round(2)
      parameter  value  zeta
    0     sigma  22.15 -2.58
    1     sigma  22.54 -2.25
    """
    check_level(level)
    if not data:
        pyplot()
    wanted = _wanted(list(profile.names), parameters, "parameters")
    if ax is not None and len(wanted) != 1:
        raise LMMError("ax is for one parameter: name it, or leave ax out")
    if data:
        curves = [(name, *(np.asarray(part, dtype=float) for part in profile.zeta(name))) for name in wanted]
        columns = {
            "parameter": [name for name, values, _ in curves for _ in values],
            "value": np.concatenate([values for _, values, _ in curves]),
            "zeta": np.concatenate([zeta for _, _, zeta in curves]),
        }
        return tidy(_library(profile), [("points", columns)])
    axes = [own_axes(ax)] if ax is not None else grid(len(wanted), (3.0, 2.7))
    cut = float(quantile(0.5 + 0.5 * level, None))
    for one, name in zip(axes, wanted, strict=True):
        values, zeta = (np.asarray(part, dtype=float) for part in profile.zeta(name))
        usable = np.isfinite(values) & np.isfinite(zeta)
        values, first = np.unique(values[usable], return_index=True)
        zeta = zeta[usable][first]
        if len(values) < 2:
            raise LMMError(f"parameters: the profile of {name!r} has {len(values)} points; profile it further")
        one.axhspan(-cut, cut, color=SKY, alpha=0.2, linewidth=0)
        one.axhline(0.0, color=BLACK, linewidth=0.8, linestyle="--")
        smooth, back = _curves(values, zeta)
        at = np.unique(np.append(values, np.linspace(values[0], values[-1], 101)))
        one.plot(at, smooth(at), color=BLUE, linewidth=2.0)
        for bound in (-cut, 0.0, cut):
            if zeta[0] <= bound <= zeta[-1]:
                end = float(back(bound))
                one.vlines(end, min(bound, 0.0), max(bound, 0.0), color=VERMILLION, linewidth=1.3, linestyle="-.")
                one.plot(end, bound, marker="o", markersize=4, color=VERMILLION, zorder=4)
        one.set_xlabel(
            name if len(name) <= 22 else name.replace("|", "\n|"), fontsize=None if len(name) <= 22 else "small"
        )
        one.set_ylabel(
            "ζ, signed root of\nthe likelihood ratio" if one is axes[0] or one.get_subplotspec().is_first_col() else ""
        )
        plain(one)
    return axes[0] if ax is not None else axes


def _library(of: Any) -> str:
    """The library of the tables of a profile, a bootstrap, an influence or a power curve."""
    fit = getattr(of, "result", None) or getattr(of, "fit", None)
    return str(getattr(of, "library", None) or ("dict" if fit is None else fit.model.library))


def _curves(values: Array, zeta: Array) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """Zeta of a value and, as far as it increases, back; monotone cubics between the points."""
    from scipy.interpolate import PchipInterpolator

    if (np.diff(zeta) > 0.0).all():
        return PchipInterpolator(values, zeta), PchipInterpolator(zeta, values)
    return lambda x: np.interp(x, values, zeta), lambda z: np.interp(z, zeta, values)


def _density(values: Array, at: Array) -> Array:
    """Gaussian kernel density with Silverman's width (1986, Density Estimation, eq. 3.31)."""
    q1, q3 = np.quantile(values, [0.25, 0.75])
    spread = min(float(values.std(ddof=1)), float(q3 - q1) / 1.34) or float(values.std(ddof=1))
    width = 0.9 * spread * len(values) ** -0.2
    out = np.zeros(len(at))
    for part in np.array_split(values, max(1, len(values) // 2000)):
        out += np.exp(-0.5 * ((at[:, None] - part) / width) ** 2).sum(axis=1)
    return np.asarray(out / (len(values) * width * np.sqrt(2.0 * np.pi)))


@checked
def bootstrap_density(
    boot: BootstrapResult,
    names: str | Sequence[str] | None = None,
    *,
    level: float = 0.95,
    method: Any = "auto",
    ax: Any = None,
    data: bool = False,
) -> Any:
    """Distribution of the bootstrap replicates of each statistic, the estimate and an interval.

    Parameters
    ----------
    boot : BootstrapResult
    names : str or sequence of str, optional
        Statistics; by default all.
    level, method
        Of the interval, see `BootstrapResult.conf_int`.
    ax : matplotlib Axes, optional
        For one statistic.
    data : bool
        Return what would be drawn as a tidy table, and draw nothing: ``statistic`` and ``value`` of each replicate.

    Returns
    -------
    Axes, list of Axes for several statistics, or table

    Raises
    ------
    LMMError
        For unknown statistics, or without matplotlib.

    Examples
    --------
    >>> import fastlmm_core as flc
    >>> fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
    >>> flc.plots.bootstrap_density(fit.bootstrap(200, seed=1), data=True).shape
    (1200, 2)
    """
    if not data:
        pyplot()
    wanted = _wanted(boot.names, names, "names")
    if ax is not None and len(wanted) != 1:
        raise LMMError("ax is for one statistic: name it, or leave ax out")
    if data:
        chosen = boot.replicates[:, [boot.names.index(name) for name in wanted]]
        columns = {"statistic": np.repeat(wanted, len(chosen)), "value": chosen.T.ravel()}
        return tidy(_library(boot), [("replicates", columns)])
    found = boot.conf_int(level, method, wanted)
    limits = found if isinstance(found, np.ndarray) else np.column_stack([found["conf_low"], found["conf_high"]])
    axes = [own_axes(ax)] if ax is not None else grid(len(wanted), (3.0, 2.6))
    for one, name, (low, high) in zip(axes, wanted, limits, strict=True):
        j = boot.names.index(name)
        values = boot.replicates[:, j]
        values = values[np.isfinite(values)]
        one.hist(values, bins=int(np.clip(np.sqrt(len(values)), 10, 60)), density=True, color=GREY, alpha=0.4)
        if np.ptp(values) > 0.0:
            at = np.linspace(values.min(), values.max(), 200)
            one.plot(at, _density(values, at), color=BLUE, linewidth=1.8)
        if np.isfinite([low, high]).all():
            one.axvspan(low, high, ymax=0.035, color=BLACK, linewidth=0, label=f"{100 * level:g} % interval")
        one.axvline(boot.estimate[j], color=VERMILLION, linestyle="--", linewidth=1.5, label="estimate")
        one.set_xlabel(name)
        one.set_yticks([])
        one.spines["left"].set_visible(False)
        plain(one)
    if ax is not None:
        ax.legend(frameon=False, fontsize="small")
        return ax
    handles, labels = axes[0].get_legend_handles_labels()
    axes[0].figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False, fontsize="small")
    return axes


_ALONG = {
    "effect": "effect",
    "observations": "observations per group",
    "icc": "intraclass correlation",
    "missing": "share of rows missing",
    "dropout": "share that drops out",
}
"""What axes of power curves are called that count no levels."""


@checked
def power_curve(curve: PowerCurveLike, *, target: float | None = 0.8, ax: Any = None, data: bool = False) -> Any:
    """Power along a design or an effect, with the exact intervals of the simulations.

    Parameters
    ----------
    curve : PowerCurve
    target : float, optional
        A power to mark, with the value that reaches it.
    ax : matplotlib Axes, optional
    data : bool
        Return what would be drawn as a tidy table, and draw nothing: the values, ``power``,
        ``conf_low`` and ``conf_high``.

    Returns
    -------
    Axes, or table

    Raises
    ------
    LMMError
        For a target outside (0, 1), or without matplotlib.

    Examples
    --------
    >>> import fastlmm_core as flc
    >>> design = {"Days": list(range(4)) * 12, "Subject": [i // 4 for i in range(48)]}
    >>> plan = flc.assume("y ~ Days + (1 | Subject)", design, [250, 5], [[900.0]], 600.0)
    >>> curve = flc.power_curve(plan, "Days", along="Subject", values=[10, 40], n_sim=100, seed=1)
    >>> len(flc.plots.power_curve(curve, data=True)["power"])
    2
    """
    if target is not None:
        check_share(target, "target")
    if data:
        columns = {curve.along: curve.values, "power": curve.power, "conf_low": curve.conf_low}
        return tidy(_library(curve), [("curve", {**columns, "conf_high": curve.conf_high})])
    ax = own_axes(ax, (6.4, 4.2))
    values = np.asarray(curve.values, dtype=float)
    order = np.argsort(values)
    first = curve.results[0]
    ax.fill_between(
        values[order], curve.conf_low[order], curve.conf_high[order], color=SKY, alpha=0.35, linewidth=0,
        label="95 % interval",
    )  # fmt: skip
    ax.plot(values[order], curve.power[order], color=BLUE, marker="o", markersize=4.5, linewidth=1.8, label="power")
    one_sign = not values.min() < 0.0 < values.max()
    if target is not None:
        ax.axhline(target, color=BLACK, linewidth=0.9, linestyle="--")
        at = curve.target(target) if one_sign else float("nan")
        if np.isfinite(at):
            text = f"{target:g} at {at:.4g}" + ("" if curve.along in _ALONG else f" {curve.along}")
            ax.vlines(at, 0.0, target, color=VERMILLION, linewidth=1.4, linestyle="-.", label=text)
    ax.set_ylim(0.0, 1.03)
    ax.set_xlabel(_ALONG.get(curve.along, f"number of {curve.along}"))
    ax.set_ylabel(f"power ({first.test}, {first.method}, α = {first.alpha:g})")
    plain(ax)
    legend_above(ax)
    return ax


@checked
def influence_plot(influence: InfluenceLike, *, top: int = 5, ax: Any = None, data: bool = False) -> Any:
    """Cook's distance of each group or observation, the largest by name.

    Parameters
    ----------
    influence : object with `labels` and `cooks_distance`
    top : int
        How many to name.
    ax : matplotlib Axes, optional
    data : bool
        Return what would be drawn as a tidy table, and draw nothing: ``label`` and
        ``cooks_distance``.

    Returns
    -------
    Axes, or table
        The dashed line is at 4 / (number of groups or observations), a rule of thumb, where one is above it.  Those
        above it are coloured; of more than 300 only those that are named, as many are above it by chance.

    Raises
    ------
    LMMError
        Without matplotlib.

    Examples
    --------
    >>> import fastlmm_core as flc
    >>> fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
    >>> flc.plots.influence_plot(fit.influence(), data=True).head(2).round(3)
      label  cooks_distance
    0   308           0.092
    1   309           0.149
    """
    distance = np.asarray(influence.cooks_distance, dtype=float)
    labels = np.asarray(influence.labels).tolist()
    if data:
        return tidy(_library(influence), [("stems", {"label": labels, "cooks_distance": distance})])
    ax = own_axes(ax, (6.4, 3.8))
    n = len(distance)
    cut = 4.0 / n
    at = np.arange(n)
    named = np.argsort(-np.nan_to_num(distance), kind="stable")[: min(top, int(np.isfinite(distance).sum()))]
    stands_out = distance > cut if n <= 300 else np.isin(at, named)
    for mask, color, marker in ((~stands_out & np.isfinite(distance), GREY, "o"), (stands_out, BLUE, "D")):
        ax.vlines(at[mask], 0.0, distance[mask], color=color, linewidth=1.2 if n <= 100 else 0.6)
        ax.plot(at[mask], distance[mask], linestyle="none", marker=marker, color=color, markersize=4 if n <= 100 else 2)
    highest = float(np.nanmax(distance))
    if cut <= highest:
        ax.axhline(cut, color=VERMILLION, linestyle="--", linewidth=1.2, label=f"4 / {n:,}")
        ax.legend(loc="upper left", frameon=False, fontsize="small", bbox_to_anchor=(0.0, 1.1))
    if n <= 30:
        texts = [str(label) for label in labels]
        ax.set_xticks(at, texts, rotation=90 if n > 8 else 0, fontsize=8)
    ax.set_xlabel("left out" if n <= 30 else "left out, in order")
    ax.set_ylabel("Cook's distance")
    ax.set_xlim(-0.03 * n - 0.5, 1.03 * n - 0.5)
    ax.set_ylim(0.0, 1.25 * highest if highest > 0.0 else 1.0)
    plain(ax)
    ax.figure.draw_without_rendering()  # the layout decides on which pixels the labels are
    _name(ax, [(int(i), float(distance[i]), str(labels[i])) for i in named])
    return ax


def _name(ax: Any, points: Sequence[tuple[int, float, str]]) -> None:
    """Labels above points, each as high as it takes to be clear of those before it."""
    dots = ax.figure.dpi / 72.0
    taken: list[tuple[float, float, float]] = []
    for x, y, text in points:
        across, up = ax.transData.transform((x, y)) / dots
        half, lift = 0.5 * 5.8 * len(text) + 1.5, 5.0
        while any(abs(across - a) < half + b and abs(up + lift - u) < 12.5 for a, u, b in taken):
            lift += 3.0
        taken.append((across, up + lift, half))
        ax.annotate(
            text, (x, y), xytext=(0, lift), textcoords="offset points", ha="center", fontsize="small",
            arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.6} if lift > 12.0 else None,
        )  # fmt: skip
