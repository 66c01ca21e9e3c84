"""Group means: centring within groups, and within against between effects.

A covariate x that varies within and between groups carries two effects, of x - x_i. and of x_i. (the group's mean).  A
model with x alone estimates a mixture; ``within(x, g) + between(x, g)`` separates them, and ``x + between(x, g)`` has
their difference, the contextual effect, as the coefficient of the mean (Mundlak 1978, Econometrica 46, 69-85; Enders
and Tofighi 2007, Psychological Methods 12, 121-138).  Centring at the grand mean is formulaic's ``center(x)``.

The functions know of group means only; what a formula calls are `formula_functions`, which remember the means of the
fit.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import LMMError
from ..support.arguments import checked
from ..support.checks import float_array, plain_array
from ..support.types import Array
from ..tables.alignment import index_of, shared_index

__all__ = ["between", "formula_functions", "group_mean", "means_of", "within"]


def means_of(x: Array, codes: NDArray[np.intp], m: int, weights: Array | None = None) -> Array:
    """Means of groups 0..m-1; the second pass takes out the rounding of a large common offset."""
    count = np.bincount(codes, weights=weights, minlength=m)
    means = np.full(m, x[0] if len(x) else 0.0)
    for _ in range(2):
        rest = x - means[codes]
        means = means + np.bincount(codes, weights=rest if weights is None else rest * weights, minlength=m) / count
    return means


def _grouped(x: ArrayLike, groups: tuple[Any, ...]) -> tuple[Array, NDArray[np.intp], list[Any]]:
    """Values, codes and labels; several grouping columns make one label of each combination."""
    from ..tables.labels import integer_codes, label_codes

    values = float_array(x, "x", 1)
    if not groups:
        raise LMMError("the groups are missing: give the group of each row, as in within(x, g)")
    codes = np.zeros(len(values), dtype=np.intp)
    labels: list[Any] = [()]
    for group in groups:
        column = plain_array(group, "the group")
        if column.ndim != 1 or len(column) != len(values):
            raise LMMError(f"the groups have the shape {column.shape}, but x has {len(values)} values")
        own, names = integer_codes(column) if column.dtype.kind in "iu" else label_codes(column, "the group")
        if len(own) and own.min() < 0:
            raise LMMError(f"the groups have no label in row {int(np.argmin(own))}; drop such rows")
        codes, used = integer_codes(codes * len(names) + own)
        listed = names.tolist()
        labels = [(*labels[k // len(listed)], listed[k % len(listed)]) for k in used.tolist()]
    return values, codes, labels


def _beside(values: Array, x: Any, groups: tuple[Any, ...]) -> Any:
    """Values for the rows of x: a Series where x or the groups are Series, which have one index."""
    index = shared_index([("x", index_of(x)), *(("the groups", index_of(group)) for group in groups)])
    if index is None:
        return values
    import pandas as pd

    return pd.Series(values, index=index, name=getattr(x, "name", None))


@checked
def group_mean(x: ArrayLike, *groups: Any) -> Any:
    """Mean of x over the group of each row.

    Parameters
    ----------
    x : (n,) array
    *groups : (n,) arrays of labels
        Several are crossed: groups are the combinations that occur.

    Returns
    -------
    (n,) array
        A Series where x is one.

    Raises
    ------
    LMMError
        For arrays of different lengths, Series with different indices, or missing labels.

    Examples
    --------
    >>> import fastlmm_core as flc
    >>> flc.group_mean([1.0, 3.0, 5.0], ["a", "a", "b"])
    array([2., 2., 5.])
    """
    values, codes, labels = _grouped(x, groups)
    return _beside(means_of(values, codes, len(labels))[codes], x, groups)


between = group_mean


@checked
def within(x: ArrayLike, *groups: Any) -> Any:
    """x less its mean over the group of each row.

    Parameters
    ----------
    x : (n,) array
    *groups : (n,) arrays of labels
        See `group_mean`.

    Returns
    -------
    (n,) array
        A Series where x is one.

    Raises
    ------
    LMMError
        For arrays of different lengths, Series with different indices, or missing labels.

    Examples
    --------
    >>> import fastlmm_core as flc
    >>> flc.within([1.0, 3.0, 5.0], ["a", "a", "b"])
    array([-1.,  1.,  0.])
    """
    values, codes, labels = _grouped(x, groups)
    return _beside(values - means_of(values, codes, len(labels))[codes], x, groups)


def _remembered(x: Any, groups: tuple[Any, ...], state: dict[str, Any]) -> tuple[Array, Array]:
    """Values and group means: of the fit for groups that it has seen, of these rows for others."""
    values, codes, labels = _grouped(x, groups)
    means = means_of(values, codes, len(labels))
    if "means" in state:
        known = state["means"]
        means = np.array([known.get(label, mean) for label, mean in zip(labels, means.tolist(), strict=True)])
    else:
        state["means"] = dict(zip(labels, means.tolist(), strict=True))
    return values, means[codes]


@cache
def formula_functions() -> dict[str, Callable[..., Any]]:
    """The functions that formulas know beside those of formulaic: ``within(x, g)`` and ``between(x, g)``.

    On new data, groups of the fit keep their means in the fit; a group that is new has the mean of its new rows.
    """
    from formulaic.transforms import stateful_transform  # type: ignore[import-untyped]

    def within(data: Any, *groups: Any, _state: dict[str, Any]) -> Array:
        values, means = _remembered(data, groups, _state)
        return values - means

    def between(data: Any, *groups: Any, _state: dict[str, Any]) -> Array:
        return _remembered(data, groups, _state)[1]

    return {"within": stateful_transform(within), "between": stateful_transform(between)}
