import numpy as np
from numpy.typing import ArrayLike, NDArray

_Array = NDArray[np.float64]

class Objective:
    @property
    def n_par(self) -> int: ...
    def evaluate(self, theta: ArrayLike, order: int = 0) -> tuple[float, _Array | None, _Array | None]: ...

def eigensystem(matrix: _Array) -> tuple[_Array, _Array]: ...
def minimize_newton(
    f: Objective, start: _Array, tolerance: float = 1e-8, max_iterations: int = 200, radius: float = 1.0
) -> tuple[_Array, _Array, _Array, float, float, float, int, list[tuple[float, float, float]], bool]: ...
