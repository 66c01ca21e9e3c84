"""Structures of residuals that tests run over, and derivatives by differences.

A case has the structure, rows at which it is evaluated, and labels of its positions.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from fastlmm_core.covariance.residual.catalogue import (
    coordinate_names,
    factor_analytic,
    of_coordinates,
    of_covariate,
    of_positions,
    of_responses,
    position_names,
)
from fastlmm_core.covariance.residual.deviations import Common
from fastlmm_core.covariance.residual.grouped_variance import GroupedVariance
from fastlmm_core.covariance.residual.independent import Independent
from fastlmm_core.covariance.residual.log_linear import LogLinear
from fastlmm_core.covariance.residual.scaled import Scaled
from fastlmm_core.covariance.residual.varied import Varied

Array = Any


class Case(NamedTuple):
    name: str
    structure: Any
    where: Array
    labels: tuple[str, ...]


def labels(m: int) -> tuple[str, ...]:
    return tuple(f"v{k}" for k in range(m))


def position_cases() -> list[Case]:
    out = []
    for name in position_names():
        for m in (2, 5):
            if (name, m) == ("arma", 2):
                continue
            # visits in any order, one of five missing
            where = np.array([1, 0]) if m == 2 else np.array([3, 0, 4, 1])
            out.append(Case(f"{name}-{m}", of_positions(name, m), where, labels(m)))
    return out


def coordinate_cases() -> list[Case]:
    line = np.array([[0.3], [1.0], [2.7], [2.9]])
    plane = np.array([[0.3, 1.0], [1.0, -0.5], [2.7, 0.0]])
    out = []
    for name in coordinate_names():
        out.append(Case(f"{name}-line", of_coordinates(name), line, ()))
        out.append(Case(f"{name}-plane-nugget", of_coordinates(name, nugget=True), plane, ()))
    return out


def varied_cases() -> list[Case]:
    v = np.array([0.4, 2.0, -1.1, 3.0])
    places = np.array([3.0, 0.0, 4.0, 1.0])
    arms = np.array([0.0, 1.0, 1.0, 0.0])
    both = (LogLinear(("a", "b")), of_positions("ar1h", 5), np.column_stack((places, 0.5 * v, 0.2 * v**2)))
    grouped = GroupedVariance(of_covariate("constpower"), ("x", "y"))
    parts = {
        "power-cs": (of_covariate("power"), of_positions("cs", 5), np.column_stack((places, v))),
        "exp-car1": (of_covariate("exp"), of_coordinates("car1"), np.column_stack((places, v))),
        "exp-plane": (of_covariate("exp"), of_coordinates("sp_exp"), np.column_stack((places, arms, v))),
        "constpower-us": (of_covariate("constpower"), of_positions("us", 5), np.column_stack((places, v))),
        "constprop-id": (of_covariate("constprop"), Scaled("id", Common(), Independent()), v[:, None]),
        "loglinear-ar1h": both,
        "grouped-ad": (grouped, of_positions("ad", 5), np.column_stack((places, v, arms))),
    }
    return [Case(name, Varied(f, inner), where, labels(5)) for name, (f, inner, where) in parts.items()]


def product_cases() -> list[Case]:
    where = np.array([3, 0, 4, 1])
    out = [Case(f"fa-{q}", factor_analytic(5, q), where, labels(5)) for q in (1, 2)]
    for name in ("cs", "ar1", "toep"):
        structure = of_responses(name, ("r", "s"), 3)
        out.append(Case(f"us@{name}", structure, np.array([0, 4, 2, 3]), labels(6)))
    return out


CASES = position_cases() + coordinate_cases() + varied_cases() + product_cases()


def difference(function, x: Array, step: float = 1e-3) -> Array:
    """Derivatives along each element of x, by central differences with Richardson's extrapolation (error step^6)."""
    out = []
    for k in range(len(x)):
        unit = np.zeros(len(x))
        unit[k] = 1.0
        by_step = [
            (np.asarray(function(x + h * unit)) - np.asarray(function(x - h * unit))) / (2.0 * h)
            for h in (4.0 * step, 2.0 * step, step)
        ]
        once = [(4.0 * b - a) / 3.0 for a, b in pairwise(by_step)]
        out.append((16.0 * once[1] - once[0]) / 15.0)
    return np.array(out)


def symmetric(rng: np.random.Generator, n: int) -> Array:
    half = rng.standard_normal((n, n))
    return half + half.T
