"""The criterion where the covariance of random effects is restricted: any engine, as a function of fewer parameters.

G(theta) is that of the blocks of `covariance.effects`; the engine works on effects b_o with b = z_map b_o, whose
covariance relative to sigma^2 is B G B', B = z_map^-1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..covariance.effects.blocks import EffectsBlocks
from ..covariance.parameters import CovarianceStructure, vech_positions
from ..errors import LMMError
from ..kernels.residuals import ScriptedObjective

if TYPE_CHECKING:
    from .protocol import Engine

__all__ = ["RestrictedCriterion"]

Array = NDArray[np.float64]

EPS = float(np.finfo(float).eps)

UNIDENTIFIED = 1e-9
"""Smallest eigenvalue of products of changes of V, scaled to length 1, below which one is a combination of others."""


class RestrictedCriterion(ScriptedObjective):
    """The profiled criterion in theta.

    Parameters
    ----------
    inner : Engine
        Of the elements of Lambda.
    structure : CovarianceStructure
    blocks : EffectsBlocks
    z_map : (q, q) array
    n : int
        Observations.
    """

    serial = True
    costly = False

    def __init__(
        self, inner: Engine, structure: CovarianceStructure, blocks: EffectsBlocks, z_map: Array, n: int
    ) -> None:
        self.inner, self.structure, self.blocks, self.n = inner, structure, blocks, n
        self.basis: Array = np.asarray(np.linalg.inv(z_map), dtype=np.float64)
        self.n_evaluations = 0
        self.prepare(blocks.n_parameters)

    def factor(self, theta: Array) -> Array:
        """Lambda of b_o (q, q)."""
        return self.structure.canonical(self.basis @ self.blocks.factor(theta))

    def at(self, x: Array, order: int) -> tuple[float, float, Array | None, Array | None]:
        """Value, its rounding error, gradient and Hessian; an infinite value outside the domain."""
        self.n_evaluations += 1
        factor = self.factor(x)
        if not np.isfinite(factor).all():
            return np.inf, 0.0, None, None
        value, _, _ = self.inner.evaluate(self.structure.theta(factor), order)
        noise = 4.0 * EPS * (self.n + abs(value))
        if order == 0 or not np.isfinite(value):
            return value, noise, None, None
        slope = self.inner.solution()[3]
        curvature = self.inner.curvature() if order == 2 else None
        return value, noise, *self.blocks.chain(x, self.basis, slope, curvature)

    def refuse_unidentified(self, theta: Array, name: str) -> None:
        """Refuse parameters that change V as others do, or as sigma^2 does.

        Parameters
        ----------
        theta : (k,) array
            Somewhere inside.
        name : str
            What a message calls the random effects.

        Raises
        ------
        LMMError
        """
        lower, upper = vech_positions(self.structure.q)
        # at G = 0, V is the identity: products of changes of V are sums over groups
        self.inner.evaluate(np.zeros(self.structure.n_parameters), 2)
        directions = self.blocks.directions(theta, self.basis)
        whole = self.inner.precision()[lower, upper] * np.where(lower == upper, 1.0, 2.0)
        k = len(directions)
        gram = np.empty((k + 1, k + 1))
        gram[:k, :k] = directions @ self.inner.traces() @ directions.T
        gram[:k, k] = gram[k, :k] = directions @ whole
        gram[k, k] = self.n
        size = np.sqrt(np.diag(gram))
        if np.linalg.eigvalsh(gram / size / size[:, None])[0] < UNIDENTIFIED:
            raise LMMError(
                f"the random effects {name}: their variances and correlations cannot be told apart, or not from the "
                "residual variance, as where each effect has one observation in a group; restrict them further, leave "
                "a term out, or give the residuals the structure with residual="
            )
