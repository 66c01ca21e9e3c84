import numpy as np
from numpy.typing import NDArray

from .records.objectives import Evaluated as _Evaluated

def falls(
    f: _Evaluated,
    theta: NDArray[np.float64],
    value: float,
    minimum: NDArray[np.float64],
    lowest: float,
    shares: NDArray[np.float64],
) -> bool: ...
def screen(
    f: _Evaluated,
    points: NDArray[np.float64],
    unit: NDArray[np.float64],
    neighbours: NDArray[np.intp],
    minimum: NDArray[np.float64] | None = None,
    lowest: float = ...,
    shares: NDArray[np.float64] | tuple[()] = ...,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.intp]]: ...
def balanced(
    packed: NDArray[np.float64], within: NDArray[np.float64], q: int, k: int, free: NDArray[np.bool_]
) -> bool: ...
def vary_freely(packed: NDArray[np.float64], raw: NDArray[np.float64], q: int, wanted: int, least: float) -> bool: ...
