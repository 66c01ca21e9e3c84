"""The record of an optimum, with what it is judged by."""

from __future__ import annotations

from functools import lru_cache
from math import sqrt
from typing import NamedTuple

import numpy as np

from ..support.types import Array

__all__ = ["CERTIFIED", "CLOSE", "SINGULAR", "LocalMinimum", "MonteCarlo", "Optimum", "close_enough"]

CERTIFIED = 1e-4
"""Decrement below which an optimum is certified: the criterion is then within 5e-9 of its minimum."""

SINGULAR = 1e-4
"""A singular value of Lambda (columns of Z of unit mean square per group) below this counts as zero."""

CLOSE, CLOSEST = 1e-6, 1e-9
"""Decrement at which a search ends (see `close_enough`): the distance to the optimum in standard errors, at most; its
share of theta.  Where one more evaluation takes seconds, the former is enough: the criterion is then 5e-13 above its
minimum."""


@lru_cache(maxsize=64)
def close_enough(m: float) -> float:
    """Decrement at which a search ends where the factor with most levels has m of them.

    The relative accuracy of theta is about decrement / sqrt(m).
    """
    return min(CLOSEST * sqrt(m), CLOSE)


class LocalMinimum(NamedTuple):
    """Value and theta of a certified minimum that is not the lowest one."""

    value: float
    theta: Array


class MonteCarlo(NamedTuple):
    """What an optimum by random probes leaves open.

    Attributes
    ----------
    probes, seed : int
    criterion : float
        Monte Carlo standard error of the value.
    parameters : float
        The largest of the covariance parameters, relative to their standard errors.
    deviations : (probes,) array
        What each probe makes of the value, less the mean.
    """

    probes: int
    seed: int
    criterion: float
    parameters: float
    deviations: Array

    def apart(self, other: MonteCarlo | None) -> float:
        """Monte Carlo standard error of the difference of two values; None for one that has no such error.

        The same probes have nearly the same errors at both.
        """
        if other is None:
            return self.criterion
        if (self.probes, self.seed) != (other.probes, other.seed):
            return float(np.hypot(self.criterion, other.criterion))
        rest = self.deviations - other.deviations
        return float(np.sqrt(rest @ rest / max(len(rest) - 2, 1) / len(rest)))


class Optimum(NamedTuple):
    """One record of the optimisation, in the conditioned problem's units.

    Attributes
    ----------
    theta, factor : arrays
        Free elements of Lambda, and Lambda.
    value : float
    gradient, hessian : arrays
    gradient_norm : float
        Decrement: square root of twice the decrease of the criterion that a Newton step promises.
    converged, singular : bool
    n_evaluations : int
    method, message : str
    null_space : (q, r) array
        Directions of zero variance.
    trace : tuple
        (value, decrement, radius) at each point accepted by the Newton method.
    others : tuple of LocalMinimum
        Certified minima that are hardly higher (see `optimize.REPORTED`).
    restricted : (k,) array or None
        The parameters of `covariance.effects`, where the covariance of random effects has fewer than theta; gradient
        and Hessian are then in these.
    monte_carlo : MonteCarlo or None
        Of ``method="iterative"``.
    """

    theta: Array
    factor: Array
    value: float
    gradient: Array
    hessian: Array
    gradient_norm: float
    converged: bool
    singular: bool
    n_evaluations: int
    method: str
    message: str
    null_space: Array
    trace: tuple[tuple[float, float, float], ...]
    others: tuple[LocalMinimum, ...] = ()
    restricted: Array | None = None
    monte_carlo: MonteCarlo | None = None
