import numpy as np
from numpy.typing import NDArray

_Array = NDArray[np.float64]
_Index = NDArray[np.intp]

def visit_keys(starts: _Index, where: _Index, table: _Index, m: int) -> NDArray[np.int64]: ...
def positions_of(where: _Index, starts: _Index, subjects: _Index) -> _Index: ...
def pattern_rows(
    xy: _Array, rows: _Index, starts: _Index, subjects: _Index, begins: _Index
) -> tuple[_Array, _Index, _Array]: ...
def pair_moments(
    residuals: _Array, where: _Index, subjects: _Index, m: int
) -> tuple[_Array, _Array, _Array, _Array, int, int]: ...
