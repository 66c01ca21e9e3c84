"""The parameters of structured residuals in the units that are reported, with standard errors."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..design.residual import ResidualPart
from ..errors import LMMError
from ..estimation.fit import Fit
from ..estimation.information import moments
from ..estimation.statements import residual_names
from ..estimation.structured_moments import joint_covariance
from ..support.types import Array

__all__ = ["ResidualParameters", "kind_of", "residual_covariance", "residual_parameters", "residual_parameters_table"]


KINDS = {"var": "var", "sigma2": "var", "sd": "sd", "rho": "cor", "cov": "cov", "range": "range"}
"""Beginnings of the names of parameters of structures, and their kinds."""

AT_LIMIT, UNTOLD = 1e-4, 1e-12
"""Standard error, relative to a variance or to a correlation of 1, that is none: on the boundary, and elsewhere."""


class ResidualParameters(NamedTuple):
    """Natural parameters of all strata.

    Attributes
    ----------
    names : tuple of str
    estimate, std_error : (k,) arrays
        By the delta method from the observed information; NaN for what lies at its limit, or what no rows tell.
    """

    names: tuple[str, ...]
    estimate: Array
    std_error: Array


def kind_of(name: str) -> str:
    """What a parameter of a structure is, by its name: "var", "sd", "cor", "cov", "range" or "other"."""
    return next((kind for start, kind in KINDS.items() if name.startswith(start)), "other")


def part_of(result: Fit) -> ResidualPart:
    """The residual part of a model.

    Raises
    ------
    LMMError
        Where residuals are independent.
    """
    part = result.model.residual
    if part is None:
        raise LMMError(
            "the residuals of this model are independent, with variance sigma2; give residual= for a structure"
        )
    return part


def residual_parameters(result: Fit) -> ResidualParameters:
    """Natural parameters of a residual structure: those of SAS."""
    part = part_of(result)
    k = part.n_parameters
    if result.stated is not None:
        known = part.natural(result.phi, result.sigma2)
        return ResidualParameters(residual_names(part), known, np.full(len(known), np.nan))
    found = moments(result, "satterthwaite")
    joint = joint_covariance(found)[-k - 1 :, -k - 1 :]
    estimates: list[Array] = []
    errors: list[Array] = []
    for own in part.strata:
        scale, inner = own.own(result.phi)
        variance = scale * result.sigma2
        jacobian = own.structure.natural_jacobian(inner, variance) @ own.to_own(k, variance)
        estimates.append(own.structure.natural(inner, variance))
        errors.append(np.sqrt(np.maximum(np.einsum("ia,ab,ib->i", jacobian, joint, jacobian), 0.0)))
    names, estimate, error = residual_names(part), np.concatenate(estimates), np.concatenate(errors)
    size = np.where([name.startswith("rho") for name in names], 1.0, np.abs(estimate))
    # at its limit a parameter does not move with phi, and no more where no rows tell it
    still = error <= (AT_LIMIT if part.boundaries(result.phi) else UNTOLD) * size
    return ResidualParameters(names, estimate, np.where(still, np.nan, error))


def residual_parameters_table(result: Fit) -> Any:
    """See `LMMResult.residual_parameters`."""
    found = residual_parameters(result)
    columns = {"term": list(found.names), "estimate": found.estimate}
    if result.stated is None:
        columns["std_error"] = found.std_error
    return result.model.table(columns)


def residual_covariance(result: Fit) -> Any:
    """See `LMMResult.residual_covariance`."""
    part = part_of(result)
    if not part.at_visits:
        raise LMMError(
            f"residual={part.term!r} has coordinates, not visits: marginal_covariance(subject) has the covariance "
            "of a subject's rows"
        )
    out = {}
    for own in part.strata:
        places = np.arange(len(part.labels))
        matrix = result.sigma2 * own.matrix(result.phi, places)
        out[own.label] = _labelled(result, matrix, part.labels)
    return out if part.by else out[""]


def _labelled(result: Fit, matrix: Array, labels: tuple[str, ...]) -> Any:
    if result.model.library != "pandas":
        return matrix
    import pandas as pd

    return pd.DataFrame(matrix, index=list(labels), columns=list(labels))
