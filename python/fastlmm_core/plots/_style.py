"""What all plots share: matplotlib on request, colours, axes, samples of groups, columns by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import LMMError
from ..support.checks import float_array
from ..support.types import Array
from ..tables.columns import native_frame
from ._columns import data_column, held_column

if TYPE_CHECKING:
    from ..estimation.fit import Fit
    from ..estimation.model import Model

__all__ = [
    "BLACK", "BLUE", "GREEN", "GREY", "LEGEND_COLUMNS", "ORANGE", "SAMPLE", "SERIES", "SKY", "VERMILLION",
    "effect_position", "grid", "legend_above", "new_axes", "own_axes", "plain", "pyplot", "rows_with_room", "sample",
    "smooth", "tidy", "variable",
]  # fmt: skip


BLACK, GREY = "#000000", "#8C8C8C"
ORANGE, SKY, GREEN, BLUE, VERMILLION = "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00"
"""Okabe and Ito 2008, Color Universal Design."""

SERIES: tuple[tuple[str, Any, str], ...] = (
    (BLUE, "-", "o"), (VERMILLION, "--", "s"), (GREEN, "-.", "^"), (ORANGE, ":", "D"), (BLACK, (0, (6, 1, 1, 1)), "v"),
    ("#CC79A7", (0, (3, 1)), "P"), (SKY, (0, (1, 1)), "X"), (GREY, (0, (8, 2)), "*"),
)  # fmt: skip
"""Colour, line and marker of what stands beside each other, to be told apart in grey too."""


LEGEND_COLUMNS = 3
"""Entries of a legend beside each other."""

SAMPLE = 4.0
"""Length of the lines in legends, in letters: two periods of most patterns, so that they are told apart."""


def pyplot() -> Any:
    """matplotlib.pyplot.

    Raises
    ------
    LMMError
        Where matplotlib is not installed.
    """
    try:
        return import_module("matplotlib.pyplot")
    except ImportError:
        raise LMMError("plots need matplotlib: pip install 'fastlmm-core[plot]'") from None


def new_axes(rows: int, columns: int, size: tuple[float, float], **options: Any) -> Any:
    """A figure of its own with an array of axes (rows, columns)."""
    _, axes = pyplot().subplots(
        rows, columns, figsize=(size[0] * columns, size[1] * rows), layout="constrained", squeeze=False, **options
    )
    return axes


def own_axes(ax: Any, size: tuple[float, float] = (6.4, 4.4)) -> Any:
    """The caller's axes, or new ones."""
    pyplot()
    if ax is not None and not hasattr(ax, "get_figure"):
        raise LMMError(f"ax must be axes of matplotlib, not of type {type(ax).__name__!r}; leave it out for new ones")
    return new_axes(1, 1, size)[0, 0] if ax is None else ax


def grid(count: int, size: tuple[float, float], most: int = 4, **options: Any) -> list[Any]:
    """Axes of a figure for `count` small plots, the rest of the cells empty."""
    columns = min(most, count) if count <= most else min(most, int(np.ceil(np.sqrt(count))))
    axes = new_axes(-(-count // columns), columns, size, **options).ravel()
    for i, ax in enumerate(axes):
        ax.set_visible(i < count)
        ax.xaxis.set_tick_params(labelbottom=not options.get("sharex") or i + columns >= count)
    return list(axes[:count])


def plain(ax: Any) -> None:
    """No box around the data."""
    ax.spines[["top", "right"]].set_visible(False)


def rows_with_room(ax: Any) -> int:
    """Small labels of rows that do not overlap on the vertical axis, which the layout makes a little longer."""
    return int(ax.get_window_extent().height / ax.figure.dpi / 0.105)


def legend_above(ax: Any, **options: Any) -> Any:
    """A legend in one line above the axes."""
    place: dict[str, Any] = {
        "loc": "lower left",
        "bbox_to_anchor": (0.0, 1.0),
        "ncols": LEGEND_COLUMNS,
        "borderaxespad": 0.2,
        "handlelength": SAMPLE,
    }
    return ax.legend(**place, frameon=False, fontsize="small", **options)


def tidy(library: str, layers: Sequence[tuple[str, Mapping[str, Any]]]) -> Any:
    """What a plot draws, as one table with a row per mark.

    Parameters
    ----------
    library : str
        Of the table.
    layers : sequence of (name, columns)
        Marks of one kind each.  Of several layers the table has the name in its first column ``part``, and NaN or None
        in the columns that only others have.
    """
    names = dict.fromkeys(name for _, columns in layers for name in columns)
    lengths = [len(next(iter(columns.values()))) for _, columns in layers]
    out: dict[str, Any] = {}
    if len(layers) > 1:
        out["part"] = [name for (name, _), n in zip(layers, lengths, strict=True) for _ in range(n)]
    for name in names:
        given = [np.asarray(columns[name]) for _, columns in layers if name in columns]
        if all(part.dtype.kind in "fiu" for part in given):
            parts = [
                np.asarray(columns[name]) if name in columns else np.full(n, np.nan)
                for (_, columns), n in zip(layers, lengths, strict=True)
            ]
            out[name] = np.concatenate(parts)
            continue
        out[name] = [
            value
            for (_, columns), n in zip(layers, lengths, strict=True)
            for value in (np.asarray(columns[name]).tolist() if name in columns else [None] * n)
        ]
    return native_frame(library, out)


def sample(count: int, most: int, seed: int = 0) -> NDArray[np.intp]:
    """Positions of at most `most` of `count` groups, the same in every call."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, most, replace=False))


def effect_position(result: Fit, effect: str | None, term: str | None) -> tuple[int, int]:
    """Position of a grouping factor, and of one of its effects among those of all factors."""
    model = result.model
    names = result.effect_names
    found = [
        (i, j)
        for block, name in zip(model.structure.blocks, model.term_names, strict=True)
        if term in (None, name)
        for i in [model.factors.index(model.factor_of(block))]
        for j in range(block.start, block.stop)
        if effect in (None, names[j], model.exog_re_names[j])
    ]
    if not found:
        what = f"effect={effect!r}" + (f" of term={term!r}" if term is not None else "")
        listed = ", ".join(
            f"{names[j]} | {name}"
            for name, block in zip(model.term_names, model.structure.blocks, strict=True)
            for j in range(block.start, block.stop)
        )
        raise LMMError(f"{what} is not a random effect; choose of {listed}")
    return found[0]


def variable(model: Model, x: Any = None, argument: str = "x") -> tuple[Array, str, list[str] | None]:
    """Values and name of the variable of the horizontal axis, and the labels of 0, 1, ... where it has levels.

    Parameters
    ----------
    model : LinearMixedModel
    x : str or (n,) array, optional
        A column of the data, X or Z by name, or values or labels for the rows used or of the data; by default the
        variable of the random slope, else the first that takes more than two values, else the first factor.
    argument : str

    Raises
    ------
    LMMError
        For an unknown column, another length, or where there is nothing to choose from.
    """
    if x is None:
        x = _along(model)
    given, name = data_column(model, x, argument)
    try:
        return float_array(given, argument, 1), name, None
    except LMMError:
        if np.ndim(given) != 1:
            raise
    texts = [str(label) for label in given.tolist()]
    known = {} if model.spec is None else model.spec.reference
    levels = known.get(name) if isinstance(x, str) else None
    ordered = [str(level) for level in levels] if isinstance(levels, tuple) else sorted(set(texts))
    position = {text: i for i, text in enumerate(ordered)}
    return np.array([position[text] for text in texts], dtype=np.float64), name, ordered


def _along(model: Model) -> str:
    """Name of the variable to draw along."""
    spec = model.spec
    columns = [
        *zip(model.exog_re_names, model.exog_re.T, strict=True),
        *zip(model.exog_names, model.exog.T, strict=True),
    ]
    varying = {name: column for name, column in reversed(columns) if (column != column[0]).any()}
    order = list(dict.fromkeys(name for name, _ in columns if name in varying))
    several = [name for name in order if len(np.unique(varying[name])) > 2]
    if several:
        return several[0]
    named = [] if spec is None else list(dict.fromkeys([*spec.random_variables, *spec.reference]))
    for name in named:
        held = held_column(model, name)
        if held is not None and len(set(held.tolist())) > 1:
            return name
    if len(order) == 1:
        return order[0]
    raise LMMError(
        f"no column of the model is a variable to draw along ({', '.join(order) or 'an intercept only'}): give the "
        "horizontal axis as x=, one value or label per row"
    )


def smooth(x: Array, y: Array, share: float = 0.5, points: int = 61) -> tuple[Array, Array]:
    """A smooth curve through points by local linear fits with tricube weights.

    Cleveland 1979, J. Am. Statist. Assoc. 74, 829-836.

    Parameters
    ----------
    x, y : (n,) arrays
    share : float
        Of the points, the nearest of which make the fit at each place.
    points : int
        Of the curve.

    Returns
    -------
    at, curve : arrays
        Of more than 2,000 points means of neighbours are smoothed.
    """
    order = np.argsort(x, kind="stable")
    x, y, count = np.asarray(x, dtype=float)[order], np.asarray(y, dtype=float)[order], np.ones(len(x))
    if len(x) > 2000:
        place = np.arange(len(x)) * 2000 // len(x)
        count = np.bincount(place).astype(np.float64)
        x, y = np.bincount(place, weights=x) / count, np.bincount(place, weights=y) / count
    different = np.unique(x)
    if len(different) == 1:
        return different, np.array([np.average(y, weights=count)])
    at = np.linspace(x[0], x[-1], points)
    distance = np.abs(at[:, None] - x)
    nearest = min(len(x), max(2, int(np.ceil(share * len(x)))))
    width = np.partition(distance, nearest - 1, axis=1)[:, nearest - 1]
    # two different x at least, also where many are equal
    second = np.partition(np.abs(at[:, None] - different), 1, axis=1)[:, 1]
    width = 1.05 * np.maximum(width, second)
    weight = count * np.maximum(1.0 - (distance / width[:, None]) ** 3, 0.0) ** 3
    total = weight.sum(axis=1)
    centre, mean = weight @ x / total, weight @ y / total
    away = x - centre[:, None]
    slope = np.sum(weight * away * (y - mean[:, None]), axis=1) / np.sum(weight * away**2, axis=1)
    return at, mean + slope * (at - centre)
