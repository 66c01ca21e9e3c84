import numpy as np
from numpy.typing import NDArray

from ._newton import Objective

_Array = NDArray[np.float64]
_Index = NDArray[np.intp]

class ScriptedObjective(Objective):
    def prepare(self, n_par: int) -> None: ...
    def at(self, x: _Array, order: int) -> tuple[float, float, _Array | None, _Array | None]: ...

class PatternSums:
    n_patterns: int
    n_tables: int
    c: int
    def __init__(
        self,
        rows: _Array,
        size: _Index,
        members: _Index,
        counts: _Array,
        visits: _Index,
        table: _Index,
        table_size: _Index,
        c: int,
    ) -> None: ...
    def reduce(self, tables: list[_Array], roots: bool = False) -> tuple[float, _Array | None]: ...
    def whitened(self) -> _Array: ...
    def weigh(self, turn: _Array) -> None: ...
    def slopes(self, c_n: float, c_e: float, c_x: float) -> list[_Array]: ...
    def curves(self, c_n: float, c_e: float, c_x: float) -> list[_Array]: ...
    def products(self) -> list[_Array]: ...
    def sandwich(self, weights: list[_Array]) -> _Array: ...
