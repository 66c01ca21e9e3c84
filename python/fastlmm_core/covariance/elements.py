"""The free elements of the random effects' covariance, with one scheme of names and one order for all tables.

The order is that of theta, as in lme4: term by term, the lower triangle by columns; the residual comes last.  With the
effects x and y of the term g the names are

    ``sd_x|g``, ``cor_x.y|g``, ``sd_y|g``, ..., ``sigma``      standard deviations and correlations,
    ``var_x|g``, ``cov_x.y|g``, ``var_y|g``, ..., ``sigma2``   variances and covariances,
    ``theta_x|g``, ``theta_x.y|g``, ``theta_y|g``              elements of the relative factor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from ..support.types import Array
from .parameters import CovarianceStructure

__all__ = ["Element", "Scale", "element_names", "elements", "sd_and_cor"]

Scale = Literal["sd", "var", "theta"]

_KINDS: dict[Scale, tuple[str, str]] = {"sd": ("sd", "cor"), "var": ("var", "cov"), "theta": ("theta", "theta")}
_RESIDUAL: dict[Scale, tuple[str, ...]] = {"sd": ("sigma",), "var": ("sigma2",), "theta": ()}


class Element(NamedTuple):
    """A free element of the covariance matrix of the random effects.

    Attributes
    ----------
    term : str
    i, j : int
        The random effects, i <= j.
    label : str
        ``x`` for a variance, ``x.y`` for a covariance.
    """

    term: str
    i: int
    j: int
    label: str

    def kind(self, scale: Scale) -> str:
        """What it is: "sd" or "cor", "var" or "cov", "theta"."""
        return _KINDS[scale][self.i != self.j]

    def name(self, scale: Scale) -> str:
        """Its name in tables, e.g. ``sd_x|g``."""
        return f"{self.kind(scale)}_{self.label}|{self.term}"


def elements(structure: CovarianceStructure, effects: Sequence[str], terms: Sequence[str]) -> tuple[Element, ...]:
    """The elements in the order of theta.

    Parameters
    ----------
    structure : CovarianceStructure
    effects : sequence of str
        Names of the q random effects.
    terms : sequence of str
        Names of the terms, one for each block.
    """
    owner = [
        term
        for term, block in zip(terms, structure.blocks, strict=True)
        for _ in range(block.start, block.stop)
    ]  # fmt: skip
    rows, columns = structure.positions
    return tuple(
        Element(owner[i], i, j, effects[i] if i == j else f"{effects[i]}.{effects[j]}")
        for i, j in zip(columns.tolist(), rows.tolist(), strict=True)
    )


def element_names(found: Sequence[Element], scale: Scale = "sd") -> tuple[str, ...]:
    """Names of elements on one scale, and of the residual's variance parameter where the scale has one."""
    return (*(element.name(scale) for element in found), *_RESIDUAL[scale])


def sd_and_cor(found: Sequence[Element], covariance: Array) -> Array:
    """Standard deviations and correlations (n, k) from covariance matrices (n, q, q).

    A correlation is NaN where an effect does not vary.
    """
    out = np.empty((len(covariance), len(found)))
    sd = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
    with np.errstate(invalid="ignore", divide="ignore"):
        for k, (_, i, j, _) in enumerate(found):
            out[:, k] = sd[:, i] if i == j else np.clip(covariance[:, i, j] / (sd[:, i] * sd[:, j]), -1.0, 1.0)
    return out
