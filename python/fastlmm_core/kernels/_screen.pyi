import numpy as np
from numpy.typing import NDArray

from ._newton import Objective

def screen(
    f: Objective, points: NDArray[np.float64], neighbours: NDArray[np.intp]
) -> tuple[NDArray[np.float64], NDArray[np.intp]]: ...
def balanced(
    packed: NDArray[np.float64], within: NDArray[np.float64], q: int, k: int, free: NDArray[np.bool_]
) -> bool: ...
def least_information(packed: NDArray[np.float64], q: int) -> float: ...
