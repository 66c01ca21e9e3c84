"""What a model says: predictions along one variable, by another, in facets of a third."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import LMMError
from ..formula.response_scale import back_transform
from ..formula.specification import Numbers
from ..inference.means.grid import ReferenceGrid
from ..inference.means.means import MarginalMeans, emmeans
from ..inference.options import Vcov
from ..inference.sandwich import sandwich
from ..prediction.predict import predicted
from ..support.arguments import checked
from ..support.distributions import quantile
from ..support.types import Array
from ._columns import data_column, known_column
from ._style import GREY, SAMPLE, SERIES, grid, legend_above, own_axes, plain, pyplot, sample, tidy

if TYPE_CHECKING:
    from ..estimation.fit import Fit

__all__ = ["effects"]


OUT_OF_SIGHT = 5.0
"""Reach of intervals, relative to the range of estimates and points, from which they are cut off."""

STEPS = 101
"""Points of a curve."""

POINTS = 3000
"""Rows of the data behind the curves; of more a sample."""

PANELS = 24


@dataclass(frozen=True)
class _Wanted:
    """What is drawn.

    Attributes
    ----------
    roles : tuple of str
        "x", and "by" and "facet" where there are any.
    names : tuple of str
        The variable of each role.
    values : tuple of lists
        Its values that are drawn.
    numeric : tuple of bool
    """

    roles: tuple[str, ...]
    names: tuple[str, ...]
    values: tuple[list[Any], ...]
    numeric: tuple[bool, ...]

    def has(self, role: str) -> bool:
        """Whether there is such a role."""
        return role in self.roles

    def name(self, role: str) -> str:
        """Its variable."""
        return self.names[self.roles.index(role)]

    def of(self, role: str) -> list[Any]:
        """Its values, [None] where there is none."""
        return self.values[self.roles.index(role)] if role in self.roles else [None]

    def cells(self, values: Array, x: int | None = None) -> Array:
        """Values of all combinations, the first variable fastest, as an array (x, by, facet)."""
        first = len(self.values[0]) if x is None else x
        return np.asarray(values.reshape(len(self.of("facet")), len(self.of("by")), first).transpose())


@checked
def effects(
    result: Fit,
    x: str,
    by: str | None = None,
    *,
    facet: str | None = None,
    at: Mapping[str, Any] | None = None,
    points: Literal["data", "residuals"] | None = "data",
    interval: Literal["confidence", "prediction"] | None = "confidence",
    transform: Literal["response", "none"] = "response",
    frame: Any = None,
    level: float = 0.95,
    ax: Any = None,
    data: bool = False,
    **options: Any,
) -> Any:
    """Population predictions along a variable, with bands, and the data or partial residuals behind them.

    The predictions are marginal means (`LMMResult.emmeans`): averaged with equal weights over the factors that are not
    drawn, other covariates at their means or at the values of `at`.  The label of the axis says so.

    Parameters
    ----------
    result : LMMResult
        Of a model from a formula.
    x : str
        Variable of the fixed part on the horizontal axis: a curve over the range of a numeric one, a mean with an
        interval for each level of a factor.
    by : str, optional
        Variable whose values have a colour, line and marker each: the levels of a factor; of a numeric one the mean and
        a standard deviation to both sides, or the values of `at`.
    facet : str, optional
        Variable whose values have a plot each, as for `by`.
    at : mapping, optional
        Values of covariates, or a selection of levels.
    points : {"data", "residuals"} or None
        Behind the predictions: the observations, or partial residuals (the prediction for the row's x, colour and facet
        and its conditional residual, so that other covariates and the random effects are taken off).  Of more than
        3,000 rows a sample.  Rows have the nearest colour of a numeric `by`.
    interval : {"confidence", "prediction"} or None
        Of the mean; "prediction" adds the wider one of a new observation of a new group.
    transform : {"response", "none"}
        With "response", a model of log(y), log2, log10, log1p or sqrt is drawn on the scale of y.  Curves and limits
        are transformed point by point: the curve is then the median of y, and not its mean.
    frame : table, optional
        The data of the fit, for points along a variable that the design does not hold (of a spline, say).
    level : float
        Of the intervals.
    ax : matplotlib Axes, optional
        Where there are no facets.
    data : bool
        Return what would be drawn as a tidy table, and draw nothing.
    **options
        ``ddf``, ``information``, ``vcov`` and ``cluster``, see `LMMResult.emmeans`.

    Returns
    -------
    Axes, list of Axes for facets, or table
        The table has the variables, ``estimate``, ``conf_low``, ``conf_high`` (and ``pred_low``, ``pred_high``) in rows
        whose ``part`` is "prediction", and ``observed`` in rows whose ``part`` is "data" or "residuals".

    Raises
    ------
    LMMError
        For a model from arrays, unknown variables or values, or without matplotlib.

    Examples
    --------
    >>> import fastlmm_core as flc
    >>> teeth = flc.lmm("distance ~ age * Sex + (age | Subject)", flc.datasets.load("orthodont", "pandas")).fit()
    >>> drawn = flc.plots.effects(teeth, "age", by="Sex", at={"age": [8, 14]}, points=None, data=True)
    >>> drawn.round(2)
        age     Sex  estimate  conf_low  conf_high
    0   8.0  Female     21.21     19.90      22.52
    1  14.0  Female     24.09     22.66      25.51
    2   8.0    Male     22.62     21.53      23.70
    3  14.0    Male     27.32     26.14      28.50
    """
    if not data:
        pyplot()
    if facet is not None and ax is not None:
        raise LMMError("facet= makes a figure of its own: leave ax out")
    wanted = _variables(result, x, by, facet, at)
    everywhere = {**(at or {}), **dict(zip(wanted.names, wanted.values, strict=True))}
    means = _means(result, list(wanted.names), everywhere, level, **options)
    limits = {"estimate": means.estimate, "conf_low": means.conf_low, "conf_high": means.conf_high}
    if interval is None:
        limits = {"estimate": means.estimate}
    elif interval == "prediction":
        limits |= _new_observations(result, wanted, everywhere, means, level, options)
    behind = {} if points is None else _behind(result, wanted, everywhere, points, frame)
    found = back_transform(result.model.response_name) if transform == "response" else None
    label = result.model.response_name
    if found is not None:
        label, back = found[0] + (" (median)" if found[0] else ""), found[1]
        limits = {name: back(values) for name, values in limits.items()}
        if behind:
            behind["observed"] = back(behind["observed"])
    if data:
        layers = [("prediction", {**means.labels, **limits})]
        if behind:
            columns = {
                name: _values(wanted, role, behind) for role, name in zip(wanted.roles, wanted.names, strict=True)
            }
            layers.append((str(points), {**columns, "observed": behind["observed"]}))
        return tidy(result.model.library, layers)
    curves = {name: wanted.cells(values) for name, values in limits.items()}
    notes = " ".join(note for note in means.notes if note.startswith(("Averaged", "At")))
    return _drawn(wanted, curves, behind, (x if not notes else f"{x}\n{_wrapped(notes)}", label), ax)


def _means(
    result: Fit, names: list[str], at: Mapping[str, Any], level: float, vcov: Vcov = "model", cluster: Any = None,
    **options: Any,
) -> MarginalMeans:  # fmt: skip
    return emmeans(result, names, at=at, level=level, robust=sandwich(result, vcov, cluster), **options)


def _values(wanted: _Wanted, role: str, behind: Mapping[str, Array]) -> Array:
    """Values of a variable for the points, which have the numeric x of their row and otherwise what is drawn."""
    if role == "x" and wanted.numeric[0]:
        return behind["x"]
    values = np.empty(len(wanted.of(role)), dtype=object)
    values[:] = wanted.of(role)
    return np.asarray(values[behind[role].astype(np.intp)])


def _wrapped(text: str, width: int = 62) -> str:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


def _variables(result: Fit, x: str, by: str | None, facet: str | None, at: Mapping[str, Any] | None) -> _Wanted:
    """The variables that are drawn, and at which values."""
    grid_ = ReferenceGrid(result.model, at)
    assert result.model.spec is not None
    reference = result.model.spec.reference
    given = [(role, name) for role, name in (("x", x), ("by", by), ("facet", facet)) if name is not None]
    names = [name for _, name in given]
    if len(set(names)) < len(names):
        raise LMMError(f"x, by and facet must be different variables, not {', '.join(map(repr, names))}")
    values: list[list[Any]] = []
    for argument, name in given:
        if name not in reference:
            listed = ", ".join(map(repr, reference)) or "none"
            raise LMMError(f"{argument}={name!r} is not a variable of the fixed part, which uses {listed}")
        known = reference[name]
        if name in grid_.levels:
            chosen = list(grid_.levels[name])
        else:
            assert isinstance(known, Numbers)
            chosen = np.linspace(known.low, known.high, STEPS).tolist() if name == x else _typical(result, name, known)
        if argument == "by" and len(chosen) > len(SERIES):
            raise LMMError(f"by={name!r} has {len(chosen)} values, more than can be told apart; select some by at=")
        if argument == "facet" and len(chosen) > PANELS:
            raise LMMError(f"facet={name!r} has {len(chosen)} values, of which {PANELS} can be drawn; select by at=")
        values.append(chosen)
    numeric = tuple(isinstance(reference[name], Numbers) for name in names)
    return _Wanted(tuple(role for role, _ in given), tuple(names), tuple(values), numeric)


def _typical(result: Fit, name: str, known: Numbers) -> list[float]:
    """Mean and a standard deviation to both sides of a numeric variable, inside its range; or what values it has."""
    held = known_column(result.model, name)
    if held is None:
        return [known.low, known.mean, known.high]
    different = np.unique(held)
    if len(different) <= 3:
        return list(map(float, different))
    sd = float(held.std(ddof=1))
    return [max(known.low, known.mean - sd), known.mean, min(known.high, known.mean + sd)]


def _new_observations(
    result: Fit, wanted: _Wanted, at: Mapping[str, Any], means: Any, level: float, options: Mapping[str, Any]
) -> dict[str, Array]:
    """Limits of a new observation of a new group in each cell.

    Its variance is that of the mean and what an observation has around it, averaged over the cells that the mean
    averages.
    """
    reference_grid = ReferenceGrid(result.model, at)
    assert result.model.spec is not None
    missing = [name for name in result.model.spec.random_variables if name not in reference_grid.variables]
    if missing:
        raise LMMError(
            f"interval='prediction' needs a value of {missing[0]!r}, which only the random part uses; "
            "use interval='confidence'"
        )
    others = [name for name in reference_grid.levels if name not in wanted.names]
    cells: dict[str, Any] = reference_grid.cells([*wanted.names, *others])
    rows = int(np.prod([len(reference_grid.levels[name]) for name in (*wanted.names, *others)]))
    columns = {name: np.full(rows, mean) for name, mean in reference_grid.means.items()}
    columns |= {name: np.array(values) for name, values in cells.items()}
    known = {name: value for name, value in options.items() if name in ("ddf", "information")}
    ddf = {"ddf": "satterthwaite"} | known
    offset = None if result.model.offset is None else np.zeros(rows)
    new, mean = (
        predicted(result, columns, "population", "population", kind, offset=offset, **ddf)
        for kind in ("prediction", "confidence")
    )
    assert new.std_error is not None and mean.std_error is not None and new.df is not None
    count = len(means.estimate)
    around = (new.std_error**2 - mean.std_error**2).reshape(-1, count).mean(axis=0)
    half = quantile(0.5 + 0.5 * level, new.df.reshape(-1, count).min(axis=0)) * np.sqrt(means.std_error**2 + around)
    return {"pred_low": means.estimate - half, "pred_high": means.estimate + half}


def _behind(result: Fit, wanted: _Wanted, at: Mapping[str, Any], points: str, frame: Any) -> dict[str, Any]:
    """Observations or partial residuals with their places, empty where the model holds no such data.

    "x" has numeric values or positions of levels, "by" and "facet" positions of what is drawn.  Rows at levels that are
    not drawn are left out.
    """
    model = result.model
    if frame is None and any(known_column(model, name) is None for name in wanted.names):
        if points == "data":
            return {}
        name = next(name for name in wanted.names if known_column(model, name) is None)
        raise LMMError(f"points='residuals': the design does not hold {name!r} as it is in the data; give frame=data")
    found = [data_column(model, name, name, frame)[0] for name in wanted.names]
    place: list[NDArray[np.intp]] = []
    for values, drawn, numeric in zip(found, wanted.values, wanted.numeric, strict=True):
        if numeric:
            near = np.abs(np.asarray(values, dtype=float)[:, None] - np.array(drawn, dtype=float)).argmin(axis=1)
        else:
            position = {value: i for i, value in enumerate(drawn)}
            near = np.array([position.get(value, -1) for value in values.tolist()], dtype=np.intp)
        place.append(near)
    usable = np.flatnonzero(np.all([p >= 0 for p in place], axis=0))
    usable = usable[sample(len(usable), POINTS)]
    nothing = np.zeros(len(usable), dtype=np.intp)
    drawn_at = {role: p[usable] for role, p in zip(wanted.roles, place, strict=True)}
    out = {role: drawn_at.get(role, nothing) for role in ("x", "by", "facet")}
    at_x: Any = wanted.of("x")
    row_x = out["x"]
    if wanted.numeric[0]:
        out["x"] = np.asarray(found[0], dtype=float)[usable]
        at_x, row_x = np.unique(out["x"], return_inverse=True)
    level = 0.0 if model.offset is None else float(model.offset.mean())
    if points == "data":
        observed = model.endog[usable] + level
        if model.offset is not None:
            observed = observed - model.offset[usable]
    else:
        exact = ReferenceGrid(model, {**at, wanted.names[0]: list(at_x)})
        mean = wanted.cells(exact.functions(wanted.names) @ np.nan_to_num(result.beta), len(at_x))
        observed = mean[row_x, out["by"], out["facet"]] + level
        observed = observed + model.endog[usable] - np.asarray(result.fitted_mean)[usable]
    return {**out, "observed": np.asarray(observed)}


def _drawn(wanted: _Wanted, curves: dict[str, Array], behind: dict[str, Any], labels: tuple[str, str], ax: Any) -> Any:
    """Axes with the curves of each facet."""
    facets = wanted.of("facet")
    series = wanted.of("by")
    if wanted.has("facet"):
        axes = grid(len(facets), (3.0, 3.0), most=4, sharex=True, sharey=True)
    else:
        axes = [own_axes(ax, (6.0, 4.4))]
    handles: list[Any] = []
    for k, one in enumerate(axes):
        for j in range(len(series)):
            mine = {name: values[:, j, k] for name, values in curves.items()}
            near = (
                np.flatnonzero((behind["by"] == j) & (behind["facet"] == k)) if behind else np.empty(0, dtype=np.intp)
            )
            own = (behind["x"][near], behind["observed"][near]) if len(near) else None
            handle = (_curve if wanted.numeric[0] else _levels)(one, wanted, mine, own, (j, len(series)))
            if k == 0:
                handles.append(handle)
        if wanted.has("facet"):
            one.set_title(f"{wanted.name('facet')} = {_text(facets[k])}", fontsize="small")
        if not wanted.numeric[0]:
            one.set_xticks(np.arange(len(wanted.of("x"))), [_text(value) for value in wanted.of("x")])
            one.set_xlim(-0.6, len(wanted.of("x")) - 0.4)
        plain(one)
    texts = [_text(value) for value in series]
    figure = axes[0].figure
    if _kept_in_sight(axes[0], curves, behind):
        for one in axes:
            one.set_ylim(axes[0].get_ylim())
        labels = f"{labels[0]}\nIntervals leave the picture.", labels[1]
    if wanted.has("facet"):
        figure.supxlabel(labels[0], fontsize="medium")
        figure.supylabel(labels[1], fontsize="medium")
        if wanted.has("by"):
            figure.legend(
                handles, texts, loc="outside upper center", ncols=len(texts), frameon=False, fontsize="small",
                title=wanted.name("by"), handlelength=SAMPLE,
            )  # fmt: skip
        return axes
    axes[0].set_xlabel(labels[0])
    axes[0].set_ylabel(labels[1])
    if wanted.has("by"):
        legend_above(axes[0], handles=handles, labels=texts, title=wanted.name("by"), alignment="left")
    return axes[0]


def _kept_in_sight(ax: Any, curves: Mapping[str, Array], behind: Mapping[str, Any]) -> bool:
    """Limits about estimates and points, where intervals of hardly any degrees of freedom would hide these."""
    inner = np.concatenate([np.ravel(curves["estimate"]), np.ravel(behind.get("observed", []))])
    low, high = float(np.nanmin(inner)), float(np.nanmax(inner))
    span = high - low
    ends = [values for name, values in curves.items() if name != "estimate"]
    reach = max((float(np.nanmax(np.abs(values - 0.5 * (low + high)), initial=0.0)) for values in ends), default=0.0)
    if not span > 0.0 or reach <= OUT_OF_SIGHT * span:
        return False
    ax.set_ylim(low - span, high + span)
    return True


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _curve(
    ax: Any, wanted: _Wanted, mine: dict[str, Array], own: tuple[Array, Array] | None, place: tuple[int, int]
) -> Any:
    """A curve with its bands and points; the line, for the legend."""
    color, style, marker = SERIES[place[0]]
    x = np.array(wanted.of("x"), dtype=float)
    if own is not None:
        size = float(np.clip(3000.0 / len(own[0]), 3.0, 16.0))
        tint = color if place[1] > 1 else GREY
        ax.scatter(*own, s=size, color=tint, alpha=0.35, linewidths=0, marker=marker, zorder=1)
    for low, high, strength in (("pred_low", "pred_high", 0.10), ("conf_low", "conf_high", 0.22)):
        if low in mine:
            ax.fill_between(x, mine[low], mine[high], color=color, alpha=strength, linewidth=0, zorder=2)
    if "pred_low" in mine:
        for edge in ("pred_low", "pred_high"):
            ax.plot(x, mine[edge], color=color, linewidth=0.7, linestyle=style, zorder=2)
    return ax.plot(x, mine["estimate"], color=color, linestyle=style, linewidth=2.2, zorder=3)[0]


def _levels(
    ax: Any, wanted: _Wanted, mine: dict[str, Array], own: tuple[Array, Array] | None, place: tuple[int, int]
) -> Any:
    """Means of levels beside each other with intervals, points jittered behind them; the markers, for the legend."""
    color, style, marker = SERIES[place[0]]
    width = 0.7 / place[1]
    at = np.arange(len(mine["estimate"])) + (place[0] - 0.5 * (place[1] - 1)) * width
    if own is not None:
        shift = 0.28 * width * np.random.default_rng(0).uniform(-1.0, 1.0, len(own[0]))
        size = float(np.clip(3000.0 / len(own[0]), 3.0, 14.0))
        tint = color if place[1] > 1 else GREY
        ax.scatter(at[own[0].astype(np.intp)] + shift, own[1], s=size, color=tint, alpha=0.35, linewidths=0, zorder=1)
    if "pred_low" in mine:
        ax.vlines(at, mine["pred_low"], mine["pred_high"], color=color, linewidth=0.9, linestyle=style, zorder=2)
    if "conf_low" in mine:
        ax.vlines(at, mine["conf_low"], mine["conf_high"], color=color, linewidth=2.6, zorder=3)
    return ax.plot(
        at, mine["estimate"], color=color, linestyle=style if place[1] > 1 else "none", linewidth=0.8, marker=marker,
        markersize=6.5, markeredgecolor="white", zorder=4,
    )[0]  # fmt: skip
