import numpy as np
from numpy.typing import NDArray

_Array = NDArray[np.float64]
_Index = NDArray[np.intp]

class GapProducts:
    triangle: _Array
    left: _Array
    extent: _Array
    first: _Array
    second: _Array
    first_rest: _Array
    second_rest: _Array
    def __init__(self, columns: _Array, starts: _Index, gap: _Index, n_gaps: int, q: int) -> None: ...
    def at(self, up: _Array, down: _Array, tau1: _Array, tau2: _Array) -> None: ...
