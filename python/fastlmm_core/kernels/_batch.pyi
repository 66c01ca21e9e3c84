import numpy as np
from numpy.typing import NDArray

from .records.batches import (
    BatchCriterion,
    BatchLook,
    BatchPatterns,
    BatchResults,
    BatchRows,
    BatchScores,
    BatchScreen,
    BatchSearch,
    BatchSums,
)

_Array = NDArray[np.float64]

class BatchDesign:
    def __init__(
        self,
        rows: BatchRows,
        patterns: BatchPatterns,
        search: BatchSearch,
        screen: BatchScreen | None,
        x_map: _Array,
        ones: _Array,
    ) -> None: ...
    @property
    def rows(self) -> BatchRows: ...
    @property
    def patterns(self) -> BatchPatterns: ...
    @property
    def search(self) -> BatchSearch: ...
    def with_screen(self, screen: BatchScreen) -> BatchDesign: ...
    def screen(self) -> BatchScreen | None: ...
    @property
    def n(self) -> int: ...
    @property
    def n_par(self) -> int: ...
    @property
    def p_full(self) -> int: ...
    def sums(
        self,
        Y: _Array,
        columns: NDArray[np.intp] | None = None,
        which: NDArray[np.intp] | None = None,
        seals: NDArray[np.uint64] | None = None,
    ) -> _Array: ...
    def fit(
        self,
        Y: _Array,
        first: int,
        criterion: BatchCriterion,
        start: _Array | None,
        into: BatchResults,
        scores: BatchScores | BatchSums | None = None,
        look: BatchLook | None = None,
        known: tuple[_Array, _Array] | None = None,
    ) -> None: ...
    def contrasts(
        self,
        Y: _Array,
        reml: bool,
        theta: _Array,
        rows: _Array,
        scores: BatchScores | BatchSums | None = None,
        coefficients: tuple[_Array, _Array, _Array] | None = None,
    ) -> tuple[_Array, _Array, _Array, _Array]: ...
