import numpy as np
from numpy.typing import NDArray

_Array = NDArray[np.float64]

def whiten_residuals(
    residual: _Array, Z: _Array, index: NDArray[np.int64], n_groups: int, G: _Array, weights: _Array | None
) -> _Array: ...
def solve_groups(
    v: _Array, Z: _Array, index: NDArray[np.int64], n_groups: int, factor: _Array, weights: _Array | None
) -> _Array: ...
