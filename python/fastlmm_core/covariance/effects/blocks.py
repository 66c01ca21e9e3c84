"""The random effects of all terms, and the only chain rule from G to theta.

G is block diagonal; theta holds the parameters of the blocks one after the other. An engine works on effects in other
coordinates, with covariance B G B'; from the derivatives of its criterion there

    df / dtheta_a = <B'SB, G_a>,    d2f / dtheta_a dtheta_b = D_a'K D_b + <B'SB, G_ab>

with S the slope as a symmetric matrix, K the second derivatives along the unit directions of B G B', and D_a the
elements of B G_a B' in the lower triangle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..parameters import vech_positions
from .structure import Array, EffectsStructure

__all__ = ["EffectsBlocks"]


@dataclass(frozen=True)
class EffectsBlocks:
    """The structures of the terms, side by side.

    Parameters
    ----------
    parts : tuple of EffectsStructure
    """

    parts: tuple[EffectsStructure, ...]

    @cached_property
    def q(self) -> int:
        """Random effects of all terms."""
        return sum(part.q for part in self.parts)

    @cached_property
    def n_parameters(self) -> int:
        """Parameters of all terms."""
        return sum(part.n_parameters for part in self.parts)

    @cached_property
    def spans(self) -> tuple[tuple[slice, slice], ...]:
        """Effects and parameters of each term."""
        out, i, j = [], 0, 0
        for part in self.parts:
            out.append((slice(i, i + part.q), slice(j, j + part.n_parameters)))
            i, j = i + part.q, j + part.n_parameters
        return tuple(out)

    def factor(self, theta: Array) -> Array:
        """Some L (q, q) with G = L L'."""
        L = np.zeros((self.q, self.q))
        for part, (effects, own) in zip(self.parts, self.spans, strict=True):
            L[effects, effects] = part.factor(theta[own])
        return L

    def matrix(self, theta: Array) -> Array:
        """G (q, q)."""
        G = np.zeros((self.q, self.q))
        for part, (effects, own) in zip(self.parts, self.spans, strict=True):
            G[effects, effects] = part.matrix(theta[own])
        return G

    def jacobian(self, theta: Array) -> Array:
        """dG / dtheta (k, q, q)."""
        out = np.zeros((self.n_parameters, self.q, self.q))
        for part, (effects, own) in zip(self.parts, self.spans, strict=True):
            out[own, effects, effects] = part.jacobian(theta[own])
        return out

    def second(self, theta: Array, slope: Array) -> Array:
        """Sums of slope times second derivatives (k, k)."""
        out = np.zeros((self.n_parameters, self.n_parameters))
        for part, (effects, own) in zip(self.parts, self.spans, strict=True):
            out[own, own] = part.second(theta[own], slope[effects, effects])
        return out

    def directions(self, theta: Array, basis: Array) -> Array:
        """Changes of B G B' along theta, as elements of the lower triangle by rows (k, q (q + 1) / 2)."""
        lower, upper = vech_positions(self.q)
        return np.asarray((basis @ self.jacobian(theta) @ basis.T)[:, lower, upper])

    def chain(self, theta: Array, basis: Array, slope: Array, curvature: Array | None) -> tuple[Array, Array | None]:
        """Gradient and Hessian in theta from derivatives along B G B'.

        Parameters
        ----------
        theta : (k,) array
        basis : (q, q) array
            B.
        slope : (q, q) array
            Derivative of the criterion in B G B' as a symmetric matrix.
        curvature : (n_a, n_a) array or None
            Second derivatives along the symmetric unit directions of B G B', lower triangle by rows.
        """
        inner = basis.T @ slope @ basis
        gradient = (self.jacobian(theta) * inner).sum(axis=(1, 2))
        if curvature is None:
            return gradient, None
        directions = self.directions(theta, basis)
        return gradient, directions @ curvature @ directions.T + self.second(theta, inner)

    def bend(self, theta: Array, joint: Array) -> Array:
        """Sum over natural parameters of their covariance times second derivatives of G in them (q, q).

        Parameters
        ----------
        theta : (k,) array
        joint : (k + 1, k + 1) array
            Covariance of theta and log sigma^2.
        """
        out = np.zeros((self.q, self.q))
        for part, (effects, own) in zip(self.parts, self.spans, strict=True):
            places = [*range(own.start, own.stop), len(theta)]
            slopes = part.natural_jacobian(theta[own], 1.0)
            out[effects, effects] = part.bend(theta[own], slopes @ joint[np.ix_(places, places)] @ slopes.T)
        return out

    def nearest(self, G: Array) -> Array:
        """Theta near to a positive semidefinite matrix (q, q)."""
        return np.concatenate(
            [part.nearest(G[effects, effects]) for part, (effects, _) in zip(self.parts, self.spans, strict=True)]
        )

    def boundaries(self, theta: Array, effects: Sequence[str], terms: Sequence[str]) -> tuple[str, ...]:
        """What has run into its limit, of each term."""
        found = (
            part.boundary(theta[own], effects[span], term)
            for part, (span, own), term in zip(self.parts, self.spans, terms, strict=True)
        )
        return tuple(limit for limit in found if limit is not None)
