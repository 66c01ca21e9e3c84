"""Derivatives of R in the natural parameters: the chain rule from phi and sigma^2.

With omega = (phi, sigma^2), J = dpsi / domega and R = sigma^2 R~(phi):

    dR / dpsi = J^-T dR / domega
    sum_ab w_ab d2R / dpsi_a dpsi_b = sum_cd u_cd d2R / domega_c domega_d - sum_c dR / dpsi_c tr(u psi_c''),
    u = J^-1 w J^-T
"""

from __future__ import annotations

import numpy as np

from .structure import Array, ResidualStructure, Where

__all__ = ["natural_jacobian", "natural_second_sum"]


def _in_omega(structure: ResidualStructure, phi: Array, sigma2: float, where: Where) -> Array:
    return np.concatenate((sigma2 * structure.jacobian(phi, where), structure.matrix(phi, where)[None]))


def natural_jacobian(structure: ResidualStructure, phi: Array, sigma2: float, where: Where) -> Array:
    """dR / dpsi (k + 1, n, n)."""
    found = _in_omega(structure, phi, sigma2, where)
    inverse = np.linalg.inv(structure.natural_jacobian(phi, sigma2))
    return np.tensordot(inverse.T, found, 1)


def natural_second_sum(structure: ResidualStructure, phi: Array, sigma2: float, where: Where, weights: Array) -> Array:
    """Sum over a, b of weights_ab d2R / dpsi_a dpsi_b (n, n), for symmetric weights (k + 1, k + 1)."""
    k = structure.n_parameters
    inverse = np.linalg.inv(structure.natural_jacobian(phi, sigma2))
    u = inverse @ weights @ inverse.T
    jacobian = structure.jacobian(phi, where)
    out = sigma2 * structure.second_sum(phi, where, u[:k, :k]) + 2.0 * np.tensordot(u[:k, k], jacobian, 1)
    first = natural_jacobian(structure, phi, sigma2, where)
    units = np.eye(k + 1)
    bend = np.array([np.vdot(u, structure.natural_second(phi, sigma2, unit)) for unit in units])
    return out - np.tensordot(bend, first, 1)
