import numpy as np
from numpy.typing import NDArray

from .records import Rows

_Array = NDArray[np.float64]

def condition_once(
    rows: Rows, limits: tuple[int, float, float, float, float]
) -> (
    tuple[
        tuple[_Array, NDArray[np.intp] | None, _Array, _Array],
        tuple[_Array, _Array, _Array, _Array, _Array],
        tuple[_Array, _Array, _Array],
        tuple[float, float, int, bool],
    ]
    | None
): ...
