import numpy as np
from numpy.typing import NDArray

_Array = NDArray[np.float64]

def sample_mean(values: _Array, n_sample: int) -> float: ...
def code_range(codes: NDArray[np.int32] | NDArray[np.int64]) -> tuple[int, int]: ...
def column_scales(columns: _Array, n_sample: int, may_shift: bool) -> tuple[_Array, int]: ...
def accumulate(
    X: _Array,
    y: _Array,
    Z: _Array,
    codes: NDArray[np.int32] | NDArray[np.int64],
    base: int,
    n_groups: int,
    weights: _Array | None,
    offset: _Array | None,
    x_shift_scale: _Array,
    z_shift_scale: _Array,
    beta0: _Array,
    x_constant: int,
    z_constant: int,
    x_transform: _Array | None,
    z_transform: _Array | None,
) -> tuple[_Array, _Array, _Array, bool, bool, bool]: ...
def within_rows(
    X: _Array,
    y: _Array,
    Z: _Array,
    codes: NDArray[np.int32] | NDArray[np.int64],
    base: int,
    position: NDArray[np.int64],
    weights: _Array | None,
    offset: _Array | None,
    x_shift_scale: _Array,
    z_shift_scale: _Array,
    beta0: _Array,
    xy_transform: _Array,
    z_transform: _Array,
    packed: _Array,
    by_group: bool = False,
) -> _Array: ...
