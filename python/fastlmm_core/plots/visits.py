"""The estimated covariance of structured residuals over visits."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import LMMError
from ..inference.residual_parameters import residual_covariance as estimated
from ..support.arguments import checked
from ..support.types import Array
from ._style import own_axes, pyplot, tidy

if TYPE_CHECKING:
    from ..estimation.fit import Fit

__all__ = ["residual_covariance"]


WRITTEN = 12
"""Visits up to which correlations are written into their cells."""

DARK = 0.6
"""Size of a correlation from which it is written in white."""


@checked
def residual_covariance(result: Fit, level: str | None = None, *, ax: Any = None, data: bool = False) -> Any:
    """Correlations of structured residuals between visits, as colours, and the standard deviation of each.

    Parameters
    ----------
    result : LMMResult
        With residuals structured over visits.
    level : str, optional
        Level of `by` whose covariance is drawn; the first by default.
    ax : matplotlib Axes, optional
    data : bool
        Return what would be drawn as a tidy table, and draw nothing: ``row``, ``column``, ``correlation`` and
        ``covariance`` of each pair of visits.

    Returns
    -------
    Axes, or table
        The standard deviations stand with the visits.

    Raises
    ------
    LMMError
        For residuals that are independent or structured by coordinates, an unknown level, or without matplotlib.

    Examples
    --------
    >>> import fastlmm_core as flc
    >>> data = flc.datasets.load("fev")
    >>> fev = flc.lmm("FEV1 ~ ARMCD * AVISIT", data, residual="cs(AVISIT | USUBJID)").fit()
    >>> flc.plots.residual_covariance(fev, data=True).head(2).round(2)
        row column  correlation  covariance
    0  VIS1   VIS1         1.00       49.35
    1  VIS1   VIS2         0.25       12.21
    """
    if not data:
        pyplot()
    matrix, labels, title = _matrix(result, level)
    sd = np.sqrt(np.diag(matrix))
    correlation = matrix / np.outer(sd, sd)
    m = len(sd)
    if data:
        rows, columns = (part.ravel() for part in np.indices((m, m)))
        names = np.array(labels, dtype=object)
        cells = {"row": names[rows], "column": names[columns]}
        return tidy(
            result.model.library,
            [("cells", {**cells, "correlation": correlation.ravel(), "covariance": matrix.ravel()})],
        )
    size = float(np.clip(0.62 * m + 2.0, 4.0, 9.0))
    ax = own_axes(ax, (size + 0.8, size))
    hidden = np.triu(np.ones((m, m), dtype=bool))
    shown = np.ma.masked_array(correlation, hidden)
    mesh = ax.pcolormesh(
        np.arange(m + 1) - 0.5, np.arange(m + 1) - 0.5, shown, cmap="RdBu", vmin=-1.0, vmax=1.0,
        edgecolors="white", linewidth=0.8,
    )  # fmt: skip
    if m <= WRITTEN:
        for i in range(m):
            for j in range(i):
                color = "white" if abs(correlation[i, j]) > DARK else "black"
                ax.text(j, i, f"{correlation[i, j]:.2f}", ha="center", va="center", color=color, fontsize=8)
    for i in range(m):
        ax.text(i, i, f"{sd[i]:.3g}", ha="center", va="center", fontsize=8, fontweight="bold")
    step = -(-m // 20)
    ax.set_xticks(np.arange(0, m, step), labels[::step], rotation=0 if max(map(len, labels)) < 6 else 90, fontsize=8)
    ax.set_yticks(np.arange(0, m, step), labels[::step], fontsize=8)
    ax.set_xlim(-0.5, m - 0.5)
    ax.set_ylim(m - 0.5, -0.5)
    ax.set_aspect("equal")
    part = result.model.residual
    assert part is not None
    ax.set_xlabel(part.time)
    ax.set_title(title, fontsize=9)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    bar = import_module("matplotlib.pyplot").colorbar(mesh, ax=ax, shrink=0.7)
    bar.set_label("correlation (standard deviations on the diagonal)", fontsize=8)
    bar.outline.set_visible(False)
    return ax


def _matrix(result: Fit, level: str | None) -> tuple[Array, list[str], str]:
    """The covariance matrix (m, m), labels of the visits, and a title."""
    found = estimated(result)
    part = result.model.residual
    assert part is not None
    title = part.term
    if isinstance(found, dict):
        known = list(found)
        if level is not None and level not in known:
            raise LMMError(f"level={level!r} is not a level of {part.by!r}; use one of {', '.join(map(repr, known))}")
        chosen = known[0] if level is None else level
        found, title = found[chosen], f"{title}, {part.by} {chosen}"
    elif level is not None:
        raise LMMError("level= is one of by=, and the residuals have no by")
    return np.asarray(found, dtype=float), list(part.labels), title
