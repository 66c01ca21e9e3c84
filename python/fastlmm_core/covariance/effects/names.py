"""What structures of random effects are called in formulas, with lme4's defaults for `hom`."""

from __future__ import annotations

from ...errors import LMMError

__all__ = ["EFFECTS", "named"]

EFFECTS = ("us", "diag", "cs", "csh", "ar1", "ar1h", "ad", "adh", "toep", "toeph", "arma", "fa0")
"""The names of all structures of random effects."""

_EQUAL = {"diag": "id", "cs": "cs", "ar1": "ar1"}
_OWN = {"diag": "diag", "cs": "csh", "ar1": "ar1h"}
_HOMOGENEOUS = {"diag": False, "cs": False, "ar1": True}
"""Whether all effects have one variance, unless `hom` says otherwise: as lme4 2 has it."""


def named(name: str, q: int | None = None, *, hom: bool | None = None, rank: int | None = None) -> str:
    """The name of the structure of a block: "full" and "diagonal" where nothing is restricted, e.g. "csh", "fa0(2)".

    Parameters
    ----------
    name : str
        As in a formula: `us`, `diag`, `cs`, `ar1`, ...
    q : int, optional
        Number of random effects, where it is known.
    hom : bool, optional
        For `diag`, `cs` and `ar1`: one variance for all effects. By default as in lme4: `ar1` only.
    rank : int, optional
        Of `fa0`; 1 by default.

    Raises
    ------
    LMMError
        For an unknown name, `hom` where it is not taken, or a rank that is not.
    """
    if name not in EFFECTS:
        raise LMMError(f"there is no structure {name!r} of random effects; known are {', '.join(EFFECTS)}.")
    if hom is not None and name not in _HOMOGENEOUS:
        raise LMMError(f"{name}() takes no hom=; {', '.join(_HOMOGENEOUS)} do.")
    if rank is not None and name != "fa0":
        raise LMMError(f"{name}() takes no rank; fa0 does.")
    if name == "fa0":
        chosen = 1 if rank is None else rank
        if chosen < 1 or (q is not None and chosen > q):
            most = "their number" if q is None else str(q)
            raise LMMError(f"fa0() takes a rank from 1 to {most} for its random effects, not {chosen}.")
        return f"fa0({chosen})"
    if name in _HOMOGENEOUS:
        equal = _HOMOGENEOUS[name] if hom is None else hom
        name = (_EQUAL if equal else _OWN)[name]
    return {"us": "full", "diag": "diagonal"}.get(name, name)
