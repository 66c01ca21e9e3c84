import numpy as np
from numpy.typing import NDArray

def line_seals(
    values: NDArray[np.float64], columns: NDArray[np.intp] | None = None, which: NDArray[np.intp] | None = None
) -> NDArray[np.uint64]: ...
