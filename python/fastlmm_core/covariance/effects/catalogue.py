"""Structures of random effects by the names that users write, with lme4's defaults for `hom`."""

from __future__ import annotations

from ...errors import LMMError
from ..residual.catalogue import of_positions, position_names
from .reduced_rank import ReducedRank
from .relative import Relative
from .structure import EffectsStructure

__all__ = ["effects_names", "of_effects"]

_EQUAL = {"diag": "id", "cs": "cs", "ar1": "ar1"}
_OWN = {"diag": "diag", "cs": "csh", "ar1": "ar1h"}
_HOMOGENEOUS = {"diag": False, "cs": False, "ar1": True}
"""Whether all effects have one variance, unless `hom` says otherwise: as lme4 2 has it."""


def effects_names() -> tuple[str, ...]:
    """The names of all structures of random effects."""
    return (*position_names(), "fa0")


def of_effects(name: str, q: int, *, hom: bool | None = None, rank: int | None = None) -> EffectsStructure:
    """The structure of a name for q random effects.

    Parameters
    ----------
    name : str
    q : int
    hom : bool, optional
        For `diag`, `cs` and `ar1`: one variance for all effects. By default as in lme4: `ar1` only.
    rank : int, optional
        Of `fa0`; 1 by default.

    Raises
    ------
    LMMError
        For an unknown name, `hom` or a rank that it does not take, or effects too few.
    """
    if hom is not None and name not in _HOMOGENEOUS:
        raise LMMError(f"{name}() takes no hom=; {', '.join(_HOMOGENEOUS)} do.")
    if name == "fa0":
        chosen = 1 if rank is None else rank
        if not 1 <= chosen <= q:
            raise LMMError(f"fa0() of {q} random effects takes a rank from 1 to {q}, not {chosen}.")
        return ReducedRank(q, chosen)
    if rank is not None:
        raise LMMError(f"{name}() takes no rank; fa0 does.")
    if name in _HOMOGENEOUS:
        equal = _HOMOGENEOUS[name] if hom is None else hom
        name = (_EQUAL if equal else _OWN)[name]
    return Relative(of_positions(name, q))
