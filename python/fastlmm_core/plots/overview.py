"""A fit at a glance: what it says, how its groups differ, what it leaves over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..diagnostics.residuals import residuals
from ..formula.coding import fixed_terms
from ..formula.specification import Numbers
from ..support.arguments import checked
from ._columns import held_column, known_column
from ._style import LEGEND_COLUMNS, SERIES, new_axes
from .predictions import effects
from .random_effects import caterpillar, shrinkage
from .residuals import against_fitted, by_group, qq, quick_envelope, residual_panels
from .trajectories import trajectories

if TYPE_CHECKING:
    from ..estimation.fit import Fit
    from ..estimation.model import Model

__all__ = ["overview"]


@checked
def overview(result: Fit, x: str | None = None, by: str | None = None, *, data: bool = False) -> Any:
    """Four plots of a fit: what it says, how its groups differ, and residuals against fitted values and the normal.

    What is drawn depends on the model.  The first plot has the data with the lines of the groups (`trajectories`)
    where a numeric variable varies within them, otherwise predictions along the first variable of the fixed part
    (`effects`), the visits of structured residuals before others; without variables the groups' own means and the
    pooled ones (`shrinkage`).  The second has the plane of two coefficients that vary (`shrinkage`) or the random
    intercepts (`caterpillar`), and without random effects the residuals by group.  The last two are those of
    `residual_panels`.  Each of these functions draws the plot alone, with more options, or returns its data.

    Parameters
    ----------
    result : LMMResult
    x : str, optional
        Variable of the horizontal axis of the first plot.
    by : str, optional
        Factor that has a colour for each level there; by default the first that interacts with `x`.
    data : bool
        Return what would be drawn, a tidy table for each plot by its title, and draw nothing.

    Returns
    -------
    (2, 2) array of Axes, or dict of tables

    Raises
    ------
    LMMError
        For unknown variables, stated parameters without a response, or without matplotlib.

    Examples
    --------
    >>> import fastlmm_core as flc
    >>> fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
    >>> axes = fit.plot()
    >>> [ax.get_title(loc="left") for ax in axes.flat]
    ['Data and fit', 'Random effects', 'Residuals and fitted values', 'Quantiles']
    >>> drawn = fit.plot(data=True)
    >>> list(drawn["Quantiles"].columns)
    ['theoretical', 'value', 'expected', 'low', 'high']
    """
    result.model.endog  # noqa: B018  (a design without a response is refused before a figure is made)
    second = "Random effects" if result.model.structure.q else "Groups"
    titles = "Data and fit", second, "Residuals and fitted values", "Quantiles"
    if data:
        tables = (
            _data_and_fit(result, x, by, data=True), _groups(result, data=True), residual_panels(result, data=True),
            qq(result, "residuals", envelope=quick_envelope(result), data=True),
        )  # fmt: skip
        return dict(zip(titles, tables, strict=True))
    axes = new_axes(2, 2, (5.4, 4.2))
    _data_and_fit(result, x, by, axes[0, 0])
    _groups(result, axes[0, 1])
    against_fitted(result, axes[1, 0])
    qq(result, "residuals", envelope=quick_envelope(result), ax=axes[1, 1])
    for ax, title in zip(axes.flat, titles, strict=True):
        ax.set_title(title, loc="left", fontsize="medium", pad=6.0 + 14.0 * _lines_above(ax))
    return axes


def _lines_above(ax: Any) -> int:
    """Lines of a legend that stands above the axes, as `legend_above` makes them."""
    legend = ax.get_legend()
    if legend is None or legend.get_bbox_to_anchor().y0 < ax.bbox.y1 - 1.0:
        return 0
    return -(-len(legend.get_texts()) // LEGEND_COLUMNS) + bool(legend.get_title().get_text())


def _data_and_fit(result: Fit, x: str | None, by: str | None, ax: Any = None, data: bool = False) -> Any:
    model = result.model
    chosen = _first_variable(model) if x is None else x
    if chosen is None:
        if model.structure.q:
            return shrinkage(result, model.exog_re_names[0], ax=ax, data=data)
        return _by_group(result, ax, data)
    color = _interacting(model, chosen) if by is None else by
    if _varies_within(model, chosen):
        return trajectories(result, chosen, by=color, ax=ax, data=data)
    shown = [name for name in (chosen, color) if name is not None]
    held = all(known_column(model, name) is not None for name in shown)
    return effects(result, chosen, color, points="data" if held else None, ax=ax, data=data)


def _groups(result: Fit, ax: Any = None, data: bool = False) -> Any:
    model = result.model
    if not model.structure.q:
        return _by_group(result, ax, data)
    if model.design.residual is None and model.factors[0].stop - model.factors[0].start > 1:
        return shrinkage(result, ax=ax, data=data)
    return caterpillar(result, ax=ax, data=data)


def _by_group(result: Fit, ax: Any, data: bool) -> Any:
    if data:
        return residual_panels(result, data=True)
    by_group(ax, result.model.factors[0].grouping, residuals(result, "pearson"))
    return ax


def _first_variable(model: Model) -> str | None:
    """Variable of a random slope, or visits of the residuals, else the first of the fixed part, numeric ones first."""
    spec = model.spec
    if spec is None:
        columns = [*zip(model.exog_re_names, model.exog_re.T, strict=True)]
        columns += zip(model.exog_names, model.exog.T, strict=True)
        return next((name for name, values in columns if np.ptp(values) > 0.0), None)
    known = spec.reference
    if model.design.residual is not None and model.design.residual.time in known:
        return model.design.residual.time
    slopes = [name for name in spec.random_variables if name in known]
    numeric = [name for name in (*slopes, *known) if isinstance(known.get(name), Numbers)]
    return next(iter([*numeric, *slopes, *known]), None)


def _varies_within(model: Model, name: str) -> bool:
    """Whether a numeric variable varies within the groups, of which there is one factor: each group has a line."""
    held = held_column(model, name)
    if held is None or held.dtype.kind not in "fiu" or len(model.factors) > 1:
        return model.spec is None
    index = model.factors[0].grouping.index
    first = np.zeros(int(index.max()) + 1)
    first[index] = held
    return bool((held != first[index]).any())


def _interacting(model: Model, x: str) -> str | None:
    """The first factor that interacts with x, of levels that can be told apart."""
    if model.spec is None:
        return None
    known = model.spec.reference
    for term in fixed_terms(model.design):
        if x in term.variables:
            for name in known:
                levels = known[name]
                if name in term.variables and name != x and isinstance(levels, tuple) and len(levels) <= len(SERIES):
                    return name
    return None
