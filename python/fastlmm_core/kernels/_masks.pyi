import numpy as np
from numpy.typing import NDArray

def mask_labels(values: NDArray[np.float64]) -> NDArray[np.int64]: ...
