"""Correlations of consecutive rows, by which long series are whitened."""

from __future__ import annotations

from typing import NamedTuple

from .structure import Array

__all__ = ["Steps", "steps_of"]


class Steps(NamedTuple):
    """Correlations of consecutive rows, all (n,).

    Attributes
    ----------
    rho, rest : arrays
        rho and 1 - rho^2.
    first, second : arrays
        Derivatives of artanh(rho) in the parameter.
    """

    rho: Array
    rest: Array
    first: Array
    second: Array


def steps_of(rho: Array, rest: Array, first: Array, second: Array) -> Steps:
    """Steps from rho, 1 - rho^2 and the derivatives of rho: artanh' = 1 / (1 - rho^2)."""
    slope = first / rest
    return Steps(rho, rest, slope, second / rest + 2.0 * rho * slope**2)
