import numpy as np
from numpy.typing import NDArray

from .records.stacks import RowsOfDesign, SharedLines, StackedRows, StackResults, StackSearch

_Array = NDArray[np.float64]

class ProblemStack:
    def __init__(self, rows: StackedRows | RowsOfDesign, search: StackSearch) -> None: ...
    @property
    def n_problems(self) -> int: ...
    @property
    def p(self) -> int: ...
    @property
    def q(self) -> int: ...
    @property
    def n_par(self) -> int: ...
    def __reduce__(self) -> tuple[type[ProblemStack], tuple[StackedRows | RowsOfDesign, StackSearch]]: ...
    def fit(self, first: int, last: int, reml: bool, into: StackResults, lines: SharedLines | None = None) -> int: ...
    def contrasts(
        self,
        first: int,
        last: int,
        reml: bool,
        theta: _Array,
        lanes: NDArray[np.intc],
        rows: _Array,
        arrays: tuple[_Array, _Array, _Array, _Array],
    ) -> None: ...
    def moments(
        self, first: int, last: int, theta: _Array, lanes: NDArray[np.intc]
    ) -> tuple[_Array, _Array, _Array, _Array, _Array, _Array]: ...
