"""Structures of residuals that tests run over, and derivatives by differences.

A case has the structure, rows at which it is evaluated, and labels of its positions.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from fastlmm_core.covariance.residual.catalogue import coordinate_names, of_coordinates, of_positions, position_names

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


CASES = position_cases() + coordinate_cases()


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
