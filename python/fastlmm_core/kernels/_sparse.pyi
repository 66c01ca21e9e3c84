import numpy as np
from numpy.typing import NDArray

def sparse_sums(
    start: NDArray[np.int32] | NDArray[np.int64],
    place: NDArray[np.int32] | NDArray[np.int64],
    values: NDArray[np.float64],
    table: NDArray[np.float64],
    group: NDArray[np.int64],
    q: int,
    m: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]: ...
def sparse_seals(
    start: NDArray[np.int32] | NDArray[np.int64],
    place: NDArray[np.int32] | NDArray[np.int64],
    values: NDArray[np.float64],
    n: int,
) -> NDArray[np.uint64]: ...
