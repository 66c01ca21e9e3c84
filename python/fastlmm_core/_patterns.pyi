import numpy as np
from numpy.typing import NDArray

def compress(packed: NDArray[np.float64], n_groups: int, q: int, k: int) -> NDArray[np.float64] | None: ...
