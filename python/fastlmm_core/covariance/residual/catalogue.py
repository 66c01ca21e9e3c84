"""All residual structures by the names that users write.

A new structure is a file with a class, and a line here.
"""

from __future__ import annotations

from collections.abc import Callable

from ...errors import LMMError
from .antedependence import AnteDependence
from .autoregressive import Autoregressive
from .compound_symmetry import CompoundSymmetry
from .correlation import Correlation
from .deviations import Common, OfPositions
from .independent import Independent
from .scaled import Scaled
from .structure import ResidualStructure
from .toeplitz import Toeplitz
from .unstructured import Unstructured

__all__ = ["of_positions", "position_names"]

_CORRELATIONS: dict[str, Callable[[int], Correlation]] = {
    "id": Independent,
    "cs": CompoundSymmetry,
    "ar1": Autoregressive,
    "ad": AnteDependence,
    "toep": Toeplitz,
}
_HETEROGENEOUS = {"diag": "id", "csh": "cs", "ar1h": "ar1", "adh": "ad", "toeph": "toep"}


def position_names() -> tuple[str, ...]:
    """The names of all structures over positions."""
    return ("us", *_CORRELATIONS, *_HETEROGENEOUS)


def of_positions(name: str, m: int) -> ResidualStructure:
    """The structure of a name over m positions.

    Raises
    ------
    LMMError
        For an unknown name, or for one position where there is nothing to correlate.
    """
    if name not in position_names():
        raise LMMError(f"residual: there is no structure {name!r}; known are {', '.join(position_names())}.")
    if m < 2 and name not in ("id", "diag", "us"):
        raise LMMError(f"residual: {name} needs two visits or more, and there is {m}.")
    if name == "us":
        return Unstructured(m)
    if name in _HETEROGENEOUS:
        return Scaled(name, OfPositions(m), _CORRELATIONS[_HETEROGENEOUS[name]](m))
    return Scaled(name, Common(), _CORRELATIONS[name](m))
