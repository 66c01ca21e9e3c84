import numpy as np
from numpy.typing import NDArray

from .records import BatchPatterns, BatchResults, BatchRows, BatchSearch

_Array = NDArray[np.float64]

class BatchDesign:
    def __init__(
        self, rows: BatchRows, patterns: BatchPatterns, search: BatchSearch, x_map: _Array, ones: _Array
    ) -> None: ...
    @property
    def n(self) -> int: ...
    @property
    def n_par(self) -> int: ...
    @property
    def p_full(self) -> int: ...
    def fit(
        self, Y: _Array, first: int, reml: bool, criterion_offset: float, start: _Array | None, into: BatchResults
    ) -> None: ...
    def contrasts(
        self, Y: _Array, reml: bool, theta: _Array, rows: _Array
    ) -> tuple[_Array, _Array, _Array, _Array]: ...
