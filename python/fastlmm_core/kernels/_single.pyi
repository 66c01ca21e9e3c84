import numpy as np
from numpy.typing import NDArray

from .records.rows import Rows, SharedColumns

_Array = NDArray[np.float64]

def condition_once(
    rows: Rows, limits: tuple[int, float, float, float, float], known: SharedColumns | None = None
) -> (
    tuple[
        tuple[_Array, _Array, _Array],
        tuple[_Array, _Array, float, bool],
        tuple[_Array, _Array, _Array, _Array, _Array, _Array, int, int, NDArray[np.intp] | None, float] | None,
    ]
    | None
): ...
