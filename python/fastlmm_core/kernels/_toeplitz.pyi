import numpy as np
from numpy.typing import NDArray

_Array = NDArray[np.float64]

def lag_correlations(pi: _Array, order: int) -> tuple[_Array, ...]: ...
