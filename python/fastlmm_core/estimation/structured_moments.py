"""Small-sample information where the residuals have a structure: V is not linear in its parameters.

As in `information`, but along the parameters phi of the structure instead of elements of G^.  For Kenward and Roger
(1997, Biometrics 53, 983-997, eq. 3) the second derivatives of V enter,

    Phi_A = Phi + 2 Phi [ sum_ab W_ab (Q_ab - P_a Phi P_b - R_ab / 4) ] Phi,     R_ab = X'V^-1 d2V_ab V^-1 X,

with W the covariance of the parameters.  All but R is the same in any parametrisation; R is taken in the natural
parameters psi of the structure (those that SAS has), to which (phi, log sigma^2) lead.  "kenward-roger-linear" is
without R.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..covariance.residual.natural import natural_second_sum
from ..support.types import Array
from .moments import Moments, adjusted, expected_information, inverse_information

if TYPE_CHECKING:
    from ..engines.residual.criterion import StructuredCriterion
    from .fit import Fit

__all__ = ["joint_covariance", "structured_moments"]


def structured_moments(result: Fit, ddf: str, information: str) -> Moments:
    """The moments for "satterthwaite", "kenward-roger" or "kenward-roger-linear".

    Parameters
    ----------
    result : Fit
    ddf : str
    information : {"observed", "expected"}
        For Kenward-Roger.
    """
    from ..engines.residual.criterion import structured_engine

    engine = structured_engine(result.engine)
    r2 = engine.r2
    nu = float(result.nu)
    half = np.ascontiguousarray(engine.half)
    cross = engine.cross_products()
    slopes = np.ascontiguousarray(cross[:, :-1, :-1])
    shift = np.ascontiguousarray(cross[:, -1, -1] / r2)
    limits = result.singular_components
    restricted = result.optimum.restricted is not None
    turn = engine.directions(result.optimum.theta)
    if restricted:
        from .restricted import structured_turn

        turn = structured_turn(result.model, result.optimum, engine)
    if ddf == "satterthwaite" or information == "observed":
        # the Hessian in (theta, phi) has no curvature along what does not change V
        inner = inverse_information(result.optimum.hessian) if len(turn) else np.zeros((0, 0))
        inverse = turn.T @ inner @ turn
    else:
        shift = shift + engine.first_directions() / nu
        full = expected_information(engine.expected(), slopes, shift, nu)
        if restricted:
            inverse = turn.T @ inverse_information(turn @ full @ turn.T) @ turn
        else:
            inverse = inverse_information(full) if len(shift) else np.zeros((0, 0))
    found = Moments(half, slopes, shift, inverse, nu, None, limits)
    if ddf == "satterthwaite":
        return found
    found = adjusted(found, engine.sandwich_along)
    if ddf == "kenward-roger" and len(result.phi):
        assert found.adjustment is not None
        bend = 0.25 * _bend(result, engine, 2.0 * inverse, shift, nu)
        found = found._replace(adjustment=found.adjustment - bend - bend.T)
    if ddf == "kenward-roger" and restricted:
        assert found.adjustment is not None
        along = _bend_of_g(result, engine, joint_covariance(found))
        found = found._replace(adjustment=found.adjustment - 0.5 * np.tensordot(along, slopes[: len(along)], 1))
    return found


def _bend(result: Fit, engine: StructuredCriterion, twice: Array, shift: Array, nu: float) -> Array:
    """Sum over natural parameters of W_ab R_ab, in whitened coordinates (r, r)."""
    part = result.model.residual
    assert part is not None
    k = part.n_parameters
    joint = _joint(twice, shift, nu)[-k - 1 :, -k - 1 :]
    tables = []
    for stratum, places in engine.places:
        own = part.strata[stratum]
        scale, inner = own.own(result.phi)
        to_natural = own.structure.natural_jacobian(inner, scale) @ own.to_own(k, scale)
        weights = to_natural @ joint @ to_natural.T
        tables.append(natural_second_sum(own.structure, inner, scale, places, weights))
    return engine.within(tables)


def _bend_of_g(result: Fit, engine: StructuredCriterion, joint: Array) -> Array:
    """Sum over natural parameters of random effects of W_ab d2G / dpsi_a dpsi_b, along the directions of G."""
    from .restricted import bend

    units, q = engine.unit_places, result.model.structure.q
    n_a = q * (q + 1) // 2
    places = np.append(units, n_a)
    own = np.append(np.arange(len(units)), len(joint) - 1)
    wide = np.zeros((n_a + 1, n_a + 1))
    wide[np.ix_(places, places)] = joint[np.ix_(own, own)]
    return bend(result.model, result.optimum, wide)[units]


def joint_covariance(found: Moments) -> Array:
    """Covariance of (G, phi, log sigma^2), from moments of a fit with structured residuals (n_d + 1, n_d + 1)."""
    return _joint(2.0 * found.inverse, found.shift, float(found.nu))


def _joint(twice: Array, shift: Array, nu: float) -> Array:
    """[[2B, -2B d], [., 2 / nu + d'2B d]] with d the shift of `Moments`."""
    k = len(shift)
    crossed = -twice @ shift
    joint = np.empty((k + 1, k + 1))
    joint[:k, :k] = twice
    joint[:k, k] = joint[k, :k] = crossed
    joint[k, k] = 2.0 / nu - shift @ crossed
    return joint
