from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

_Array = NDArray[np.float64]

class Evaluated(Protocol):
    """An Objective by what callers see of it: engines are typed by protocols, which no class can be part of."""

    def evaluate(self, theta: _Array, order: int = 0) -> tuple[float, _Array | None, _Array | None]: ...

class Objective:
    @property
    def n_par(self) -> int: ...
    @property
    def costly(self) -> bool: ...
    @property
    def remainder(self) -> float: ...
    @property
    def serial(self) -> bool: ...
    def evaluate(self, theta: ArrayLike, order: int = 0) -> tuple[float, _Array | None, _Array | None]: ...

def eigensystem(matrix: _Array) -> tuple[_Array, _Array]: ...
def minimize_newton(
    f: Evaluated, start: _Array, tolerance: float = 1e-8, max_iterations: int = 200, radius: float = 1.0
) -> tuple[_Array, _Array, _Array, float, float, float, int, list[tuple[float, float, float]], bool]: ...
