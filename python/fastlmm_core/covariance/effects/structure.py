"""What an engine asks of the covariance of the random effects of a term, relative to sigma^2.

An immutable object of q effects; its parameters theta have no constraints.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ...support.types import Array

__all__ = ["Array", "EffectsStructure"]


class EffectsStructure(Protocol):
    """The covariance of the random effects of a term: sigma^2 G(theta).

    Shapes: theta (k,), `slope` a symmetric (q, q). The natural parameters psi are functions of theta and sigma^2, whose
    derivatives are taken in the order theta, sigma^2.
    """

    @property
    def name(self) -> str:
        """As users write it."""

    @property
    def q(self) -> int:
        """Number of random effects."""

    @property
    def n_parameters(self) -> int:
        """Number k of parameters."""

    def matrix(self, theta: Array) -> Array:
        """G (q, q)."""

    def factor(self, theta: Array) -> Array:
        """Some L (q, q) with G = L L'."""

    def jacobian(self, theta: Array) -> Array:
        """dG / dtheta (k, q, q)."""

    def second(self, theta: Array, slope: Array) -> Array:
        """Sums of slope times d2G / dtheta_a dtheta_b (k, k)."""

    def second_sum(self, theta: Array, weights: Array) -> Array:
        """Sum over a, b of weights_ab d2G / dtheta_a dtheta_b (q, q), for symmetric weights (k, k)."""

    def nearest(self, G: Array) -> Array:
        """Theta of a member near to a positive semidefinite matrix; inside, where no derivative vanishes."""

    def natural(self, theta: Array, sigma2: float) -> Array:
        """The parameters that are reported (k,)."""

    def natural_jacobian(self, theta: Array, sigma2: float) -> Array:
        """Their derivatives in theta and sigma^2 (k, k + 1)."""

    def bend(self, theta: Array, weights: Array) -> Array:
        """Sum over a, b of weights_ab d2G / dpsi_a dpsi_b (q, q) at sigma^2 = 1, for symmetric weights (k, k)."""

    def names(self, effects: Sequence[str], term: str) -> tuple[str, ...]:
        """Names of the natural parameters, given those of the effects and of the term."""

    def boundary(self, theta: Array, effects: Sequence[str], term: str) -> str | None:
        """What has run into its limit, e.g. ``"rho|g = 1"``; None inside."""
