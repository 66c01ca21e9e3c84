"""The compiled kernels that only models with several grouping factors need; loaded with the first such model."""

from __future__ import annotations

from ._factors import CorrelatedBatch, FactorBatch
from ._levels import (
    chain_products,
    components,
    explained,
    nested_in,
    own_products,
    panel_products,
    places_above,
    rotated_products,
    sort_rows,
)
from ._nested import NestedEngine, aligned_zeros, pack
from ._ordering import minimum_degree, spread_products

__all__ = [
    "CorrelatedBatch",
    "FactorBatch",
    "NestedEngine",
    "aligned_zeros",
    "chain_products",
    "components",
    "explained",
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
