import numpy as np
from numpy.typing import NDArray

_Array = NDArray[np.float64]

def spanning_rows(rest: _Array, most: int, negligible: float) -> _Array | None: ...
