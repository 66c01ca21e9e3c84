"""The large arrays of a model that are the caller's until they are read again.

A model reads its rows once, into cross-products; residuals, refits and diagnostics read them again later.  Small arrays
were copied when the model was made; large ones were sealed, and are copied when they are first read again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import LMMError
from ..support.seals import SMALL, constant, seal
from ..support.types import Array
from .design import Design
from .terms import RandomPart

__all__ = ["Seals", "exchanged", "sealed", "sealed_rows", "seals_of"]


class Seals:
    """The sealed arrays of a design and its response, until they are read again."""

    def __init__(self, named: list[tuple[str, NDArray[Any]]]) -> None:
        self._sealed = [(name, values, seal(values)) for name, values in named]

    @property
    def names(self) -> tuple[str, ...]:
        """The arguments that they are."""
        return tuple(name for name, _, _ in self._sealed)

    def broken(self) -> tuple[str, ...]:
        """The arguments of which the seal tells that they have been changed."""
        return tuple(name for name, values, sums in self._sealed if not all(map(np.array_equal, seal(values), sums)))

    def refuse(self, fitted: str) -> None:
        """Refuse arrays that have been changed since they were fitted.

        Parameters
        ----------
        fitted : str
            The function that fitted them.

        Raises
        ------
        LMMError
            Naming the first of them.
        """
        changed = self.broken()
        if changed:
            raise LMMError(
                f"{changed[0]} has been changed since it was fitted, and is needed again; fit it again, or give "
                f"{fitted} a copy that stays, e.g. {changed[0].partition('[')[0]}.copy()"
            )

    def copies(self) -> dict[int, NDArray[Any]]:
        """A copy of each array, by the identity of the original."""
        return {id(values): values.copy(order="K") for _, values, _ in self._sealed}


def seals_of(design: Design | None, y: Array | None) -> Seals | None:
    """Seals of the large arrays of a design and a response, None where there are none that anybody could change.

    Parameters
    ----------
    design : Design or None
        None for one whose arrays are sealed already, or nobody's.
    y : (n,) array or None
    """
    if design is None:
        if y is None or y.nbytes <= SMALL or constant(y):
            return None
        return Seals([("y", y)])
    exog = design.exog
    if len(exog) <= SMALL // 8 and exog.nbytes <= SMALL:
        for part in design.random.parts:
            if part.nbytes > SMALL:
                break
        else:
            return None
    named = {
        id(values): (name, values)
        for name, values in _arrays(design, y)
        if values is not None and values.nbytes > SMALL and not constant(values)
    }
    return Seals(list(named.values())) if named else None


def sealed(named: Iterable[tuple[str, NDArray[Any] | None]]) -> Seals | None:
    """Seals of arrays of any size that somebody could change; None where there are none."""
    own = [(name, v) for name, v in named if v is not None and v.size and not constant(v)]
    return Seals(own) if own else None


def sealed_rows(design: Design, y: Array) -> Seals | None:
    """Seals of a design and a response, whatever their size."""
    return sealed(_arrays(design, y))


def exchanged(design: Design, y: Array | None, copies: dict[int, NDArray[Any]]) -> tuple[Design, Array | None]:
    """The design and the response with copies, given by the identity of the original, in the place of arrays."""

    def own(values: Any) -> Any:
        return copies.get(id(values), values)

    part = design.random
    parts = tuple(own(values) for values in part.parts)
    if _joined(part):  # the columns of all terms side by side were made of them at once
        ends = np.cumsum([values.shape[1] for values in parts])[:-1]
        parts = tuple(np.split(part.Z, ends, axis=1))
    codes = tuple(replace(read, codes=own(read.codes)) for read in part.codes)
    groupings = design.groupings
    if groupings is not None:
        groupings = tuple(type(g)(read, g.present) for g, read in zip(groupings, codes, strict=True))
    found = replace(
        design,
        exog=own(design.exog),
        random=replace(part, parts=parts, codes=codes),
        weights=own(design.weights),
        offset=own(design.offset),
        groupings=groupings,
    )
    return found, own(y)


def _arrays(design: Design, y: Array | None) -> list[tuple[str, NDArray[Any] | None]]:
    """What a caller may hold too, by the name of the argument."""
    part = design.random
    several = len(part.parts) > 1
    terms = [f"terms[{i}].Z" if several else "Z" for i in part.order]
    parts = [None if _joined(part) else values for values in part.parts]
    groups = [f"groups of {read.name}" if several else "groups" for read in part.codes]
    return [
        ("y", y), ("X", design.exog), *zip(terms, parts, strict=False),
        *((name, read.codes) for name, read in zip(groups, part.codes, strict=True)),
        ("weights", design.weights), ("offset", design.offset),
    ]  # fmt: skip


def _joined(part: RandomPart) -> bool:
    """Whether the columns of several terms have been copied side by side."""
    return len(part.parts) > 1 and "Z" in part.__dict__
