"""The criterion where the covariance of random effects is restricted: any engine, as a function of fewer parameters.

G(theta) is that of the blocks of `covariance.effects`; the engine works on effects b_o with b = z_map b_o, whose
covariance relative to sigma^2 is B G B', B = z_map^-1.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

import numpy as np

from ..covariance.effects.blocks import EffectsBlocks
from ..covariance.parameters import CovarianceStructure, vech_positions
from ..errors import LMMError
from ..kernels.residuals import ScriptedObjective
from ..support.types import Array

if TYPE_CHECKING:
    from .protocol import Engine, LinearEngine
    from .residual.criterion import StructuredCriterion

__all__ = ["RestrictedCriterion", "RestrictedLinear", "RestrictedStructured"]


EPS = float(np.finfo(float).eps)

UNIDENTIFIED = 1e-9
"""Smallest eigenvalue of products of changes of V, scaled to length 1, below which one is a combination of others."""


class RestrictedCriterion(ScriptedObjective):
    """The profiled criterion in the parameters of restricted covariances.

    Parameters
    ----------
    inner : Engine
        Of the elements of Lambda.
    structure : CovarianceStructure
    blocks : EffectsBlocks
    z_map : (q, q) array
    n : int
        Observations.
    n_phi : int
        Parameters of structured residuals, which follow theta here and there.
    """

    serial = True
    costly = False

    def __init__(
        self,
        inner: Engine,
        structure: CovarianceStructure,
        blocks: EffectsBlocks,
        z_map: Array,
        n: int,
        n_phi: int = 0,
    ) -> None:
        self.inner, self.structure, self.blocks, self.n = inner, structure, blocks, n
        self.basis: Array = np.asarray(np.linalg.inv(z_map), dtype=np.float64)
        self.n_evaluations = 0
        self.prepare(blocks.n_parameters + n_phi)

    def factor(self, theta: Array) -> Array:
        """Lambda of b_o (q, q)."""
        return self.structure.canonical(self.basis @ self.blocks.factor(theta))

    def native(self, x: Array) -> Array:
        """The elements of Lambda, and the parameters of structured residuals."""
        k = self.blocks.n_parameters
        return np.concatenate((self.structure.theta(self.factor(x[:k])), x[k:]))

    def at(self, x: Array, order: int) -> tuple[float, float, Array | None, Array | None]:
        """Value, its rounding error, gradient and Hessian; an infinite value outside the domain."""
        self.n_evaluations += 1
        native = self.native(x)
        if not np.isfinite(native).all():
            return np.inf, 0.0, None, None
        value, _, _ = self.inner.evaluate(native, order)
        noise = 4.0 * EPS * (self.n + abs(value))
        if order == 0 or not np.isfinite(value):
            return value, noise, None, None
        return value, noise, *self.derivatives(x, order)

    @abstractmethod
    def derivatives(self, x: Array, order: int) -> tuple[Array, Array | None]:
        """Gradient and Hessian where the inner engine has just been evaluated."""

    @abstractmethod
    def gram(self, x: Array) -> Array | None:
        """Products of changes of V along the parameters and along its scale; None where they take too long."""

    def refuse_unidentified(self, x: Array, name: str) -> None:
        """Refuse parameters that change V as others do, or as sigma^2 does.

        Parameters
        ----------
        x : (k,) array
            Somewhere inside.
        name : str
            What a message calls the random effects.

        Raises
        ------
        LMMError
        """
        gram = self.gram(x)
        if gram is None:
            return
        size = np.sqrt(np.diag(gram))
        if np.linalg.eigvalsh(gram / size / size[:, None])[0] < UNIDENTIFIED:
            raise LMMError(
                f"the random effects {name}: their variances and correlations cannot be told apart, or not from the "
                "residual variance, as where each effect has one observation in a group; restrict them further, leave "
                "a term out, or give the residuals the structure with residual="
            )


class RestrictedLinear(RestrictedCriterion):
    """The criterion in theta, of residuals without structure."""

    inner: LinearEngine

    def derivatives(self, x: Array, order: int) -> tuple[Array, Array | None]:
        """Gradient and Hessian where the inner engine has just been evaluated."""
        slope = self.inner.solution()[3]
        return self.blocks.chain(x, self.basis, slope, self.inner.curvature() if order == 2 else None)

    def gram(self, x: Array) -> Array:
        """Products of changes of V along the parameters and along its scale: tr(W dV W dV'), for some W."""
        lower, upper = vech_positions(self.structure.q)
        # at G = 0, V is the identity: products of changes of V are sums over groups
        self.inner.evaluate(np.zeros(self.structure.n_parameters), 2)
        directions = self.blocks.directions(x, self.basis)
        whole = self.inner.precision()[lower, upper] * np.where(lower == upper, 1.0, 2.0)
        return bordered(directions @ self.inner.traces() @ directions.T, directions @ whole, self.n)


class RestrictedStructured(RestrictedCriterion):
    """The profiled criterion in (theta, phi), with structured residuals; `inner` is a `StructuredCriterion`."""

    inner: StructuredCriterion

    def turn(self, x: Array) -> Array:
        """Derivatives of x along: rows for its elements, columns for the directions of the inner engine."""
        k = self.blocks.n_parameters
        of_g = self.blocks.directions(x[:k], self.basis)[:, self.inner.unit_places]
        out = np.zeros((len(x), of_g.shape[1] + len(x) - k))
        out[:k, : of_g.shape[1]] = of_g
        out[k:, of_g.shape[1] :] = np.eye(len(x) - k)
        return out

    def derivatives(self, x: Array, order: int) -> tuple[Array, Array | None]:
        """Gradient and Hessian where the inner engine has just been evaluated."""
        turn, k = self.turn(x), self.blocks.n_parameters
        gradient = turn @ self.inner.first_directions()
        if order < 2:
            return gradient, None
        hessian = turn @ self.inner.second_directions() @ turn.T
        slope = self.basis.T @ self.inner.slope_in_g() @ self.basis
        hessian[:k, :k] += self.blocks.second(x[:k], slope)
        return gradient, hessian

    def gram(self, x: Array) -> Array | None:
        """Products of changes of V along the parameters and along its scale."""
        native = self.native(x)
        inner = self.inner.in_full(native)
        if inner is None:
            return None
        turn = self.turn(x)
        along = turn @ inner.first(native, 0.0, 0.0)
        return bordered(turn @ inner.along(1.0, 0.0, 0.0) @ turn.T, along, self.n)


def bordered(inner: Array, edge: Array, corner: float) -> Array:
    """[[inner, edge], [edge', corner]]."""
    k = len(edge)
    out = np.empty((k + 1, k + 1))
    out[:k, :k] = inner
    out[:k, k] = out[k, :k] = edge
    out[k, k] = corner
    return out
