"""What formulaic remembers of the transforms and levels of a formula, as plain values.

A ModelSpec of formulaic is made of the terms, which the formula tells again, and of two dictionaries: the state of each
transform (the mean of a centred column, the knots of a spline) and the levels of each categorical column.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import LMMError
from ..formula.matrices import completed_state
from ..formula.specification import Numbers
from ..formula.syntax import Side, terms_of
from ..tables.columns import Table
from .values import packed, unpacked

__all__ = ["plain_state", "state_of"]


def plain_state(state: Any, side: Side) -> Any:
    """The states of transforms and levels as JSON has them, None where formulaic took no part."""
    if state is None:
        return None
    what = f"{side.where} of the formula, {side.text!r},"
    levels = {
        factor: (kind.value, {key: value for key, value in encoding.items() if key == "categories"})
        for factor, (kind, encoding) in state.encoder_state.items()
    }
    return {"transforms": packed(dict(state.transform_state), what), "levels": packed(levels, what)}


def state_of(plain: Any, side: Side, reference: Mapping[str, Any] | None = None) -> Any:
    """The ModelSpec of a side, None where formulaic took no part.

    Parameters
    ----------
    plain : object
        From `plain_state`.
    side : Side
    reference : mapping, optional
        Typical values of the columns (`FormulaSpec.reference`), from which the structure of the columns is found again.

    Raises
    ------
    LMMError
        Where no typical values give columns.
    """
    if plain is None:
        return None
    from formulaic import ModelSpec  # type: ignore[import-untyped]
    from formulaic.parser.types import Factor  # type: ignore[import-untyped]

    levels = {
        factor: (Factor.Kind(kind), dict(encoding)) for factor, (kind, encoding) in unpacked(plain["levels"]).items()
    }
    state = ModelSpec(
        formula=terms_of(side.text, side.where, side.where != "the response"),
        na_action="ignore",
        output="numpy",
        transform_state=unpacked(plain["transforms"]),
        encoder_state=levels,
    )
    return state if reference is None else _with_structure(state, side, reference)


def _with_structure(state: Any, side: Side, reference: Mapping[str, Any]) -> Any:
    failure: LMMError | None = None
    for key in ("mean", "low", "high"):
        row = {
            name: [getattr(typical, key) if isinstance(typical, Numbers) else typical[0]]
            for name, typical in reference.items()
        }
        try:
            return completed_state(side, Table(row), state)
        except LMMError as error:
            failure = failure or error
    raise failure or LMMError(f"{side.where} of the formula, {side.text!r}, uses no columns")
