import numpy as np
from numpy.typing import NDArray

from .records.batches import BatchCriterion, BatchLook, BatchResults
from .records.factors import (
    CorrelatedLeaves,
    CorrelatedParts,
    CorrelatedRows,
    CorrelatedSearch,
    FactorLeaves,
    FactorParts,
    FactorRows,
    FactorScreen,
    FactorSearch,
)

_Array = NDArray[np.float64]

class Shared:
    @property
    def screen(self) -> FactorScreen: ...
    @property
    def n(self) -> int: ...
    @property
    def n_par(self) -> int: ...
    @property
    def p_full(self) -> int: ...
    @property
    def rank(self) -> int: ...
    def fit(
        self,
        Y: _Array,
        first: int,
        criterion: BatchCriterion,
        start: _Array | None,
        into: BatchResults,
        look: BatchLook | None = None,
        known: tuple[_Array, _Array] | None = None,
    ) -> None: ...
    def contrasts(
        self,
        Y: _Array,
        reml: bool,
        theta: _Array,
        rows: _Array,
        coefficients: tuple[_Array, _Array, _Array] | None = None,
    ) -> tuple[_Array, _Array, _Array, _Array]: ...

class FactorBatch(Shared):
    def __init__(
        self,
        rows: FactorRows,
        leaves: FactorLeaves,
        parts: FactorParts,
        search: FactorSearch,
        screen: FactorScreen,
        x_map: _Array,
        ones: _Array,
    ) -> None: ...
    @property
    def search(self) -> FactorSearch: ...
    def moments(self, theta: _Array) -> tuple[_Array, _Array, _Array, _Array, _Array]: ...

class CorrelatedBatch(Shared):
    def __init__(
        self,
        rows: CorrelatedRows,
        leaves: CorrelatedLeaves,
        parts: CorrelatedParts,
        search: CorrelatedSearch,
        screen: FactorScreen,
        x_map: _Array,
        ones: _Array,
    ) -> None: ...
    @property
    def search(self) -> CorrelatedSearch: ...
    def moments(self, theta: _Array) -> tuple[_Array, _Array, _Array, _Array, _Array]: ...
