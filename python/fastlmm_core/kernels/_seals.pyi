import numpy as np
from numpy.typing import NDArray

def line_seals(values: NDArray[np.float64]) -> NDArray[np.uint64]: ...
