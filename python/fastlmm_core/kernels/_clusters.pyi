import numpy as np
from numpy.typing import NDArray

_Array = NDArray[np.float64]
_Index = NDArray[np.intp]

class ClusterSums:
    n: int
    c: int
    q: int
    n_g: int
    n_phi: int
    n_clusters: int
    n_factors: int
    def __init__(
        self,
        rows: _Array,
        Z: _Array,
        start: _Index,
        levels: _Index,
        unit: _Index,
        block: _Index,
        table: _Index,
        place: _Index,
        size: _Index,
        first: _Index,
        count: _Index,
        n_phi: int,
    ) -> None: ...
    def reduce(self, G: _Array, tables: _Array) -> tuple[float, _Array | None]: ...
    def whitened(self) -> _Array: ...
    def weigh(self, turn: _Array) -> None: ...
    def slopes(self, c_n: float, c_e: float, c_x: float) -> tuple[_Array, _Array]: ...
    def curves(self, jacobians: _Array, c_n: float, c_e: float, c_x: float) -> _Array: ...
    def cross(self, jacobians: _Array) -> _Array: ...
    def sandwich(self, jacobians: _Array, weight: _Array) -> _Array: ...
    def within(self, tables: _Array) -> _Array: ...
    def solve(self, columns: _Array) -> _Array: ...
