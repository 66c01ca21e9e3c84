"""What restricted covariances of random effects add to those of a smaller model, term by term."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ...covariance.effects.catalogue import of_effects_block
from ...covariance.parameters import Block
from ...design.grouping import alike_divided

if TYPE_CHECKING:
    from ...estimation.model import Model

__all__ = ["Matched", "match"]

PARTS: dict[str, tuple[str, ...]] = {
    "full": ("id", "diagonal", "cs", "csh", "ar1", "ar1h", "ad", "adh", "toep", "toeph", "arma"),
    "toeph": ("id", "diagonal", "cs", "csh", "ar1", "ar1h", "toep", "arma"),
    "toep": ("id", "cs", "ar1", "arma"),
    "adh": ("id", "diagonal", "ad", "ar1", "ar1h"),
    "ad": ("id", "ar1"),
    "ar1h": ("id", "diagonal", "ar1"),
    "csh": ("id", "diagonal", "cs"),
    "ar1": ("id",),
    "cs": ("id",),
    "arma": ("ar1",),
    "diagonal": ("id",),
}
"""What each structure has as members inside, where all variances are positive: a chi-square distribution."""


class Matched(NamedTuple):
    """Terms of two models that are told apart by the structures of their covariances, not by their effects.

    Attributes
    ----------
    free : int
        Parameters added that may take either sign near the smaller model.
    new : tuple of int
        1 for each variance added that is zero in the smaller model.
    new_effects : tuple of str
        The terms of these.
    undetermined : tuple of str
        Terms added of which correlations are not determined where their variances are zero.
    undetermined_parameters : int
        How many parameters these have.
    small, large : sets of int
        Positions of the terms, which are not to be looked at by their effects.
    """

    free: int
    new: tuple[int, ...]
    new_effects: tuple[str, ...]
    undetermined: tuple[str, ...]
    undetermined_parameters: int
    small: frozenset[int]
    large: frozenset[int]


def match(small: Model | None, large: Model) -> Matched | str:
    """Compare the terms that are restricted in either model, or say in words why that cannot be done.

    Parameters
    ----------
    small : Model or None
        None for a model without random effects.
    large : Model
    """
    free, lost, new, effects, undetermined = 0, 0, [], [], []
    of_small: set[int] = set()
    of_large: set[int] = set()
    mine = () if small is None else small.structure.blocks
    for i, block in enumerate(large.structure.blocks):
        partner = None if small is None else _partner(small, large, block, of_small)
        restricted = block.structure not in ("full", "diagonal")
        if partner is None:
            if restricted:
                of_large.add(i)
                term = large.term_names[i]
                if block.structure == "id":
                    new.append(1)
                    effects.append(term)
                else:
                    undetermined.append(term)
                    lost += of_effects_block(block).n_parameters
            continue
        other = mine[partner]
        if not restricted and other.structure in ("full", "diagonal"):
            continue
        of_small.add(partner)
        of_large.add(i)
        if other.structure == block.structure:
            continue
        if other.structure not in PARTS.get(block.structure, ()):
            return f"nothing tells whether {_shown(other)} is part of {_shown(block)}"
        free += of_effects_block(block).n_parameters - of_effects_block(other).n_parameters
    for j, block in enumerate(mine):
        if j not in of_small and block.structure not in ("full", "diagonal"):
            assert small is not None
            return f"its random effects {small.term_names[j]} ({_shown(block)}) are not among those of the larger"
    return Matched(
        free, tuple(new), tuple(effects), tuple(undetermined), lost, frozenset(of_small), frozenset(of_large)
    )


def _partner(small: Model, large: Model, block: Block, taken: set[int]) -> int | None:
    """The term of the smaller model with the same effects of the same groups."""
    columns, grouping = slice(block.start, block.stop), large.factor_of(block).grouping
    Z = None if large.streamed else large.exog_re[:, columns]
    for j, other in enumerate(small.structure.blocks):
        own = small.factor_of(other).grouping
        if j in taken or other.stop - other.start != block.stop - block.start or own.m != grouping.m:
            continue
        if Z is None:
            names = small.exog_re_names[other.start : other.stop]
            if own.name == grouping.name and names == large.exog_re_names[columns]:
                return j
            continue
        alike = alike_divided(own.index, grouping.index, grouping.m)
        if alike and np.array_equal(small.exog_re[:, other.start : other.stop], Z):
            return j
    return None


def _shown(block: Block) -> str:
    return re.sub("^(full|diagonal)$", lambda found: {"full": "us", "diagonal": "diag"}[found[0]], block.structure)
