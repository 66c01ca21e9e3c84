"""The compiled kernels that only models with several grouping factors need; loaded with the first such model."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ._factors import CorrelatedBatch, FactorBatch
from ._levels import (
    chain_products,
    components,
    explained,
    leaf_products,
    nested_in,
    own_products,
    panel_products,
    places_above,
    rotated_products,
    sort_rows,
)
from ._nested import FamilySums, NestedEngine, pack
from ._ordering import minimum_degree, spread_products

__all__ = [
    "CorrelatedBatch",
    "FactorBatch",
    "FamilySums",
    "NestedEngine",
    "NestedSums",
    "chain_products",
    "components",
    "explained",
    "leaf_products",
    "minimum_degree",
    "nested_in",
    "own_products",
    "pack",
    "panel_products",
    "places_above",
    "rotated_products",
    "sort_rows",
    "spread_products",
]


class NestedSums(Protocol):
    """The sums of a criterion over the levels of nested factors, wherever these are: see `FamilySums`."""

    def values(self, factors: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        """See `FamilySums`."""

    def derivatives(
        self, factors: NDArray[np.float64], weight: NDArray[np.float64], asked: tuple[int, bool, bool, int]
    ) -> NDArray[np.float64]:
        """See `FamilySums`."""
