"""What kernels ask of criteria and of covariance structures."""

from __future__ import annotations

from typing import Protocol

from ...support.types import Array, Index

__all__ = ["Evaluated", "Positions"]


class Evaluated(Protocol):
    """What Newton minimises, an `Objective`, by what callers see of it."""

    def evaluate(self, theta: Array, order: int = 0) -> tuple[float, Array | None, Array | None]:
        """Value, gradient and Hessian."""


class Positions(Protocol):
    """Where the parameters of a covariance matrix of random effects stand in Lambda."""

    @property
    def q(self) -> int:
        """Random effects."""

    @property
    def positions(self) -> tuple[Index, Index]:
        """Row and column of each parameter."""
