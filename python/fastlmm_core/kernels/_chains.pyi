import numpy as np
from numpy.typing import NDArray

from .records.residuals import ChainLinks

_Array = NDArray[np.float64]
_Index = NDArray[np.intp]

class ChainProducts:
    triangle: _Array
    rest: _Array
    first: _Array
    second: _Array
    first_rest: _Array
    second_rest: _Array
    def __init__(self, columns: _Array, starts: _Index, links: ChainLinks, q: int, block: int) -> None: ...

class SubjectSums:
    m: int
    q: int
    c: int
    k: int
    n_g: int
    def __init__(self, m: int, q: int, c: int, k: int, unit: _Index) -> None: ...
    def reduce(self, triangle: _Array, G: _Array) -> tuple[float, _Array]: ...
    def weigh(self, turn: _Array, dA: _Array, ddA: _Array) -> tuple[_Array, _Array, _Array, _Array]: ...
    def along(self, weights: _Array) -> _Array: ...
    def middle(self) -> tuple[_Array, _Array]: ...
