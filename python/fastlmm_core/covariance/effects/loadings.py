"""The elements of Lambda as parameters: what every model takes where nothing restricts its covariances."""

from __future__ import annotations

from ..parameters import CovarianceStructure
from .blocks import EffectsBlocks
from .reduced_rank import ReducedRank

__all__ = ["loadings_of"]


def loadings_of(structure: CovarianceStructure) -> EffectsBlocks:
    """The free elements of Lambda as parameters, in the order of theta: what nothing restricts."""
    widths = [
        width
        for block in structure.blocks
        for size in [block.stop - block.start]
        for width in ([size] if block.correlated else [1] * size)
    ]
    return EffectsBlocks(tuple(ReducedRank(width, width) for width in widths))
