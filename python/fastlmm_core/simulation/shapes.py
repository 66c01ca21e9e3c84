"""Distributions of random effects and errors beside the normal one, all of mean 0 and variance 1."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import LMMError
from ..support.types import Array

__all__ = ["Shape", "checked_draw", "normal", "shape_of"]

Shape = Callable[[np.random.Generator, tuple[int, ...]], Array]
"""(generator, shape of the array) -> independent numbers."""

DEFAULTS = {"t": 5.0, "skewed": 1.0}


def normal(rng: np.random.Generator, size: tuple[int, ...]) -> Array:
    """Standard normal numbers."""
    return rng.standard_normal(size)


def shape_of(draw: str) -> Shape | None:
    """What draws numbers of a distribution, by its name; None for normal ones.

    Parameters
    ----------
    draw : str
        "normal"; "t(df)", by default of 5 degrees of freedom; "skewed(skewness)", shifted and scaled gamma numbers, by
        default of skewness 1.

    Raises
    ------
    LMMError
        For another name, degrees of freedom that leave no variance, or a skewness that is not positive.
    """
    found = re.fullmatch(r"\s*(normal|t|skewed)\s*(?:\(([^()]*)\))?\s*", draw)
    parameter = found[2] if found else None
    try:
        value = DEFAULTS.get(found[1], 0.0) if found and parameter is None else float(parameter or "nan")
    except ValueError:
        value = float("nan")
    if found is None or np.isnan(value) or (found[1] == "normal" and parameter is not None):
        raise LMMError(f"draw={draw!r} is unknown: use 'normal', 't(5)', 'skewed(1)' or a function (rng, count)")
    if found[1] == "normal":
        return None
    if found[1] == "t":
        if not value > 2.0:
            raise LMMError(f"draw={draw!r}: t distributions have a variance above 2 degrees of freedom")
        return _T(value)
    if not 0.0 < value < np.inf:
        raise LMMError(f"draw={draw!r}: the skewness must be positive")
    return _Skewed(value)


class _T:
    """t numbers, scaled to variance 1."""

    def __init__(self, df: float) -> None:
        self.df, self.scale = df, np.sqrt((df - 2.0) / df) if np.isfinite(df) else 1.0

    def __call__(self, rng: np.random.Generator, size: tuple[int, ...]) -> Array:
        return np.asarray(rng.standard_t(self.df, size) * self.scale)


class _Skewed:
    """Gamma numbers, of skewness 2 / sqrt(shape), shifted and scaled to mean 0 and variance 1."""

    def __init__(self, skewness: float) -> None:
        self.shape = 4.0 / skewness**2

    def __call__(self, rng: np.random.Generator, size: tuple[int, ...]) -> Array:
        return np.asarray((rng.standard_gamma(self.shape, size) - self.shape) / np.sqrt(self.shape))


def checked_draw(draw: Callable[[np.random.Generator, int], Any], nobs: int) -> Callable[..., Array]:
    """A caller's function that draws responses, of which what it returns is looked at."""

    def call(rng: np.random.Generator, count: int) -> Array:
        found = np.asarray(draw(rng, count))
        if found.shape != (count, nobs) or found.dtype.kind not in "fiub":
            raise LMMError(
                f"draw(rng, {count}) must return numbers of the shape ({count}, {nobs}), a response per row, not "
                f"{found.dtype} of shape {found.shape}"
            )
        return np.asarray(found, dtype=np.float64)

    return call
