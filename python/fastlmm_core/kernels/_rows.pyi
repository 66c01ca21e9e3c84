import numpy as np
from numpy.typing import NDArray

from .records.rows import RowColumns, Rows

_Array = NDArray[np.float64]

def sample_mean(values: _Array, n_sample: int) -> float: ...
def code_range(codes: NDArray[np.int32] | NDArray[np.int64]) -> tuple[int, int]: ...
def column_scales(columns: _Array, n_sample: int, may_shift: bool, coarse: bool = False) -> tuple[_Array, int]: ...
def accumulate(rows: Rows, columns: RowColumns, jobs: int = 1) -> tuple[_Array, _Array, _Array, bool, bool, bool]: ...
def add_rows(rows: Rows, columns: RowColumns, raw: _Array, sums: _Array, jobs: int = 1) -> tuple[bool, bool]: ...
def within_rows(
    rows: Rows,
    columns: RowColumns,
    position: NDArray[np.int64],
    packed: _Array,
    by_group: bool = False,
    more: _Array | None = None,
) -> _Array: ...
