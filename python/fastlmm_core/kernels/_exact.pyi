import numpy as np
from numpy.typing import NDArray

def add_products(
    values: NDArray[np.float64],
    weights: NDArray[np.float64] | None,
    slots: NDArray[np.int64],
    q: int,
    lines: NDArray[np.float64],
    total: NDArray[np.float64],
) -> None: ...
