"""Structures of random effects by their names."""

from __future__ import annotations

import re

from ..parameters import Block, CovarianceStructure
from ..residual.catalogue import of_positions
from .blocks import EffectsBlocks
from .names import named
from .reduced_rank import ReducedRank
from .relative import Relative
from .structure import EffectsStructure

__all__ = ["blocks_of", "of_effects", "of_effects_block"]

_RANK = re.compile(r"fa0\((\d+)\)")


def of_effects(name: str, q: int, *, hom: bool | None = None, rank: int | None = None) -> EffectsStructure:
    """The structure of a name for q random effects; see `named`."""
    return _of_block(named(name, q, hom=hom, rank=rank), q)


def _of_block(structure: str, q: int) -> EffectsStructure:
    """The structure of a block of q effects."""
    rank = _RANK.fullmatch(structure)
    if rank:
        return ReducedRank(q, int(rank[1]))
    if structure == "full":
        return ReducedRank(q, q)
    return Relative(of_positions("diag" if structure == "diagonal" else structure, q))


def of_effects_block(block: Block) -> EffectsStructure:
    """The structure of a block."""
    return _of_block(block.structure, block.stop - block.start)


def blocks_of(structure: CovarianceStructure) -> EffectsBlocks:
    """The blocks of a covariance structure, with what restricts them."""
    return EffectsBlocks(tuple(of_effects_block(block) for block in structure.blocks))
