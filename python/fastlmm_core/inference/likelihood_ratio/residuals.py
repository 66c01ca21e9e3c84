"""Is the residual structure of one model part of that of another?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ...covariance.residual.catalogue import position_names
from ...design.residual import ResidualPart

if TYPE_CHECKING:
    from ...estimation.model import Model

__all__ = ["parameters_added"]

PARTS: dict[str, tuple[str, ...]] = {
    "us": position_names(),
    "toeph": ("id", "diag", "cs", "csh", "ar1", "ar1h", "toep", "arma"),
    "toep": ("id", "cs", "ar1", "arma"),
    "adh": ("id", "diag", "ad", "ar1", "ar1h"),
    "ad": ("id", "ar1"),
    "ar1h": ("id", "diag", "ar1"),
    "csh": ("id", "diag", "cs"),
    "ar1": ("id",),
    "cs": ("id",),
    "arma": ("ar1",),
    "diag": ("id",),
}
"""What each structure over visits has as members, inside: a likelihood ratio has its chi-square distribution."""


def parameters_added(small: Model | None, large: Model) -> int | str:
    """How many parameters the residuals of the larger model have more, or in words why nothing can be said.

    Parameters
    ----------
    small : Model or None
        None for the linear model.
    large : Model
    """
    one = None if small is None else small.design.residual
    other = large.design.residual
    if one is None and other is None:
        return 0
    if other is None:
        if one is not None and one.name == "id" and not one.n_parameters:
            return 0  # an ordinary regression
        return "its residuals have a structure, and those of the larger are independent"
    known = PARTS.get(other.name, ())
    if one is None:
        if "id" in known and large.weights is None:
            return other.n_parameters
        return f"independent residuals are not inside {other.term}"
    if not _same_rows(one, other):
        return "the residual structures have other subjects or visits"
    if one.by and one.by != other.by:
        return f"its residuals have parameters by {one.by}, and those of the larger have not"
    if one.name != other.name and one.name not in known:
        return f"nothing tells whether {one.term} is part of {other.term}"
    return other.n_parameters - one.n_parameters


def _same_rows(one: ResidualPart, other: ResidualPart) -> bool:
    """Whether rows have the same places, and the same subjects whatever their codes."""
    if not np.array_equal(one.where, other.where):
        return False
    first, second = np.asarray(one.subject.codes), np.asarray(other.subject.codes)
    if one.subject.n_slots != other.subject.n_slots:
        return False
    partner = np.empty(one.subject.n_slots, dtype=np.intp)
    partner[first] = second
    return np.array_equal(partner[first], second)
